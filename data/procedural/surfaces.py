"""Draw random fields and coloured surfaces."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from data.composition import merge_foregrounds
from data.procedural.canvas import Array


def noise(rng: Generator, size_px: int, cells: int, num_octaves: int = 4) -> Array:
    """Draw a smooth random field in [0, 1] with structure at several scales.

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
    """Draw a random surface: colours mixed by noise, stripes or a gradient, lit from one side, with fine grain.

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


def gradient(shade: NDArray, stops: NDArray) -> Array:
    """Colour a shade (H, W), clipped to [0, 1], by a row of colours (N, 3), equally far apart; (H, W, 3)."""
    levels = np.linspace(0, len(stops) - 1, 1024)
    table = np.stack([np.interp(levels, np.arange(len(stops)), stops[:, c]) for c in range(3)], 1).astype(np.float32)
    return table[np.rint(np.clip(shade, 0, 1) * 1023).astype(np.int16)]


def palette(rng: Generator, hues_deg: tuple[float, float], saturations: tuple[float, float]) -> NDArray:
    """Draw a row of four colours (4, 3) from dark to bright, of similar hue.

    Args:
        rng: source of the colours.
        hues_deg: the range of hues, in degrees.
        saturations: the range of saturations in [0, 1]; the brightest colour has less of it.
    """
    hue = rng.uniform(*hues_deg) + np.cumsum(rng.normal(0, 5, 4))
    saturation = rng.uniform(*saturations) * np.array([1, 1, 0.9, 0.6])
    value = np.array([0.08, 0.35, 0.65, 0.95]) * rng.uniform(0.7, 1.05)
    hsv = np.stack([hue % 360, saturation, np.minimum(value, 1)], 1).astype(np.float32)
    return cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]


def relief(alpha: Array, light: NDArray, bumps: Array, roundness: float = 0.12) -> Array:
    """Light a silhouette as if it was a cushion.

    Args:
        alpha: (H, W), what the shape covers.
        light: (3,) unit vector towards the light; x to the right, y down, z towards the camera.
        bumps: (H, W) heights that are added, in sides of the image.
        roundness: distance from the outline where the surface becomes flat, in sides.

    Returns: diffuse light (H, W) in [0, 1]; 0.3 comes from all sides.
    """
    side = len(alpha)
    inside = np.pad((alpha > 0.5).astype(np.uint8), ((1, 1), (1, 1)), mode="edge")
    depth = cv2.distanceTransform(inside, cv2.DIST_L2, 5)[1:-1, 1:-1] / side
    height = roundness * np.sqrt(1 - (1 - np.minimum(depth / roundness, 0.97)) ** 2)
    slope_y, slope_x = np.gradient(cv2.GaussianBlur(height, (0, 0), side / 60) + bumps, 1 / side)
    facing = (light[2] - slope_x * light[0] - slope_y * light[1]) / np.sqrt(1 + slope_x**2 + slope_y**2)
    return (0.3 + 0.7 * np.clip(facing, 0, 1)).astype(np.float32)


def resized(field: NDArray, size_px: int) -> Array:
    """Resize a square field (H, W) or (H, W, C) to another side, without aliasing."""
    way = cv2.INTER_AREA if size_px < len(field) else cv2.INTER_LINEAR
    return cv2.resize(field, (size_px, size_px), interpolation=way).astype(np.float32)


def grid(size_px: int) -> tuple[Array, Array]:
    """Return x and y in [0, 1] of the pixels' centres, (H, W) each."""
    y, x = (np.mgrid[:size_px, :size_px].astype(np.float32) + 0.5) / size_px
    return x, y


def over(layers: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Merge layers of alpha (H, W) and RGB (H, W, 3), the last on top; return RGB and alpha."""
    alpha, colour = layers[0][0][..., None], layers[0][1]
    for upper_alpha, upper_colour in layers[1:]:
        alpha, colour = merge_foregrounds(upper_alpha[..., None], upper_colour, alpha, colour)
    return np.clip(colour, 0, 1).astype(np.float32), np.clip(alpha[..., 0], 0, 1).astype(np.float32)


def plain(colour: Sequence[float] | NDArray, like: Array) -> Array:
    """Return one colour (3,) everywhere, (H, W, 3)."""
    return np.broadcast_to(np.asarray(colour, np.float32), (*like.shape, 3))


def shrink(foreground: Array, alpha: Array, factor: int) -> tuple[Array, Array]:
    """Average blocks of factor x factor pixels: alpha, and the colour of what each block shows of the foreground."""
    if factor == 1:
        return foreground, alpha
    side = len(alpha) // factor
    premultiplied = np.dstack([foreground * alpha[..., None], foreground, alpha])
    means = cv2.resize(premultiplied, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32)
    small = means[..., 6:]
    colour = np.where(small > 0, means[..., :3] / np.maximum(small, 1e-6), means[..., 3:6])
    return np.clip(colour, 0, 1), small[..., 0]
