"""Draw the coats of animals: fur and feathers."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from data.procedural.canvas import Array, Points, blob
from data.procedural.drawing import Drawing, silhouette
from data.procedural.strands import (
    FINE_SAMPLES,
    HAIR_HUES,
    HAIR_SATURATIONS,
    STEPS_PER_PIECE,
    curl,
    gather_tips,
    grow,
    layer,
    paint,
    polar,
    ruffle,
    shine,
    unit,
)
from data.procedural.surfaces import gradient, noise, over, palette, relief, resized

FIELD_PX = 384  # of what has no fine detail, whatever the size of the image
NUM_POINTS = 3 * STEPS_PER_PIECE + 1
NUM_STRANDS = 13000  # for fur of 0.05 sides; short fur needs more to hide the skin


@dataclass
class Part:
    """An ellipsoid of an animal's body, in sides of the image.

    Attributes:
        x: of its centre, from the animal's middle to its front.
        y: of its centre, from the top of the image.
        across: radius along x, before it is tilted.
        down: radius along y.
        length: of its fur, relative to the animal's.
        tilt: in radians, clockwise.
        flow: direction of its fur in radians, clockwise from the front.
    """

    x: float
    y: float
    across: float
    down: float
    length: float = 1.0
    tilt: float = 0.0
    flow: float = np.pi / 2


Pose = tuple[list[Part], list[Part], list[tuple[float, float, float]]]
# The rear parts, the front parts in the order of painting, and eyes and nose as x, y and radius.
SITTING_FROM_THE_FRONT: Pose = (
    [Part(0.15, 0.84, 0.06, 0.14, 1.2, 0.9), Part(0, 0.72, 0.19, 0.26)],
    [
        *(Part(x, 0.9, 0.07, 0.16, 0.5) for x in (-0.09, 0.09)),
        Part(-0.12, 0.2, 0.05, 0.08, 0.4, -0.4, -2), Part(0.12, 0.2, 0.05, 0.08, 0.4, 0.4, -1),
        Part(0, 0.33, 0.165, 0.15, 0.7), Part(0, 0.39, 0.075, 0.06, 0.3),
    ],
    [(-0.065, 0.31, 0.017), (0.065, 0.31, 0.017), (0, 0.365, 0.02)],
)  # fmt: skip
SITTING_FROM_BEHIND: Pose = (
    [Part(0.16, 0.88, 0.05, 0.18, 1.6, 1.1), Part(0, 0.72, 0.22, 0.27)],
    [
        Part(-0.11, 0.22, 0.05, 0.07, 0.5, -0.4, -2), Part(0.11, 0.22, 0.05, 0.07, 0.5, 0.4, -1),
        Part(0, 0.35, 0.16, 0.15, 0.8),
    ],
    [],
)  # fmt: skip
STANDING_FROM_THE_SIDE: Pose = (
    [Part(-0.33, 0.52, 0.035, 0.14, 1.6, -0.4, 1.9), *(Part(x, 0.75, 0.04, 0.17, 0.4) for x in (-0.17, 0.2))],
    [
        *(Part(x, 0.74, 0.05, 0.2, 0.5) for x in (-0.22, 0.15)), Part(-0.03, 0.53, 0.27, 0.14, 1, 0, 2.5),
        Part(0.2, 0.42, 0.09, 0.15, 1.2, 0.5, 2.1), Part(0.28, 0.32, 0.11, 0.09, 0.6, 0.2, 2.8),
        Part(0.37, 0.36, 0.06, 0.045, 0.3, 0.2, 3), Part(0.22, 0.25, 0.035, 0.07, 0.5, -0.3, 2),
    ],
    [(0.31, 0.3, 0.012), (0.425, 0.35, 0.016)],
)  # fmt: skip
HEAD_ALONE: Pose = (
    [
        Part(0, 0.95, 0.33, 0.3, 1.2),
        Part(-0.22, 0.2, 0.08, 0.13, 0.6, -0.4, -2), Part(0.22, 0.2, 0.08, 0.13, 0.6, 0.4, -1),
    ],
    [Part(0, 0.47, 0.29, 0.27, 0.9), Part(0, 0.58, 0.13, 0.11, 0.3)],
    [(-0.12, 0.42, 0.03), (0.12, 0.42, 0.03), (0, 0.54, 0.035)],
)  # fmt: skip
POSES = (SITTING_FROM_THE_FRONT, SITTING_FROM_BEHIND, STANDING_FROM_THE_SIDE, HEAD_ALONE)


@dataclass
class Coat:
    """How the fur of an animal grows and what colour it has.

    Attributes:
        length: in sides of the image.
        lift: share of the direction out of the skin at the root, 0 to 1.
        width: of a strand at its root, in sides.
        closing: share of their distance that the strands of a lock lose at the tip.
        pattern: (FIELD_PX, FIELD_PX) shade of the strands, 1 to 255.
        lean: (FIELD_PX, FIELD_PX) angles that are added to the flow.
        fuzz: (FIELD_PX, FIELD_PX) fine noise of the skin, in [0, 1].
        light: (3,) unit vector towards the light.
        stops: colours from dark to bright.
    """

    length: float
    lift: float
    width: float
    closing: float
    pattern: Array
    lean: Array
    fuzz: Array
    light: Points
    stops: NDArray


def fur(rng: Generator, size_px: int) -> tuple[Array, Array]:
    """Draw a furry animal: parts of a body, covered with locks of short or long strands in a pattern; RGB and alpha."""
    pattern = noise(rng, FIELD_PX, int(rng.integers(3, 9)), 3)
    if rng.random() < 0.5:
        pattern = np.clip(4 * (pattern - 0.5) + 0.5, 0, 1)  # spots instead of clouds
    darkest = rng.uniform(30, 190)
    pick = int(rng.choice(4, p=[0.45, 0.2, 0.15, 0.2]))
    coat = Coat(
        length=np.exp(rng.uniform(np.log(0.018), np.log(0.15))),
        lift=rng.uniform(0.25, 0.75),
        width=rng.uniform(0.0008, 0.0017),
        closing=rng.uniform(0.2, 0.95),
        pattern=darkest + rng.uniform(0.2, 1) * (250 - darkest) * pattern,
        lean=2 * (noise(rng, FIELD_PX, 4, 2) - 0.5),
        fuzz=noise(rng, FIELD_PX, 96, 2),
        light=unit(np.array([rng.normal(0, 0.6), -rng.uniform(0.3, 1), rng.uniform(0.4, 1.2)])),
        stops=palette(rng, HAIR_HUES[pick], HAIR_SATURATIONS[pick]),
    )
    rear, front, dark = POSES[rng.integers(len(POSES))]
    place = np.array([0.5 + rng.uniform(-0.06, 0.06), rng.uniform(-0.03, 0.06)])
    mirror = rng.choice([-1.0, 1.0])
    blurs = rng.choice([(0, 0), (0, 0), (0.008, 0), (0.016, 0), (0.002, 0.007)])
    area = sum(part.across * part.down for part in rear + front)
    num_strands = NUM_STRANDS * np.clip((0.05 / coat.length) ** 0.6, 0.8, 2.2)
    layers = []
    for parts, blur in ((rear, blurs[0]), (front, blurs[1])):
        strands, skin = Drawing(size_px, FINE_SAMPLES), []
        for part in parts:
            share = part.across * part.down / area
            skin.append(cover(rng, strands, part, coat, place, mirror, int(num_strands * share)))
        if parts is front:
            for x, y, radius in dark:
                eye = blob(rng, place + [mirror * x, y], radius, 0.03)
                strands.fill(eye, 4)
                strands.fill(eye.mean(0) + 0.25 * (eye - eye.mean(0)) + radius * np.array([0.3, -0.35]), 235)
        layers.append(layer(strands, coat.stops, blur, skin_layer(skin, size_px, coat)))
    return over(layers)


def cover(
    rng: Generator, drawing: Drawing, part: Part, coat: Coat, place: Points, mirror: float, number: int
) -> Points:
    """Cover a part of the body with strands; return its outline (N, 2)."""
    rim = blob(rng, np.zeros(2), 1.0, 0.04) * [part.across, part.down] * rng.uniform(0.92, 1.08, 2)
    turned = np.array([[np.cos(part.tilt), np.sin(part.tilt)], [-np.sin(part.tilt), np.cos(part.tilt)]])
    outline = place + ((rim @ turned) + [part.x, part.y]) * [mirror, 1]
    centre = outline.mean(0)
    per_lock = 7
    at, num = rng.integers(len(outline), size=max(number // per_lock, 8)), max(number // per_lock, 8)
    outward = np.where(rng.random(num) < 0.3, rng.uniform(0.9, 1.0, num), np.sqrt(rng.random(num)))[:, None]
    edge = outline[at] - centre
    facing = np.sqrt(1 - outward**2) * np.where(rng.random((num, 1)) < 0.5 * (outward > 0.9), -1, 1)
    normals = unit(np.concatenate([outward * unit(edge), facing], 1))
    thickness = min(part.across, part.down)
    roots = np.concatenate([centre + 0.97 * outward * edge, thickness * facing], 1)
    row, column = np.clip((roots[:, 1::-1] * FIELD_PX).astype(int), 0, FIELD_PX - 1).T
    angles = part.flow + coat.lean[row, column]
    flow = np.concatenate([polar(angles) * [mirror, 1], np.zeros((num, 1))], 1)
    headings = unit(coat.lift * normals + (1 - coat.lift) * flow + rng.normal(0, 0.12, (num, 3)))
    lengths = coat.length * part.length * rng.uniform(0.6, 1.15, num) * rng.choice([1, 1.7], num, p=[0.95, 0.05])
    guides = grow(roots, headings, headings + 0.6 * flow + [0, 0.35, 0], lengths, NUM_POINTS, 0.15)
    spread = 0.6 * np.sqrt(np.pi * part.across * part.down / num)
    closing = np.clip(rng.normal(coat.closing, 0.2, num), -0.3, 0.98)
    locks = gather_tips(rng, guides, per_lock, spread, closing, (0.5, 1.1))
    locks = ruffle(rng, locks, coat.length * part.length * rng.gamma(1.0, 0.06, len(locks)))
    normals = np.repeat(normals, per_lock, 0)[:, None].repeat(NUM_POINTS, 1)
    t = np.linspace(0, 1, NUM_POINTS)
    diffuse, specular = shine(locks, normals, coat.light, rng.normal(0.2, 0.1, len(locks)), 25.0)
    tone = rng.normal(1, 0.12, len(locks)) * np.repeat(rng.normal(1, 0.1, num), per_lock)
    shades = np.repeat(coat.pattern[row, column], per_lock)[:, None] * tone[:, None]
    shades = shades * (0.35 + 0.95 * diffuse) * (0.65 + 0.45 * t) + 60 * specular
    widths = coat.width * rng.lognormal(0, 0.3, len(locks))[:, None] * (1 - 0.85 * t**1.5)
    along = (roots[:, :2] * polar(angles)).sum(1) + 0.02 * rng.normal(size=num)
    order = np.lexsort((-along, facing[:, 0] > 0))  # the rim's far side first; then the upper over the lower
    order = (order[:, None] * per_lock + np.arange(per_lock)).ravel()
    paint(drawing, locks[order], widths[order], shades[order])
    return outline


def skin_layer(outlines: list[Points], size_px: int, coat: Coat) -> tuple[Array, Array]:
    """Draw what lies below the fur, in its pattern; alpha and RGB."""
    bumps = np.zeros((FIELD_PX, FIELD_PX), np.float32)
    lit = relief(silhouette(outlines, FIELD_PX), coat.light, bumps) * (0.7 + 0.5 * coat.fuzz)
    return silhouette(outlines, size_px), resized(gradient(coat.pattern / 255 * lit, coat.stops), size_px)


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
