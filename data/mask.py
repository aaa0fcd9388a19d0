"""Decode the masks that people store, and resize masks to their image."""

import logging
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from data.image_io.images import DataError, as_grey, read_values, to_float

logger = logging.getLogger(__name__)


def read_mask(path: str | Path) -> NDArray[np.float32]:
    """Read a mask file as (H, W) in [0, 1]; see `decode_mask`."""
    return decode_mask(read_values(path), path)


def decode_mask(values: NDArray, name: str | Path = "the mask") -> NDArray[np.float32]:
    """Convert a stored mask to floats from 0 (background) to 1 (foreground).

    Integers with maximum 1 are class ids 0 and 1; otherwise full scale is 1. If transparency differs between pixels, or
    all pixels are transparent, it is the mask. One colour beside black is the foreground, as in a palette of classes.

    Args:
        values: (H, W), (H, W, 3) or (H, W, 4) bool, uint8, uint16 or float in [0, 1].
        name: its name in errors, a path for instance.

    Returns: (H, W) in [0, 1], a new array.

    Raises:
        DataError: another dtype, shape or range; several colours.
    """
    if values.size == 0:
        raise DataError(f"{name} is empty: shape {values.shape}")
    if values.dtype == bool and values.ndim == 3:
        values = values.astype(np.uint8) * 255
    if values.ndim == 3 and values.shape[2] == 4 and (np.ptp(values[:, :, 3]) or not values[:, :, 3].any()):
        values = values[:, :, 3]
    elif values.ndim == 3 and values.shape[2] == 3 and np.ptp(values, axis=2).any():
        values = _one_colour(values, name)
    values = as_grey(values, name)
    if values.dtype == bool:
        return values.astype(np.float32)
    if values.dtype in (np.uint8, np.uint16):
        return values.astype(np.float32) if values.max() == 1 else to_float(values)
    if np.issubdtype(values.dtype, np.floating):
        if values.min() >= 0 and values.max() <= 1:  # false for NaN
            return values.astype(np.float32)
        raise DataError(f"{name} holds floats between {values.min():.4g} and {values.max():.4g}: scale them to [0, 1]")
    raise DataError(f"{name} is {values.dtype}; expected bool, uint8, uint16 or floats in [0, 1]: convert it")


def _one_colour(values: NDArray, name: str | Path) -> NDArray[np.bool_]:
    """Mark where (H, W, 3) is not black, if that is one colour."""
    is_coloured = values.max(axis=2) > 0
    colours = values[is_coloured]
    if (colours != colours[0]).any():
        raise DataError(
            f"{name} holds several colours beside black; expected grey, transparency or one colour: keep one object's"
        )
    return is_coloured


def resize_mask(mask: NDArray[np.float32], size: tuple[int, int], name: str | Path) -> NDArray[np.float32]:
    """Resize a mask to its image with a warning: segmentation networks give masks of their own size.

    Smaller masks are averaged over areas, larger ones interpolated linearly. A hard mask is then cut at 0.5, so that
    its outline does not become a staircase.

    Args:
        mask: (h, w) in [0, 1].
        size: (width, height) of the image in px.
        name: its name in messages.

    Returns: (height, width) in [0, 1].

    Raises:
        DataError: the mask has width and height of the image exchanged.
    """
    width, height = size
    own_height, own_width = mask.shape
    found = f"{name} is {own_width} x {own_height} px and the image {width} x {height} px"
    if (own_width, own_height) == (height, width):
        raise DataError(f"{found}: one of them is turned by 90 degrees; turn it, or store it without EXIF rotation")
    is_in_proportion = abs(own_width * height - own_height * width) <= max(own_width, own_height, width, height)
    logger.warning(
        "%s: the mask is resized%s", found, "" if is_in_proportion else ", and stretched: is it this image's?"
    )
    interpolation = cv2.INTER_AREA if width < own_width or height < own_height else cv2.INTER_LINEAR
    resized = cv2.resize(mask, size, interpolation=interpolation)
    is_hard = ((mask == 0) | (mask == 1)).all()
    return (resized >= 0.5 if is_hard else resized).astype(np.float32)
