"""Draw hair, fur and feathers: thousands of thin strands."""

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from data.procedural.canvas import Array, Points, blob
from data.procedural.drawing import Drawing
from data.procedural.surfaces import gradient, grid, noise, palette

HAIR_HUES = ((20, 32), (8, 20), (36, 48), (200, 230), (0, 360))  # brown, red, blond, grey, dyed
HAIR_SATURATIONS = ((0.3, 0.7), (0.5, 0.8), (0.3, 0.55), (0.02, 0.1), (0.4, 0.7))
FIELD_PX = 256  # of the fields that strands follow, whatever the size of the image


def grow(roots: Points, headings: Points, pulls: Points, lengths: NDArray, num_points: int, yielding: float) -> Points:
    """Grow strands from their roots; each turns from its heading towards its pull.

    Args:
        roots: (N, 2) start of each.
        headings: (N, 2) direction at the root.
        pulls: (N, 2) final direction, by weight and wind.
        lengths: (N,) length of each.
        num_points: K, points along a strand.
        yielding: share of the direction that the pull replaces at each point, 0 to 1.

    Returns: (N, K, 2).
    """
    points, direction = [roots], headings
    for _ in range(num_points - 1):
        direction = (1 - yielding) * direction + yielding * pulls
        unit = direction / np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-9)
        points.append(points[-1] + (lengths / (num_points - 1))[:, None] * unit)
    return np.stack(points, 1)


def curl(strands: Points, amplitudes: NDArray, waves: NDArray, phases: NDArray) -> Points:
    """Sway strands (N, K, 2) sideways by a sine of the given amplitudes (N,), full at the tip, `waves` along each."""
    t = np.linspace(0, 1, strands.shape[1])
    tangent = np.gradient(strands, axis=1)
    tangent /= np.maximum(np.linalg.norm(tangent, axis=2, keepdims=True), 1e-9)
    sway = amplitudes[:, None] * t * np.sin(2 * np.pi * waves[:, None] * t + phases[:, None])
    return strands + sway[..., None] * np.stack([-tangent[..., 1], tangent[..., 0]], 2)


def polar(angle: NDArray) -> Points:
    """Return the unit vectors (..., 2) of angles in radians."""
    return np.stack([np.cos(angle), np.sin(angle)], -1)


def hair(rng: Generator, size_px: int) -> tuple[Array, Array]:
    """Draw a head of hair: locks of fine strands that fall and blow, and single ones that stray; RGB and alpha."""
    drawing = Drawing(size_px)
    centre, radius = np.array([0.5, 0.34]) + rng.uniform(-0.06, 0.06, 2), rng.uniform(0.16, 0.21)
    crown = centre - [0, 0.35 * radius]
    wind = np.array([rng.normal(0, 0.5), 1])
    length, waviness = rng.uniform(0.36, 0.62), rng.choice([0.003, 0.008, 0.018])
    drawing.fill(blob(rng, centre, radius, roughness=0.04), 45)
    taper = 1 - 0.85 * np.linspace(0, 1, 26) ** 2
    num_locks, num_strands = 110, 28
    lock_angles = rng.uniform(-np.pi, np.pi, num_locks)
    for lock in range(num_locks + 1):
        strays = lock == num_locks
        count = 260 if strays else num_strands
        angles = rng.uniform(-np.pi, np.pi, count) if strays else lock_angles[lock] + rng.normal(0, 0.12, count)
        roots = crown + radius * rng.uniform(0.05, 0.75) * polar(angles) + rng.normal(0, 0.012, (count, 2))
        pulls = wind + (rng.normal(0, 0.75, (count, 2)) if strays else rng.normal(0, 0.3, 2))
        pulls = pulls + rng.normal(0, 0.12, (count, 2))
        lengths = length * rng.uniform(0.6, 1.15) * rng.uniform(0.75, 1.1, count)
        strands = grow(roots, polar(angles), pulls, lengths, len(taper), rng.uniform(0.09, 0.2))
        waves, phase = rng.uniform(1.5, 3.5), rng.uniform(0, 2 * np.pi)
        amplitudes = waviness * rng.uniform(0.6, 1.6, count)
        strands = curl(strands, amplitudes, waves + rng.normal(0, 0.1, count), phase + rng.normal(0, 0.5, count))
        level = rng.uniform(60, 215)
        widths = rng.uniform(0.0012, 0.0032, count) * (0.6 if strays else 1)
        drawing.strokes(strands, widths[:, None] * taper, level + rng.normal(0, 22, count))
    alpha, shade = drawing.resolve()
    x, y = grid(size_px)
    distance = np.hypot(x - crown[0], y - crown[1])
    shine = np.exp(-(((distance - 0.85 * radius) / (0.3 * radius)) ** 2))
    pick = int(rng.choice(5, p=[0.4, 0.15, 0.2, 0.15, 0.1]))
    stops = palette(rng, HAIR_HUES[pick], HAIR_SATURATIONS[pick])
    return gradient(np.clip(shade * (0.8 + 0.35 * shine), 0, 1), stops), alpha


