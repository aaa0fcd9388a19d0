"""Colours of other spaces than sRGB: the network sees sRGB, what is written keeps space, profile and values."""

import struct
from pathlib import Path

import imagecodecs
import numpy as np
import pillow_heif
import pytest
import tifffile
from PIL import Image, ImageCms

from data.image_io.colour import (
    ADOBE_RGB,
    ADOBE_RGB_GAMMA,
    D65,
    HDR,
    PRIMARIES,
    convert,
    decode_srgb,
    rgb_profile,
    rgb_profile_of_grey,
)
from data.image_io.encoding import encode
from data.image_io.images import DataError, read_colours, read_image, read_raw
from data.image_io.metadata import Metadata
from tests.helpers.image_files import RGB, draw, png, wide_profile
from tools import predict

CMYK_PROFILE = Path("/usr/share/color/icc/ghostscript/default_cmyk.icc")
SPACES = {
    "Adobe RGB": (ADOBE_RGB, ADOBE_RGB_GAMMA),
    "Display P3": (PRIMARIES[12], None),
    "BT.2020 linear": (PRIMARIES[9], 1.0),
}


def to_xyz(primaries):
    """Make the matrix from linear RGB to XYZ, by the definition: white is the sum of the primaries."""
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in (*np.reshape(primaries, (3, 2)), D65)]).T
    return columns[:, :3] * np.linalg.solve(columns[:, :3], columns[:, 3])


