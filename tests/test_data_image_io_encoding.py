"""What is encoded is read back by libraries that had no part in writing it."""

from io import BytesIO

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from data.image_io.encoding import FORMATS, RGBA_SUFFIXES, SUFFIXES_16_BIT, encode
from runtime.errors import UserError

SHAPES = [(5, 7), (5, 7, 3), (5, 7, 4), (1, 1), (1, 300), (300, 1, 3), (3, 1, 4)]


def random_pixels(shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def by_opencv(content):
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    return pixels if pixels.ndim == 2 else pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_tiff_is_read_by_tifffile_with_its_kind_of_alpha(shape, dtype):
    pixels = random_pixels(shape, dtype)
    for is_premultiplied, kind in ((False, tifffile.EXTRASAMPLE.UNASSALPHA), (True, tifffile.EXTRASAMPLE.ASSOCALPHA)):
        with tifffile.TiffFile(BytesIO(encode(pixels, ".tif", is_premultiplied))) as file:
            (page,) = file.pages
            np.testing.assert_array_equal(page.asarray(), pixels)
            assert page.offset % 2 == 0  # as the specification asks, and some reader may
            assert page.extrasamples == ((kind,) if pixels.shape[2:] == (4,) else ())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("suffix", SUFFIXES_16_BIT)
def test_16_bit_is_read_by_opencv_to_the_bit(shape, suffix):
    pixels = random_pixels(shape, np.uint16)
    np.testing.assert_array_equal(by_opencv(encode(pixels, suffix)), pixels)


@pytest.mark.parametrize("suffix", [suffix for suffix in FORMATS if suffix not in (".jpg", ".jpeg")])
@pytest.mark.parametrize("shape", SHAPES)
def test_8_bit_is_read_by_pillow_to_the_bit(shape, suffix):
    if shape[2:] == (4,) and suffix not in RGBA_SUFFIXES:
        return
    pixels = random_pixels(shape)
    with Image.open(BytesIO(encode(pixels, suffix.upper()))) as image:
        np.testing.assert_array_equal(np.asarray(image.convert(Image.fromarray(pixels).mode)), pixels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("suffix", [suffix for suffix in FORMATS if suffix not in (".jpg", ".jpeg")])
def test_arrays_may_lie_in_memory_in_any_order(suffix, dtype):
    if dtype == np.uint16 and suffix not in SUFFIXES_16_BIT:
        return
    pixels = random_pixels((5, 7, 3), dtype)
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)).transpose(1, 2, 0)
    turned = np.ascontiguousarray(pixels[::-1, ::-1])[::-1, ::-1]
    columns = np.asfortranarray(pixels[:, :, 0])
    for same, expected in ((planes, pixels), (turned, pixels), (columns, pixels[:, :, 0])):
        assert not same.flags.c_contiguous
        assert encode(same, suffix) == encode(np.ascontiguousarray(expected), suffix)


@pytest.mark.parametrize("suffix", RGBA_SUFFIXES)
def test_colours_stay_where_alpha_is_0(suffix):
    pixels = random_pixels((32, 32, 4))
    pixels[:, :, 3] = 0
    with Image.open(BytesIO(encode(pixels, suffix))) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)


def test_pillow_divides_what_a_tiff_calls_premultiplied():
    pixels = np.array([[[60, 30, 0, 120], [200, 100, 0, 200]]], np.uint8)
    with Image.open(BytesIO(encode(pixels, ".tiff", is_premultiplied=True))) as image:
        np.testing.assert_allclose(np.asarray(image), [[[127, 64, 0, 120], [255, 127, 0, 200]]], atol=1)


def test_a_jpeg_keeps_the_colour_of_a_single_pixel():
    pixels = np.full((16, 16, 3), 255, np.uint8)
    pixels[8, 8] = 255, 0, 0
    error = np.abs(by_opencv(encode(pixels, ".jpg")).astype(int) - pixels)
    assert error.max() <= 16  # 160 at the defaults of quality and subsampling


@pytest.mark.parametrize(
    ("shape", "dtype", "suffix", "words"),
    [
        ((4, 4), np.uint8, "", "expected the name of an image, with a suffix of .bmp, "),
        ((4, 4), np.uint8, ".exr", "expected the name of an image"),
        ((4, 4, 4), np.uint16, ".webp", "WebP holds no 16 bit: take one of .png, .tif, .tiff, or 8 bit"),
        ((4, 4), np.uint16, ".jpg", "JPEG holds no 16 bit"),
        ((4, 4, 4), np.uint8, ".jpeg", "JPEG holds no transparency: take one of .png, .tif, .tiff, .webp"),
        ((4, 4, 4), np.uint8, ".bmp", "BMP holds no transparency"),
        ((0, 4), np.uint8, ".png", r"an empty image cannot be written: shape \(0, 4\)"),
        ((1, 16384), np.uint8, ".webp", "16384 x 1 px cannot be written as WebP .*: take PNG"),
        ((65536, 1), np.uint8, ".jpg", "1 x 65536 px cannot be written as JPEG .*: take PNG"),
        ((2**20 + 1, 1), np.uint16, ".png", r"^1 x 1048577 px cannot be written as PNG \(.*\): take TIFF$"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(shape, dtype, suffix, words):
    with pytest.raises(UserError, match=words):
        encode(np.zeros(shape, dtype), suffix)
