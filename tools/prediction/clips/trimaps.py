"""The trimap of each frame of a clip: found, of a folder, or of another clip."""

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.image_io.formats import MATTED, VIDEO_SUFFIXES, find_images
from data.image_io.images import DataError, to_float
from data.sources.layouts import check_same_size
from data.trimap import WIDTH_PERCENT, band_width_px, read_trimap, trimap_for_matting, trimap_of_mask
from data.video_io.reading import Clip, DamagedClipError
from runtime.errors import few
from tools.prediction.clips.frame_trimap import FrameTrimap, TrimapOf, TrimapSource, last_number
from tools.prediction.clips.keyframes import keyframe_source

NO_SUBJECT = "no subject was found, so alpha is 0"
COLOURED = 32 / 255  # by how much the channels of a trimap clip may differ


def trimap_source(options: argparse.Namespace, clip: Clip, numbers: Sequence[int]) -> TrimapSource:
    """Choose where trimaps come from, as the command line says, and check that there is one for each frame.

    Raises:
        FileNotFoundError: no such file or folder, or no image in it.
        DataError: trimaps are missing, or do not match the clip.
    """
    if options.auto:
        percent = options.width_percent or WIDTH_PERCENT
        return lambda _: partial(found_trimap, clip.path, percent)
    if options.trimap:
        return clip_source(options.trimap, clip)
    band_px = options.width_px or band_width_px(options.width_percent or WIDTH_PERCENT, max(clip.width, clip.height))
    if options.keyframes:
        return keyframe_source(options.keyframes, clip, band_px)
    folder: Path = options.trimap_dir or options.mask
    if options.trimap_dir and folder.is_file():
        raise DataError(f"--trimap-dir {folder} is a file: give it by --trimap")
    files = files_by_number(folder)
    check_all_there(folder, files, numbers)
    if options.trimap_dir:
        return lambda _: lambda number, image: FrameTrimap(sized_trimap(clip, image, files[number]))

    def of_mask(number: int, image: NDArray[np.float32]) -> FrameTrimap:
        size = (clip.width, clip.height)
        trimap = trimap_of_mask(files[number], lambda longer_px: band_px, options.threshold, size)
        return FrameTrimap(trimap_for_matting(trimap, files[number]))

    return lambda _: of_mask


def found_trimap(path: Path, width_percent: float, number: int, image: NDArray[np.float32]) -> FrameTrimap:
    """Find the subject of a frame; all is background if there is none, since a subject may leave the frame."""
    from inference.auto.subject import trimap_of_subject

    try:
        return FrameTrimap(trimap_of_subject(image, width_percent, path))
    except DataError:
        return FrameTrimap(np.zeros(image.shape[:2], np.float32), NO_SUBJECT)


def sized_trimap(clip: Clip, image: NDArray[np.float32], path: Path) -> NDArray[np.float32]:
    """Read the trimap file of a frame, of the same size.

    Raises:
        DataError: no trimap, or of another size.
    """
    trimap = read_trimap(path)
    check_same_size(image, clip.path, trimap, path)
    return trimap


def files_by_number(folder: Path) -> dict[int, Path]:
    """List a folder's images by frame number, the last number of their names without suffix.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        DataError: a name without number, or two of one number.
    """
    files: dict[int, Path] = {}
    for path in find_images(folder, MATTED):
        number = last_number(path)
        other = files.setdefault(number, path)
        if other != path:
            raise DataError(f"{other} and {path.name} are both of frame {number}: remove one of them")
    return files


def check_all_there(folder: Path, files: dict[int, Path], numbers: Sequence[int]) -> None:
    """Raise a DataError if frames have no file."""
    missing = [number for number in numbers if number not in files]
    if not missing:
        return
    advice = "Frames count from 0" + (
        ": extract them by ffmpeg with -start_number 0" if missing == [0] else "; --keyframes needs only a few"
    )
    listed = few([str(number) for number in missing], 5)
    raise DataError(f"{folder}: no file for {len(missing)} of {len(numbers)} frames ({listed}). {advice}")


def clip_source(path: Path, clip: Clip) -> TrimapSource:
    """Read trimaps from another clip, frame by frame.

    Raises:
        DataError: an image, or a clip of another size or number of frames.
    """
    if path.is_dir():
        raise DataError(f"--trimap {path} is a folder: give it by --trimap-dir")
    if path.suffix.lower() not in VIDEO_SUFFIXES and path.is_file():
        raise DataError(f"--trimap {path} is one image for a clip: give a clip of trimaps, or --trimap-dir")
    trimaps = Clip(path)
    if trimaps.num_frames != clip.num_frames:
        raise DataError(f"{path} has {trimaps.num_frames} frames, and {clip.path} {clip.num_frames}: expected as many")
    if (trimaps.width, trimaps.height) != (clip.width, clip.height):
        raise DataError(
            f"{path} is {trimaps.width} x {trimaps.height} px, and {clip.path} {clip.width} x {clip.height} px"
        )

    def source(numbers: Sequence[int]) -> TrimapOf:
        step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
        frames = islice(_named(trimaps, numbers), 0, None, step)
        return lambda number, image: FrameTrimap(trimap_of_frame(next(frames), f"{path}, frame {number}"))

    return source


def _named(trimaps: Clip, numbers: Sequence[int]) -> Iterator[NDArray]:
    """Read frames of a clip of trimaps, whose damage is no damage of the clip that is matted."""
    try:
        yield from trimaps.frames(numbers[0], numbers[-1] + 1)
    except DamagedClipError as error:
        raise DataError(str(error)) from error


def trimap_of_frame(pixels: NDArray, name: str) -> NDArray[np.float32]:
    """Read a frame as a trimap: the nearest of 0, 0.5 and 1, since video codecs blur.

    Args:
        pixels: (H, W, 3) uint8 or uint16.
        name: its name in errors.

    Raises:
        DataError: it is coloured.
    """
    values = to_float(pixels)
    if np.ptp(values, axis=2).max() > COLOURED:
        raise DataError(f"{name}: coloured, and a trimap is grey: 0, 128 and 255")
    return (np.rint(2 * values.mean(axis=2)) / 2).astype(np.float32)
