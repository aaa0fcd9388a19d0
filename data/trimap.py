"""Read, make and write trimaps: {0, 128, 255} on disk, {0, 0.5, 1} in arrays, one decoder for all."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from data.image_io.images import DataError, as_grey, read_raw_alpha, read_values, write_alpha
from data.mask import decode_mask, read_mask, resize_mask
from data.trimap_check import MASK_ADVICE, check_meaning
from runtime.errors import ConfigError

if TYPE_CHECKING:  # processes that only measure must not load torch
    from torch import Tensor

logger = logging.getLogger(__name__)

BACKGROUND, UNKNOWN, FOREGROUND = 0.0, 0.5, 1.0
STORED_VALUES = (0, 128, 255)  # of BACKGROUND, UNKNOWN and FOREGROUND in a file
FLOAT_TOLERANCE = 1 / 255  # takes in 127 / 255 and 128 / 255, the two 8-bit neighbours of 0.5
ALPHA_TOLERANCE = 0.5 / 255  # an alpha this close to 0 or 1 is stored as 0 or 255 in 8 bit

Trimap = TypeVar("Trimap", NDArray[np.floating], "Tensor")


def decode_trimap(values: NDArray, name: str | Path = "the trimap") -> NDArray[np.float32]:
    """Convert a stored trimap to 0 background, exactly 0.5 unknown, 1 foreground.

    uint8 with maximum 2 holds class ids 0, 1, 2; otherwise 0 and 255 are known, and other values unknown. Floats are
    0, 0.5 or 1 within `FLOAT_TOLERANCE`.

    Args:
        values: (H, W) uint8 or float, or RGB(A) copies of it with equal channels.
        name: its name in errors, a path for instance.

    Returns: (H, W) in {0, 0.5, 1}, a new array.

    Raises:
        DataError: another dtype or shape; uint8 with maximum 1, which may be class ids or a mask; other float values.
    """
    values = as_grey(values, name)
    if values.size == 0:
        raise DataError(f"{name} is empty: shape {values.shape}")
    if values.dtype == np.uint8:
        return _decode_uint8(values, name)
    if np.issubdtype(values.dtype, np.floating):
        trimap = np.rint(2 * values) / 2
        if (np.abs(values - trimap) <= FLOAT_TOLERANCE).all() and trimap.min() >= 0 and trimap.max() <= 1:
            return trimap.astype(np.float32)
        found = f"{name} holds floats between {values.min():.4g} and {values.max():.4g} that are not 0, 0.5 or 1"
        if 1 < values.max() <= 255:
            raise DataError(f"{found}: divide 0 to 255 by 255")
        raise DataError(f"{found}, so it seems to be an alpha or a soft mask; {MASK_ADVICE}")
    found = f"{name} is {values.dtype}; expected uint8 with 0, 128, 255, or floats 0, 0.5, 1"
    raise DataError(f"{found}: {MASK_ADVICE}" if values.dtype == bool else f"{found}: convert it")


def _decode_uint8(values: NDArray[np.uint8], name: str | Path) -> NDArray[np.float32]:
    highest = int(values.max())
    if highest == 1:
        raise DataError(
            f"{name} holds only 0 and 1: class ids without foreground, or a mask? Store 0, 128, 255, or {MASK_ADVICE}"
        )
    table = np.full(256, UNKNOWN, np.float32)
    table[0] = BACKGROUND
    table[2 if highest == 2 else 255] = FOREGROUND
    return table[values]


def encode_trimap(trimap: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Convert 0, 0.5, 1 to 0, 128, 255, in any shape.

    Raises:
        DataError: another value.
    """
    if not np.isin(trimap, (BACKGROUND, UNKNOWN, FOREGROUND)).all():
        raise DataError("expected a trimap of 0, 0.5 and 1 alone: pass it through decode_trimap first")
    return np.ceil(trimap * 255).astype(np.uint8)


def trimap_for_matting(values: NDArray, name: str | Path = "the trimap") -> NDArray[np.float32]:
    """Decode a trimap for matting; arguments and result as of `decode_trimap`.

    Raises:
        DataError: also for a file that is no trimap, a mask for instance; see `data.trimap_check.check_meaning`.
    """
    trimap = decode_trimap(values, name)
    check_meaning(as_grey(values, name), trimap, name)
    return trimap


