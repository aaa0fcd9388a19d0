"""Points and scribbles: pixels that someone has labelled as subject or background."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.image_io.images import DataError, read_raw
from data.trimap import BACKGROUND, FOREGROUND, UNKNOWN, decode_trimap

Point = tuple[float, float, int]
"""x and y in px from the upper left corner, and 1 for the subject or 0 for the background."""


MAX_CHARACTERS = 100_000
"""Of points as JSON: a few thousand points."""


def parse_points(text: str) -> list[Point]:
    """Read points from JSON, such as "[[120, 80, 1], [10, 10, 0]]"; see `Point`.

    Raises:
        DataError: too long, no JSON, or something else than points.
    """
    if len(text) > MAX_CHARACTERS:
        raise DataError(f"the points are {len(text)} characters long: at most {MAX_CHARACTERS} are read")
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
    try:
        return [(float(x), float(y), label) for x, y, label in points]
    except OverflowError as error:
        raise DataError("a point lies outside every image: its number has hundreds of digits") from error


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
