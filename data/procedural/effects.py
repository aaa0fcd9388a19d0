"""Blur a foreground as a camera does: by motion and defocus.

Alpha and alpha F are filtered with one kernel k: where B is constant under it, k * (alpha F + (1 - alpha) B) =
k * (alpha F) + (1 - k * alpha) B, so that I = alpha F + (1 - alpha) B stays exact for the filtered alpha and colour
over a sharp background. (A camera would also blend what of B the foreground shows and hides meanwhile, which no single
alpha can express.)
"""

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from data.procedural.canvas import Array, coverage, fill, mean_shade
from data.procedural.drawing import ribbon

KERNEL_SCALE = 16  # samples along a pixel of a kernel
SMALLEST_ALPHA = 1e-4  # less is an error of the filter's rounding, and below a step of 8 bit in any case


def filter_foreground(foreground: Array, alpha: Array, kernel: Array) -> tuple[Array, Array]:
    """Filter a foreground with a kernel.

    Args:
        foreground: (H, W, 3) RGB in [0, 1].
        alpha: (H, W) in [0, 1].
        kernel: odd sides, sum 1, point symmetric. The image is continued at its borders.

    Returns: foreground and alpha; where alpha is 0 the colour is continued from nearby.
    """
    premultiplied = np.dstack([foreground * alpha[..., None], alpha])
    filtered = cv2.filter2D(premultiplied, cv2.CV_32F, kernel, borderType=cv2.BORDER_REPLICATE)
    new_alpha = filtered[..., 3].clip(0, 1).astype(np.float32)
    new_alpha[new_alpha < SMALLEST_ALPHA] = 0
    new_alpha[new_alpha > 1 - SMALLEST_ALPHA] = 1
    colours = [mean_shade(new_alpha, channel) for channel in filtered[..., :3].astype(np.float32).transpose(2, 0, 1)]
    return np.dstack(colours).clip(0, 1), new_alpha


def motion_kernel(length_px: float, angle: float) -> Array:
    """Make the kernel of an even movement along a straight line, 1 px wide.

    Args:
        length_px: way of the movement, at least 1.
        angle: its direction from the x axis, in radians.
    """
    half_way = (length_px - 1 / KERNEL_SCALE) / 2 * np.array([np.cos(angle), np.sin(angle)])
    return painted_kernel(ribbon(np.stack([-half_way, half_way]), 1.0, 1 / KERNEL_SCALE), length_px)


def defocus_kernel(diameter_px: float) -> Array:
    """Make the kernel of a lens out of focus: a disc of this diameter, at least 1 px."""
    angle = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    radius = diameter_px / 2 - 0.5 / KERNEL_SCALE
    return painted_kernel(radius * np.stack([np.cos(angle), np.sin(angle)], 1), diameter_px)


def painted_kernel(outline: NDArray[np.float64], extent_px: float) -> Array:
    """Make a kernel of sum 1 from an outline around the origin, in pixels; weights are the covered areas."""
    side = 2 * int(np.ceil(extent_px / 2 + 0.5)) + 1
    canvas = np.zeros((side * KERNEL_SCALE,) * 2, np.uint8)
    fill(canvas, outline + side / 2, 255, KERNEL_SCALE)
    weights = coverage(canvas, KERNEL_SCALE)[0]
    weights = weights + weights[::-1, ::-1]
    return weights / weights.sum()


def motion_blur(rng: Generator, foreground: Array, alpha: Array) -> tuple[Array, Array]:
    """Blur by a movement of 1 to 6 % of the image's side; foreground and alpha."""
    length_px = max(1.0, rng.uniform(0.01, 0.06) * len(alpha))
    return filter_foreground(foreground, alpha, motion_kernel(length_px, rng.uniform(0, np.pi)))


def defocus(rng: Generator, foreground: Array, alpha: Array) -> tuple[Array, Array]:
    """Blur by a disc of 0.5 to 4 % of the image's side; foreground and alpha."""
    diameter_px = max(1.0, rng.uniform(0.005, 0.04) * len(alpha))
    return filter_foreground(foreground, alpha, defocus_kernel(diameter_px))
