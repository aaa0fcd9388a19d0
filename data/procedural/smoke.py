"""Draw smoke: a soft density of many scales, carried away by a swirling flow."""

import cv2
import numpy as np
from numpy.random import Generator

from data.procedural.canvas import Array
from data.procedural.surfaces import gradient, grid, noise, palette

MAX_SMOKE_ALPHA = 0.97


def smoke(rng: Generator, size_px: int) -> tuple[Array, Array]:
    """Draw a plume or a cloud, dense to faint, opaque nowhere; RGB and alpha.

    Alpha is `MAX_SMOKE_ALPHA` (1 - exp(-density)): a fog of that density scatters as much (Beer and Lambert).
    """
    x, y = grid(size_px)
    is_plume = rng.random() < 0.6
    curls = [noise(rng, size_px, 3, 5) - 0.5 for _ in range(2)]
    swirl = rng.uniform(0.25, 0.55)
    if is_plume:
        foot, sway, phase = rng.uniform(0.35, 0.65), rng.uniform(0.02, 0.12), rng.uniform(0, 2 * np.pi)
        height = np.clip(1 - y, 0, 1)
        middle = foot + sway * np.sin(2 * np.pi * rng.uniform(0.5, 1.2) * height + phase) * height
        half_width = rng.uniform(0.05, 0.1) + rng.uniform(0.2, 0.34) * height
        reach = np.abs(x - middle + swirl * curls[0] * (0.3 + height)) / half_width
        ends = np.clip(4 * (y - 0.02), 0, 1) * np.clip(8 * (0.97 - y), 0, 1)
    else:
        centre = rng.uniform(0.42, 0.58, 2)
        radii = rng.uniform(0.3, 0.42), rng.uniform(0.22, 0.36)
        dx, dy = x - centre[0] + swirl * curls[0], y - centre[1] + swirl * curls[1]
        reach = np.hypot(dx / radii[0], dy / radii[1])
        ends = np.clip(6 * np.minimum(np.minimum(x, 1 - x), np.minimum(y, 1 - y)), 0, 1)
    envelope = ends * np.clip(1 - reach**2, 0, None) ** 1.5
    mist, threads = noise(rng, size_px, 4, 7), 1 - np.abs(2 * noise(rng, size_px, 3, 6) - 1) ** 0.7
    moved = [(at + swirl * curl) * size_px - 0.5 for at, curl in zip((x, y), curls, strict=True)]
    mix = rng.uniform(0.3, 0.8)
    detail = mix * mist + (1 - mix) * threads  # fog of all sizes, and thin sheets seen from their edge
    wisps = cv2.remap(detail, moved[0], moved[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    density = envelope * np.clip((wisps - rng.uniform(0.1, 0.25)) / 0.45, 0, None) ** rng.uniform(1.4, 2.4)
    alpha = MAX_SMOKE_ALPHA * (1 - np.exp(-rng.uniform(1, 6) * density))
    soft = cv2.GaussianBlur(density, (0, 0), 0.025 * size_px)
    towards = rng.choice([-1, 1])  # side of the light
    down, right = np.gradient(soft, 1 / size_px)
    relief = np.tanh(0.2 * (towards * right + down))
    shade = np.clip(rng.uniform(0.35, 0.85) + 0.1 * relief + 0.25 * (wisps - 0.5), 0, 1)
    stops = palette(rng, (0.0, 360.0), (0.0, 0.12) if rng.random() < 0.8 else (0.3, 0.7))
    return gradient(shade, stops), alpha.astype(np.float32)
