"""Carry the trimaps of a few keyframes to all frames of a clip, by dense optical flow."""

import tempfile
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice, repeat
from typing import IO, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from data.image_io.images import DataError
from data.optical_flow import Flow, follow
from data.trimap import BACKGROUND, FOREGROUND, UNKNOWN, distance_to
from inference.video.flow import enlarged, link, reduced_grey

# Below it a person should add a keyframe. On test clips, all frames whose known pixels are wrong by more than 0.5 % of
# the subject are below 0.5, but for smoke, which flow does not follow (docs/keyframes.md).
MIN_TRUST = 0.6
# Shares of the frame's longer side:
TRUSTED = 0.02  # error of a trusted way: the usual band of 3 %, grown by it, still covers the boundary
HALF_WEIGHT = 0.004  # error that halves a keyframe's weight
MAX_GROWTH = 0.05  # how far the unknown band grows at most
TRUSTED_PX = 5.0  # and of a small clip
GREYS_PER_PX = 2.0  # difference of greys, of 255, that counts like an error of a pixel
DECISION = 0.8  # share of the weights that makes a pixel known against an opposite keyframe
ERROR_STEPS = 8  # a pixel, in what is stored

Trimap = NDArray[np.float32]
Frames = Callable[[int, int], Iterator[NDArray[np.uint8]]]


class Carried(NamedTuple):
    """The trimap of a frame and how far to trust it.

    Attributes:
        trimap: (H, W) in {0, 0.5, 1}.
        trust: 0 to 1, the share of the unknown band's pixels whose way to a keyframe is trusted. 1 for a keyframe, 0
            for a frame that no keyframe reaches, which is unknown everywhere. Report frames below `MIN_TRUST`.
    """

    trimap: Trimap
    trust: float


class _Side(NamedTuple):
    """What one keyframe tells of a frame.

    Attributes:
        trimap: (H, W) in {0, 0.5, 1}.
        error: (h, w) of the way to the keyframe, in pixels of the reduced copies.
    """

    trimap: Trimap
    error: NDArray[np.float32]


def carried_trimaps(keyframes: Mapping[int, Trimap], frames: Frames, start: int, stop: int) -> Iterator[Carried]:
    """Make a trimap for each frame of a clip from those of its keyframes.

    A trimap is carried forwards from the keyframe before and backwards from the keyframe after. The two are blended by
    distance and by how well the flow there and back agrees. The unknown band grows by the error of the flow. Frames
    before the first and behind the last keyframe are carried from one side. Nothing is carried across a cut.

    The result for a frame does not depend on `start` and `stop`. Call it once for all wanted frames, since each call
    carries from the keyframes anew. Memory does not grow with the clip: what waits lies in temporary files.

    Args:
        keyframes: number of the frame, from 0 -> its trimap (H, W) in {0, 0.5, 1}. At least one.
        frames: reads the frames from its first argument up to its second, which it leaves out, as (H, W, 3) sRGB.
        start: first wanted frame.
        stop: end of the wanted frames, which it leaves out.

    Yields: one result per frame.

    Raises:
        DataError: a keyframe's trimap has another size than the frames.
    """
    keys = sorted(keyframes)
    while start < stop:
        place = bisect_right(keys, start)
        before = keys[place - 1] if place else None
        after = keys[place] if place < len(keys) else None
        end = stop if after is None else min(stop, after)
        yield from _between(keyframes, before, after, frames, start, end)
        start = end


def _between(
    keyframes: Mapping[int, Trimap], before: int | None, after: int | None, frames: Frames, start: int, stop: int
) -> Iterator[Carried]:
    """Carry to the frames from `start` up to `stop`; `before` <= `start` and `stop` <= `after` are their keyframes."""
    with tempfile.TemporaryFile() as copies, tempfile.TemporaryFile() as packed:
        forwards: Iterator[_Side | None] = repeat(None)
        backwards: Iterator[_Side | None] = repeat(None)
        if before is not None:
            greys = _greys(frames(before, stop), keyframes[before], before)
            forwards = islice(_carry(keyframes[before], greys), start - before, None)
        if after is not None:
            shape = _store(_greys(frames(start, after + 1), keyframes[after], after), copies)
            sides = islice(_carry(keyframes[after], _reversed(copies, shape)), after + 1 - start)
            backwards = _unpack(packed, _pack(sides, packed), keyframes[after].shape, shape)
        for index in range(start, stop):
            from_before, from_after = next(forwards), next(backwards)
            if before is not None and index == before:
                yield Carried(keyframes[before], 1.0)
            elif before is None or after is None or from_before is None or from_after is None:
                side = from_after if from_before is None else from_before
                shape_px = next(iter(keyframes.values())).shape
                yield _unreached(shape_px) if side is None else _grown(side.trimap, side.error, side.error)
            else:
                yield _blended(from_before, from_after, (index - before) / (after - before))


def _greys(frames: Iterable[NDArray[np.uint8]], trimap: Trimap, number: int) -> Iterator[NDArray[np.uint8]]:
    """Reduce frames to grey copies, and check the size of a keyframe's trimap against theirs."""
    for frame in frames:
        if frame.shape[:2] != trimap.shape:
            sizes = [f"{shape[1]} x {shape[0]} px" for shape in (trimap.shape, frame.shape)]
            raise DataError(f"keyframe {number}: its trimap is {sizes[0]}, but the frames are {sizes[1]}")
        yield reduced_grey(frame)