def fur(rng: Generator, size_px: int) -> tuple[Array, Array]:
    """Draw a furry animal from behind: body, head and ears, covered with short strands in a pattern; RGB and alpha."""
    drawing = Drawing(size_px)
    middle = rng.uniform(0.45, 0.55)
    head = np.array([middle + rng.uniform(-0.09, 0.09), rng.uniform(0.32, 0.37)])
    size = rng.uniform(0.15, 0.19)
    outlines = [blob(rng, np.array([middle, 0.66]), rng.uniform(0.23, 0.28), 0.05), blob(rng, head, size, 0.03)]
    for side in (-1, 1):
        ear = head + size * np.array([0.75 * side, -0.8])
        outlines.append(blob(rng, ear, size * rng.uniform(0.3, 0.5), 0.05))
    for outline in outlines:
        drawing.fill(outline, 70)
    pattern = noise(rng, FIELD_PX, int(rng.integers(3, 9)), 3)
    if rng.random() < 0.5:
        pattern = np.clip(4 * (pattern - 0.5) + 0.5, 0, 1)  # spots instead of clouds
    lean = noise(rng, FIELD_PX, 4, 2) - 0.5
    length, comb = rng.uniform(0.035, 0.08), rng.normal(0, 0.25)
    roots, outward = [], []
    for outline, share in zip(outlines, (0.6, 0.28, 0.06, 0.06), strict=True):
        centre, number = outline.mean(0), int(11000 * share)
        edge = outline[rng.integers(len(outline), size=number)] - centre
        depth = np.sqrt(rng.random(number))[:, None]
        roots.append(centre + 0.98 * depth * edge)
        outward.append(depth**3 * edge / np.linalg.norm(edge, axis=1, keepdims=True))
    starts, away = np.concatenate(roots), np.concatenate(outward)
    row, column = np.clip((starts[:, ::-1] * FIELD_PX).astype(int), 0, FIELD_PX - 1).T
    angles = np.pi / 2 + comb + 1.6 * lean[row, column] + rng.normal(0, 0.22, len(starts))
    lengths = length * rng.uniform(0.5, 1.15, len(starts))
    headings = 1.3 * away + polar(angles)
    strands = grow(starts, headings, headings + rng.normal(0, 0.5, starts.shape), lengths, 7, 0.25)
    shades = 60 + 150 * pattern[row, column] + rng.normal(0, 24, len(starts))
    widths = rng.uniform(0.0012, 0.0034, len(starts))
    taper = 1 - 0.9 * np.linspace(0, 1, 7)
    order = np.argsort(-starts[:, 1] + 0.02 * rng.normal(size=len(starts)))  # as they lie, the upper over the lower
    drawing.strokes(strands[order], widths[order, None] * taper, shades[order])
    alpha, shade = drawing.resolve()
    pick = int(rng.choice(4, p=[0.45, 0.2, 0.15, 0.2]))
    stops = palette(rng, HAIR_HUES[pick], HAIR_SATURATIONS[pick])
    x, y = grid(size_px)
    light = 1.1 - 0.35 * y - rng.normal(0, 0.15) * (x - 0.5)
    return np.clip(gradient(shade, stops) * light[..., None], 0, 1), alpha


