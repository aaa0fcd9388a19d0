"""Results keep the resolution of a photograph and its RGB profile, and colours that are not sRGB are told."""

import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from data.image_io.images import read_raw, write_alpha, write_image, write_rgba
from data.image_io.metadata import NO_METADATA, Metadata, read_metadata
from tests.helpers.image_files import RGB, draw, png, wide_profile
from tools import predict

DPI = (300.0, 300.0)


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def stored_profile(path: Path) -> bytes | None:
    with Image.open(path) as image:
        return image.info.get("icc_profile")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_a_profile_is_read_and_one_of_srgb_is_none(tmp_path, caplog, suffix):
    for name, profile in (("wide", wide_profile()), ("srgb", SRGB), ("none", None)):
        Image.fromarray(draw(3)).save(tmp_path / f"{name}{suffix}", icc_profile=profile)
    assert read_metadata(tmp_path / f"wide{suffix}").icc_profile == wide_profile()
    assert read_metadata(tmp_path / f"srgb{suffix}").icc_profile is None
    assert read_metadata(tmp_path / f"none{suffix}").icc_profile is None
    assert caplog.messages == []


def test_a_damaged_profile_is_told_once_and_ignored(tmp_path, caplog):
    Image.fromarray(draw(3)).save(tmp_path / "damaged.png", icc_profile=wide_profile()[:200])
    for _ in range(2):
        assert read_metadata(tmp_path / "damaged.png").icc_profile is None
    assert len(caplog.messages) == 1 and "its colour profile cannot be read and is ignored" in caplog.text
    (tmp_path / "usual.png").write_bytes(png(draw(3), RGB, 8, {b"gAMA": struct.pack(">I", 45455)}))
    assert read_metadata(tmp_path / "usual.png") == NO_METADATA


@pytest.mark.parametrize(
    ("suffix", "bits"),
    [(".png", 8), (".png", 16), (".tif", 8), (".tif", 16), (".jpg", 8), (".webp", 8), (".bmp", 8)],
)
def test_profile_and_resolution_are_read_back_from_what_is_written(tmp_path, caplog, suffix, bits):
    metadata = Metadata(wide_profile(), DPI)
    image = draw(3) / 255
    write_image(tmp_path / f"with{suffix}", image, bits, metadata)
    write_image(tmp_path / f"without{suffix}", image, bits)
    np.testing.assert_array_equal(read_raw(tmp_path / f"with{suffix}"), read_raw(tmp_path / f"without{suffix}"))
    assert (f"with{suffix}: this format holds no colour profile" in caplog.text) == (suffix == ".bmp")
    caplog.clear()
    read = read_metadata(tmp_path / f"with{suffix}")
    assert read.icc_profile == (None if suffix == ".bmp" else metadata.icc_profile)
    if suffix != ".webp":
        np.testing.assert_allclose(read.dpi, DPI, atol=0.02)
    assert read_metadata(tmp_path / f"without{suffix}").icc_profile is None


def test_tifffile_reads_what_a_tiff_states(tmp_path):
    write_rgba(tmp_path / "a.tif", draw(4) / 255, metadata=Metadata(wide_profile() + b"\0", (300.5, 72)))
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        tags = file.pages[0].tags
        assert tags[34675].value == wide_profile() + b"\0"
        assert (tags[282].value, tags[283].value, tags[296].value) == ((601, 2), (72, 1), 2)
        np.testing.assert_array_equal(file.asarray(), draw(4))


def test_16_bit_tiffs_that_pillow_refuses_have_a_profile_too(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif", draw(3, 16).transpose(2, 0, 1), photometric="rgb", planarconfig="separate",
        iccprofile=wide_profile(), resolution=(118, 118), resolutionunit="centimeter",
    )  # fmt: skip
    metadata = read_metadata(tmp_path / "a.tif")
    assert metadata.icc_profile == wide_profile()
    np.testing.assert_allclose(metadata.dpi, 299.72, atol=0.01)


def test_alpha_is_no_colour(tmp_path):
    for suffix in (".png", ".tif"):
        write_alpha(tmp_path / f"a{suffix}", draw(1)[:, :, 0] / 255, metadata=Metadata(wide_profile(), DPI))
        read = read_metadata(tmp_path / f"a{suffix}")
        assert read.icc_profile is None
        np.testing.assert_allclose(read.dpi, DPI, atol=0.02)


def test_predicted_files_carry_the_profile_of_the_photograph_where_they_have_colours(tmp_path, capsys):
    photo, trimap = tmp_path / "photo.png", tmp_path / "trimap.png"
    Image.fromarray(draw(3)).save(photo, icc_profile=wide_profile(), dpi=DPI)
    levels = np.full((19, 26), 128, np.uint8)
    levels[:, :6], levels[:, -6:] = 0, 255
    Image.fromarray(levels).save(trimap)
    for kind, options in (("alpha", ()), ("rgba", ()), ("composite", ("--background", "teal"))):
        command = [str(photo), "--trimap", str(trimap), "--baseline", "ramp", "--as", kind, *options]
        assert predict.main([*command, "--output", str(tmp_path / f"{kind}.png")]) == 0
        assert stored_profile(tmp_path / f"{kind}.png") == (None if kind == "alpha" else wide_profile())
        with Image.open(tmp_path / f"{kind}.png") as image:
            np.testing.assert_allclose(image.info["dpi"], DPI, atol=0.02)
