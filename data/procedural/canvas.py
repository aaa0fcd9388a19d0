"""Paint shapes on a fine canvas: alpha is the share of painted samples in a pixel, the definition of coverage.

The canvas is 8-bit, SCALE times finer than the image. Its value is 0 where nothing is painted and the local shade (1 to
255) elsewhere. Colours follow only the painted samples, so they are not premultiplied. All lengths are in
pixels of the image; positions are continuous, x to the right and y down, with pixel (0, 0) covering [0, 1] x [0, 1].
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Array = NDArray[np.float32]
Points = NDArray[np.float64]

SCALE = 8  # 64 samples a pixel: alpha in steps of 1/64, finer than a thread's own contrast needs
FIXED_POINT_BITS = 4
TAPER = 0.8


def canvas_for(size_px: int) -> NDArray[np.uint8]:
    """Create an empty fine canvas for a square image of this side."""
    return np.zeros((size_px * SCALE, size_px * SCALE), np.uint8)


def fill(canvas: NDArray[np.uint8], polygon: Points | Sequence[Points], shade: int, scale: int = SCALE) -> None:
    """Paint a polygon on the fine canvas.

    Args:
        canvas: (scale * H, scale * W), painted in place.
        polygon: (N, 2) x, y in pixels of the image, or several of them: points within an odd number are inside.
        shade: 1 to 255, or 0 to cut a hole.
        scale: samples along a pixel's side.
    """
    polygons = [polygon] if isinstance(polygon, np.ndarray) else polygon
    fill_fixed(canvas, [to_fixed_point(points, scale) for points in polygons], int(shade))


def to_fixed_point(points: Points, scale: int) -> NDArray[np.int32]:
    """Convert positions in pixels to those of the fine canvas, in cv2's fixed-point format."""
    return np.round((points * scale - 0.5) * (1 << FIXED_POINT_BITS)).astype(np.int32)


def fill_fixed(canvas: NDArray[np.uint8], polygons: Sequence[NDArray[np.int32]], shade: int) -> None:
    """Paint what lies within an odd number of the polygons of `to_fixed_point`."""
    cv2.fillPoly(canvas, polygons, shade, cv2.LINE_8, FIXED_POINT_BITS)


def thread(canvas: NDArray[np.uint8], line: Points, width: float, shade: int) -> None:
    """Paint a line of constant width, rounded to 1 / SCALE px, through (N, 2) points in pixels."""
    cv2.polylines(canvas, [np.round(line * SCALE - 0.5).astype(np.int32)], False, shade, round(width * SCALE))


def resolve(canvas: NDArray[np.uint8]) -> tuple[Array, Array]:
    """Convert the fine canvas to coverage and mean shade.

    Args:
        canvas: (SCALE * H, SCALE * W), 0 where nothing is painted.

    Returns: alpha (H, W) in [0, 1], the exact share of painted samples, and shade (H, W) in [0, 1], the mean over the
        painted samples, continued smoothly to unpainted pixels.
    """
    alpha, weighted = coverage(canvas)
    return alpha, mean_shade(alpha, weighted)


def coverage(canvas: NDArray[np.uint8], scale: int = SCALE) -> tuple[Array, Array]:
    """Compute the share of painted samples in each pixel, and the mean of all its samples / 255, 0 if unpainted."""
    height, width = canvas.shape[0] // scale, canvas.shape[1] // scale
    means = []
    for samples in ((canvas > 0).view(np.uint8), canvas):
        columns = samples.reshape(height, scale, -1).sum(1, dtype=np.uint16)
        means.append(columns.reshape(height, width, scale).sum(2, dtype=np.float32) / scale**2)
    return means[0], means[1] / 255


def mean_shade(alpha: Array, weighted: Array) -> Array:
    """Compute the mean shade over the painted samples from `coverage`, continued to the other pixels."""
    nearby = cv2.GaussianBlur(alpha, (0, 0), 4) + 1e-4
    nearby_shade = (cv2.GaussianBlur(weighted, (0, 0), 4) + 0.5e-4) / nearby  # half bright where nothing is near
    shade = np.where(alpha > 0, weighted / np.maximum(alpha, 1e-6), nearby_shade)
    return shade.astype(np.float32)


def blob(rng: Generator, centre: Points, radius: float, roughness: float = 0.12) -> Points:
    """Draw a random closed outline around a centre.

    Args:
        rng: source of the outline.
        centre: (2,) x, y in pixels.
        radius: mean radius in pixels.
        roughness: standard deviation of the second harmonic, relative to the radius; the k-th has 2/k of it.

    Returns: (180, 2) points in pixels, the i-th at the angle 2 degrees x i.
    """
    angle = np.deg2rad(np.arange(0, 360, 2))
    harmonics = np.arange(2, 7)[:, None]
    weights = rng.normal(0, roughness, (5, 1)) * 2 / harmonics
    relative = 1 + (weights * np.cos(harmonics * angle + rng.uniform(0, 2 * np.pi, (5, 1)))).sum(0)
    return centre + radius * np.maximum(relative, 0.35)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


def strand(root: Points, control: Points, tip: Points, width: float, num_points: int = 14) -> Points:
    """Outline a thin strand along a quadratic Bezier curve, which loses `TAPER` of its width on the way to the tip.

    Args:
        root: (2,) start of the curve, in pixels.
        control: (2,) Bezier control point.
        tip: (2,) end of the curve.
        width: at the root, in pixels.
        num_points: points along the curve.

    Returns: (2 * num_points, 2) polygon, for `fill`.
    """
    t = np.linspace(0, 1, num_points)[:, None]
    line = (1 - t) ** 2 * root + 2 * t * (1 - t) * control + t**2 * tip
    tangents = 2 * (1 - t) * (control - root) + 2 * t * (tip - control)
    return band(line, tangents, width * (1 - TAPER * t[:, 0]), 1 / SCALE)


def band(lines: Points, tangents: Points, widths: NDArray[np.float64], sample: float) -> Points:
    """Outline lines of given widths.

    Args:
        lines: (..., N, 2) points of each, N at least 2.
        tangents: (..., N, 2) direction at each point, of any length.
        widths: (..., N) at each point.
        sample: size of a canvas sample in the same unit. cv2 also paints the samples that an edge passes through, half
            a sample on either side. The outlines are drawn in by as much.

    Returns: (..., 2 * N, 2) polygons, for `fill`.
    """
    tangents = tangents / np.maximum(np.linalg.norm(tangents, axis=-1, keepdims=True), 1e-12)
    half_widths = np.maximum(widths / 2 - sample / 2, 0)[..., None]
    offsets = half_widths * np.stack([-tangents[..., 1], tangents[..., 0]], -1)
    return np.concatenate([lines + offsets, (lines - offsets)[..., ::-1, :]], -2)


def random_centre(rng: Generator, size_px: int, spread: float = 0.07) -> Points:
    """Draw a centre near the middle, off by at most `spread` sides; (2,) in pixels."""
    return size_px * (0.5 + rng.uniform(-spread, spread, 2))