def read_trimap(path: str | Path) -> NDArray[np.float32]:
    """Read a trimap file as (H, W) in {0, 0.5, 1}; see `trimap_for_matting`."""
    return trimap_for_matting(read_values(path), path)


def write_trimap(path: str | Path, trimap: NDArray[np.floating]) -> None:
    """Write (H, W) in {0, 0.5, 1} as 8-bit grey of 0, 128, 255; see `encode_trimap`."""
    write_alpha(path, encode_trimap(trimap) / 255)


def read_strict_trimap(path: str | Path) -> NDArray[np.float32]:
    """Read the trimap file of a test set as (H, W) in {0, 0.5, 1}; see `check_stored`. All pixels may be known."""
    values = read_raw_alpha(path)
    check_stored(values, path)
    return decode_trimap(values, path)


def check_stored(values: NDArray, name: str | Path = "the trimap") -> None:
    """Refuse a trimap that a test set must not store: the reference code of the metrics counts only grey 128.

    Args:
        values: (H, W) as stored in the file.
        name: its name in errors, a path for instance.

    Raises:
        DataError: not uint8, or values beside `STORED_VALUES`.
    """
    if values.dtype != np.uint8:
        raise DataError(f"{name}: expected a trimap of uint8, got {values.dtype}: store 0, 128 and 255 in 8 bit")
    others = np.setdiff1d(values, STORED_VALUES)
    if others.size:
        listed = ", ".join(str(value) for value in others[:5]) + (", ..." if others.size > 5 else "")
        raise DataError(
            f"{name}: expected a trimap of 0, 128 and 255 alone, got {listed} too: set what is unknown to 128"
        )


def unknown_mask(trimap: Trimap) -> Trimap:
    """Mark the unknown pixels of a decoded trimap: boolean, same shape, array or tensor as the input."""
    return trimap == UNKNOWN


def trimap_from_alpha(
    alpha: NDArray[np.floating], foreground_radius_px: int, background_radius_px: int
) -> NDArray[np.float32]:
    """Make a trimap by eroding alpha = 1 and alpha = 0, each by an ellipse of 2 radius + 1 px across.

    Beyond the image's border both continue, so that a border erodes nothing. All fractional pixels are unknown.

    Args:
        alpha: (H, W) in [0, 1]; within `ALPHA_TOLERANCE` of 0 and 1 counts as 0 and 1.
        foreground_radius_px: >= 0; 0 erodes nothing.
        background_radius_px: as `foreground_radius_px`.

    Returns: (H, W) in {0, 0.5, 1}.
    """
    trimap = np.full(alpha.shape, UNKNOWN, np.float32)
    trimap[_erode(alpha >= 1 - ALPHA_TOLERANCE, foreground_radius_px)] = FOREGROUND
    trimap[_erode(alpha <= ALPHA_TOLERANCE, background_radius_px)] = BACKGROUND
    return trimap


def _erode(mask: NDArray[np.bool_], radius_px: int) -> NDArray[np.bool_]:
    side_px = 2 * radius_px + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side_px, side_px))
    return cv2.erode(mask.astype(np.uint8), kernel).astype(bool)


WIDTH_PERCENT = 3.0  # default width of a band, of the image's longer side: it suits fur and hair


def band_width_px(width_percent: float, longer_px: int) -> int:
    """Convert a band's width from percent of an image's longer side to pixels, at least 1."""
    return max(round(width_percent / 100 * longer_px), 1)


