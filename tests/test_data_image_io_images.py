"""Pictures of every kind come in as what they hold, and broken ones are named."""

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from data.image_io.decoding import ORIENTATION_TAG, turn_upright
from data.image_io.formats import find_images
from data.image_io.images import (
    DataError,
    as_colours,
    as_grey,
    as_unit_floats,
    read_alpha,
    read_image,
    read_raw,
    read_raw_alpha,
    read_raw_image,
    read_raw_rgba,
    to_float,
    to_uint8,
    to_uint16,
    write_alpha,
    write_image,
    write_rgba,
)
from tests.helpers.image_files import GREY, GREY_ALPHA, PALETTE, RGB, RGBA, random_pixels, write_png
from tests.helpers.paths import REPOSITORY


def read_rgba(path):
    foreground, alpha = read_raw_rgba(path)
    return to_float(foreground), to_float(alpha)


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    return exif


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    ("colour_type", "channels"), [(GREY, [0]), (RGB, [0, 1, 2]), (GREY_ALPHA, [0, 0, 0, 1]), (RGBA, [0, 1, 2, 3])]
)
def test_8_and_16_bit_keep_every_value(tmp_path, dtype, colour_type, channels):
    pixels = random_pixels((5, 7, max(channels) + 1), dtype)
    raw = read_raw(write_png(tmp_path / "a.png", pixels, colour_type))
    assert raw.dtype == dtype
    np.testing.assert_array_equal(np.atleast_3d(raw), pixels[:, :, channels])


def test_palettes_are_looked_up(tmp_path):
    indexes = random_pixels((5, 7)) % 4
    palette = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [200, 100, 0]], np.uint8)
    path = write_png(tmp_path / "p.png", indexes, PALETTE, {b"PLTE": palette.tobytes()})
    np.testing.assert_array_equal(read_raw(path), palette[indexes])
    opacity = np.array([0, 128, 255, 255], np.uint8)
    path = write_png(tmp_path / "t.png", indexes, PALETTE, {b"PLTE": palette.tobytes(), b"tRNS": opacity.tobytes()})
    foreground, alpha = read_rgba(path)
    np.testing.assert_array_equal(to_uint8(foreground), palette[indexes])
    np.testing.assert_array_equal(to_uint8(alpha), opacity[indexes])


def test_grey_palettes_and_rgb_copies_are_read_as_grey(tmp_path):
    values = np.array([0, 128, 255], np.uint8)
    indexes = random_pixels((5, 7)) % 3
    path = write_png(tmp_path / "p.png", indexes, PALETTE, {b"PLTE": np.repeat(values, 3).tobytes()})
    np.testing.assert_array_equal(read_raw_alpha(path), values[indexes])
    grey = random_pixels((5, 7))
    Image.fromarray(grey).convert("RGB").save(tmp_path / "rgb.png")
    Image.fromarray(grey).convert("RGBA").save(tmp_path / "opaque.png")
    Image.fromarray(grey > 99).save(tmp_path / "one_bit.png")
    np.testing.assert_array_equal(read_raw_alpha(tmp_path / "rgb.png"), grey)
    np.testing.assert_array_equal(read_raw_alpha(tmp_path / "opaque.png"), grey)
    np.testing.assert_array_equal(read_alpha(tmp_path / "one_bit.png"), grey > 99)


def test_alphas_that_could_mean_two_things_are_refused(tmp_path):
    Image.fromarray(random_pixels((5, 7, 4))).save(tmp_path / "cut_out.png")
    Image.fromarray(random_pixels((5, 7, 3))).save(tmp_path / "photo.png")
    with pytest.raises(DataError, match=r"cut_out\.png has transparency of its own"):
        read_alpha(tmp_path / "cut_out.png")
    with pytest.raises(DataError, match=r"photo\.png is coloured"):
        read_alpha(tmp_path / "photo.png")
    with pytest.raises(DataError, match=r"photo\.png has no transparency"):
        read_rgba(tmp_path / "photo.png")
    with pytest.raises(DataError, match=r"shape \(2, 3, 4, 5\)"):
        as_grey(np.zeros((2, 3, 4, 5)), "it")


