"""Trimaps of a clip that are carried from a few keyframes, which are files named by frame number or time."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.image_io.colour import convert
from data.image_io.formats import MATTED, find_images
from data.image_io.images import DataError, to_float, to_uint8
from data.trimap import read_trimap, trimap_of_mask
from data.video_io.reading import Clip, DamagedClipError
from inference.video.keyframes import MIN_TRUST, Carried, carried_trimaps
from tools.prediction.clips.frame_trimap import FrameTrimap, TrimapOf, TrimapSource, last_number

NOT_TRUSTED = "the way from the keyframes is not trusted, a keyframe there would help"
TIME = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(\d+(?:\.\d+)?)s$")
"""A time at the end of a name: 7.5s, 1m7.5s, 0h1m7.5s."""

NUM_HELD = 4  # keyframes in memory


def keyframe_source(folder: Path, clip: Clip, band_px: int) -> TrimapSource:
    """Carry the trimaps of a folder to all frames.

    Args:
        folder: of trimaps and masks, each named by the last number in its name, or by a time that ends it; see `TIME`.
        clip: that they belong to.
        band_px: width of the unknown band around a mask.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        DataError: a name without number or time, two files of one frame, a frame that the clip lacks, no trimap and no
            mask, or another size.
    """
    files: dict[int, Path] = {}
    for path in find_images(folder, MATTED):
        number = frame_of(path, clip)
        other = files.setdefault(number, path)
        if other != path:
            raise DataError(f"{other} and {path.name} are both of frame {number}: remove one of them")
    keyframes = _Keyframes(files, band_px)
    for number, path in files.items():
        height, width = keyframes[number].shape
        if (width, height) != (clip.width, clip.height):
            raise DataError(f"{path} is {width} x {height} px, and {clip.path} {clip.width} x {clip.height} px")

    def source(numbers: Sequence[int]) -> TrimapOf:
        step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
        wanted = islice(carried_up_to_damage(keyframes, clip, numbers[0], numbers[-1] + 1), 0, None, step)

        def trimap_of(number: int, image: NDArray[np.float32]) -> FrameTrimap:
            carried = next(wanted)
            return FrameTrimap(carried.trimap, NOT_TRUSTED if carried.trust < MIN_TRUST else "")

        return trimap_of

    return source


def carried_up_to_damage(keyframes: "_Keyframes", clip: Clip, start: int, stop: int) -> Iterator[Carried]:
    """Carry trimaps to frames of a clip; where it is damaged, those of the keyframes before the damage.

    Raises:
        DamagedClipError: a frame that cannot be read is reached.
        DataError: all keyframes lie behind such a frame.
    """

    def frames(first: int, end: int) -> Iterator[NDArray[np.uint8]]:
        return seen_frames(clip, first, end)

    try:
        for carried in carried_trimaps(keyframes, frames, start, stop):
            yield carried
            start += 1
    except DamagedClipError as error:  # what comes back from a keyframe behind it cannot be carried
        before = keyframes.before(error.number)
        if not before:
            raise DataError(f"{error}. All keyframes lie behind it: add one before") from error
        yield from carried_trimaps(before, frames, start, error.number)
        raise


def frame_of(path: Path, clip: Clip) -> int:
    """Find the frame that a keyframe's name means.

    Raises:
        DataError: it names none, or one that the clip lacks.
    """
    if found := TIME.search(path.stem):
        hours, minutes, seconds = (float(part or 0) for part in found.groups())
        number = clip.nearest(3600 * hours + 60 * minutes + seconds)
    else:
        number = last_number(path)
    if number >= clip.num_frames:
        raise DataError(f"{path}: {clip.path} has no frame {number}, they end at {clip.num_frames - 1}")
    return number


class _Keyframes(Mapping[int, NDArray[np.float32]]):
    """Trimaps (H, W) of {0, 0.5, 1} by frame number, read when they are asked for."""

    def __init__(self, files: Mapping[int, Path], band_px: int) -> None:
        self._files, self._band_px = files, band_px
        self._read = lru_cache(NUM_HELD)(self._trimap)

    def before(self, number: int) -> "_Keyframes":
        """Return those of the frames before a frame."""
        return _Keyframes({key: path for key, path in self._files.items() if key < number}, self._band_px)

    def __getitem__(self, number: int) -> NDArray[np.float32]:
        return self._read(self._files[number])

    def __iter__(self) -> Iterator[int]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def _trimap(self, path: Path) -> NDArray[np.float32]:
        """Read a trimap or, if the file is none, a mask."""
        try:
            return read_trimap(path)
        except DataError:
            return trimap_of_mask(path, lambda longer_px: self._band_px)


def seen_frames(clip: Clip, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
    """Read frames as (H, W, 3) sRGB."""
    for pixels in clip.frames(start, stop):
        is_seen = pixels.dtype == np.uint8 and clip.icc_profile is None
        yield pixels if is_seen else to_uint8(convert(to_float(pixels), clip.icc_profile))