def _carry(trimap: Trimap, greys: Iterable[NDArray[np.uint8]]) -> Iterator[_Side | None]:
    """Carry a trimap along copies (h, w), the first of which is the keyframe's; None from a cut on.

    The flow is summed up to the keyframe, so that its trimap is resampled once and stays sharp. The flow may agree
    there and back and still slip, so the error also counts how far the frame differs from what lies at the way's end.
    """
    copies = iter(greys)
    first = previous = next(copies)
    way, missed = np.zeros((*first.shape, 2), np.float32), np.zeros(first.shape, np.float32)
    yield _Side(trimap, missed)
    for grey in copies:
        joint = link(grey, previous)
        if joint is None:
            break
        way = joint.flow + follow(way, joint.flow)
        missed = np.hypot(joint.error, follow(missed, joint.flow))
        differing = cv2.GaussianBlur(cv2.absdiff(grey, follow(first, way)).astype(np.float32), (0, 0), 2)
        yield _Side(_fetched(trimap, way), np.hypot(missed, differing / np.float32(GREYS_PER_PX)))
        previous = grey
    yield from repeat(None)


def _fetched(trimap: Trimap, way: Flow) -> Trimap:
    """Fetch a trimap along a flow of reduced copies; what lies halfway between two values is unknown."""
    values = follow(trimap, enlarged(way, trimap.shape))
    return np.select([values > 0.75, values < 0.25], [FOREGROUND, BACKGROUND], UNKNOWN).astype(np.float32)


def _blended(before: _Side, after: _Side, place: float) -> Carried:
    """Blend what two keyframes tell of a frame at `place`, 0 at the one before and 1 at the one after."""
    half_px = HALF_WEIGHT * max(before.error.shape)
    weights = [share / (1 + side.error / half_px) for share, side in ((1 - place, before), (place, after))]
    share = weights[0] / (weights[0] + weights[1])
    error = share * before.error + (1 - share) * after.error
    share_px = cv2.resize(share, before.trimap.shape[::-1], interpolation=cv2.INTER_LINEAR)
    values = share_px * before.trimap + (1 - share_px) * after.trimap
    known = [values >= DECISION, values <= 1 - DECISION]
    trimap = np.select(known, [FOREGROUND, BACKGROUND], UNKNOWN).astype(np.float32)
    return _grown(trimap, error, np.minimum(before.error, after.error))


def _grown(trimap: Trimap, error: NDArray[np.float32], least_error: NDArray[np.float32]) -> Carried:
    """Grow the unknown band by the error (h, w) of the flow; trust where the least error is small."""
    is_trusted = (least_error <= max(TRUSTED * max(error.shape), TRUSTED_PX)).astype(np.uint8)
    unknown = trimap == UNKNOWN
    if not unknown.any():
        return Carried(trimap, float(is_trusted.mean()))
    scale = max(trimap.shape) / max(error.shape)
    reach_px = np.minimum(error * scale, MAX_GROWTH * max(trimap.shape)).astype(np.float32)
    size = trimap.shape[::-1]
    unknown |= distance_to(unknown) <= cv2.resize(reach_px, size, interpolation=cv2.INTER_LINEAR)
    is_trusted = cv2.resize(is_trusted, size, interpolation=cv2.INTER_NEAREST)
    return Carried(np.where(unknown, np.float32(UNKNOWN), trimap), float(is_trusted[unknown].mean()))


def _unreached(shape: tuple[int, ...]) -> Carried:
    """Make the result of a frame that no keyframe reaches."""
    return Carried(np.full(shape, UNKNOWN, np.float32), 0.0)


def _store(greys: Iterable[NDArray[np.uint8]], file: IO[bytes]) -> tuple[int, int]:
    """Append copies to a file; return their shape."""
    shape = 0, 0
    for grey in greys:
        file.write(grey.tobytes())
        shape = grey.shape[0], grey.shape[1]
    return shape


def _reversed(file: IO[bytes], shape: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
    """Read the copies of `_store`, the last first."""
    size = shape[0] * shape[1]
    for place in range(file.tell() - size, -1, -size):
        file.seek(place)
        yield np.frombuffer(file.read(size), np.uint8).reshape(shape)


def _pack(sides: Iterable[_Side | None], file: IO[bytes]) -> list[int]:
    """Append compressed results to a file; return the places of their ends."""
    ends = []
    for side in sides:
        if side is not None:
            labels = (2 * side.trimap).astype(np.uint8)
            error = np.minimum(side.error * ERROR_STEPS, 255).astype(np.uint8)
            file.write(zlib.compress(labels.tobytes() + error.tobytes(), 1))
        ends.append(file.tell())
    return ends


def _unpack(
    file: IO[bytes], ends: list[int], shape: tuple[int, ...], copy_shape: tuple[int, int]
) -> Iterator[_Side | None]:
    """Read the results of `_pack`, the last first; trimaps have `shape`, errors `copy_shape`."""
    for start, end in zip(reversed([0, *ends[:-1]]), reversed(ends), strict=True):
        if start == end:
            yield None
            continue
        file.seek(start)
        values = np.frombuffer(zlib.decompress(file.read(end - start)), np.uint8)
        size = shape[0] * shape[1]
        error = np.asarray(values[size:].reshape(copy_shape) / ERROR_STEPS, np.float32)
        yield _Side(np.asarray(values[:size].reshape(shape) / 2, np.float32), error)
