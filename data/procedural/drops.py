"""Draw water drops: clear in the middle, dark where they bend light most, with glints."""

import numpy as np
from numpy.random import Generator

from data.procedural.canvas import Array, Points, blob
from data.procedural.drawing import Drawing
from data.procedural.surfaces import over, palette, plain, shrink

FINEST_PX = 512  # smaller images are drawn larger and shrunk: rims are thinner than their pixels


def drops(rng: Generator, size_px: int) -> tuple[Array, Array]:
    """Draw many water drops of all sizes that do not touch; (H, W, 3) RGB and (H, W) alpha."""
    finer = -(-FINEST_PX // size_px)
    return shrink(*draw_drops(rng, finer * size_px), finer)


def draw_drops(rng: Generator, size_px: int) -> tuple[Array, Array]:
    """Draw the drops as they are at the middle of each pixel."""
    angle = np.pi / 2 + rng.uniform(-0.8, 0.8)
    light = np.array([np.cos(angle), np.sin(angle)])  # where it travels: downwards
    outlines, glints = Drawing(size_px), Drawing(size_px)
    clear, dark, glow = np.zeros((3, size_px, size_px), np.float32)
    number = int(rng.integers(18, 70))
    sizes = np.minimum(0.016 * rng.power(1.4, number) ** -1.1, rng.uniform(0.06, 0.14))  # many small, some large
    placed: list[tuple[Points, float]] = []
    for radius in np.sort(sizes)[::-1]:
        centre, stretch, sharpness = rng.uniform(0.08, 0.92, 2), rng.uniform(0.9, 1.25), rng.uniform(5, 9)
        outline = centre + (blob(rng, np.zeros(2), radius, roughness=0.035)) * [1 / stretch, stretch]
        glint = blob(rng, centre - 0.45 * radius * light, radius * rng.uniform(0.12, 0.2), roughness=0.1)
        spark = blob(rng, centre - 0.7 * radius * light + 0.1 * radius * rng.normal(size=2), 0.06 * radius)
        if any(np.hypot(*(centre - other)) < 1.3 * (radius + size) for other, size in placed):
            continue
        placed.append((centre, radius))
        outlines.fill(outline, 255)
        glints.fill(glint, 255)
        glints.fill(spark, 255)
        # all that is within the drop, and a pixel more on each side
        low = np.clip(np.floor(outline.min(0) * size_px).astype(int) - 1, 0, size_px)
        high = np.clip(np.ceil(outline.max(0) * size_px).astype(int) + 1, 0, size_px)
        window = np.s_[low[1] : high[1], low[0] : high[0]]
        x, y = ((at + 0.5) / size_px for at in np.meshgrid(np.arange(low[0], high[0]), np.arange(low[1], high[1])))
        rho = share_of_radius(outline - centre, x - centre[0], y - centre[1])
        lit = ((x - centre[0]) * light[0] + (y - centre[1]) * light[1]) / radius  # from -1, where light comes in, to 1
        clear[window] = np.maximum(clear[window], 0.1 + 0.12 * (1 - rho**2))
        dark[window] = np.maximum(dark[window], rho**sharpness * np.clip(0.62 - 0.4 * lit, 0, 1))
        gathered = np.exp(-(((rho - 0.72) / 0.22) ** 2)) * np.clip(lit, 0, 1) ** 1.5
        glow[window] = np.maximum(glow[window], 0.8 * gathered)
    inside = outlines.resolve()[0]
    tint = palette(rng, (180.0, 240.0), (0.0, 0.35))
    layers = [
        (inside * layer, plain(colour, inside))
        for layer, colour in ((clear, tint[2]), (dark, tint[0]), (glow, tint[3]))
    ]
    layers.append((0.95 * inside * glints.resolve()[0], plain([1, 1, 1], inside)))
    return over(layers)


def share_of_radius(outline: Points, x: Array, y: Array) -> Array:
    """Measure how far points are from the middle towards an outline: 0 in the middle, 1 on the outline and beyond.

    Args:
        outline: (N, 2) around the origin, seen from there each direction once, angles rising.
        x: of the points, any shape.
        y: of the points.
    """
    angles, radii = np.arctan2(outline[:, 1], outline[:, 0]), np.linalg.norm(outline, axis=1)
    return np.minimum(np.hypot(x, y) / np.interp(np.arctan2(y, x), angles, radii, period=2 * np.pi), 1)
