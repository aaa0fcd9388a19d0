"""Recognise files that are no valid trimap: masks, another black and white, class ids, alphas."""

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.image_io.images import DataError

logger = logging.getLogger(__name__)

NEAR_LEVELS = 32
"""How far from 0 and 255 a grey still seems to mean black and white. JPEG at quality 30 to 95 leaves 89 to 100 % of
what it moves on real trimaps within this distance; video range (16 to 235) lies within it as well."""
FEW_GREYS = 0.05  # greys in the middle for each one that is near black or white: compression makes at most 0.01
SAME_LEVELS = 9  # greys this close together are one value after compression
SPREAD = 0.4
"""Share of the middle greys that the most frequent value has, below which they are no plain unknown. Real trimaps,
compressed or resized, have 0.58 to 1; masks with soft edges and alphas 0.06 to 0.29."""

MASK_ADVICE = "give it as a mask, or make a trimap of it with data.trimap.trimap_from_mask"


def check_meaning(stored: NDArray, trimap: NDArray[np.floating], name: str | Path) -> None:
    """Refuse a trimap that cannot be right, and log a warning for a doubtful one.

    Only background or only foreground is valid: a subject enters and leaves the frames of a sequence. Checks of the
    stored values need uint8; floats are already decoded.

    Args:
        stored: (H, W) as in the file.
        trimap: (H, W) in {0, 0.5, 1}, the same decoded.
        name: its name in messages, a path for instance.

    Raises:
        DataError: no unknown pixel between foreground and background (a mask), black or white that are not 0 and 255,
            class ids above 2.
    """
    counts = np.bincount(np.ravel(2 * trimap).astype(np.uint8), minlength=3)
    has_background, has_unknown, has_foreground = (bool(count) for count in counts)
    is_8_bit = stored.dtype == np.uint8 and stored.max() > 2  # others have no greys
    if is_8_bit:
        levels = np.bincount(np.ravel(stored), minlength=256)
        _refuse_other_black_and_white(levels, name)
        near, middle = _near(levels), levels[NEAR_LEVELS + 1 : 255 - NEAR_LEVELS].sum()
        has_unknown &= not (near and has_background and has_foreground and middle <= FEW_GREYS * near)
    if has_background and has_foreground and not has_unknown:
        raise DataError(f"{name} has no unknown pixels, so it seems to be a mask and not a trimap: {MASK_ADVICE}")
    if stored.dtype == np.uint8:
        _warn_of_one_side(has_background, has_unknown, has_foreground, int(stored.min()), int(stored.max()), name)
    if is_8_bit:
        _warn_of_greys(levels, name)
    if _is_inverted(trimap):
        logger.warning(
            "%s: foreground lies all around and background inside; is it inverted? 0 is background, 255 foreground",
            name,
        )


def _near(levels: NDArray[np.int64]) -> int:
    """Count the pixels that are nearly black or nearly white, given the number of pixels of each grey."""
    return int(levels[1 : NEAR_LEVELS + 1].sum() + levels[255 - NEAR_LEVELS : 255].sum())


def _refuse_other_black_and_white(levels: NDArray[np.int64], name: str | Path) -> None:
    """Raise a DataError if black or white is stored as another value than 0 and 255."""
    present = np.flatnonzero(levels)
    lowest, highest = int(present[0]), int(present[-1])
    if highest <= NEAR_LEVELS:
        raise DataError(
            f"{name} holds values from {lowest} to {highest} alone: class ids of another kind? Ids are 0 background, "
            "1 unknown, 2 foreground; greys are 0, 128, 255: convert it"
        )
    no_black = 0 < lowest <= NEAR_LEVELS
    no_white = 255 - NEAR_LEVELS <= highest < 255
    nothing_known = lowest > 0 and highest < 255 and highest - lowest > NEAR_LEVELS
    if no_black or no_white or nothing_known:
        kind = "in video range (16 to 235)" if (lowest, highest) == (16, 235) else "with another black and white"
        raise DataError(
            f"{name} holds values from {lowest} to {highest}, so it seems to be a trimap {kind}. "
            "Only 0 is background and only 255 foreground: stretch the values to 0, 128, 255"
        )


def _warn_of_one_side(
    has_background: bool, has_unknown: bool, has_foreground: bool, lowest: int, highest: int, name: str | Path
) -> None:
    """Log which of background, unknown and foreground is missing in a valid trimap."""
    if not has_unknown:
        side = "foreground" if has_foreground else "background"
        logger.warning("%s: all is %s, nothing is unknown, so alpha is %d everywhere", name, side, has_foreground)
    elif not (has_background or has_foreground):
        logger.warning("%s: all is unknown; alpha is better with some known foreground and background", name)
    elif not has_foreground:
        logger.warning("%s: no pixel is known foreground; the highest value is %d", name, highest)
    elif not has_background:
        logger.warning("%s: no pixel is known background; the lowest value is %d", name, lowest)


def _warn_of_greys(levels: NDArray[np.int64], name: str | Path) -> None:
    """Log unknown pixels that may be a mistake: nearly black or white ones, and spread greys."""
    near, middle = _near(levels), levels[NEAR_LEVELS + 1 : 255 - NEAR_LEVELS]
    if near:
        logger.warning(
            "%s: %.2g %% of the pixels are nearly black or white (1 to %d, %d to 254) and count as unknown, as JPEG "
            "compression or resizing makes them; store trimaps of 0, 128, 255 as PNG",
            name, 100 * near / levels.sum(), NEAR_LEVELS, 255 - NEAR_LEVELS,
        )  # fmt: skip
    most_frequent = np.convolve(middle, np.ones(SAME_LEVELS, np.int64)).max()
    if most_frequent < SPREAD * middle.sum():
        logger.warning(
            "%s: its greys are spread as in an alpha or a mask with soft edges; all of them count as unknown. If it is "
            "a mask, %s", name, MASK_ADVICE,
        )  # fmt: skip


def _is_inverted(trimap: NDArray[np.floating]) -> bool:
    """Tell whether foreground covers most of the image's border, and background lies only inside."""
    border = np.concatenate([trimap[0], trimap[-1], trimap[:, 0], trimap[:, -1]])
    return bool(border.min() > 0 and (border == 1).mean() > 0.5 and (trimap == 0).any())
