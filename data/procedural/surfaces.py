"""Random fields and coloured surfaces."""

import cv2
import numpy as np
from numpy.random import Generator

from data.procedural.canvas import Array


def noise(rng: Generator, size_px: int, cells: int, num_octaves: int = 4) -> Array:
    """Smooth random field in [0, 1] with structure at several scales.

    Args:
        rng: source of the field.
        size_px: side of the square field.
        cells: random values along a side at the coarsest scale; each octave doubles them and halves their weight.
        num_octaves: number of scales.

    Returns: (size_px, size_px), minimum 0 and maximum 1.
    """
    field = np.zeros((size_px, size_px), np.float32)
    for octave in range(num_octaves):
        values = rng.random((cells << octave, cells << octave), dtype=np.float32)
        field += cv2.resize(values, (size_px, size_px), interpolation=cv2.INTER_CUBIC) / 2**octave
    return (field - field.min()) / (field.max() - field.min())


def texture(rng: Generator, size_px: int) -> Array:
    """Random surface: two or three colours mixed by noise, stripes or a gradient, lit from one side, with fine grain.

    Args:
        rng: source of the surface.
        size_px: side of the square.

    Returns: (size_px, size_px, 3) RGB in [0, 1].
    """
    hue = rng.uniform(0, 360) + np.array([0, rng.normal(0, 25), rng.uniform(0, 360)])
    hsv = np.stack([hue % 360, rng.uniform(0.1, 0.95, 3), rng.uniform(0.25, 1, 3)], 1).astype(np.float32)
    first, second, third = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]
    y, x = np.mgrid[:size_px, :size_px].astype(np.float32) / size_px - 0.5
    angle = rng.uniform(0, 2 * np.pi, 2)
    across, light = (np.cos(a) * x + np.sin(a) * y for a in angle)
    mix = noise(rng, size_px, int(rng.integers(2, 9)))
    pattern = rng.integers(3)
    if pattern == 0:
        mix = 0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(4, 16) * across + 3 * mix)
    elif pattern == 1:
        mix = np.clip(0.6 * mix + across + 0.2, 0, 1)
    accent = noise(rng, size_px, 4) > rng.uniform(0.65, 1.1)
    surface = np.where(accent[..., None], third, first + mix[..., None] * (second - first))
    grain = rng.normal(0, rng.uniform(0.01, 0.05), (size_px, size_px)) + 0.25 * (noise(rng, size_px, 32, 2) - 0.5)
    return np.clip((surface + grain[..., None]) * (1 + 0.5 * light)[..., None], 0, 1).astype(np.float32)
