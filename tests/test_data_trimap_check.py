"""What a trimap seems to be where it is none: refused or reported, by the command line and by `Predictor.predict`."""

import re

import cv2
import numpy as np
import pytest

from data.image_io.formats import find_images
from data.image_io.images import DataError
from data.trimap import read_trimap, trimap_for_matting
from inference.inputs import check_pair
from runtime.errors import UserError
from tools import predict


def disc(background: int, unknown: int, foreground: int) -> np.ndarray:
    """A disc (48, 64) with an unknown ring, uint8."""
    y, x = np.mgrid[:48, :64]
    distance = np.hypot(y - 24, x - 32)
    return np.where(distance < 10, foreground, np.where(distance < 16, unknown, background)).astype(np.uint8)


def jpeg(values: np.ndarray, quality: int) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", values, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_GRAYSCALE)


MASK = "seems to be a mask and not a trimap: give it as a mask"
REFUSED = {
    "mask": (disc(0, 255, 255), MASK),
    "inverted mask": (disc(255, 255, 0), MASK),
    "mask as class ids 0 and 2": (disc(0, 2, 2), MASK),
    "mask of floats": (disc(0, 1, 1).astype(np.float32), MASK),
    "mask of RGB": (np.dstack([disc(0, 255, 255)] * 3), MASK),
    "mask of 0 and 1": (disc(0, 1, 1), "only 0 and 1: .* a mask.*give it as a mask"),
    "mask of booleans": (disc(0, 1, 1).astype(bool), "is bool; expected uint8.*give it as a mask"),
    "mask, compressed": (jpeg(disc(0, 255, 255), 95), MASK),
    "soft mask of floats": (
        cv2.blur(disc(0, 1, 1).astype(np.float32), (5, 5)),
        "alpha or a soft mask; give it as a mask",
    ),
    "floats up to 255": (disc(0, 128, 255).astype(np.float32), "divide 0 to 255 by 255"),
    "nearly black and white": (disc(1, 128, 254), "values from 1 to 254.*another black and white.*stretch"),
    "nearly black": (disc(2, 128, 255), "values from 2 to 255.*another black and white"),
    "nearly white": (disc(0, 128, 250), "values from 0 to 250.*another black and white"),
    "video range": (disc(16, 128, 235), r"values from 16 to 235.*in video range \(16 to 235\).*stretch"),
    "low contrast": (disc(64, 128, 192), "values from 64 to 192.*another black and white"),
    "class ids from 1": (disc(1, 2, 3), "values from 1 to 3 alone: class ids of another kind"),
    "many class ids": (disc(0, 7, 20), "values from 0 to 20 alone: class ids of another kind"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_meant_is_refused_with_advice(kind):
    values, words = REFUSED[kind]
    image = np.zeros((48, 64, 3), np.uint8)
    for read in (lambda: trimap_for_matting(values, "t.png"), lambda: check_pair(image, values)):
        with pytest.raises(UserError, match=words) as error:
            read()
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (disc(0, 0, 0), "all is background, nothing is unknown, so alpha is 0"),
        (disc(255, 255, 255), "all is foreground, nothing is unknown, so alpha is 1"),
        (disc(2, 2, 2), "all is foreground"),
        (disc(128, 128, 128), "all is unknown"),
        (disc(0, 128, 128), "no pixel is known foreground; the highest value is 128"),
        (disc(128, 128, 255), "no pixel is known background; the lowest value is 128"),
        (disc(255, 128, 0), "is it inverted"),
        (cv2.blur(disc(0, 255, 255), (7, 7)), "greys are spread as in an alpha or a mask with soft edges"),
    ],
)
def test_what_is_doubtful_is_reported_and_goes_on(values, words, caplog):
    trimap_for_matting(values, "t.png")
    assert re.search(rf"^t\.png: .*{words}", "\n".join(caplog.messages), re.MULTILINE)


@pytest.mark.parametrize(
    "values",
    [
        disc(0, 128, 255),
        disc(0, 127, 255),
        disc(0, 64, 255),
        disc(0, 1, 2),
        disc(0, 1, 2) / 2,
        disc(0, 128, 255) / 255,
    ],
)
def test_a_plain_trimap_is_taken_in_silence(values, caplog):
    np.testing.assert_array_equal(trimap_for_matting(values), disc(0, 1, 2) / 2)
    assert caplog.messages == []


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_the_share_that_compression_made_unknown_is_told(tmp_path, caplog, quality):
    """Against the count of pixels that were 0 or 255 before and are no longer; most of it, and nothing beside."""
    original = cv2.resize(disc(0, 128, 255), (640, 480), interpolation=cv2.INTER_NEAREST)
    cv2.imwrite(str(tmp_path / "t.jpg"), original, [cv2.IMWRITE_JPEG_QUALITY, quality])
    trimap = read_trimap(tmp_path / "t.jpg")
    made_unknown = 100 * ((trimap == 0.5) & (original != 128)).mean()
    (message,) = caplog.messages
    told = float(message.partition("t.jpg: ")[2].partition(" %")[0])
    assert made_unknown > 0.2 and 0.85 * made_unknown <= told <= 1.05 * made_unknown
    assert "JPEG" in message and "PNG" in message


def test_real_trimaps_are_taken_in_silence_and_masks_are_told_from_them(matting_folder, caplog):
    """Trimaps of photographs as they are, compressed, resized; masks of their alphas, hard and with soft edges."""
    folder = matting_folder / "alphamatting"
    for path in find_images(folder / "trimap1")[:6]:
        stored = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        alpha = cv2.imread(str(folder / "alpha" / path.name), cv2.IMREAD_GRAYSCALE)
        mask = np.where(alpha > 127, 255, 0).astype(np.uint8)
        trimap_for_matting(stored)
        assert caplog.messages == []
        smaller = cv2.resize(stored, None, fx=0.37, fy=0.37, interpolation=cv2.INTER_AREA)
        for blurred in (jpeg(stored, 50), smaller):
            trimap_for_matting(blurred)
            assert ["nearly black or white" in message for message in caplog.messages] == [True]
            caplog.clear()
        for hard in (mask, jpeg(mask, 75), jpeg(mask, 95)):
            with pytest.raises(DataError, match="seems to be a mask"):
                trimap_for_matting(hard)
        for soft in (alpha, cv2.resize(mask, None, fx=0.37, fy=0.37, interpolation=cv2.INTER_AREA)):
            trimap_for_matting(soft)
            assert any("spread as in an alpha" in message for message in caplog.messages)
            caplog.clear()


@pytest.mark.parametrize("value", [0, 255])
def test_a_frame_without_the_subject_or_filled_by_it_is_matted(tmp_path, capsys, value):
    for folder in ("images", "trimaps"):
        (tmp_path / folder).mkdir()
        for index in range(3):
            values = disc(0, 128, 255) if index != 1 else disc(value, value, value)
            cv2.imwrite(str(tmp_path / folder / f"{index}.png"), values)
    folders = [str(tmp_path / "images"), "--trimap-dir", str(tmp_path / "trimaps"), "--output", str(tmp_path / "out")]
    assert predict.main([*folders, "--baseline", "closed-form"]) == 0
    assert (cv2.imread(str(tmp_path / "out" / "1.png"), cv2.IMREAD_GRAYSCALE) == value).all()
    assert len(list((tmp_path / "out").iterdir())) == 3
