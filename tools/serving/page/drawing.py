"""Pictures for people: a trimap as colours over the photograph, points, a checkerboard; and strokes read back."""

from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from data.trimap import BACKGROUND, FOREGROUND, UNKNOWN

SHOWN_PX = 1280
"""Longer side of the reduced copy that is clicked and painted on."""

BRUSHES = {"subject": (64, 200, 64), "background": (224, 64, 64), "unknown": (64, 128, 255)}
"""Name of a brush -> its colour. They differ in hue and in lightness."""

VALUES = (FOREGROUND, BACKGROUND, UNKNOWN)
"""Trimap value of each brush, in the order of `BRUSHES`."""

NO_STROKE = 255
"""Label of a pixel without a stroke; others are indices of `BRUSHES`."""

TINT = 0.45
LEAST_OPACITY = 128  # of 255: the soft edge of a brush is no stroke
CHECK_PX = 16
CHECK_GREYS = 0.8, 0.6


def reduce(image: NDArray[np.uint8], longest_px: int) -> NDArray[np.uint8]:
    """Reduce an image (H, W) or (H, W, 3) so that its longer side has at most some pixels."""
    scale = longest_px / max(image.shape[:2])
    if scale >= 1:
        return image
    size = max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8)


def draw_trimap(
    image: NDArray[np.uint8], trimap: NDArray[np.float32] | None, points: Iterable[tuple[float, float, int]]
) -> NDArray[np.uint8]:
    """Tint a photograph by its trimap, and draw points as dots.

    Args:
        image: (h, w, 3) RGB.
        trimap: (H, W) of {0, 0.5, 1}, any size; None tints nothing.
        points: x, y in px of `image`, and 1 for the subject or 0 for the background.

    Returns: (h, w, 3) RGB.
    """
    drawn = image.copy()
    if trimap is not None:
        values = cv2.resize(trimap, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        for value, colour in zip(VALUES, BRUSHES.values(), strict=True):
            chosen = values == value
            drawn[chosen] = (1 - TINT) * drawn[chosen] + TINT * np.array(colour)
    radius = max(max(image.shape) // 120, 4)
    for x, y, label in points:
        centre = round(x), round(y)
        cv2.circle(drawn, centre, radius + 2, (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(drawn, centre, radius, BRUSHES["subject" if label else "background"], -1, cv2.LINE_AA)
    return drawn


def read_strokes(layers: Iterable[NDArray[np.uint8]], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Find which brush painted each pixel.

    Args:
        layers: (h, w, 4) RGBA, transparent where nothing is painted; later ones lie above.
        shape: (h, w) of the result.

    Returns: (h, w), an index of `BRUSHES` or `NO_STROKE`.
    """
    labels = np.full(shape, NO_STROKE, np.uint8)
    colours = np.array([*BRUSHES.values()], np.int32)
    for layer in layers:
        painted = layer[:, :, 3] >= LEAST_OPACITY
        distances = ((layer[:, :, None, :3].astype(np.int32) - colours) ** 2).sum(3)
        found = np.where(painted, distances.argmin(2), NO_STROKE).astype(np.uint8)
        found = cv2.resize(found, shape[::-1], interpolation=cv2.INTER_NEAREST).astype(np.uint8)
        labels = np.where(found == NO_STROKE, labels, found)
    return labels


def paint(trimap: NDArray[np.float32], labels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Lay strokes (h, w) of any size over a trimap (H, W)."""
    whole = cv2.resize(labels, trimap.shape[::-1], interpolation=cv2.INTER_NEAREST)
    values = np.array(VALUES, np.float32)[np.minimum(whole, len(VALUES) - 1)]
    return np.where(whole == NO_STROKE, trimap, values).astype(np.float32)


def checkerboard(height: int, width: int) -> NDArray[np.float32]:
    """Draw what shows transparency: (height, width, 3) in [0, 1]."""
    rows, columns = np.ogrid[:height, :width]
    is_light = (rows // CHECK_PX + columns // CHECK_PX) % 2 == 0
    greys = np.where(is_light, *CHECK_GREYS).astype(np.float32)
    return np.repeat(greys[:, :, None], 3, axis=2)
