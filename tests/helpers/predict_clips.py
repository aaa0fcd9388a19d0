"""Clips with trimaps, and command lines of tools/predict.py for them."""

import cv2
import numpy as np

from data.image_io.images import to_float
from data.trimap import decode_trimap, ramp_alpha
from data.video_io.reading import Clip
from tests.helpers.clips import trimap
from tools import predict

RAMP = ["--baseline", "ramp"]
ALONE = ["--stability", "0"]
TICKS = [0, 512, 1030, 1600, 1700, 3000, 3512, 4024, 5000, 5512, 6000, 6600]  # times of the frames of `clip`


def write_trimaps(folder, numbers=range(12)):
    folder.mkdir()
    for number in numbers:
        cv2.imwrite(str(folder / f"frame_{number:04}.png"), trimap(number))
    return folder


def run(clip, *more, status=0, trimaps=True):
    """Run tools/predict.py on a clip, with the folder `trimaps` beside it, and expect its exit status."""
    given = ["--trimap-dir", clip.parent / "trimaps"] if trimaps else []
    assert predict.main([str(part) for part in (clip, *given, *RAMP, *ALONE, *more)]) == status


def refused(clip, capsys, *arguments, status=1, trimaps=True):
    """Run, expect the exit status, and return the one line that says why."""
    before = {path: path.stat().st_mtime_ns for path in clip.parent.rglob("*")}
    given = ["--trimap-dir", clip.parent / "trimaps"] if trimaps else []
    try:
        assert predict.main([str(part) for part in (clip, *given, *RAMP, *arguments)]) == status
    except SystemExit as error:
        assert error.code == status  # noqa: PT017
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("predict.py: ")]
    assert len(lines) == 1
    assert {path: path.stat().st_mtime_ns for path in clip.parent.rglob("*")} == before
    return lines[0]


def expected_alphas():
    return np.stack([ramp_alpha(decode_trimap(trimap(number))) for number in range(12)])


def assert_written(found, expected):
    """Allow a level of 255: OpenCV's distances, of which ramps are made, vary by 1e-7 from call to call."""
    np.testing.assert_allclose(found, expected, atol=1)


def images_of(clip):
    return [to_float(pixels) for pixels in Clip(clip).frames()]
