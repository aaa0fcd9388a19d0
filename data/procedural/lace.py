"""Draw lace: a doily, a cloth of eyelets, or a net of knotted threads."""

import numpy as np
from numpy.random import Generator

from data.procedural.canvas import Array, Points, blob
from data.procedural.drawing import Drawing, ribbon
from data.procedural.strands import polar
from data.procedural.surfaces import gradient, noise, palette

TURN = np.linspace(0, 2 * np.pi, 48, endpoint=False)


def lace(rng: Generator, size_px: int) -> tuple[Array, Array]:
    """Draw one of `PATTERNS`, in white, cream or a colour, with the weave of its threads; RGB and alpha."""
    drawing = Drawing(size_px)
    PATTERNS[rng.integers(len(PATTERNS))](rng, drawing)
    alpha, shade = drawing.resolve()
    saturations = (0.02, 0.15) if rng.random() < 0.6 else (0.3, 0.8)
    stops = palette(rng, (0.0, 360.0), saturations)
    folds = 0.85 + 0.4 * noise(rng, size_px, 3, 3) + 0.12 * (noise(rng, size_px, 96, 2) - 0.5)
    return gradient(np.clip(shade * folds, 0, 1), stops), alpha


def ring(centre: Points, radius: float, lobes: int = 0, depth: float = 0.0, phase: float = 0.0) -> Points:
    """Outline a circle, or one whose radius swells and shrinks `lobes` times by the share `depth`; (N, 2)."""
    angle = np.linspace(0, 2 * np.pi, max(len(TURN), 12 * lobes), endpoint=False)
    return centre + (radius * (1 + depth * np.cos(lobes * (angle - phase))))[:, None] * polar(angle)


def doily(rng: Generator, drawing: Drawing) -> None:
    """Draw rings of holes and petals around a middle, with a scalloped rim."""
    centre, radius = np.array([0.5, 0.5]) + rng.uniform(-0.05, 0.05, 2), rng.uniform(0.34, 0.42)
    lobes, phase = int(rng.integers(12, 25)), rng.uniform(0, 2 * np.pi)
    drawing.fill(ring(centre, radius, lobes, 0.05, phase), 215)
    edges = np.linspace(0.16, 0.97, int(rng.integers(5, 9)))
    for inner, outer in zip(edges[:-1], edges[1:], strict=True):
        count = lobes * (2 if inner > 0.45 and rng.random() < 0.5 else 1)
        middle, thread = radius * (inner + outer) / 2, 0.004
        half_height = radius * (outer - inner) / 2 - thread
        half_width = np.pi * middle / count - thread * rng.uniform(0.8, 2)
        style = rng.integers(4)
        for angle in phase + 2 * np.pi * (np.arange(count) + 0.5 * rng.integers(2)) / count:
            away = polar(np.array(angle))
            along = np.array([-away[1], away[0]])
            at = centre + middle * away
            oval = half_height * np.cos(TURN)[:, None] * away + half_width * np.sin(TURN)[:, None] * along
            drawing.fill(at + oval, 0)
            if style == 1:
                drawing.fill(at + 0.55 * oval, 190)
            elif style == 2:
                for end in (-0.9, 0.9):
                    drawing.stroke(np.stack([at - half_height * away, at + end * half_width * along]), thread, 200)
            elif style == 3:
                drawing.stroke(np.stack([at - half_height * away, at + half_height * away]), thread, 235)
        drawing.stroke(np.concatenate([ring(centre, radius * outer)] * 2)[: len(TURN) + 2], 0.006, 245)
    for angle in phase + 2 * np.pi * np.arange(lobes) / lobes:
        drawing.fill(ring(centre + 0.99 * radius * polar(np.array(angle)), 0.32 * (1 - edges[-2]) * radius), 0)


def eyelets(rng: Generator, drawing: Drawing) -> None:
    """Draw a cloth with a lattice of small flowers of holes, and a hem."""
    outline = blob(rng, np.array([0.5, 0.5]) + rng.uniform(-0.04, 0.04, 2), rng.uniform(0.34, 0.42), 0.06)
    drawing.fill(outline, 190)
    pitch, angle, petals = rng.uniform(0.05, 0.08), rng.uniform(0, np.pi), int(rng.integers(4, 8))
    turn = np.stack([polar(np.array(angle)), polar(np.array(angle + np.pi / 2))])
    phase, wave = rng.uniform(0, 2 * np.pi, 2), pitch * rng.uniform(0.1, 0.5)
    steps = np.arange(-0.8, 0.8, pitch)
    for row, y in enumerate(steps):
        for x in steps + pitch / 2 * (row % 2):
            place = np.array([x, y])
            centre = 0.5 + (place + wave * np.sin(place[::-1] / (2 * pitch) + phase)) @ turn
            for petal in 2 * np.pi * np.arange(petals) / petals + angle:
                drawing.fill(ring(centre + 0.26 * pitch * polar(np.array(petal)), 0.62 * pitch / petals), 0)
            drawing.fill(ring(centre, 0.08 * pitch), 0)
            drawing.stroke(ring(centre, 0.46 * pitch), 0.03 * pitch, 235)
    drawing.fill([np.array([[-1, -1], [2, -1], [2, 2], [-1, 2]]), outline], 0)
    drawing.stroke(np.concatenate([outline, outline[:2]]), rng.uniform(0.008, 0.022), 225)


def net(rng: Generator, drawing: Drawing) -> None:
    """Draw a net of twisted threads with knots, swaying and torn at its outline."""
    outline = blob(rng, np.array([0.5, 0.5]), rng.uniform(0.38, 0.46), 0.12)
    pitch, angle, width = rng.uniform(0.025, 0.055), rng.uniform(0, np.pi), rng.uniform(0.003, 0.007)
    turn = np.stack([polar(np.array(angle)), polar(np.array(angle + rng.uniform(0.35, 0.5) * np.pi))])
    phase, sway = rng.uniform(0, 2 * np.pi, 2), rng.uniform(0.01, 0.04)

    def place(points: Points) -> Points:
        """Set points of the lattice into the image, where the net sways."""
        return 0.5 + points @ turn + sway * np.sin(7 * points[..., ::-1] + phase)

    steps = np.arange(-0.9, 0.9, pitch) + rng.uniform(0, pitch)
    along = np.linspace(-0.9, 0.9, 400)
    for offset in steps:
        straight = np.stack([along, np.full_like(along, offset)], 1)
        for line in (place(straight), place(straight[:, ::-1])):
            shade = rng.uniform(120, 190)
            drawing.stroke(line, width, shade)
            drawing.stroke(line + 0.15 * width, 0.35 * width, shade + 45)
    for x in steps:
        for y in steps:
            drawing.fill(ring(place(np.array([x, y])), width * rng.uniform(0.9, 1.3)), rng.uniform(130, 230))
    drawing.fill([np.array([[-1, -1], [2, -1], [2, 2], [-1, 2]]), outline], 0)
    drawing.fill(ribbon(np.concatenate([outline, outline[:2]]), 2.2 * width), 210)


PATTERNS = (doily, eyelets, net)
