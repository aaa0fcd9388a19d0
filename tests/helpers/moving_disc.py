"""Small clips of known motion: a textured disc over a textured background."""

import cv2
import numpy as np

from data.trimap import trimap_from_alpha

SHAPE = 72, 96


def texture(seed, shape=SHAPE):
    """Draw smooth coloured noise (H, W, 3) uint8 with contrast."""
    noise = np.random.default_rng(seed).random((*shape, 3), np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), 1.5)
    return np.rint(np.clip(0.5 + 3 * (blurred - 0.5), 0, 1) * 255).astype(np.uint8)


def moving_disc(num_frames, speed=(1.5, 0.5), start=(36.0, 34.0), radius=15.0, seed=0):
    """Draw frames (H, W, 3) uint8 and alphas (H, W) of a disc with a texture of its own, over a background at rest."""
    background, surface = texture(seed), texture(seed + 1)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]].astype(np.float32)
    frames, alphas = [], []
    for number in range(num_frames):
        way = np.array(speed) * number
        distance = np.hypot(x - start[0] - way[0], y - start[1] - way[1])
        alpha = np.clip(radius + 0.5 - distance, 0, 1).astype(np.float32)
        matrix = np.float32([[1, 0, way[0]], [0, 1, way[1]]])
        moved = cv2.warpAffine(surface, matrix, SHAPE[::-1], borderMode=cv2.BORDER_REFLECT_101)
        frames.append(np.rint(alpha[..., None] * moved + (1 - alpha[..., None]) * background).astype(np.uint8))
        alphas.append(alpha)
    return frames, alphas


def reader(frames):
    """Read frames of a list as `carried_trimaps` wants to."""
    return lambda start, stop: iter(frames[start:stop])


def band(alpha, radius_px=3):
    return trimap_from_alpha(alpha, radius_px, radius_px)
