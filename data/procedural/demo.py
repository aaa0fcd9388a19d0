"""Draw the demo's six simple kinds: hair, fur, glass, lace, solid shapes, shapes with holes.

They stay unchanged, byte for byte: the figures in docs/results.md and docs/ablation.md were made with them.
`data.procedural.KINDS` has more detail, at any resolution.
"""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from data.procedural.canvas import Array, Points, blob, canvas_for, fill, random_centre, resolve, strand, thread
from data.procedural.surfaces import noise, texture

REFERENCE_PX = 256  # strand widths and hole sizes below are those of an image of this side


def shaded(rng: Generator, canvas: NDArray[np.uint8]) -> tuple[Array, Array]:
    """Resolve a canvas and colour it: (H, W, 3) RGB, the surface times 0.45 to 1.15 by shade, and (H, W) alpha."""
    alpha, shade = resolve(canvas)
    return np.clip(texture(rng, alpha.shape[0]) * (0.45 + 0.7 * shade)[..., None], 0, 1), alpha


def hair(rng: Generator, size_px: int) -> tuple[Array, Array]:
    """Draw a head with tufts of long tapered strands; (H, W, 3) RGB and (H, W) alpha."""
    canvas, unit = canvas_for(size_px), size_px / REFERENCE_PX
    centre = random_centre(rng, size_px)
    outline = blob(rng, centre, size_px * rng.uniform(0.16, 0.23))
    fill(canvas, outline, 150)
    wind = rng.normal(0, 0.5, 2)
    for _ in range(rng.integers(30, 50)):
        at = rng.integers(len(outline))
        radial = outline[at] - centre
        radial /= np.linalg.norm(radial)
        sideways = np.array([-radial[1], radial[0]])
        tuft_length, tuft_bend = size_px * rng.uniform(0.1, 0.27), rng.normal(0, 0.35)
        for _ in range(rng.integers(5, 14)):
            root = centre + 0.92 * (outline[(at + rng.integers(-5, 6)) % len(outline)] - centre)
            length = tuft_length * rng.uniform(0.6, 1.1)
            direction = radial + wind + rng.normal(0, 0.16, 2)
            control = root + 0.5 * length * direction
            tip = root + length * direction + length * (tuft_bend + rng.normal(0, 0.15)) * sideways
            fill(canvas, strand(root, control, tip, unit * rng.uniform(0.8, 2.4)), int(rng.integers(40, 256)))
    return shaded(rng, canvas)


def fur(rng: Generator, size_px: int) -> tuple[Array, Array]:
    """Draw an animal-like body covered with short dense strands; (H, W, 3) RGB and (H, W) alpha."""
    canvas, unit = canvas_for(size_px), size_px / REFERENCE_PX
    centre = random_centre(rng, size_px)
    outline = blob(rng, centre, size_px * rng.uniform(0.24, 0.32), roughness=0.16)
    fill(canvas, outline, 130)
    comb = rng.normal(0, 0.45, 2)
    length_px = size_px * rng.uniform(0.05, 0.1)
    for depth in np.sort(rng.uniform(0.3, 1, 1300))[::-1]:  # outer strands first, those of the body over them
        at = rng.integers(len(outline))
        radial = outline[at] - centre
        root = centre + depth**0.4 * radial
        direction = radial / np.linalg.norm(radial) + comb + rng.normal(0, 0.3, 2)
        tip = root + length_px * rng.uniform(0.5, 1.1) * direction
        control = (root + tip) / 2 + length_px * rng.normal(0, 0.15, 2)
        fill(canvas, strand(root, control, tip, unit * rng.uniform(1, 2.6), num_points=7), int(rng.integers(40, 256)))
    return shaded(rng, canvas)


def glass(rng: Generator, size_px: int) -> tuple[Array, Array]:
    """Draw a vessel: thin in the middle, denser at the rim, with streaks of light and an opaque base; RGB and alpha."""
    canvas = canvas_for(size_px)
    middle = random_centre(rng, size_px)[0]
    height = np.linspace(0, 1, 60)
    top, bottom = size_px * rng.uniform(0.08, 0.18), size_px * rng.uniform(0.82, 0.92)
    knots = np.interp(height, np.linspace(0, 1, 6), rng.uniform(0.1, 0.3, 6))
    half_width = size_px * cv2.GaussianBlur(knots[:, None], (1, 0), 5, borderType=cv2.BORDER_REPLICATE)[:, 0]
    y = top + (bottom - top) * height
    right = np.stack([middle + half_width, y], 1)
    left = np.stack([middle - half_width, y], 1)
    fill(canvas, np.concatenate([right, left[::-1]]), 255)
    coverage, _ = resolve(canvas)
    depth = cv2.distanceTransform((coverage > 0).astype(np.uint8), cv2.DIST_L2, 5)
    row, column = np.mgrid[:size_px, :size_px].astype(np.float32)
    across = (column - middle) / np.interp(row, y, half_width)
    positions, widths, weights = rng.uniform([-0.8, 0.03, 0.3], [0.8, 0.15, 0.9], (3, 3)).T
    streaks = (weights * np.exp(-(((across[..., None] - positions) / widths) ** 2))).sum(-1)
    rim = np.exp(-depth / (size_px * rng.uniform(0.01, 0.03)))
    base = row > bottom - size_px * rng.uniform(0.06, 0.2)
    density = rng.uniform(0.03, 0.25) + 0.2 * noise(rng, size_px, 3, 2) + rng.uniform(0.5, 0.9) * rim + streaks
    alpha = coverage * np.where(base, 1, np.clip(density, 0, 1))
    tint = texture(rng, size_px)
    pale = 1 - rng.uniform(0.2, 0.7) * (1 - tint)
    light = np.clip(rim + streaks, 0, 1)[..., None]
    return np.where(base[..., None], tint, pale + light * (1 - pale)).astype(np.float32), alpha.astype(np.float32)


