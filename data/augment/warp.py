"""Sample images through one affine matrix: only the needed part is read, and at the needed scale."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from data.augment.random_crop import Matrix, scaling, translation
from data.composition import merge_foregrounds
from data.image_io.images import EncodedImage, as_colours, to_float
from data.sources.foregrounds import REDUCTIONS, OpenForeground
from data.trimap import ALPHA_TOLERANCE

Array = NDArray[np.float32]

INTERPOLATIONS = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)
INTERPOLATION_REACH_PX = 4  # of Lanczos4
UNIT_SCALE = (1 + 1e-7) / 255**2  # so that 255 x 255 is not below 1; values above are clipped in the end
INVISIBLE_ALPHA = 1e-6  # below it a colour cannot be computed from its premultiplied value, and is not visible


def draw_interpolation(rng: np.random.Generator) -> int:
    """Draw one of OpenCV's nearest, linear, cubic and Lanczos."""
    return int(rng.choice(INTERPOLATIONS))


def sample_layer(source: OpenForeground, to_crop: Matrix, crop_px: int, interpolation: int) -> tuple[Array, Array]:
    """Sample a foreground through a matrix; outside the image it is transparent.

    Args:
        source: foreground and alpha; hidden colours of transparent pixels have no influence on edges.
        to_crop: maps the image's points to the crop's.
        crop_px: side S of the crop.
        interpolation: OpenCV's flag; shrinking by 2 and more averages areas first.

    Returns: alpha (S, S, 1) and foreground (S, S, 3), not premultiplied, in [0, 1].
    """
    layer = np.zeros((crop_px, crop_px, 4), np.float32)
    window = read_window(source, to_crop, crop_px)
    visible = None if window is None else crop_to_visible(window)
    if visible is None:
        return split_layer(layer)
    top, bottom, left, right = find_bounds(visible, crop_px)
    part = layer[top:bottom, left:right]
    if part.size:
        offset = translation(np.array([-left, -top]))
        moved = visible._replace(to_crop=offset @ visible.to_crop)
        part[:] = warp(premultiply(visible.colours, visible.alpha), moved, part.shape[1::-1], interpolation)
        clear_outside(part, source.size, np.linalg.inv(offset @ to_crop))
    return split_layer(layer)


class Window(NamedTuple):
    """The part of an image that a crop needs.

    Args:
        colours: raw (h, w, 3), not premultiplied.
        alpha: raw (h, w).
        to_crop: maps their points to the crop's.
        shrinking: at least 1; the factor by which areas are averaged before the warp.
        step_px: least whole number of pixels that is also a whole number of areas.
    """

    colours: NDArray
    alpha: NDArray
    to_crop: Matrix
    shrinking: float
    step_px: int


def read_window(source: OpenForeground, to_crop: Matrix, crop_px: int) -> Window | None:
    """Read the part of an image that a crop needs, reduced as far as its files offer; None if there is none.

    Args:
        source: see `sample_layer`, as for `to_crop` and `crop_px`.
    """
    to_image = np.linalg.inv(to_crop)
    shrinking = max(1, int(np.sqrt(abs(np.linalg.det(to_image))) + 1e-6))  # whole ones are so up to rounding
    reduction = max(number for number in REDUCTIONS if number <= shrinking)
    corners = crop_px * np.array([[0, 0], [0, 1], [1, 0], [1, 1]]) @ to_image[:2, :2].T + to_image[:2, 2]
    # In whole areas counted from the image's corner: every crop averages the same areas.
    step = math.lcm(reduction, shrinking)
    reach = INTERPOLATION_REACH_PX * shrinking
    first = step * np.floor((corners.min(axis=0) - reach) / step).astype(int).clip(0)
    last = step * np.ceil((corners.max(axis=0) + reach) / step).astype(int)
    last = np.minimum(last, source.size)
    if (first >= last).any():
        return None
    (left, top), (right, bottom) = first.tolist(), last.tolist()
    colours, alpha = source.read((left, top, right, bottom), reduction)
    to_crop = to_crop @ translation(first) @ scaling(reduction)
    return Window(colours, alpha, to_crop, shrinking / reduction, step // reduction)


def crop_to_visible(window: Window) -> Window | None:
    """Remove the transparent margin beyond the reach of interpolation; None if all pixels are transparent."""
    rows, columns = np.flatnonzero(window.alpha.any(axis=1)), np.flatnonzero(window.alpha.any(axis=0))
    if not len(rows):
        return None
    step, reach = window.step_px, INTERPOLATION_REACH_PX * window.shrinking
    (top, bottom), (left, right) = (
        (max(0, step * math.floor((place[0] - reach) / step)), step * math.ceil((place[-1] + 1 + reach) / step))
        for place in (rows, columns)
    )
    part = np.s_[top:bottom, left:right]
    to_crop = window.to_crop @ translation(np.array([left, top]))
    return window._replace(colours=window.colours[part], alpha=window.alpha[part], to_crop=to_crop)


def find_bounds(window: Window, crop_px: int) -> tuple[int, int, int, int]:
    """Find the rows (first, end) and columns (first, end) of the crop that a window's pixels can reach."""
    height, width = window.alpha.shape
    corners = np.array([[0, 0, 1], [0, height, 1], [width, 0, 1], [width, height, 1]]) @ window.to_crop.T
    left, top = np.floor(corners.min(axis=0)[:2]).astype(int).clip(0, crop_px).tolist()
    right, bottom = np.ceil(corners.max(axis=0)[:2]).astype(int).clip(0, crop_px).tolist()
    return top, bottom, left, right


def premultiply(colours: NDArray, alpha: NDArray) -> NDArray:
    """Join raw colours (h, w, 3), multiplied by alpha, and raw alpha (h, w) to float32 (h, w, 4) in [0, 1]."""
    if colours.dtype == alpha.dtype == np.uint8:
        opaque = cv2.cvtColor(colours, cv2.COLOR_RGB2RGBA)
        return cv2.multiply(opaque, cv2.merge([alpha] * 4), scale=UNIT_SCALE, dtype=cv2.CV_32F)
    weights = to_float(alpha)
    return cv2.merge([*(to_float(np.ascontiguousarray(colours[:, :, c])) * weights for c in range(3)), weights])


def warp(image: NDArray, window: Window, size: tuple[int, int], interpolation: int) -> NDArray:
    """Warp an image (h, w, C) of a window's pixels into a crop of (width, height); its border is repeated outside."""
    to_crop = window.to_crop
    if window.shrinking > 1:
        height, width = image.shape[:2]
        below, right = -height % window.step_px, -width % window.step_px
        image = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE)
        smaller = round((width + right) / window.shrinking), round((height + below) / window.shrinking)
        image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
        to_crop = to_crop @ scaling(window.shrinking)
    half = np.full(2, 0.5)
    by_index = translation(-half) @ to_crop @ translation(half)  # OpenCV puts pixel i at i, not at i + 0.5
    return cv2.warpAffine(image, by_index[:2], size, flags=interpolation, borderMode=cv2.BORDER_REPLICATE)