def test_a_picture_with_transparency_is_read_without_it_and_said_so(tmp_path, caplog):
    pixels = random_pixels((5, 7, 4))
    Image.fromarray(pixels).save(tmp_path / "cut_out.png")
    for _ in range(3):  # epochs
        np.testing.assert_array_equal(read_raw_image(tmp_path / "cut_out.png"), pixels[:, :, :3])
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"{tmp_path}/cut_out.png: its transparency is ignored, its colours are taken as they are"
    ]
    pixels[:, :, 3] = 200
    Image.fromarray(pixels).save(tmp_path / "veil.png")
    read_image(tmp_path / "veil.png")
    assert "veil.png: its transparency is ignored" in caplog.text
    Image.fromarray(pixels).convert("RGB").convert("RGBA").save(tmp_path / "opaque.png")
    read_image(tmp_path / "opaque.png")
    assert "opaque.png" not in caplog.text


def test_colours_are_taken_from_arrays_of_any_kind():
    pixels = random_pixels((5, 7, 4), np.uint16)
    for kind, expected in (
        (pixels[:, :, 0], pixels[:, :, [0, 0, 0]]),
        (pixels[:, :, :1], pixels[:, :, [0, 0, 0]]),
        (pixels[:, :, :3], pixels[:, :, :3]),
        (pixels, pixels[:, :, :3]),
    ):
        colours = as_colours(kind)
        assert colours.dtype == np.uint16
        np.testing.assert_array_equal(colours, expected)
    for shape in ((5, 7, 2), (7,), (1, 5, 7, 3)):
        with pytest.raises(DataError, match="the image has shape"):
            as_colours(np.zeros(shape))