def lace(rng: Generator, size_px: int) -> tuple[Array, Array]:
    """Draw a cloth of periodic holes, or a net of threads, with a hem and dense motifs; RGB and alpha as `hair`."""
    canvas, unit = canvas_for(size_px), size_px / REFERENCE_PX
    outline = blob(rng, random_centre(rng, size_px, 0.04), size_px * rng.uniform(0.32, 0.4), roughness=0.06)
    pitch, angle = unit * rng.uniform(11, 20), rng.uniform(0, np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    phase, wave = rng.uniform(0, 2 * np.pi, 2), pitch * rng.uniform(0.2, 0.6)

    def place(points: Points) -> Points:
        """Turn the lattice and let it sway by a few pixels, as cloth does."""
        return size_px / 2 + (points + wave * np.sin(points[..., ::-1] / (3 * pitch) + phase)) @ turn.T

    steps = np.arange(-size_px, size_px, pitch)
    if rng.random() < 0.5:
        fill(canvas, outline, 200)
        circle = np.stack([np.cos(np.linspace(0, 2 * np.pi, 24)), np.sin(np.linspace(0, 2 * np.pi, 24))], 1)
        radius = pitch * rng.uniform(0.3, 0.43)
        for number, y in enumerate(steps):
            for x in steps + pitch / 2 * (number % 2):
                fill(canvas, place(np.array([x, y])) + radius * circle, 0)
    else:
        width = unit * rng.uniform(1.5, 4)
        along = np.linspace(-size_px, size_px, 200)
        for offset in steps:
            line = np.stack([along, np.full_like(along, offset)], 1)
            thread(canvas, place(line), width, int(rng.integers(120, 256)))
            thread(canvas, place(line[:, ::-1]), width, int(rng.integers(120, 256)))
        mask = np.zeros_like(canvas)
        fill(mask, outline, 255)
        canvas[mask == 0] = 0
    for _ in range(rng.integers(1, 4)):
        fill(canvas, blob(rng, random_centre(rng, size_px, 0.2), size_px * rng.uniform(0.06, 0.11), roughness=0.2), 230)
    thread(canvas, np.concatenate([outline, outline[:1]]), unit * rng.uniform(3, 9), 255)
    return shaded(rng, canvas)


def solid(rng: Generator, size_px: int) -> tuple[Array, Array]:
    """Draw one to three opaque shapes, some slightly out of focus; (H, W, 3) RGB and (H, W) alpha."""
    canvas = canvas_for(size_px)
    for _ in range(rng.integers(1, 4)):
        outline = blob(rng, random_centre(rng, size_px, 0.17), size_px * rng.uniform(0.14, 0.26), roughness=0.25)
        corners = outline[:: int(rng.choice([1, 1, 20, 36]))]  # a smooth shape, or one of 9 or 5 corners
        fill(canvas, corners, int(rng.integers(120, 256)))
    foreground, alpha = shaded(rng, canvas)
    out_of_focus = cv2.GaussianBlur(alpha, (0, 0), size_px / REFERENCE_PX * rng.uniform(0.3, 2))
    return foreground, np.asarray(out_of_focus, np.float32)


def cutout(rng: Generator, size_px: int) -> tuple[Array, Array]:
    """Draw an opaque shape with holes of many sizes; (H, W, 3) RGB and (H, W) alpha."""
    canvas = canvas_for(size_px)
    centre = random_centre(rng, size_px)
    fill(canvas, blob(rng, centre, size_px * rng.uniform(0.3, 0.4)), 220)
    for _ in range(rng.integers(6, 16)):
        at = centre + size_px * rng.uniform(-0.3, 0.3, 2)
        fill(canvas, blob(rng, at, size_px * rng.uniform(0.015, 0.085), roughness=0.2), 0)
    return shaded(rng, canvas)


# (random generator, side in pixels) -> foreground (H, W, 3) RGB, defined everywhere, and alpha (H, W), both in [0, 1]
DEMO_KINDS: dict[str, Callable[[Generator, int], tuple[Array, Array]]] = {
    "hair": hair, "fur": fur, "glass": glass, "lace": lace, "solid": solid, "cutout": cutout,
}  # fmt: skip
