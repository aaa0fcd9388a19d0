"""What the predictions are measured on."""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from data.image_io.images import to_uint8
from data.trimap import BACKGROUND, FOREGROUND, UNKNOWN

BAND_SHARE, SUBJECT_SHARE = 0.2, 0.15  # of the pixels: unknown, and known foreground within the band


def draw_image(width: int, height: int) -> NDArray[np.uint8]:
    """Draw coloured clouds with noise on them: (H, W, 3)."""
    rng = np.random.default_rng(0)
    colours = rng.random((height // 48 + 2, width // 48 + 2, 3), np.float32)
    clouds = cv2.resize(colours, (width, height), interpolation=cv2.INTER_CUBIC)
    return to_uint8(0.8 * clouds + 0.2 * rng.random(clouds.shape, np.float32))


def band_trimap(width: int, height: int) -> NDArray[np.float32]:
    """Draw a closed band of unknown pixels, `BAND_SHARE` of all, around a subject with a wobbly outline.

    Returns: (H, W) of {0, 0.5, 1}; foreground lies within the band, background outside it.
    """
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)
    angle = np.arctan2(y, x)
    distance = np.hypot(y, x) / (1 + 0.15 * np.sin(3 * angle + 1) + 0.05 * np.sin(11 * angle))
    inner, outer = np.quantile(distance, [SUBJECT_SHARE, SUBJECT_SHARE + BAND_SHARE])
    return np.select([distance <= inner, distance <= outer], [FOREGROUND, UNKNOWN], BACKGROUND).astype(np.float32)


def unknown_trimap(width: int, height: int) -> NDArray[np.float32]:
    """All unknown: (H, W) of 0.5."""
    return np.full((height, width), UNKNOWN, np.float32)


TRIMAPS: dict[str, Callable[[int, int], NDArray[np.float32]]] = {"band": band_trimap, "unknown": unknown_trimap}
