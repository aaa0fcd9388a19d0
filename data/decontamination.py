"""Foregrounds whose colours are a photograph's own, freed of the background that shows through their edges.

Sets that give a photograph and its alpha store I = alpha F + (1 - alpha) B where a foreground should be F: composited
anew, their edges carry a rim of the old background. Sets whose colours were estimated when they were made, such as
Composition-1k, need none of this.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from data.foregrounds import Box, Foreground, OpenForeground, average, fractional_values
from data.images import to_float

NUM_SWEEPS = 3  # on every level; of 1, 3 and 10 the one with the least error on procedural foregrounds
LEAST_WEIGHT = 0.01  # of a colour where alpha hides it, so that there is a mean where it is hidden all around


@dataclass(frozen=True)
class DecontaminatedForeground:
    """A foreground of a photograph's own colours; those of fractional pixels are estimated anew wherever it is read.

    Args:
        source: the photograph with its alpha.
    """

    source: Foreground

    @property
    def name(self) -> str:
        return self.source.name

    def open(self) -> OpenForeground:
        return OpenDecontaminatedForeground(self.source.open())


class OpenDecontaminatedForeground:
    """What `DecontaminatedForeground` opens.

    Boxes are read at full size and averaged here: colours that were averaged by their alphas are no blend of two
    colours by the mean alpha.
    """

    def __init__(self, source: OpenForeground) -> None:
        self._source = source
        self.size = source.size

    def unknown_points(self, rng: np.random.Generator) -> NDArray:
        return self._source.unknown_points(rng)

    def read(self, box: Box, reduction: int) -> tuple[NDArray, NDArray]:
        colours, alpha = (average(layer, reduction) for layer in self._source.read(box, 1))
        is_fractional = cv2.inRange(alpha, *fractional_values(alpha.dtype)) > 0
        if not is_fractional.any():
            return colours, alpha
        estimate = estimate_foreground_colours(to_float(colours), to_float(alpha))[is_fractional]
        colours[is_fractional] = np.rint(estimate * np.iinfo(colours.dtype).max)
        return colours, alpha


def estimate_foreground_colours(image: NDArray[np.float32], alpha: NDArray[np.float32]) -> NDArray[np.float32]:
    """Estimate F in I = alpha F + (1 - alpha) B, from the coarsest of halved sizes to the full one.

    On each level F and B start as the enlarged ones of the level before. A sweep takes the means f and b of 3 x 3 px,
    F's weighted by alpha, B's by 1 - alpha, and moves them by as little as makes them blend to I again:
    F = f + alpha d, B = b + (1 - alpha) d, d = (I - alpha f - (1 - alpha) b) / (alpha^2 + (1 - alpha)^2), clipped.

    Multi-level estimation is Germer et al. 2020 (arXiv:2006.14970), means weighted by alpha and their correction Forte
    2021 ("Approximate Fast Foreground Colour Estimation"); `inference.foreground` wraps pymatting's, for results.

    Args:
        image: I, (H, W, 3) in [0, 1].
        alpha: (H, W) in [0, 1]; where it is 1, F is I up to rounding, and where it is 0, nearby foreground.

    Returns: (H, W, 3) in [0, 1], not premultiplied.
    """
    # Alpha three times over: a channel of its own would make the arithmetic three times slower.
    levels: list[tuple[NDArray, NDArray]] = [(image, cv2.merge([alpha] * 3))]
    while max(levels[-1][1].shape[:2]) > 1:
        height, width = levels[-1][1].shape[:2]
        size = -(-width // 2), -(-height // 2)
        colours, opacity = (cv2.resize(layer, size, interpolation=cv2.INTER_AREA) for layer in levels[-1])
        levels.append((colours, opacity))
    foreground: NDArray = levels[-1][0]
    background = foreground
    for blended, opacity in reversed(levels):
        size = blended.shape[1::-1]
        foreground, background = cv2.resize(foreground, size), cv2.resize(background, size)
        rest = 1 - opacity
        weights = opacity + LEAST_WEIGHT, rest + LEAST_WEIGHT
        sums = [cv2.blur(weight, (3, 3)) for weight in weights]
        share = 1 / (opacity * opacity + rest * rest)
        for _ in range(NUM_SWEEPS):
            foreground = cv2.blur(foreground * weights[0], (3, 3)) / sums[0]
            background = cv2.blur(background * weights[1], (3, 3)) / sums[1]
            missing = (blended - opacity * foreground - rest * background) * share
            foreground = (foreground + opacity * missing).clip(0, 1)
            background = (background + rest * missing).clip(0, 1)
    return foreground