def clear_outside(layer: NDArray, size: tuple[int, int], to_image: Matrix) -> None:
    """Set to 0, in place, the pixels of a crop (H, W, C) whose centre lies outside an image of this (width, height).

    Sampling repeats the image's border, and this function removes it. Blending with zeros would draw a seam where the
    border of its image cuts a foreground.
    """
    rows, columns = (np.arange(length, dtype=np.float32) + np.float32(0.5) for length in layer.shape[:2])
    inside: NDArray[np.bool_] | None = None
    for (along_x, along_y, offset), side in zip(to_image[:2].astype(np.float32), size, strict=True):
        ends = along_x * columns[[0, -1]] + along_y * rows[[0, -1], None] + offset
        if ends.min() < 0 or ends.max() > side:
            coordinate = along_x * columns + (along_y * rows[:, None] + offset)
            is_between = (coordinate >= 0) & (coordinate <= side)
            inside = is_between if inside is None else inside & is_between
    if inside is not None:
        layer[~inside] = 0


def merge_layers(layers: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Merge foregrounds, the upper one first; a lower one that would make the result completely opaque is skipped.

    Args:
        layers: at least one pair of alpha (S, S, 1) and foreground (S, S, 3).

    Returns: such a pair.
    """
    alpha, foreground = layers[0]
    for lower in layers[1:]:
        merged, merged_foreground = merge_foregrounds(triple(alpha), foreground, triple(lower[0]), lower[1])
        if (merged[:, :, 0] < 1 - ALPHA_TOLERANCE).any():
            alpha, foreground = merged[:, :, :1], merged_foreground
    return alpha, foreground


def triple(alpha: Array) -> Array:
    """Repeat an alpha (S, S, 1) to (S, S, 3): arithmetic on equal shapes is several times as fast."""
    return cv2.merge([alpha] * 3).astype(np.float32, copy=False)


def split_layer(layer: Array) -> tuple[Array, Array]:
    """Split a premultiplied layer (S, S, 4) into alpha (S, S, 1) and foreground (S, S, 3), not premultiplied.

    Both are clipped to [0, 1] after the division, because cubic and Lanczos overshoot equally in both.
    """
    red, green, blue, alpha = cv2.split(layer)
    visible = np.maximum(alpha, np.float32(INVISIBLE_ALPHA))
    foreground = cv2.merge([red / visible, green / visible, blue / visible])
    return alpha.clip(0, 1)[:, :, None], foreground.clip(0, 1)


def crop_background(
    background: EncodedImage, frame: NDArray[np.floating], window_px: float, crop_px: int, rng: np.random.Generator
) -> Array:
    """Crop a background as if it were resized to cover the frame, at a random place, and resize the crop.

    Args:
        background: image of any size; one much larger than the crop is decoded reduced if its format allows.
        frame: (width, height) in px.
        window_px: side of the window in the frame; if the background is too small, it is scaled more.
        crop_px: side S of the result.
        rng: generator to draw from.

    Returns: (S, S, 3) in [0, 1].
    """
    size = np.array(background.size())
    enlargement = (frame / size).max()
    side = max(1, round(min(window_px / enlargement, size.min())))
    left, top = rng.integers(size - side, endpoint=True)
    reduction = max(number for number in REDUCTIONS if number == 1 or number * crop_px <= side)
    colours = as_colours(background.read(reduction), background.path)
    along_x, along_y = colours.shape[1] / size[0], colours.shape[0] / size[1]  # 1 where the format comes whole
    top, left = round(top * along_y), round(left * along_x)
    window = colours[top : top + max(1, round(side * along_y)), left : left + max(1, round(side * along_x))]
    interpolation = cv2.INTER_AREA if side >= 2 * crop_px else draw_interpolation(rng)
    return to_float(cv2.resize(window, (crop_px, crop_px), interpolation=interpolation))