def by_matrix(colours, primaries, gamma):
    """Convert to sRGB by the definition of the spaces."""
    linear = decode_srgb(colours) if gamma is None else colours**gamma
    linear = np.clip(linear @ (np.linalg.inv(to_xyz(PRIMARIES[1])) @ to_xyz(primaries)).T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("name", SPACES)
def test_spaces_are_converted_by_their_definition_and_back(name):
    colours = np.random.default_rng(0).random((40, 40, 3))
    profile = rgb_profile(*SPACES[name])
    np.testing.assert_allclose(convert(colours, profile), by_matrix(colours, *SPACES[name]), atol=0.5 / 255)
    inside = convert(colours, None, profile)  # sRGB fits into each of them
    np.testing.assert_allclose(convert(inside, profile), colours, atol=1 / 255)


def stated(tmp_path, kind, codes):
    """Write a file that states its space by numbers of H.273."""
    path = tmp_path / f"{kind}_{codes[0]}_{codes[1]}.{kind}"
    if kind == "png":
        path.write_bytes(png(draw(3), RGB, 8, {b"cICP": bytes([*codes, 0, 1])}))
    else:
        image = pillow_heif.from_pillow(Image.fromarray(draw(3)))
        image.save(path, quality=90, color_primaries=codes[0], transfer_characteristics=codes[1])
    return path


@pytest.mark.parametrize("kind", ["png", "heic"])
def test_numbers_of_h273_are_a_space_and_hdr_is_refused(tmp_path, kind):
    display_p3 = rgb_profile(PRIMARIES[12], None)
    path = stated(tmp_path, kind, (12, 13))
    assert read_colours(path).icc_profile == display_p3
    np.testing.assert_array_equal(read_image(path), convert(read_raw(path) / np.float32(255), display_p3))
    assert read_colours(stated(tmp_path, kind, (1, 13))).icc_profile is None
    for transfer, name in HDR.items():
        with pytest.raises(DataError, match=f"HDR of the curve {name}"):
            read_raw(stated(tmp_path, kind, (9, transfer)))


def test_gamma_and_chromaticities_of_png_and_the_mark_of_cameras(tmp_path):
    linear = {b"gAMA": struct.pack(">I", 100000)}
    (tmp_path / "linear.png").write_bytes(png(draw(3), RGB, 8, linear))
    stored = draw(3) / np.float32(255)
    np.testing.assert_allclose(read_image(tmp_path / "linear.png"), by_matrix(stored, PRIMARIES[1], 1.0), atol=1 / 255)
    numbers = [round(100000 * value) for value in (*D65, *ADOBE_RGB)]
    adobe = {b"gAMA": struct.pack(">I", round(100000 / ADOBE_RGB_GAMMA)), b"cHRM": struct.pack(">8I", *numbers)}
    (tmp_path / "adobe.png").write_bytes(png(draw(3), RGB, 8, adobe))
    np.testing.assert_allclose(
        read_image(tmp_path / "adobe.png"), by_matrix(stored, ADOBE_RGB, ADOBE_RGB_GAMMA), atol=2 / 255
    )
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    Image.fromarray(draw(3)).save(tmp_path / "camera.jpg", exif=exif)
    assert read_colours(tmp_path / "camera.jpg").icc_profile == rgb_profile(ADOBE_RGB, ADOBE_RGB_GAMMA)


def test_a_profile_of_grey_becomes_one_of_rgb_with_the_same_greys(tmp_path):
    levels = np.arange(256, dtype=np.uint8)[None].repeat(4, 0)
    Image.fromarray(levels).save(tmp_path / "grey.png", icc_profile=wide_profile(1.0, "GRAY"))
    expected = by_matrix(np.repeat(levels[..., None] / 255, 3, 2), PRIMARIES[1], 1.0)
    np.testing.assert_allclose(read_image(tmp_path / "grey.png"), expected, atol=1 / 255)
    assert read_colours(tmp_path / "grey.png").icc_profile == rgb_profile_of_grey(wide_profile(1.0, "GRAY"))


@pytest.mark.skipif(not CMYK_PROFILE.exists(), reason="Debian's libgs-common is not installed")
@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_becomes_srgb_by_its_profile(tmp_path, suffix):
    inks = (np.random.default_rng(0).random((3, 3, 4)) * 160).astype(np.uint8).repeat(16, 0).repeat(16, 1)
    path, profile = tmp_path / f"a{suffix}", CMYK_PROFILE.read_bytes()
    Image.fromarray(inks, "CMYK").save(path, icc_profile=profile, quality=100)
    with_16_bit = imagecodecs.cms_transform(
        inks / np.float32(2.55), profile, imagecodecs.cms_profile("srgb"), colorspace="cmyk", outcolorspace="rgb",
        outdtype="uint16", intent=1, flags=0x2000,
    )  # fmt: skip
    np.testing.assert_allclose(read_raw(path) / 255, with_16_bit / 65535, atol=(4 if suffix == ".jpg" else 2) / 255)
    assert np.abs(read_raw(path) - np.asarray(Image.fromarray(inks, "CMYK").convert("RGB")).astype(int)).max() > 20
    assert read_colours(path).icc_profile is None


@pytest.mark.parametrize("profile", [None, wide_profile(), wide_profile()[:200]], ids=["none", "of RGB", "damaged"])
def test_cmyk_without_a_usable_profile_is_converted_by_a_plain_formula(tmp_path, profile):
    inks = Image.fromarray(draw(4), "CMYK")
    inks.save(tmp_path / "a.tif", icc_profile=profile)
    np.testing.assert_array_equal(read_raw(tmp_path / "a.tif"), np.asarray(inks.convert("RGB")))


def test_cielab_becomes_srgb(tmp_path):
    rows, columns = np.mgrid[:16, :16] * 17
    colours = np.stack([rows, columns, 255 - rows], 2).astype(np.uint8)
    to_lab = (ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"))
    lab = ImageCms.profileToProfile(Image.fromarray(colours), *to_lab, outputMode="LAB")
    lab.save(tmp_path / "lab.tif")
    assert np.abs(read_raw(tmp_path / "lab.tif") - colours.astype(int)).mean() < 2  # 8 bits of CIELAB are coarse
    assert np.abs(tifffile.imread(tmp_path / "lab.tif")[..., 1:].view(np.int8)).max() > 40  # it is CIELAB, signed


def photograph(tmp_path):
    """Write a photograph of smooth colours in Adobe RGB with 16 bit, and the same in sRGB, with a trimap."""
    rows, columns = np.mgrid[:60, :80] / 80
    srgb = np.stack([0.2 + 0.6 * columns, 0.3 + 0.5 * rows, 0.5 + 0.3 * np.sin(6 * columns)], 2).astype(np.float32)
    profile = rgb_profile(ADOBE_RGB, ADOBE_RGB_GAMMA)
    stored = np.rint(convert(srgb, None, profile) * 65535).astype(np.uint16)
    (tmp_path / "adobe.png").write_bytes(encode(stored, ".png", metadata=Metadata(profile)))
    (tmp_path / "srgb.png").write_bytes(encode(np.rint(srgb * 65535).astype(np.uint16), ".png"))
    trimap = np.full((60, 80), 128, np.uint8)
    trimap[:, :30], trimap[:, 50:] = 0, 255
    Image.fromarray(trimap).save(tmp_path / "trimap.png")
    return profile, stored, srgb


def run(tmp_path, name, *options):
    output = tmp_path / f"out_{len([*tmp_path.iterdir()])}.png"
    command = [str(tmp_path / name), "--trimap", str(tmp_path / "trimap.png"), "--bits", "16", *options]
    assert predict.main([*command, "--output", str(output)]) == 0
    return output


def test_cut_outs_keep_the_space_and_alpha_is_that_of_the_srgb_version(tmp_path):
    profile, stored, srgb = photograph(tmp_path)
    alpha = read_raw(run(tmp_path, "adobe.png")) / 65535
    assert np.abs(alpha - read_raw(run(tmp_path, "srgb.png")) / 65535).mean() < 0.01
    kept = run(tmp_path, "adobe.png", "--as", "rgba")
    assert read_colours(kept).icc_profile == profile
    np.testing.assert_array_equal(read_raw(kept)[:, 50:, :3], stored[:, 50:])  # where alpha is 1
    converted = run(tmp_path, "adobe.png", "--as", "rgba", "--colour", "srgb")
    assert read_colours(converted).icc_profile is None
    np.testing.assert_allclose(read_raw(converted)[:, 50:, :3] / 65535, srgb[:, 50:], atol=1 / 255)


def test_a_background_is_converted_into_the_space_of_the_photograph(tmp_path):
    profile, stored, _ = photograph(tmp_path)
    teal = np.array((0, 128, 128)) / 255
    over_colour = read_raw(run(tmp_path, "adobe.png", "--background", "teal"))[:, :30] / 65535
    np.testing.assert_allclose(over_colour, np.broadcast_to(convert(teal, None, profile), (60, 30, 3)), atol=1e-4)
    itself = read_raw(run(tmp_path, "adobe.png", "--background", str(tmp_path / "adobe.png")))
    np.testing.assert_array_equal(itself[:, :30], stored[:, :30])
    other = read_raw(run(tmp_path, "srgb.png", "--background", str(tmp_path / "adobe.png")))[:, :30] / 65535
    np.testing.assert_allclose(other, convert(stored[:, :30] / 65535, profile), atol=1e-4)


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_heic_is_read_with_all_its_bits_and_upright(tmp_path, bits):
    rows, columns = np.mgrid[:48, :64] / 64
    smooth = np.stack([columns, rows, 0.5 + 0.4 * np.sin(5 * rows)], 2)
    pixels = np.rint(smooth * 255).astype(np.uint8) if bits == 8 else np.rint(smooth * 65535).astype(np.uint16)
    mode = "RGB" if bits == 8 else "RGB;16"
    image = pillow_heif.from_bytes(mode, (64, 48), pixels.tobytes())
    pillow_heif.options.SAVE_HDR_TO_12_BIT = bits == 12
    image.save(tmp_path / "a.heic", quality=100, chroma=444)
    read = read_raw(tmp_path / "a.heic")
    assert read.dtype == (np.uint8 if bits == 8 else np.uint16) and read.shape == (48, 64, 3)
    assert np.abs(read / np.iinfo(read.dtype).max - smooth).mean() < 0.004 / (1 if bits == 8 else 2)
