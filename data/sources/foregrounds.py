"""Read foregrounds and their alphas for training: first unknown points, then only the pixels of a crop."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from data.image_io.images import EncodedImage, as_colours, read_raw_alpha, read_raw_rgba
from data.sources.layouts import check_equal_sizes
from data.trimap import ALPHA_TOLERANCE

NUM_POINTS = 64  # draws of an unknown pixel, of which a view takes one that its affine map leaves inside the frame
NUM_TRIES = 1 << 14  # finds that many where one pixel in 256 is unknown; only rarer ones need a search
REDUCTIONS = (1, 2, 4, 8)  # what JPEG decoding offers
MAX_BLEEDING = (
    1.5 / 255
)  # JPEGs whose colours go on beyond the edge stay below 1 step, those on white or black are far above
HIDDEN_ALPHA = 0.05  # colours under it hardly show; alphas in JPEGs are seldom exactly 0

Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in px of the complete image; right and bottom are the first pixels outside."""


class OpenForeground(Protocol):
    """An opened foreground, which reads pixels on demand."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in px, upright."""

    def unknown_points(self, rng: np.random.Generator) -> NDArray:
        """Draw `NUM_POINTS` unknown pixels, independently; see `draw_unknown_points`."""

    def read(self, box: Box, reduction: int) -> tuple[NDArray, NDArray]:
        """Read a box, reduced by averaging.

        Args:
            box: inside the image, its left and top multiples of `reduction`.
            reduction: one of `REDUCTIONS`.

        Returns: colours (h, w, 3), not premultiplied, and alpha (h, w), raw, w = ceil((right - left) / reduction):
            pixel i averages `reduction` pixels of the box, from `reduction * i` on.
        """


class Foreground(Protocol):
    """A foreground with its alpha, wherever it is stored: small, picklable, without pixels."""

    @property
    def name(self) -> str:
        """Its name in messages, a path for instance."""

    def open(self) -> OpenForeground:
        """Open it, reading what is needed to draw a random crop.

        Raises:
            DataError: colours and alpha of different size, or no usable image.
            OSError: a file is missing, or may not be read.
        """


@dataclass(frozen=True)
class ForegroundFile:
    """A foreground in image files: colours and alpha, or an RGBA cut-out if `alpha_path` is None."""

    path: Path
    alpha_path: Path | None = None
    bleedings: dict[int, float] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )  # see `ForegroundOfFiles`

    @property
    def name(self) -> str:
        return str(self.path)

    def open(self) -> OpenForeground:
        if self.alpha_path is None:
            return DecodedForeground(*read_raw_rgba(self.path))
        colours = EncodedImage(self.path)
        alpha = read_raw_alpha(self.alpha_path)
        check_equal_sizes(colours.size(), self.path, alpha.shape[1::-1], self.alpha_path)
        return ForegroundOfFiles(colours, alpha, self.bleedings)


class DecodedAlpha:
    """Base of foregrounds whose complete alpha is in memory.

    Args:
        alpha: raw (H, W).
    """

    def __init__(self, alpha: NDArray) -> None:
        self._alpha = alpha
        self.size = alpha.shape[1], alpha.shape[0]

    def unknown_points(self, rng: np.random.Generator) -> NDArray:
        return draw_unknown_points(self._alpha, rng)


class DecodedForeground(DecodedAlpha):
    """A foreground in memory.

    Args:
        colours: raw (H, W, 3), not premultiplied.
        alpha: raw (H, W).
    """

    def __init__(self, colours: NDArray, alpha: NDArray) -> None:
        super().__init__(alpha)
        self._colours = colours

    def read(self, box: Box, reduction: int) -> tuple[NDArray, NDArray]:
        left, top, right, bottom = box
        return average_layer(self._colours[top:bottom, left:right], self._alpha[top:bottom, left:right], reduction)


class ForegroundOfFiles(DecodedAlpha):
    """A foreground whose alpha is decoded. Its colours are decoded on demand, a JPEG's only as large as needed.

    A JPEG that is reduced while it is decoded averages hidden colours with visible ones. That saves time, and it is
    harmless in sets whose colours continue beyond the edge. In other sets black or white is hidden there, and it would
    draw a rim. So each process decodes each file in both ways once, and uses the full size if they differ. What is read
    does not depend on earlier reads.

    Args:
        colours: of the alpha's size.
        alpha: raw (H, W).
        bleedings: reduction -> `measure_bleeding` of this file, as far as known; extended here.
    """

    def __init__(self, colours: EncodedImage, alpha: NDArray, bleedings: dict[int, float]) -> None:
        super().__init__(alpha)
        self._colours = colours
        self._bleedings = bleedings

    def read(self, box: Box, reduction: int) -> tuple[NDArray, NDArray]:
        left, top, right, bottom = box
        alpha = self._alpha[top:bottom, left:right]
        if not alpha.any():  # no colour shows, as often of the lower of two foregrounds
            alpha = average(alpha, reduction)
            return np.zeros((*alpha.shape, 3), alpha.dtype), alpha
        if reduction == 1 or self._bleeding(reduction) > MAX_BLEEDING:
            return average_layer(self._decode(1)[top:bottom, left:right], alpha, reduction)
        alpha = average(alpha, reduction)
        top, left = top // reduction, left // reduction
        return self._decode(reduction)[top : top + alpha.shape[0], left : left + alpha.shape[1]], alpha

    def _decode(self, reduction: int) -> NDArray:
        return as_colours(self._colours.read(reduction), self._colours.path)

    def _bleeding(self, reduction: int) -> float:
        if reduction not in self._bleedings:
            self._bleedings[reduction] = measure_bleeding(
                self._decode(1), self._alpha, self._decode(reduction), reduction
            )
        return self._bleedings[reduction]


