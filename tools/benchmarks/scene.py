"""Draw the images, trimaps and mattes that are measured."""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from data.image_io.images import to_uint8
from data.trimap import BACKGROUND, FOREGROUND, UNKNOWN, trimap_from_alpha, unknown_mask

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
    """Make a trimap that is unknown everywhere: (H, W) of 0.5."""
    return np.full((height, width), UNKNOWN, np.float32)


TRIMAPS: dict[str, Callable[[int, int], NDArray[np.float32]]] = {"band": band_trimap, "unknown": unknown_trimap}


def draw_matte(width: int, height: int, seed: int) -> tuple[NDArray, NDArray, NDArray]:
    """Draw a subject with a soft, ragged border and strands, a noisy prediction of it, and its trimap.

    Returns: (H, W) prediction, ground truth and trimap, floats; about a quarter of the pixels is unknown.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    noise = cv2.GaussianBlur(rng.standard_normal((height, width), np.float32), (0, 0), 12)
    distance = np.hypot((x - width / 2) / (0.32 * width), (y - height / 2) / (0.38 * height)) - 1
    edge = distance + 0.08 * noise / noise.std()
    strands = 0.5 + 0.5 * np.sin(40 * np.arctan2(y - height / 2, x - width / 2) + noise)
    alpha = np.clip(0.5 - 12 * edge, 0, 1) + np.clip(1 - np.abs(edge) / 0.2, 0, 1) * strands**8
    alpha = np.clip(alpha, 0, 1)
    trimap = trimap_from_alpha(alpha, 8, 8)
    pred_alpha = np.clip(alpha + 0.08 * rng.standard_normal(alpha.shape, np.float32), 0, 1)
    return np.where(unknown_mask(trimap), pred_alpha, alpha), alpha, trimap


def draw_fragments(width: int, height: int, seed: int) -> tuple[NDArray, NDArray, NDArray]:
    """Draw a matte of a thousand soft blobs and a noisy prediction, all unknown: the hardest case for Conn.

    Returns: (H, W) prediction, ground truth and trimap, floats.
    """
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.standard_normal((height, width), np.float32), (0, 0), 6)
    alpha = np.clip(noise / noise.std() - 0.3, 0, 1)
    pred_alpha = np.clip(alpha + 0.05 * rng.standard_normal(alpha.shape, np.float32), 0, 1)
    return pred_alpha, alpha, np.full_like(alpha, 0.5)
