"""Draw heads of hair on people-like bodies: locks of strands thinner than a pixel, before and behind the head."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from data.procedural.canvas import Array, Points
from data.procedural.drawing import Drawing, silhouette
from data.procedural.strands import (
    FINE_SAMPLES,
    HAIR_HUES,
    HAIR_SATURATIONS,
    STEPS_PER_PIECE,
    coil,
    gather_tips,
    layer,
    paint,
    ruffle,
    shine,
    unit,
)
from data.procedural.surfaces import grid, noise, over, palette, relief, resized, texture

NUM_POINTS = 9 * STEPS_PER_PIECE + 1
NUM_STRANDS = 4600
FIELD_PX = 384  # of what has no fine detail, whatever the size of the image


@dataclass
class Style:
    """How hair hangs. Lengths are in radii of the head.

    Attributes:
        length: range of the locks' lengths.
        weight: how fast the hair turns downwards, below 0 upwards.
        lift: how far the hair starts away from the scalp, 0 to 1.
        curl: radius of the curls.
        waves: turns along a lock.
        closing: share of their distance that the strands of a lock lose at the tip.
        frizz: how much single strands leave their lock.
        num_locks: locks on the scalp.
    """

    length: tuple[float, float]
    weight: float
    lift: float
    curl: float
    waves: float
    closing: float
    frizz: float
    num_locks: int


STYLES = (
    Style((2.4, 4.2), 0.22, 0.5, 0.02, 1.0, 0.55, 0.06, 130),  # long and straight
    Style((2.2, 3.8), 0.18, 0.6, 0.14, 2.5, 0.7, 0.1, 120),  # long and wavy
    Style((1.2, 2.2), 0.12, 0.9, 0.14, 4.0, 0.85, 0.05, 150),  # curly
    Style((0.45, 0.8), 0.03, 1.0, 0.06, 5.0, 0.3, 0.15, 260),  # frizzy
    Style((0.3, 0.6), 0.05, 0.7, 0.02, 0.7, 0.75, 0.04, 300),  # short
    Style((1.3, 2.2), -0.05, 1.0, 0.05, 0.8, 0.6, 0.1, 130),  # standing up
    Style((1.0, 1.8), 0.2, 0.6, 0.05, 1.0, 0.6, 0.07, 170),  # to the chin
)


class Head:
    """An ellipsoid that faces somewhere.

    Args:
        rng: source of its place and size.
    """

    def __init__(self, rng: Generator) -> None:
        self.radius = rng.uniform(0.11, 0.23)
        self.centre = np.array([0.5 + rng.uniform(-0.1, 0.1), rng.uniform(0.3, 0.42), 0.0])
        self.radii = self.radius * np.array([0.92, 1.25, 1.05])
        self.yaw = rng.normal(0, 0.5) + rng.choice([0.0, np.pi], p=[0.6, 0.4])

    def turn(self, local: Points) -> Points:
        """Turn directions (..., 3) of a head that faces the camera by its yaw."""
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        return local @ np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])

    def scalp(self, rng: Generator, num: int) -> tuple[Points, Points]:
        """Draw points on the scalp: directions (num, 3) of the head as it faces the camera, and as it is turned."""
        found = unit(rng.normal(size=(num * 12, 3)))
        _, y, z = found.T
        local = found[(z < -0.1 - 0.95 * y) & (y < 0.6)][:num]
        return local, self.turn(local)


def guide_locks(rng: Generator, head: Head, style: Style, wind: Points) -> Points:
    """Grow the middle strand of each lock, outside of the head; (L, K, 3)."""
    local, outward = head.scalp(rng, style.num_locks)
    num = len(local)
    parting = rng.uniform(-0.5, 0.5)
    from_the_top = np.clip(1 + local[:, 2:], 0, 1)  # at the back, hair is not parted
    comb = from_the_top * np.sign(local[:, :1] - parting) * [1, 0, 0]
    comb += [0, 0.3 * np.sign(style.weight), rng.uniform(-1, 0.1)]
    direction = unit(style.lift * outward + (1.1 - style.lift) * head.turn(comb) + rng.normal(0, 0.25, (num, 3)))
    position = head.centre + outward * head.radii
    pull = np.array([0, np.sign(style.weight), 0]) + wind + rng.normal(0, 0.12, (num, 3))
    step = head.radius * rng.uniform(*style.length, num)[:, None] / (NUM_POINTS - 1)
    volume = 1 + rng.uniform(0, 0.25, num)[:, None] * style.lift
    points = [position]
    yielding = abs(style.weight) * 36 / (NUM_POINTS - 1)
    for number in range(NUM_POINTS - 1):
        direction = unit((1 - yielding) * direction + yielding * pull)
        position = position + step * direction
        away = (position - head.centre) / head.radii
        distance = np.linalg.norm(away, axis=1, keepdims=True)
        least = 1 + (volume - 1) * min(1, number / 6)
        position = np.where(distance < least, head.centre + head.radii * away / distance * least, position)
        points.append(position)
    guides = np.stack(points, 1)
    radii = head.radius * style.curl * rng.uniform(0.5, 1.5, num)
    return coil(guides, radii, style.waves * rng.uniform(0.7, 1.3, num), rng.uniform(0, 2 * np.pi, num))


def hair(rng: Generator, size_px: int) -> tuple[Array, Array]:
    """Draw the hair, head and shoulders of somebody, some of it out of focus; RGB and alpha."""
    head, style = Head(rng), STYLES[rng.integers(len(STYLES))]
    wind = np.array([rng.normal(0, 0.45), 0, rng.normal(0, 0.2)]) * (rng.random() < 0.6)
    light = unit(np.array([rng.normal(0, 0.7), -rng.uniform(0.3, 1), rng.uniform(0.5, 1.3)]))
    pick = int(rng.choice(5, p=[0.4, 0.15, 0.2, 0.15, 0.1]))
    stops = palette(rng, HAIR_HUES[pick], HAIR_SATURATIONS[pick])
    guides = guide_locks(rng, head, style, wind)
    strands, owners = grow_strands(rng, head, style, guides)
    num, is_stray = len(strands), np.arange(len(strands)) >= len(guides) * (NUM_STRANDS // style.num_locks)
    t = np.linspace(0, 1, NUM_POINTS)
    widths = rng.uniform(0.0007, 0.0014) * rng.lognormal(0, 0.3, num) * np.where(is_stray, 0.6, 1)
    shades = shade_strands(rng, head, strands, light)
    shades *= (rng.normal(1, 0.2, len(guides))[owners] * rng.normal(1, 0.12, num))[:, None]
    shades *= 1 + rng.normal(0, 0.25) * (t - 0.5)  # sun-bleached tips, or dark ones
    depth = guides[:, :, 2].mean(1)[owners] + rng.normal(0, 0.1 * head.radius, num)
    order = np.argsort(depth)
    rear, front = order[depth[order] < 0], order[depth[order] >= 0]
    layers = person(rng, size_px, head, light, stops)
    rear_blur, front_blur = rng.choice([(0, 0), (0.004, 0), (0.01, 0), (0.018, 0.002), (0, 0.006)])
    for part, blur, place, light_left in ((rear, rear_blur, 0, 0.75), (front, front_blur, len(layers) + 1, 1.0)):
        drawing = Drawing(size_px, FINE_SAMPLES)
        paint(drawing, strands[part], widths[part, None] * (1 - 0.75 * t**3), light_left * shades[part])
        layers.insert(place, layer(drawing, stops, blur))
    return over(layers)


def grow_strands(rng: Generator, head: Head, style: Style, guides: Points) -> tuple[Points, NDArray[np.intp]]:
    """Grow the strands of all locks, then those that stray; (N, K, 3), and the lock (N,) of each."""
    locks = np.arange(len(guides))
    per_lock = NUM_STRANDS // style.num_locks
    closing = np.clip(rng.normal(style.closing, 0.2, len(guides)), -0.5, 0.98)
    tidy = gather_tips(rng, guides, per_lock, head.radius * rng.uniform(0.07, 0.11), closing, (0.55, 1.0))
    frizz = head.radius * style.frizz * rng.uniform(0.5, 1.6)
    tidy = ruffle(rng, tidy, frizz * rng.gamma(1.2, 0.8, len(tidy)))
    strays = gather_tips(rng, guides, 3, 0.15 * head.radius, np.full(len(guides), -1.0), (0.5, 1.15))
    kept = rng.random(len(strays)) < rng.uniform(0.2, 1)
    strays = ruffle(rng, strays[kept], head.radius * rng.gamma(2, 0.1, kept.sum()))
    return np.concatenate([tidy, strays]), np.concatenate([locks.repeat(per_lock), locks.repeat(3)[kept]])


def shade_strands(rng: Generator, head: Head, strands: Points, light: Points) -> NDArray[np.float64]:
    """Light strands (N, K, 3): they shine in a band, and are darker the nearer they lie to the head; (N, K)."""
    away = (strands - head.centre) / head.radii
    distance = np.linalg.norm(away, axis=2)
    tilt = rng.normal(0.15, 0.08, len(strands))
    diffuse, specular = shine(strands, away / distance[..., None], light, tilt, rng.uniform(20, 90))
    tones = [rng.uniform(45, 90), rng.uniform(90, 160), rng.uniform(160, 230)]
    tone = rng.choice(tones, p=[0.4, 0.35, 0.25])
    return tone * np.clip(distance / 1.3, 0.6, 1) ** 2 * (0.2 + 1.1 * diffuse) + rng.uniform(60, 170) * specular


def person(rng: Generator, size_px: int, head: Head, light: Points, stops: NDArray) -> list[tuple[Array, Array]]:
    """Draw neck, clothed shoulders and head as layers of alpha and RGB, the head last."""
    hsv = np.array([[[rng.uniform(14, 27), rng.uniform(0.3, 0.6), rng.uniform(0.45, 1)]]], np.float32)
    skin = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0]
    slope, width = rng.uniform(0.1, 0.5), rng.uniform(2.1, 2.7)
    right = [(0.62, 0.5), (0.6, 1.35), (0.75, 1.6), (1.2, 1.75), (width - 0.4, 1.85 + slope), (width, 2.4 + slope),
             (width + 0.25, 4), (width + 0.4, 9)]  # fmt: skip
    collar = int(rng.integers(1, 4))
    neck = outline(head, [*right[:5], (width - 0.4, 2.6 + slope)])
    shoulders = outline(head, right[collar:])
    angle = np.linspace(0, 2 * np.pi, 120)
    wide = head.radius * np.hypot(0.92 * np.cos(head.yaw), 1.05 * np.sin(head.yaw))
    jaw = 1 - 0.2 * np.maximum(np.sin(angle), 0) ** 2
    face = np.stack([wide * np.cos(angle) * jaw, head.radii[1] * np.sin(angle)], 1) + head.centre[:2]
    folds = 0.02 * noise(rng, FIELD_PX, int(rng.integers(3, 8)), 3)
    grain = 1 + 0.12 * (noise(rng, FIELD_PX, 48, 3) - 0.5)[..., None]
    fabric = texture(rng, FIELD_PX)
    fabric = 0.6 * fabric + 0.4 * fabric.mean((0, 1))
    lit_neck, lit_shoulders = (
        1.2 * relief(silhouette([shape], FIELD_PX), light, bumps, 0.8 * head.radius)[..., None]
        for shape, bumps in ((neck, 0 * folds), (shoulders, folds))
    )
    colours = (0.85 * skin * lit_neck, fabric * lit_shoulders, face_colour(FIELD_PX, head, light, skin, stops))
    return [
        (silhouette([shape], size_px), resized(np.clip(grain * colour, 0, 1), size_px))
        for shape, colour in zip((neck, shoulders, face), colours, strict=True)
    ]


def outline(head: Head, right: list[tuple[float, float]]) -> Points:
    """Make a smooth symmetric outline below a head from the points of its right half, in radii of the head."""
    corners = np.array(right)
    at = np.linspace(0, len(corners) - 1, 60)
    side = np.stack([np.interp(at, np.arange(len(corners)), corners[:, c]) for c in (0, 1)], 1)
    side = cv2.blur(np.ascontiguousarray(side), (1, 9), borderType=cv2.BORDER_REPLICATE)
    return head.centre[:2] + head.radius * np.concatenate([side, side[::-1] * [-1, 1]])


def face_colour(size_px: int, head: Head, light: Points, skin: NDArray, stops: NDArray) -> Array:
    """Colour a head: lit skin, soft features of a face, and the scalp in the colour of the hair; (H, W, 3)."""
    x, y = grid(size_px)
    across, down = (x - head.centre[0]) / head.radii[0], (y - head.centre[1]) / head.radii[1]
    normals = np.stack([across, down, np.sqrt(np.maximum(1 - across**2 - down**2, 0.02))], 2)
    local = normals @ head.turn(np.eye(3)).T.astype(np.float32)
    colour = skin * 1.15 * np.clip(0.35 + 0.75 * normals @ light.astype(np.float32), 0.2, 1.3)[..., None]
    features = [(0.38, -0.02, 0.22, 0.14, 0.3), (0.38, -0.02, 0.09, 0.04, 0.7), (0.4, -0.2, 0.17, 0.03, 0.5),
                (0, 0.25, 0.12, 0.04, 0.4), (0, 0.5, 0.2, 0.045, 0.5)]  # fmt: skip
    for right, low, wide, high, dark in features:
        at = ((np.abs(local[..., 0]) - right) / wide) ** 2 + ((local[..., 1] - low) / high) ** 2
        red = 0.6 if low > 0.4 else 1.0
        colour = colour * (1 - dark * (np.exp(-at) * (local[..., 2] > 0))[..., None] * [red, 1, 1])
    scalp = np.clip(8 * (-0.1 - 0.95 * local[..., 1] - local[..., 2]), 0, 1) * (local[..., 1] < 0.6)
    colour = colour + 0.9 * scalp[..., None] * (0.5 * (stops[0] + stops[1]) - colour)
    return np.clip(colour, 0, 1).astype(np.float32)
