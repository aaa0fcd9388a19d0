"""Compositing: I = alpha F + (1 - alpha) B, and two foregrounds merged into one.

Written in plain arithmetic that numpy arrays and torch tensors share; shapes only have to broadcast, such as
(H, W, 1) with (H, W, 3), or (B, 1, H, W) with (B, 3, H, W).
"""

from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # cutting out with numpy must not load torch
    from torch import Tensor

Pixels = TypeVar("Pixels", NDArray[np.floating], "Tensor")


def composite(alpha: Pixels, foreground: Pixels, background: Pixels) -> Pixels:
    """Blend a foreground over a background: I = alpha F + (1 - alpha) B.

    Args:
        alpha: in [0, 1], one channel; 1 is opaque foreground.
        foreground: RGB in [0, 1], not premultiplied.
        background: RGB in [0, 1], same H and W.

    Returns: RGB in [0, 1] up to float rounding, in the shape that the three broadcast to.
    """
    return alpha * foreground + (1 - alpha) * background


def merge_foregrounds(
    alpha_over: Pixels, foreground_over: Pixels, alpha_under: Pixels, foreground_under: Pixels
) -> tuple[Pixels, Pixels]:
    """Merge two foregrounds into one that looks the same over every background.

    alpha = 1 - (1 - a1)(1 - a2), F = (a1 F1 + (1 - a1) a2 F2) / alpha, so that compositing F is compositing the lower
    and then the upper one (Porter and Duff 1984, "over"). Where both are transparent F is the upper colour.

    Args:
        alpha_over: in [0, 1], one channel.
        foreground_over: RGB in [0, 1], not premultiplied.
        alpha_under: as `alpha_over`.
        foreground_under: as `foreground_over`.

    Returns: alpha and foreground in the shapes of the inputs.
    """
    alpha = 1 - (1 - alpha_over) * (1 - alpha_under)
    premultiplied = alpha_over * foreground_over + (1 - alpha_over) * alpha_under * foreground_under
    empty = alpha == 0
    return alpha, premultiplied / (alpha + empty) + empty * foreground_over
