"""Alpha without a trained network: closed-form matting, by the optional package pymatting."""

import logging
from types import FunctionType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from data.image_io.images import DataError, as_colours, as_unit_floats
from data.trimap import BACKGROUND, FOREGROUND, UNKNOWN, decode_trimap, ramp_alpha, unknown_mask
from runtime.errors import UserError
from runtime.optional_packages import import_extra

logger = logging.getLogger(__name__)

MAX_SOLVED_PIXELS = 2**20
"""Larger ones are solved reduced. At this size, a quarter of it unknown, it takes 0.8 GB and 10 s on one core."""

MARGIN_PX = 32
"""Kept around the unknown pixels. Two would do, since the equations couple a pixel with those at most 2 px away; the
rest is for what is solved reduced."""

MIN_SIDE_PX = 3  # of the windows in which alpha is linear in the colours
WINDOW_PX = (3, 3)
REGULARISATION = 1e-5
"""Added to the covariance of a window's colours. Of 1e-5, 1e-4 and 1e-3, each with windows of 3 and 5 px, the best on
nine photographs of alphamatting.com reduced two- and threefold."""


def closed_form_alpha(image: NDArray, trimap: NDArray) -> NDArray[np.float32]:
    """Solve for the alpha that is linear in the colours of every 3 x 3 window, as nearly as can be.

    Where the unknown pixels and `MARGIN_PX` around them cover more than `MAX_SOLVED_PIXELS`, alpha is solved on a
    reduced copy, and the linear functions of colour found there give alpha at full size. Without known foreground or
    background there, of which a warning is logged, or of an image less than 3 px wide, alpha is
    `data.trimap.ramp_alpha`.

    Source: Levin, Lischinski and Weiss, A Closed-Form Solution to Natural Image Matting; coarse to fine, its section 4.

    Args:
        image: (H, W, 3) RGB, or what else `data.image_io.images.as_colours` takes; uint8, uint16, or float in [0, 1].
        trimap: (H, W) uint8 of 0, 128, 255 or float of 0, 0.5, 1; see `data.trimap.decode_trimap`.

    Returns: (H, W) in [0, 1]; 0 and 1 on known pixels.

    Raises:
        DataError: sizes differ, or values are not those above.
        MissingExtraError: pymatting is not installed.
        UserError: the equations are not solved in pymatting's limit of steps.
    """
    colours, alpha = as_unit_floats(as_colours(image), "the image"), decode_trimap(trimap)
    if colours.shape[:2] != alpha.shape:
        raise DataError(f"expected image and trimap of one size, got {colours.shape} and {alpha.shape}")
    unknown = unknown_mask(alpha)
    if not unknown.any():
        return alpha
    part = _surroundings(unknown)
    cut_image, cut_trimap = colours[part], alpha[part]
    reduction = max(cut_trimap.size / MAX_SOLVED_PIXELS, 1) ** 0.5
    if reduction == 1:
        solved = _solve(cut_image, cut_trimap)
    else:
        width, height = (max(int(side / reduction), 1) for side in cut_trimap.shape[::-1])
        small_image = cv2.resize(cut_image, (width, height), interpolation=cv2.INTER_AREA).clip(0, 1)
        share = cv2.resize(cut_trimap, (width, height), interpolation=cv2.INTER_AREA)
        # Known is what covers known pixels of one side alone, up to rounding.
        small_trimap = np.where(np.abs(share - UNKNOWN) < UNKNOWN - 1e-3, UNKNOWN, share.round()).astype(np.float32)
        solved = enlarge(_solve(small_image, small_trimap), small_image, cut_image)
    alpha[part] = np.where(unknown[part], solved, cut_trimap)
    return alpha


def _surroundings(unknown: NDArray) -> tuple[slice, slice]:
    """Rows and columns of the box around the pixels of a mask (H, W), with its margin."""
    spans = []
    for axis in (1, 0):
        marked = np.flatnonzero(unknown.any(axis=axis))
        spans.append(slice(max(int(marked[0]) - MARGIN_PX, 0), int(marked[-1]) + 1 + MARGIN_PX))
    return spans[0], spans[1]


def _solve(image: NDArray[np.float32], trimap: NDArray[np.float32]) -> NDArray[np.float32]:
    """Closed-form alpha at this very size."""
    if min(trimap.shape) < MIN_SIDE_PX:
        return ramp_alpha(trimap)
    sides = {"foreground": FOREGROUND, "background": BACKGROUND}
    if absent := [side for side, value in sides.items() if not (trimap == value).any()]:
        logger.warning(
            "the trimap knows no %s near its unknown pixels: alpha is of distances alone, not of colours",
            " and no ".join(absent),
        )
        return ramp_alpha(trimap)
    pymatting = import_extra("pymatting", "closed-form matting")
    colours, regions = image.astype(np.float64), trimap.astype(np.float64)
    try:
        alpha = pymatting.estimate_alpha_cf(colours, regions, preconditioner=_silent_ichol)
    except ValueError as error:
        raise UserError(f"closed-form matting finds no alpha: {error}") from error
    return alpha.astype(np.float32)


def _silent_ichol(matrix: Any) -> Any:
    """pymatting's default preconditioner of a sparse matrix, without the warnings that it prints.

    It is run with a `print` of its own, since `sys.stdout` belongs to all threads.
    """
    ichol = import_extra("pymatting", "closed-form matting").ichol
    names = {**ichol.__globals__, "print": lambda *words: None}
    return FunctionType(ichol.__code__, names, argdefs=ichol.__defaults__)(matrix)


def enlarge(
    alpha: NDArray[np.float32], small_image: NDArray[np.float32], image: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Apply at full size the linear functions of colour that give alpha at the reduced one.

    In each window w of the reduced image alpha is fitted by a . I + b, a = (cov(I) + eps)^-1 cov(I, alpha); means of
    a and b over the windows of a pixel, enlarged, apply to the colours of the full image. This is the fast guided
    filter of He and Sun (2015).

    Args:
        alpha: (h, w) in [0, 1].
        small_image: (h, w, 3) RGB in [0, 1], the reduced copy.
        image: (H, W, 3) RGB in [0, 1].

    Returns: (H, W) in [0, 1].
    """
    colours, values = small_image.astype(np.float64), alpha.astype(np.float64)
    mean_colour, mean_alpha = _window_mean(colours), _window_mean(values)
    covariance = np.empty((*values.shape, 3, 3))
    for channel in range(3):
        products = _window_mean(colours * colours[:, :, [channel]])
        covariance[:, :, channel] = products - mean_colour * mean_colour[:, :, [channel]]
    covariance += REGULARISATION * np.eye(3)
    with_alpha = _window_mean(colours * values[:, :, None]) - mean_colour * mean_alpha[:, :, None]
    slope = np.linalg.solve(covariance, with_alpha[:, :, :, None])[:, :, :, 0]
    offset = mean_alpha - (slope * mean_colour).sum(axis=2)
    enlarged = _resize(_window_mean(offset), image)
    for channel in range(3):
        enlarged += _resize(_window_mean(slope[:, :, channel]), image) * image[:, :, channel]
    return enlarged.clip(0, 1)


def _window_mean(values: NDArray) -> NDArray:
    return cv2.blur(values, WINDOW_PX)


def _resize(values: NDArray, image: NDArray) -> NDArray:
    return cv2.resize(values.astype(np.float32), image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