def test_floats_off_by_the_rounding_of_a_resize_are_clipped():
    assert as_unit_floats(np.array([-9e-6, 0.25, 1 + 9e-6])).tolist() == [0, 0.25, 1]
    with pytest.raises(DataError, match=r"in \[0, 1\]"):
        as_unit_floats(np.array([0.25, 1.001]))


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_is_converted(tmp_path, suffix):
    ink = cv2.resize(random_pixels((4, 4, 4)), (48, 40), interpolation=cv2.INTER_LINEAR)  # smooth, for JPEG
    Image.fromarray(ink, "CMYK").save(tmp_path / f"ink.{suffix}", quality=100, subsampling=0)
    light = 1 - ink / 255  # that each ink lets through
    tolerance = 1.5 if suffix == "tif" else 12
    raw = read_raw(tmp_path / f"ink.{suffix}")
    np.testing.assert_allclose(raw, 255 * light[:, :, :3] * light[:, :, 3:], rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_a_tiff_calls_premultiplied_is_divided(tmp_path, dtype):
    full_scale = np.iinfo(dtype).max
    straight = random_pixels((20, 30, 4), dtype)
    alpha = straight[:, :, 3] = np.maximum(straight[:, :, 3], full_scale // 2)
    multiplied = straight.copy()
    multiplied[:, :, :3] = np.rint(straight[:, :, :3] * (alpha[:, :, None] / full_scale))
    multiplied[0, 0] = 0
    tifffile.imwrite(tmp_path / "a.tif", multiplied, photometric="rgb", extrasamples=["assocalpha"])
    raw = read_raw(tmp_path / "a.tif")
    assert raw.dtype == dtype and (raw[0, 0] == 0).all()
    np.testing.assert_array_equal(raw[:, :, 3], multiplied[:, :, 3])
    steps = np.abs(raw.astype(int) - straight)[:, :, :3].ravel()[3:]
    assert steps.max() <= 2 and (dtype == np.uint8 or steps.max() == 1)  # Pillow cuts 8 bit, alpha is at least a half


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_honoured_at_any_depth(tmp_path, orientation):
    for suffix in ("png", "tif"):
        for shape, dtype in (((5, 7, 3), np.uint8), ((5, 7), np.uint8), ((5, 7), np.uint16)):
            pixels = random_pixels(shape, dtype)
            path = tmp_path / f"{len(shape)}_{dtype.__name__}.{suffix}"
            Image.fromarray(pixels).save(path, exif=oriented(orientation))
            upright = ImageOps.exif_transpose(with_orientation(pixels, orientation))
            np.testing.assert_array_equal(read_raw(path), np.asarray(upright), err_msg=path.name)
    pixels = random_pixels((5, 7, 3), np.uint16)
    exif = oriented(orientation).tobytes().removeprefix(b"Exif\0\0")
    raw = read_raw(write_png(tmp_path / "colour16.png", pixels, RGB, {b"eXIf": exif}))
    for channel in range(3):
        upright = ImageOps.exif_transpose(with_orientation(pixels[:, :, channel], orientation))
        np.testing.assert_array_equal(raw[:, :, channel], np.asarray(upright))


def with_orientation(pixels: np.ndarray, orientation: int) -> Image.Image:
    image = Image.fromarray(pixels)
    image.getexif()[ORIENTATION_TAG] = orientation
    return image


@pytest.mark.parametrize("compression", [1, 5])
def test_rotated_16_bit_colour_tiff_is_turned_once(tmp_path, compression):
    path = tmp_path / "a.tif"
    pixels = random_pixels((5, 7, 3), np.uint16)
    cv2.imwrite(str(path), pixels[:, :, ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, compression])
    content = path.read_bytes()
    offset = struct.unpack("<I", content[4:8])[0]
    entries = struct.unpack("<H", content[offset : offset + 2])[0]
    table = [content[offset + 2 + 12 * i : offset + 14 + 12 * i] for i in range(entries)]
    table = [entry for entry in table if entry[:2] != struct.pack("<H", 0x0112)]
    table = sorted([*table, struct.pack("<HHII", 0x0112, 3, 1, 6)], key=lambda entry: struct.unpack("<H", entry[:2]))
    directory = struct.pack("<H", len(table)) + b"".join(table) + bytes(4)
    path.write_bytes(content[:4] + struct.pack("<I", len(content)) + content[8:] + directory)
    np.testing.assert_array_equal(read_raw(path), turn_upright(pixels, 6))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp"])
def test_broken_files_are_named(tmp_path, suffix):
    path = tmp_path / f"broken{suffix}"
    Image.fromarray(random_pixels((64, 64, 3))).save(path)
    content = path.read_bytes()
    for part in (content[: len(content) // 2], b"", b"no picture at all"):
        path.write_bytes(part)
        with pytest.raises(DataError, match=rf"broken\{suffix}"):
            read_raw(path)


@pytest.mark.parametrize(("width", "height"), [(0, 0), (0, 5), (5, 0)])
def test_pictures_without_a_pixel_are_named(tmp_path, width, height):
    path = write_png(tmp_path / "nothing.png", np.zeros((1, 1), np.uint8), GREY)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read .*nothing\.png: "):
        read_raw(path)


def test_missing_files_are_missing_and_not_broken(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.png"):
        read_raw(tmp_path / "absent.png")


def test_a_folder_without_rights_is_that_and_not_broken(closed_folder):
    for act in (read_raw, lambda path: write_alpha(path, np.zeros((4, 4)))):
        with pytest.raises(PermissionError, match=rf"Permission denied: '{closed_folder}/a\.png'"):
            act(closed_folder / "a.png")
    with pytest.raises(PermissionError, match=str(closed_folder)):
        find_images(closed_folder)


def test_float_pictures_are_refused(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(DataError, match=r"f\.tif: pixel format 32 bit float"):
        read_raw(tmp_path / "f.tif")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side_px", [12_000, 20_000])
def test_bombs_are_refused_before_they_are_decoded(tmp_path, side_px):
    path = write_png(tmp_path / "bomb.png", np.zeros((1, 1), np.uint8), GREY)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", side_px, side_px)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"bomb\.png: too large .* the limit is 134217728 pixels"):
        read_raw(path)


def test_large_pictures_are_read_without_a_word(tmp_path):
    """99 megapixels, of which Pillow warns; in a process of its own, since pytest exchanges filters of warnings."""
    Image.new("1", (11_000, 9_000)).save(tmp_path / "large.png", compress_level=1)
    code = "import sys; from data.image_io.images import read_raw; print(read_raw(sys.argv[1]).shape)"
    command = [sys.executable, "-W", "default", "-c", code, str(tmp_path / "large.png")]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("(9000, 11000)\n", "")


def test_lists_are_sorted_and_hold_pictures_alone(tmp_path):
    for name in ("b.PNG", "a.jpeg", "c.webp", ".hidden.png", "index.csv", "a.png"):
        (tmp_path / name).touch()
    for name in ("folder", "folder.png"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "d.png").symlink_to("a.png")
    (tmp_path / "lost.png").symlink_to("absent.png")  # not silently left out
    names = ["a.jpeg", "a.png", "b.PNG", "c.webp", "d.png", "lost.png"]
    assert [path.name for path in find_images(tmp_path)] == names
    with pytest.raises(FileNotFoundError, match="no image in"):
        find_images(tmp_path / "folder")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_images(tmp_path / "absent")


@given(st.floats(0, 1))
def test_to_uint8_rounds(value):
    assert to_uint8(np.array([value]))[0] == round(255 * value)


def test_8_bit_survives_the_way_through_float_and_a_file(tmp_path):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(to_uint8(to_float(levels)), levels)
    write_alpha(tmp_path / "a.png", to_float(levels))
    np.testing.assert_array_equal(read_raw(tmp_path / "a.png"), levels)
    image = to_float(random_pixels((5, 7, 3)))
    write_image(tmp_path / "i.png", image)
    np.testing.assert_array_equal(read_image(tmp_path / "i.png"), image)


def test_what_is_no_float_picture_is_not_written(tmp_path):
    for values in (np.array([np.nan]), np.array([np.inf]), np.array([3], np.uint8)):
        with pytest.raises(DataError, match="expected"):
            to_uint8(values)
    with pytest.raises(DataError, match="expected uint8 or uint16"):
        to_float(np.zeros(3))
    with pytest.raises(DataError, match=r"\(H, W, 3\)"):
        write_image(tmp_path / "a.png", np.zeros((4, 4)))
    with pytest.raises(DataError, match=r"\(H, W\)"):
        write_alpha(tmp_path / "a.png", np.zeros((4, 4, 1)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_16_bit_survives_the_way_through_float(dtype):
    levels = np.arange(65536, dtype=np.uint16)
    floats = to_float(levels).astype(dtype)
    tolerance = 16 if dtype == np.float16 else 0
    assert np.abs(to_uint16(floats).astype(int) - levels).max() <= tolerance


@pytest.mark.parametrize(("suffix", "bits"), [(".png", 8), (".png", 16), (".tif", 8), (".tif", 16), (".webp", 8)])
def test_what_is_written_is_read_to_half_a_step(tmp_path, suffix, bits):
    rgba = np.random.default_rng(0).random((12, 17, 4), np.float32)
    rgba[0, :, 3], rgba[1, :, 3] = 0, 1
    half_step = (0.5 + 1e-2) / (2**bits - 1)  # float32 has its own steps
    before = rgba.copy()
    write_rgba(tmp_path / f"rgba{suffix}", rgba, bits)
    write_image(tmp_path / f"image{suffix}", rgba[:, :, :3], bits)
    write_alpha(tmp_path / f"alpha{suffix}", rgba[:, :, 3], bits)
    np.testing.assert_array_equal(rgba, before)
    np.testing.assert_allclose(np.dstack(read_rgba(tmp_path / f"rgba{suffix}")), rgba, rtol=0, atol=half_step)
    np.testing.assert_allclose(read_image(tmp_path / f"image{suffix}"), rgba[:, :, :3], rtol=0, atol=half_step)
    np.testing.assert_allclose(read_alpha(tmp_path / f"alpha{suffix}"), rgba[:, :, 3], rtol=0, atol=half_step)
    assert {read_raw(path).dtype for path in tmp_path.iterdir()} == {np.dtype(f"uint{bits}")}


@pytest.mark.parametrize("bits", [8, 16])
def test_only_a_tiff_says_that_it_is_premultiplied(tmp_path, bits):
    alpha, full_scale = np.linspace(0.5, 1, 40, dtype=np.float32), 2**bits - 1
    straight = np.dstack([np.full((1, 40), colour, np.float32) for colour in (0.9, 0.5, 0.1)])
    rgba = np.dstack([straight * alpha[:, None], alpha[None]])
    for suffix, expected in ((".tif", straight), (".png", straight * alpha[:, None])):
        write_rgba(tmp_path / f"a{suffix}", rgba, bits, is_premultiplied=True)
        colours, read = read_raw_rgba(tmp_path / f"a{suffix}")
        np.testing.assert_allclose(colours, full_scale * expected, rtol=0, atol=2.1)
        np.testing.assert_array_equal(read, np.rint(full_scale * alpha)[None])


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: write_alpha(path, np.zeros((4, 4)), bits=12), "a.png: expected 8 or 16 bit, got 12"),
        (lambda path: write_rgba(path, np.zeros((4, 4, 3))), r"a cut-out \(H, W, 4\) for .*a.png, got \(4, 4, 3"),
        (lambda path: write_alpha(path, np.full((4, 4), np.nan)), r"a.png: expected values in \[0, 1\], got NaN"),
        (lambda path: write_alpha(path, np.zeros((4, 4), np.uint8)), "a.png: expected float values"),
        (lambda path: write_alpha(path.with_suffix(".webp"), np.eye(4), bits=16), "a.webp: WebP holds no 16 bit"),
        (lambda path: write_rgba(path.with_suffix(".jpg"), np.zeros((4, 4, 4))), "a.jpg: JPEG holds no transparency"),
        (lambda path: write_image(path.with_suffix(""), np.zeros((4, 4, 3))), "a: expected the name of an image"),
    ],
)
def test_what_cannot_be_written_leaves_what_was_there(tmp_path, write, words):
    (tmp_path / "a.png").write_bytes(b"before")
    with pytest.raises(DataError, match=words):
        write(tmp_path / "a.png")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


WRITE_ON_A_FULL_DISK = """
import resource, sys
import numpy as np
from data.image_io.images import write_image
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
for path in sys.argv[1:]:
    try:
        write_image(path, np.random.default_rng(0).random((100, 100, 3)))
    except OSError as error:
        print(error.filename)
"""
"""A file may have 10 kB, and the picture has 30."""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the limit is one of Unix")
def test_a_full_disk_leaves_no_half_of_a_picture(tmp_path):
    paths = [tmp_path / f"a{suffix}" for suffix in (".png", ".tif", ".jpg", ".webp", ".bmp")]
    paths[0].write_bytes(b"before")
    command = [sys.executable, "-c", WRITE_ON_A_FULL_DISK, *paths]
    done = subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout.split() == [str(path) for path in paths]
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"before"]


def test_a_picture_is_written_through_a_link_and_with_the_usual_rights(tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "there.png")
    write_alpha(tmp_path / "link.png", np.ones((4, 4)))
    (tmp_path / "usual").touch()
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "there.png").stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert len(list(tmp_path.iterdir())) == 3
