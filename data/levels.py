"""A foreground at half, a quarter, an eighth of its size: averages that hidden colours have no part in, exact."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

BAND_PX = 512  # rows summed at a time, a multiple of every reduction


def make_levels(colours: NDArray, alpha: NDArray, reductions: Sequence[int]) -> Iterator[tuple[NDArray, NDArray]]:
    """Reduce a foreground by averaging areas, colours weighted by alpha, in integers.

    With sums over the pixels that the picture has in an area: alpha = sum(alpha) / number of pixels, colour =
    sum(alpha * colour) / sum(alpha), where alpha is 0 all over sum(colour) / number of pixels; each from the full
    picture, and rounded once, halves up.

    Args:
        colours: raw (H, W, 3), not premultiplied.
        alpha: raw (H, W).
        reductions: sides of the areas, 1 and its doubles in order, such as (1, 2, 4, 8).

    Yields: for each, colours (h, w, 3) and alpha (h, w) in the dtypes of the inputs, sides rounded up.
    """
    bands = [
        list(average_band(colours[top : top + BAND_PX], alpha[top : top + BAND_PX], reductions))
        for top in range(0, len(alpha), BAND_PX)
    ]
    for level in zip(*bands, strict=True):
        reduced_colours, reduced_alphas = zip(*level, strict=True)
        yield np.vstack(reduced_colours), np.vstack(reduced_alphas)


def average_band(colours: NDArray, alpha: NDArray, reductions: Sequence[int]) -> Iterator[tuple[NDArray, NDArray]]:
    """Do the work of `make_levels` on some rows."""
    is_8_bit = colours.dtype == alpha.dtype == np.uint8
    opacity = alpha[:, :, None].astype(np.uint32 if is_8_bit else np.uint64)  # twice 64 products fit in
    plain = colours.astype(opacity.dtype)
    sums = [opacity * plain, opacity, plain, np.ones_like(opacity)]
    for reduction in reductions:
        if reduction > 1:
            sums = [add_squares(values) for values in sums]
        weighted, total, unweighted, count = sums
        visible = divide(weighted, np.maximum(total, 1))
        mean = np.where(total > 0, visible, divide(unweighted, count))
        yield mean.astype(colours.dtype), divide(total, count)[:, :, 0].astype(alpha.dtype)


def add_squares(values: NDArray) -> NDArray:
    """Add up squares of 2 x 2 of (H, W, C), with 0 beyond the end."""
    height, width = values.shape[:2]
    even = np.pad(values, ((0, height % 2), (0, width % 2), (0, 0)))
    return even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]


def divide(dividend: NDArray, divisor: NDArray) -> NDArray:
    """Divide integers, rounding to the nearest, halves up."""
    return (2 * dividend + divisor) // (2 * divisor)