def trimap_from_mask(mask: NDArray, width_px: int, name: str | Path = "the mask") -> NDArray[np.float32]:
    """Make a trimap from a mask: unknown are a band around the boundary and all fractional pixels.

    Pixels of 1 are foreground if they are farther than half the width from all others. Pixels of 0 are background if
    they are farther than the other half from all others. If the width is odd, the larger half lies outside. Distances
    are Euclidean between pixel centres, so a straight hard edge gets exactly `width_px` pixels. Parts thinner than the
    band, a hair or a hole, become unknown: no pixel changes sides. The image's border is no boundary.

    Args:
        mask: hard or soft, (H, W) or what else `decode_mask` takes.
        width_px: >= 1; a soft mask's fractional zone comes on top.
        name: its name in errors, a path for instance.

    Returns: (H, W) in {0, 0.5, 1}.

    A mask of 0 everywhere gives only background, and one of 1 everywhere only foreground, with a warning: in a sequence
    the subject enters and leaves.

    Raises:
        DataError: no mask, or a soft one that lies on one side of 0.5 everywhere.
        ConfigError: a width below 1.
    """
    if width_px < 1:
        raise ConfigError(f"expected a band of at least 1 px, got {width_px}")
    soft = decode_mask(mask, name)
    if soft.max() == 0:
        logger.warning("%s is empty: all is background, so alpha is 0 everywhere", name)
        return np.full(soft.shape, BACKGROUND, np.float32)
    if soft.min() == 1:
        logger.warning("%s covers all: all is foreground, so alpha is 1 everywhere", name)
        return np.full(soft.shape, FOREGROUND, np.float32)
    if soft.max() <= 0.5 or soft.min() >= 0.5:
        raise DataError(
            f"{name} holds {soft.min():.4g} to {soft.max():.4g} of 0 to 1: expected foreground above a half and "
            "background below it, or there is no boundary to lay a band around"
        )
    inside_px = width_px // 2
    trimap = np.full(soft.shape, UNKNOWN, np.float32)
    trimap[distance_to(soft < 1 - ALPHA_TOLERANCE) > inside_px] = FOREGROUND
    trimap[distance_to(soft > ALPHA_TOLERANCE) > width_px - inside_px] = BACKGROUND
    return trimap


def trimap_of_mask(
    path: str | Path,
    band_px: Callable[[int], int],
    threshold: float | None = None,
    size: tuple[int, int] | None = None,
) -> NDArray[np.float32]:
    """Read a mask file as a trimap; see `trimap_from_mask`.

    Args:
        path: of the mask.
        band_px: gives the band's width for an image's longer side, both in px.
        threshold: makes the mask hard first: values from this on are foreground. None keeps a soft mask soft.
        size: (width, height) of the image in px, to which the mask is resized first; None keeps its size.

    Returns: (H, W) in {0, 0.5, 1}.

    Raises:
        DataError: as `read_mask`, `resize_mask` and `trimap_from_mask`.
    """
    mask = read_mask(path)
    if size is not None and size != mask.shape[::-1]:
        mask = resize_mask(mask, size, path)
    if threshold is not None:
        mask = (mask >= threshold).astype(np.float32)
    return trimap_from_mask(mask, band_px(max(mask.shape)), path)


def trivial_alpha(trimap: Trimap) -> Trimap:
    """Predict 0.5 on every unknown pixel: the trimap read as an alpha, a new array of the same shape."""
    return trimap * 1


def ramp_alpha(trimap: NDArray[np.floating]) -> NDArray[np.float32]:
    """Predict alpha by distance: d_bg / (d_bg + d_fg), Euclidean distances to the nearest known pixels.

    A side that the trimap lacks is infinitely far: no foreground gives 0, no background 1, neither 0.5.

    Args:
        trimap: (H, W) in {0, 0.5, 1}.

    Returns: (H, W) in [0, 1]; 0 and 1 on known pixels.
    """
    has_foreground, has_background = (trimap == FOREGROUND).any(), (trimap == BACKGROUND).any()
    if not (has_foreground and has_background):
        absent = UNKNOWN if not (has_foreground or has_background) else float(has_foreground)
        return np.full(trimap.shape, absent, np.float32)
    to_foreground, to_background = (distance_to(trimap == side) for side in (FOREGROUND, BACKGROUND))
    return to_background / (to_background + to_foreground)


def distance_to(marked: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Measure each pixel's exact Euclidean distance to the nearest marked pixel of (H, W); one must be marked."""
    distance = cv2.distanceTransform((~marked).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return distance.astype(np.float32)