def feathers(rng: Generator, size_px: int) -> tuple[Array, Array]:
    """Draw one to five feathers: a shaft, vanes of barbs that part here and there, down at the base; RGB and alpha."""
    drawing = Drawing(size_px)
    number = int(rng.choice([1, 1, 3, 4, 5]))
    start = rng.uniform(0, 2 * np.pi)
    for index in range(number):
        heading = start + 2 * np.pi * index / number + rng.normal(0, 0.2)
        feather(rng, drawing, heading, length=rng.uniform(0.7, 0.85) if number == 1 else rng.uniform(0.4, 0.48))
    alpha, shade = drawing.resolve()
    hues = (0.0, 360.0) if rng.random() < 0.5 else (20.0, 40.0)
    stops = palette(rng, hues, (0.05, 0.6))
    return gradient(shade, stops), alpha


def feather(rng: Generator, drawing: Drawing, heading: float, length: float) -> None:
    """Draw one feather through the middle of the image, `heading` radians from the x axis, in a row of stripes."""
    along = polar(np.array(heading))
    sideways = np.array([-along[1], along[0]])
    outward = 0.02 if length < 0.6 else -0.5  # several grow from the middle, one lies across it
    root = np.array([0.5, 0.5]) + outward * length * along + rng.normal(0, 0.02, 2)
    t = np.linspace(0, 1, 60)[:, None]
    shaft = root + length * t * along + length * rng.normal(0, 0.13) * t**2 * sideways
    tangents = np.gradient(shaft, axis=0)
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    half_width, stripes, phase = length * rng.uniform(0.19, 0.3), rng.choice([0, 4, 7, 11]), rng.uniform(0, 6)
    down_until = rng.choice([0.2, 0.2, 0.35, 1])  # the last is a plume
    num_barbs = 230
    at = np.linspace(0.1, 0.995, num_barbs)
    points, ahead = (along_line(line, at) for line in (shaft, tangents))
    taper = 1 - 0.75 * np.linspace(0, 1, 12) ** 2
    level = 130 + (70 * np.sign(np.sin(2 * np.pi * stripes * at + phase)) if stripes else 0)
    for side in (-1, 1):
        width = half_width * rng.uniform(0.6, 1.1)
        across = side * np.stack([-ahead[:, 1], ahead[:, 0]], 1)
        partings = np.sort(rng.uniform(0.3, 0.95, rng.integers(2, 6)))
        turns = rng.uniform(-0.14, 0.1, len(partings) + 1)
        is_down = at < down_until + rng.normal(0, 0.02, num_barbs)
        angle = 1.0 - 0.45 * at + turns[np.searchsorted(partings, at)] + rng.normal(0, 0.015, num_barbs)
        angle += is_down * rng.normal(0, 0.45, num_barbs)
        narrowing = np.sqrt(1 - at**4)
        vane = np.minimum(1, 5 * (at - 0.05)) * rng.uniform(0.94, 1.02, num_barbs) / np.sin(1.0 - 0.45 * at)
        reach = width * narrowing * np.where(is_down, rng.uniform(0.5, 1.3, num_barbs), vane)
        first = np.cos(angle)[:, None] * ahead + np.sin(angle)[:, None] * across
        barbs = grow(points, first, ahead, np.maximum(reach, 0.004), len(taper), 0.06)
        amplitudes = is_down * rng.uniform(0.004, 0.012, num_barbs)
        barbs = curl(barbs, amplitudes, rng.uniform(1, 2.5, num_barbs), rng.uniform(0, 6, num_barbs))
        thick = (length / num_barbs * np.where(is_down, 0.35, 1.15))[:, None] * taper
        for part, shift in ((np.s_[:8], 0), (np.s_[7:], -28)):  # darker at the edge
            shades = level + shift + 12 * side + rng.normal(0, 14, num_barbs)
            drawing.strokes(barbs[:, part], thick[:, part], shades)
    drawing.stroke(shaft, length * 0.014 * (1 - 0.8 * t[:, 0]), 235)


def along_line(line: Points, share: NDArray) -> Points:
    """Interpolate (N, 2) points, or what belongs to them, at shares of their number, 0 to 1; (len(share), 2)."""
    place = share * (len(line) - 1)
    return np.stack([np.interp(place, np.arange(len(line)), line[:, c]) for c in (0, 1)], 1)
