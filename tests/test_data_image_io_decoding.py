"""JPEGs, which OpenCV decodes, against Pillow: the same pixels, the same refusals."""

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.image_io.decoding import decode, decode_jpeg, read_jpeg_header
from data.image_io.images import DataError, EncodedImage
from runtime.errors import UserError
from tests.helpers.drawn_images import draw_waves


def encode(pixels: np.ndarray, **options: Any) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def decode_quickly(content: bytes) -> np.ndarray:
    header = read_jpeg_header(content)
    assert header is not None
    return decode_jpeg(content, header)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_jpegs_are_decoded_to_the_pixels_of_pillow(tmp_path, mode, reduction):
    pixels = draw_waves(203, 157) if mode == "RGB" else draw_waves(203, 157)[:, :, 0]
    Image.fromarray(pixels).save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        image.draft(None, (157 // reduction, 203 // reduction))
        expected = np.asarray(image)
    assert expected.shape[:2] == (-(-203 // reduction), -(-157 // reduction))
    read = EncodedImage(tmp_path / "a.jpg").read(reduction)
    np.testing.assert_allclose(read.astype(int), expected, atol=1)  # each brings a libjpeg of its own


def test_sizes_come_from_the_header_of_a_jpeg(tmp_path):
    Image.fromarray(draw_waves(40, 60)).save(tmp_path / "a.jpg")
    cut_off = (tmp_path / "a.jpg").read_bytes()[:-200]
    (tmp_path / "a.jpg").write_bytes(cut_off)
    assert EncodedImage(tmp_path / "a.jpg").size() == (60, 40)
    with pytest.raises(DataError, match=r"a\.jpg.*complete"):
        EncodedImage(tmp_path / "a.jpg").read()
    Image.fromarray(draw_waves(40, 60)).save(tmp_path / "a.png")
    assert EncodedImage(tmp_path / "a.png").size() == (60, 40)


@pytest.mark.parametrize(
    "options",
    [{"progressive": True}, {"restart_marker_blocks": 4}, {"comment": b"\xff\xd8\xff\xd9"}, {"keep_rgb": True}],
    ids=lambda options: next(iter(options)),
)
def test_what_is_whole_is_opencvs(options, monkeypatch):
    content = encode(np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8), **options)
    expected = decode(content)
    monkeypatch.setattr("data.image_io.decoding.decode", lambda content: pytest.fail("Pillow was asked"))
    np.testing.assert_allclose(decode_quickly(content).astype(int), expected, atol=1)


@pytest.mark.parametrize("num_bytes", [0, 4096])
def test_what_pillow_refuses_is_refused(num_bytes):
    """OpenCV alone would make an image of all of these."""
    rng = np.random.default_rng(0)
    content = encode(rng.integers(0, 256, (1000, 700, 3), np.uint8))
    num_refused = 0
    for place in np.linspace(1000, len(content) - 4100, 10, dtype=int).tolist():
        damage = rng.bytes(num_bytes) or b"\xff" * 40
        broken = content[:place] + damage + content[place + len(damage) :]
        try:
            decode(broken)
        except UserError as error:
            num_refused += 1
            with pytest.raises(UserError, match="complete") as caught:
                decode_quickly(broken)
            assert str(caught.value) == str(error)
    assert num_refused > 4
    for end in (len(content) - 1, len(content) - 2, len(content) // 2):
        with pytest.raises(UserError, match="complete"):
            decode_quickly(content[:end])


def test_bytes_after_the_end_do_no_harm():
    content = encode(draw_waves(40, 60))
    np.testing.assert_array_equal(decode_quickly(content + b"\0\0padding"), decode(content))
