"""What is seen behind the subject of a clip: a colour, an image, or the frame of another clip at the same time."""

from bisect import bisect_right
from collections.abc import Callable, Iterator

from numpy.typing import NDArray

from data.image_io.exr import SceneLinear
from data.image_io.images import Colours, DataError, to_float
from data.image_io.light import to_light
from data.video_io.reading import Clip, DamagedClipError
from tools.prediction.clips.command_line import is_clip
from tools.prediction.steps import read_background

Behind = Callable[[float], Colours | SceneLinear]
"""Seconds since the clip's first frame -> what is behind the subject then."""


def backdrop(name: str, is_in_light: bool, exposure: float) -> Behind:
    """Open a background. An image is converted once, for all frames.

    Args:
        name: colour, image or clip.
        is_in_light: whether it is blended in linear light, or as it is shown on a display.
        exposure: stops by which an EXR image is brightened before it is shown.

    Raises:
        DataError: neither a colour, an image nor a clip.
        OSError: it may not be read.
    """
    if is_clip(name):
        return BackgroundClip(Clip(name))
    found = read_background(name)
    if is_in_light:
        found = found if isinstance(found, SceneLinear) else SceneLinear(to_light(*found))
    elif isinstance(found, SceneLinear):
        found = Colours(found.shown(exposure))
    return lambda seconds: found


class BackgroundClip:
    """A clip that plays behind the subject from the same moment on, and starts again when it ends.

    Asked for increasing times, it decodes each frame once.
    """

    def __init__(self, clip: Clip) -> None:
        self.clip = clip
        self._starts = [clip.seconds(number) for number in range(clip.num_frames)]
        self._length = clip.seconds(clip.num_frames)
        self._frames: Iterator[NDArray] = iter(())
        self._number = -1
        self._shown: NDArray | None = None

    def __call__(self, seconds: float) -> Colours:
        """Return the frame that is shown at a time since the start."""
        number = bisect_right(self._starts, seconds % self._length + 1e-6) - 1
        if self._shown is None or number < self._number:
            self._frames, self._number = self.clip.frames(number), number - 1
        try:
            while self._number < number:
                self._shown = next(self._frames)
                self._number += 1
        except DamagedClipError as error:
            raise DataError(str(error)) from error
        assert self._shown is not None, "a clip has a frame"
        return Colours(to_float(self._shown), self.clip.icc_profile)
