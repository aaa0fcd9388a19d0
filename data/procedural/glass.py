"""Draw glass: vessels seen from the side, by the path of light through their walls and their reflections."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from data.procedural.canvas import Array, Points
from data.procedural.drawing import Drawing
from data.procedural.surfaces import gradient, grid, noise, over, palette, plain

# Outer radius at equal steps from the lip (0) to the base (1), and where the glass becomes solid; in heights.
VESSELS: dict[str, tuple[tuple[float, ...], float]] = {
    "wine glass": ((0.2, 0.24, 0.26, 0.25, 0.17, 0.05, 0.024, 0.022, 0.022, 0.03, 0.21), 0.5),
    "tumbler": ((0.3, 0.3, 0.295, 0.29, 0.285, 0.28, 0.275, 0.27, 0.26), 0.93),
    "bottle": ((0.06, 0.06, 0.06, 0.065, 0.1, 0.17, 0.18, 0.18, 0.18, 0.18, 0.175), 0.96),
    "vase": ((0.17, 0.13, 0.1, 0.1, 0.14, 0.19, 0.22, 0.22, 0.19, 0.14, 0.13), 0.94),
    "bowl": ((0.42, 0.41, 0.39, 0.36, 0.3, 0.2, 0.14), 0.9),
}
LEVELS = np.linspace(0, 1, 241)  # at which a profile is known


@dataclass(frozen=True)
class Vessel:
    """A round vessel that stands upright; lengths are shares of the image, levels run from 0 (lip) to 1 (base).

    Args:
        middle: x of its axis.
        top: y of its lip.
        height: from lip to base.
        profile: (241,) outer radius at `LEVELS`.
        wall: thickness of the glass.
        solid_from: level from which on there is no hollow.
        tilt: height by width of a level circle, seen from a little above.
    """

    middle: float
    top: float
    height: float
    profile: NDArray[np.float64]
    wall: float
    solid_from: float
    tilt: float

    def ellipse(self, level: float, radius: float) -> Points:
        """Outline a level circle, (N, 2)."""
        angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
        y = self.top + level * self.height
        return np.stack([self.middle + radius * np.cos(angle), y + self.tilt * radius * np.sin(angle)], 1)

    def inner(self, level: NDArray) -> Array:
        """Compute the radius of the hollow at some levels, 0 where it is solid."""
        outer = np.interp(level, LEVELS, self.profile)
        return np.where(level < self.solid_from, np.maximum(outer - self.wall, 0), 0).astype(np.float32)


def path_through_shell(across: NDArray, outer: NDArray, inner: NDArray) -> NDArray:
    """Compute the length of a straight path through a round shell seen from the side.

    Args:
        across: distance of the path from the axis.
        outer: radius of the shell, at least 0.
        inner: radius of the hollow, 0 where it is solid.

    Returns: 2 (sqrt(outer^2 - across^2) - sqrt(inner^2 - across^2)), where a root of less than 0 counts as 0.
    """
    square = across**2
    return 2 * (np.sqrt(np.maximum(outer**2 - square, 0)) - np.sqrt(np.maximum(inner**2 - square, 0)))


def glass(rng: Generator, size_px: int) -> tuple[Array, Array]:
    """Draw one of `VESSELS`: walls, reflections, lip and base, and often a drink in it; RGB and alpha.

    Where light takes a path through the wall, alpha is 1 - exp(-density path) (Beer and Lambert).
    """
    vessel = stand(rng)
    x, y = grid(size_px)
    level = (y[:, :1] - vessel.top) / vessel.height  # (H, 1), as all that depends on it alone
    outer = np.interp(level, LEVELS, vessel.profile).astype(np.float32)
    across = (x - vessel.middle) / outer
    lip, foot = (vessel.ellipse(end, vessel.profile[-end]) for end in (0, 1))
    sides = [
        np.stack([vessel.middle + side * vessel.profile, vessel.top + vessel.height * LEVELS], 1) for side in (1, -1)
    ]
    silhouette = Drawing(size_px)
    for outline in (np.concatenate([sides[0], sides[1][::-1]]), lip, foot):
        silhouette.fill(outline, 255)
    inside = silhouette.resolve()[0]

    tint = palette(rng, (0.0, 360.0), (0.05, 0.25) if rng.random() < 0.6 else (0.4, 0.8))
    path = path_through_shell(across * outer, outer, vessel.inner(level))
    walls = inside * (1 - np.exp(-rng.uniform(3, 9) * path))
    layers = [(walls, gradient(0.45 + 0.35 * noise(rng, size_px, 4, 3), tint))]
    if rng.random() < 0.6:
        layers += drink(rng, vessel, across * outer, level)
    facing = np.sqrt(np.clip(1 - across**2, 0, 1))
    mirrored = inside * (0.04 + 0.96 * (1 - facing) ** 5)  # Schlick's approximation of Fresnel's law
    layers.append((rng.uniform(0.6, 0.95) * mirrored, gradient(noise(rng, size_px, 3), tint[1:])))
    windows = np.zeros_like(inside)
    within = np.clip(20 * (level - 0.05), 0, 1) * np.clip(12 * (vessel.solid_from - 0.04 - level), 0, 1)
    for place, width in zip(rng.uniform([-0.75, 0.35], [-0.4, 0.8]), rng.uniform(0.04, 0.14, 2), strict=True):
        stripe = np.clip(1.5 - np.abs(across - place) / width, 0, 1) * within
        windows = np.maximum(windows, rng.uniform(0.35, 0.95) * stripe)
    layers.append((inside * windows, plain([1, 1, 1], inside)))
    rims = Drawing(size_px)
    for outline in (lip, foot):
        rims.stroke(np.concatenate([outline, outline[:2]]), 0.7 * vessel.wall, 255)
    glints = 0.35 + 0.6 * np.clip(np.cos(2.5 * np.pi * across), 0, 1)
    layers.append((rims.resolve()[0] * glints, plain([0.95, 0.97, 1], inside)))
    return over(layers)


def stand(rng: Generator) -> Vessel:
    """Draw the shape and position of a vessel."""
    radii, solid_from = VESSELS[rng.choice(list(VESSELS))]
    is_tall = len(radii) > 7
    height = (0.8 if is_tall else 0.5) * rng.uniform(0.9, 1.05)
    knots = np.interp(LEVELS, np.linspace(0, 1, len(radii)), radii) * height * rng.uniform(0.85, 1.1)
    smoothed = cv2.GaussianBlur(knots[:, None], (1, 0), 7, borderType=cv2.BORDER_REPLICATE)
    profile = smoothed[:, 0].astype(np.float64)
    wall, tilt = rng.uniform(0.006, 0.016), rng.uniform(0.1, 0.2)
    return Vessel(rng.uniform(0.44, 0.56), 0.5 - height / 2, height, profile, wall, solid_from, tilt)


def drink(rng: Generator, vessel: Vessel, across: NDArray, level: NDArray) -> list[tuple[NDArray, Array]]:
    """Fill a vessel to a random level: the body of the drink, then its surface; alpha and RGB of each.

    Args:
        rng: source of the drink.
        vessel: that contains it.
        across: (H, W) distance from the axis.
        level: (H, 1) level in the vessel.
    """
    size_px = len(level)
    full_from = rng.uniform(0.25, 0.6) * vessel.solid_from
    drawing = Drawing(size_px)
    drawing.fill(vessel.ellipse(full_from, float(vessel.inner(np.array(full_from)))), 255)
    surface = drawing.resolve()[0]
    inner = vessel.inner(level)
    below = np.clip((level - full_from) * vessel.height * size_px + 0.5, 0, 1)
    within = np.clip((inner - np.abs(across)) * size_px + 0.5, 0, 1) * (inner > 0)
    path = path_through_shell(across, inner, np.zeros_like(inner))
    body = np.maximum(below * within, surface) * (1 - np.exp(-rng.choice([2, 6, 25]) * (path + 0.02)))
    stops = palette(rng, (0.0, 360.0), (0.5, 0.9))
    shade = 0.75 - 0.35 * np.abs(across) / vessel.profile.max() + 0.1 * noise(rng, size_px, 3, 2)
    return [(body, gradient(np.clip(shade, 0, 1), stops)), (0.35 * surface, plain(stops[3], surface))]
