"""Draw foliage: stems that branch, with leaves on both sides."""

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from data.procedural.canvas import Array, Points
from data.procedural.drawing import Drawing
from data.procedural.strands import grow, polar
from data.procedural.surfaces import gradient, grid, noise, palette


def leaf_half_width(t: NDArray, fullness: float) -> NDArray:
    """Compute half the width at 0 <= t <= 1 along a leaf 1 wide: sin(pi t^fullness) / 2, fuller at the base below 1."""
    return np.sin(np.pi * t**fullness) / 2


def leaf(
    drawing: Drawing, base: Points, heading: float, length: float, aspect: float, fullness: float, bend: float,
    shade: float,
) -> None:  # fmt: skip
    """Draw one leaf, its halves lit differently, with a midrib and side veins.

    Args:
        drawing: target.
        base: (2,) start of the leaf.
        heading: its direction at the base, radians.
        length: from base to tip.
        aspect: width by length.
        fullness: see `leaf_half_width`.
        bend: radians by which it has turned at the tip.
        shade: mean of the two halves.
    """
    t = np.linspace(0, 1, 16)
    steps = polar(heading + bend * t) * length / (len(t) - 1)
    midrib = base + np.cumsum(steps, 0) - steps[0]
    normal = np.stack([-steps[:, 1], steps[:, 0]], 1) / np.linalg.norm(steps[0])
    edge = length * aspect * leaf_half_width(t, fullness)[:, None] * normal
    for side, light in ((1, 16), (-1, -16)):
        drawing.fill(np.concatenate([midrib, (midrib + side * edge)[::-1]]), shade + light)
        for at in range(3, 13, 3):
            vein = np.stack([midrib[at], midrib[at + 2] + side * 0.8 * edge[at + 2]])
            drawing.stroke(vein, length * 0.012, shade + light + 14)
    drawing.stroke(midrib, length * np.linspace(0.05, 0.01, len(t)), shade + 34)


def foliage(rng: Generator, size_px: int) -> tuple[Array, Array]:
    """Draw leafy branches, or fronds of small leaves, that enter from an edge; RGB and alpha."""
    drawing = Drawing(size_px)
    is_frond = rng.random() < 0.35
    aspect, fullness = (rng.uniform(0.2, 0.35), 0.8) if is_frond else (rng.uniform(0.25, 0.65), rng.uniform(0.65, 1.05))
    leaf_length = rng.uniform(0.028, 0.04) if is_frond else rng.uniform(0.06, 0.12)
    entry = rng.uniform(0, 2 * np.pi)
    foot = 0.5 - 0.62 * polar(np.array(entry)) + rng.normal(0, 0.05, 2)
    for number in range(int(rng.integers(4, 7))):  # those drawn first lie behind and are darker
        depth = 0.55 + 0.12 * number
        headings = polar(np.array([entry + rng.normal(0, 0.55)]))
        pull = headings + rng.normal(0, 0.6, (1, 2)) + [0, 0.25]
        start = foot + rng.normal(0, 0.08, (1, 2))
        stem = grow(start, headings, pull, rng.uniform(0.75, 1.1, 1), 40, 0.03)[0]
        side_stems = [stem]
        for at in rng.choice(np.arange(6, 36), 20 if is_frond else 11, replace=False):
            side = rng.choice([-1, 1])
            ahead = stem[at + 1] - stem[at]
            angle = np.arctan2(ahead[1], ahead[0]) + side * rng.uniform(0.5, 0.9)
            reach = rng.uniform(0.12, 0.3, 1) * (1 - 0.5 * at / 40)
            heading = polar(np.array([angle]))
            side_stems.append(grow(stem[at][None], heading, heading + [[0, 0.3]], reach, 20, 0.04)[0])
        for line in side_stems:
            thickness = (0.013 if line is stem else 0.006) * np.linspace(1, 0.25, len(line))
            drawing.stroke(line, thickness, 70 * depth)
        for line in side_stems:
            span = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
            spacing = leaf_length * (0.45 if is_frond else 0.6)
            for count, at in enumerate(np.arange(0.15 * span[-1], span[-1], spacing)):
                place = np.searchsorted(span, at)
                point, ahead = line[place], line[place] - line[place - 1]
                side = 1 if count % 2 else -1
                heading = np.arctan2(ahead[1], ahead[0]) + side * rng.uniform(0.6, 1.2)
                size = leaf_length * rng.uniform(0.6, 1.15)
                level = depth * rng.uniform(105, 200)
                foreshortened = aspect * rng.uniform(0.55, 1)  # a leaf turned away looks narrower
                leaf(drawing, point, heading, size, foreshortened, fullness, rng.normal(0, 0.5), level)
    alpha, shade = drawing.resolve()
    hues = ((75.0, 125.0), (40.0, 70.0), (10.0, 35.0))[rng.choice(3, p=[0.7, 0.15, 0.15])]
    stops = palette(rng, hues, (0.5, 0.85))
    x, y = grid(size_px)
    light = 1.05 + 0.35 * (noise(rng, size_px, 3, 2) - 0.5) - 0.25 * (x + y - 1) * rng.choice([-1, 1])
    return np.clip(gradient(shade, stops) * light[..., None], 0, 1).astype(np.float32), alpha
