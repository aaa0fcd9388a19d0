"""Keep shapes as outlines and paint them band by band, so that an image of any size takes little memory.

An image is [0, 1] x [0, 1]: the drawing does not depend on its number of pixels.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.procedural.canvas import SCALE, Array, Points, band, coverage, fill, mean_shade

MIN_SAMPLES = 2048  # along a side, also of small images: a hair is still some samples wide
BAND_SAMPLES = 1 << 24  # painted at once: 16 MB, instead of 268 MB for 2048 px


class Drawing:
    """Shapes of a square image, each painted over those before it.

    Args:
        size_px: side of the image, at least 1.
    """

    def __init__(self, size_px: int) -> None:
        self.size_px = size_px
        self.scale = max(SCALE, -(-MIN_SAMPLES // size_px))
        self._shapes: list[tuple[list[Points], int, float, float]] = []

    def fill(self, outlines: Points | Sequence[Points], shade: float) -> None:
        """Paint a shape.

        Args:
            outlines: (N, 2) x, y in [0, 1], the rest is cut off; or several of them: points within an odd number are
                inside.
            shade: 1 to 255 after rounding and clipping, or 0 to cut a hole.
        """
        polygons = [outlines] if isinstance(outlines, np.ndarray) else list(outlines)
        y = polygons[0][:, 1] if len(polygons) == 1 else np.concatenate(polygons)[:, 1]
        level = min(max(round(shade), 1), 255) if shade else 0
        self._shapes.append((polygons, level, y.min() * self.size_px, y.max() * self.size_px))

    def stroke(self, line: Points, width: float | NDArray[np.float64], shade: float) -> None:
        """Paint a line (N, 2) of given width, or of a width (N,) at each of its points; see `ribbon`."""
        self.strokes(line[None], np.broadcast_to(width, (1, len(line))), np.array([shade]))

    def strokes(self, lines: Points, widths: NDArray[np.float64], shades: NDArray[np.float64]) -> None:
        """Paint lines (M, N, 2) of widths (M, N) and shades (M,), each over those before it."""
        outlines = ribbon(lines, widths, 1 / (self.scale * self.size_px))
        for outline, shade in zip(outlines, shades, strict=True):
            self.fill(outline, shade)

    def resolve(self) -> tuple[Array, Array]:
        """Paint all shapes and compute coverage and mean shade; see `data.procedural.canvas.resolve`."""
        side = self.size_px * self.scale
        rows_px = max(1, BAND_SAMPLES // (side * self.scale))
        alpha, weighted = np.zeros((2, self.size_px, self.size_px), np.float32)
        for top in range(0, self.size_px, rows_px):
            bottom = min(top + rows_px, self.size_px)
            canvas = np.zeros(((bottom - top) * self.scale, side), np.uint8)
            for polygons, shade, highest, lowest in self._shapes:
                if lowest >= top - 1 and highest <= bottom + 1:
                    fill(canvas, [self.size_px * points - [0, top] for points in polygons], shade, self.scale)
            alpha[top:bottom], weighted[top:bottom] = coverage(canvas, self.scale)
        return alpha, mean_shade(alpha, weighted)


def ribbon(lines: Points, widths: float | NDArray[np.float64], sample: float = 0.0) -> Points:
    """Outline lines (..., N, 2) of one width, or of widths (..., N) at each point; see `band`."""
    return band(lines, np.gradient(lines, axis=-2), np.broadcast_to(widths, lines.shape[:-1]), sample)