def measure_bleeding(colours: NDArray, alpha: NDArray, reduced: NDArray, reduction: int) -> float:
    """Measure how far hidden colours change the visible part of reduced colours.

    Args:
        colours: raw (H, W, 3).
        alpha: raw (H, W).
        reduced: the colours reduced without a look at the alpha, (h, w, 3).
        reduction: of these.

    Returns: the mean of alpha |F' - F| over areas with hidden and visible pixels, in [0, 1], with F of `average_layer`;
        0 without such areas, and infinite if the colours came at full size.
    """
    if reduced.shape == colours.shape:
        return np.inf
    mean, opacity = average_layer(colours, alpha, reduction)
    hidden = average(cv2.inRange(alpha, 0, int(HIDDEN_ALPHA * np.iinfo(alpha.dtype).max)), reduction)
    is_mixed = (hidden > 0) & (hidden < 255)
    if not is_mixed.any():
        return 0.0
    differences = np.abs(reduced[is_mixed].astype(np.float32) - mean[is_mixed]).mean(axis=1)
    scale = float(np.iinfo(colours.dtype).max) * np.iinfo(alpha.dtype).max
    return float((differences * opacity[is_mixed]).mean() / scale)


def draw_unknown_points(alpha: NDArray, rng: np.random.Generator) -> NDArray:
    """Draw unknown pixels, all equally likely: fractional ones, or else those on edges of the alpha.

    Args:
        alpha: raw (H, W).
        rng: generator to draw from.

    Returns: (`NUM_POINTS`, 2) x, y; (0, 2) if the alpha has neither.
    """
    lowest, highest = fractional_values(alpha.dtype)
    rows, columns = np.divmod(rng.integers(alpha.size, size=NUM_TRIES), alpha.shape[1])
    values = alpha[rows, columns]
    found = np.flatnonzero((values >= lowest) & (values <= highest))[:NUM_POINTS]
    if len(found) == NUM_POINTS:
        return np.stack([columns[found], rows[found]], axis=1)
    points = unknown_points(alpha)
    return points[rng.integers(len(points), size=NUM_POINTS)] if len(points) else points


def unknown_points(alpha: NDArray) -> NDArray:
    """List a raw alpha's fractional pixels, or else those on its edges, as (N, 2) x, y, row by row; N may be 0."""
    points = cv2.findNonZero(cv2.inRange(alpha, *fractional_values(alpha.dtype)))
    if points is None:
        edges = cv2.morphologyEx(alpha, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
        points = cv2.findNonZero(cv2.inRange(edges, 1, np.iinfo(alpha.dtype).max))
    return np.empty((0, 2), np.int32) if points is None else points.reshape(-1, 2)


def fractional_values(dtype: np.dtype) -> tuple[int, int]:
    """Return the lowest and the highest raw alpha, uint8 or uint16, that counts as neither 0 nor 1."""
    full = np.iinfo(dtype).max
    lowest = int(ALPHA_TOLERANCE * full) + 1
    return lowest, full - lowest


def average_layer(colours: NDArray, alpha: NDArray, reduction: int) -> tuple[NDArray, NDArray]:
    """Average areas of `reduction` x `reduction` px, colours weighted by alpha, so that hidden colours have no part.

    Args:
        colours: raw (H, W, 3), not premultiplied. A completely transparent area gets their plain average.
        alpha: raw (H, W).
        reduction: 1 returns the inputs.

    Returns: colours and alpha in the dtypes of the inputs, rounded; sides are rounded up, the last pixels repeated.
    """
    if reduction == 1:
        return colours, alpha
    precision = np.float32 if colours.dtype == alpha.dtype == np.uint8 else np.float64  # exact up to the division
    weights = cv2.merge([alpha] * 3).astype(precision)
    total = average(weights, reduction)
    visible = average(colours * weights, reduction) / np.maximum(total, 1e-6)
    mean = np.where(total > 0, visible, average(colours.astype(precision), reduction))
    return np.rint(mean).astype(colours.dtype), average(alpha, reduction)


def average(image: NDArray, reduction: int) -> NDArray:
    """Average areas of `reduction` x `reduction` px of (H, W) or (H, W, C); at the end the last pixel is repeated."""
    height, width = image.shape[:2]
    below, right = -height % reduction, -width % reduction
    if below or right:
        image = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE)
    size = (width + right) // reduction, (height + below) // reduction
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
