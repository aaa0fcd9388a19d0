"""Keep shapes as outlines and paint them band by band, so that an image of any size takes little memory.

An image is [0, 1] x [0, 1]: the drawing does not depend on its number of pixels.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.procedural.canvas import SCALE, Array, Points, band, coverage, fill_fixed, mean_shade, to_fixed_point

MIN_SAMPLES = 2048  # along a side, also of small images: a thread is still some samples wide
MAX_SCALE = 256  # `coverage` adds up this many samples in 16 bit
BAND_SAMPLES = 1 << 24  # painted at once: 16 MB, instead of 268 MB for 2048 px


class Drawing:
    """Shapes of a square image, each painted over those before it.

    Args:
        size_px: side of the image, at least 1.
        min_samples: along a side of the canvas. A line is at least a sample wide.
    """

    def __init__(self, size_px: int, min_samples: int = MIN_SAMPLES) -> None:
        self.size_px = size_px
        self.scale = min(max(SCALE, -(-min_samples // size_px)), MAX_SCALE)
        # The m-th shape of a batch consists of the m-th outline of each array (M, N, 2), and has the m-th shade.
        self._batches: list[tuple[list[Points], NDArray[np.intp]]] = []

    def fill(self, outlines: Points | Sequence[Points], shade: float) -> None:
        """Paint a shape.

        Args:
            outlines: (N, 2) x, y in [0, 1], the rest is cut off; or several of them: points within an odd number are
                inside.
            shade: 1 to 255 after rounding and clipping, or 0 to cut a hole.
        """
        polygons = [outlines] if isinstance(outlines, np.ndarray) else list(outlines)
        level = min(max(round(shade), 1), 255) if shade else 0
        self._batches.append(([points[None] for points in polygons], np.array([level])))

    def stroke(self, line: Points, width: float | NDArray[np.float64], shade: float) -> None:
        """Paint a line (N, 2) of given width, or of a width (N,) at each of its points; see `ribbon`."""
        self.strokes(line[None], np.broadcast_to(width, (1, len(line))), np.array([shade]))

    def strokes(self, lines: Points, widths: NDArray[np.float64], shades: NDArray[np.float64]) -> None:
        """Paint lines, each over those before it.

        Args:
            lines: (M, N, 2) points of each.
            widths: (M, N) at each point.
            shades: (M,), or (M, P) of P pieces of equally many steps, which divide the N - 1 steps of a line.
        """
        outlines = ribbon(lines, widths, 1 / (self.scale * self.size_px))
        if shades.ndim == 2:
            num_steps = lines.shape[1] - 1
            pieces = np.arange(0, num_steps, num_steps // shades.shape[1])[:, None]
            there = pieces + np.arange(num_steps // shades.shape[1] + 1)
            back = outlines.shape[1] - 1 - there[:, ::-1]
            outlines = outlines[:, np.concatenate([there, back], 1)].reshape(shades.size, -1, 2)
        self._batches.append(([outlines], np.clip(np.rint(shades.ravel()), 1, 255).astype(np.intp)))

    def resolve(self) -> tuple[Array, Array]:
        """Paint all shapes and compute coverage and mean shade; see `data.procedural.canvas.resolve`."""
        side = self.size_px * self.scale
        rows_px = max(1, BAND_SAMPLES // (side * self.scale))
        alpha, weighted = np.zeros((2, self.size_px, self.size_px), np.float32)
        for top in range(0, self.size_px, rows_px):
            bottom = min(top + rows_px, self.size_px)
            canvas = np.zeros(((bottom - top) * self.scale, side), np.uint8)
            for outlines, shades in self._batches:
                heights = self.size_px * np.concatenate([points[..., 1] for points in outlines], 1)
                crossing = (heights.max(1) >= top - 1) & (heights.min(1) <= bottom + 1)
                fixed = [to_fixed_point(self.size_px * points[crossing] - [0, top], self.scale) for points in outlines]
                for number, shade in enumerate(shades[crossing].tolist()):
                    fill_fixed(canvas, [points[number] for points in fixed], shade)
            alpha[top:bottom], weighted[top:bottom] = coverage(canvas, self.scale)
        return alpha, mean_shade(alpha, weighted)


def ribbon(lines: Points, widths: float | NDArray[np.float64], sample: float = 0.0) -> Points:
    """Outline lines (..., N, 2) of one width, or of widths (..., N) at each point; see `band`."""
    return band(lines, np.gradient(lines, axis=-2), np.broadcast_to(widths, lines.shape[:-1]), sample)


def silhouette(outlines: Sequence[Points], size_px: int) -> Array:
    """Compute the alpha (H, W) of several outlines (N, 2) together."""
    drawing = Drawing(size_px)
    for outline in outlines:
        drawing.fill(outline, 255)
    return drawing.resolve()[0]
