"""Procedural foregrounds with exact alphas: hair, fur, glass, lace, solid shapes, shapes with holes.

Shapes are painted on one 8-bit canvas, SCALE times finer than the picture, whose value is 0 where nothing is and
the local shade (1 to 255) elsewhere. Alpha is the share of painted samples in a pixel, the definition of coverage, and
the colour is that of the painted samples alone, so that it is not premultiplied. All lengths are in pixels of
the picture; positions are continuous, x to the right and y down, with pixel (0, 0) covering [0, 1] x [0, 1].
"""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Array = NDArray[np.float32]
Points = NDArray[np.float64]

SCALE = 8  # 64 samples a pixel: alpha in steps of 1/64, finer than a thread's own contrast needs
REFERENCE_PX = 256  # strand widths and hole sizes below are those of a picture of this side
FIXED_POINT_BITS = 4


def fill(canvas: NDArray[np.uint8], polygon: Points, shade: int) -> None:
    """Paint a polygon on the fine canvas.

    Args:
        canvas: (SCALE * H, SCALE * W), painted in place.
        polygon: (N, 2) x, y in pixels of the picture.
        shade: 1 to 255, or 0 to cut a hole.
    """
    fixed = np.round((polygon * SCALE - 0.5) * (1 << FIXED_POINT_BITS)).astype(np.int32)
    cv2.fillPoly(canvas, [fixed], int(shade), cv2.LINE_8, FIXED_POINT_BITS)


def resolve(canvas: NDArray[np.uint8]) -> tuple[Array, Array]:
    """Turn the fine canvas into coverage and mean shade.

    Args:
        canvas: (SCALE * H, SCALE * W), 0 where nothing is painted.

    Returns: alpha (H, W) in [0, 1], the exact share of painted samples, and shade (H, W) in [0, 1], the mean over the
        painted samples, continued smoothly to where there are none.
    """
    samples = canvas.reshape(canvas.shape[0] // SCALE, SCALE, canvas.shape[1] // SCALE, SCALE)
    alpha = (samples > 0).mean((1, 3), dtype=np.float32)
    weighted = samples.mean((1, 3), dtype=np.float32) / 255
    nearby = cv2.GaussianBlur(alpha, (0, 0), 4) + 1e-4
    nearby_shade = (cv2.GaussianBlur(weighted, (0, 0), 4) + 0.5e-4) / nearby  # half bright where nothing is near
    shade = np.where(alpha > 0, weighted / np.maximum(alpha, 1e-6), nearby_shade)
    return alpha, shade.astype(np.float32)


def blob(rng: Generator, centre: Points, radius: float, roughness: float = 0.12) -> Points:
    """Draw a random closed outline around a centre.

    Args:
        rng: source of the outline.
        centre: (2,) x, y in pixels.
        radius: mean radius in pixels.
        roughness: standard deviation of the second harmonic, relative to the radius; the k-th has 2/k of it.

    Returns: (180, 2) points in pixels, the i-th at the angle 2 degrees x i.
    """
    angle = np.deg2rad(np.arange(0, 360, 2))
    harmonics = np.arange(2, 7)[:, None]
    weights = rng.normal(0, roughness, (5, 1)) * 2 / harmonics
    relative = 1 + (weights * np.cos(harmonics * angle + rng.uniform(0, 2 * np.pi, (5, 1)))).sum(0)
    return centre + radius * np.maximum(relative, 0.35)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


def strand(
    root: Points, control: Points, tip: Points, width: float, taper: float = 0.8, num_points: int = 14
) -> Points:
    """Outline a thin strand along a quadratic Bezier curve.

    Args:
        root: (2,) start of the curve, in pixels.
        control: (2,) Bezier control point.
        tip: (2,) end of the curve.
        width: at the root, in pixels.
        taper: share of the width that is lost on the way to the tip, 0 to 1.
        num_points: points along the curve.

    Returns: (2 * num_points, 2) polygon, for `fill`.
    """
    t = np.linspace(0, 1, num_points)[:, None]
    centre_line = (1 - t) ** 2 * root + 2 * t * (1 - t) * control + t**2 * tip
    tangent = 2 * (1 - t) * (control - root) + 2 * t * (tip - control)
    tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-9)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], 1)
    # cv2 also paints the samples that an edge passes through: half a sample on either side.
    half_width = np.maximum(width * (1 - taper * t) / 2 - 0.5 / SCALE, 0)
    return np.concatenate([centre_line + half_width * normal, (centre_line - half_width * normal)[::-1]])


def thread(canvas: NDArray[np.uint8], line: Points, width: float, shade: int) -> None:
    """Paint a line of constant width, rounded to 1 / SCALE px, through (N, 2) points in pixels."""
    cv2.polylines(canvas, [np.round(line * SCALE - 0.5).astype(np.int32)], False, shade, round(width * SCALE))


def noise(rng: Generator, size_px: int, cells: int, num_octaves: int = 4) -> Array:
    """Smooth random field in [0, 1] with structure at several scales.

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
    """Random surface: two or three colours mixed by noise, stripes or a gradient, lit from one side, with fine grain.

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


def canvas_for(size_px: int) -> NDArray[np.uint8]:
    """Give an empty fine canvas for a square picture of this side."""
    return np.zeros((size_px * SCALE, size_px * SCALE), np.uint8)


def random_centre(rng: Generator, size_px: int, spread: float = 0.07) -> Points:
    """Draw a centre near the middle, off by at most `spread` sides; (2,) in pixels."""
    return size_px * (0.5 + rng.uniform(-spread, spread, 2))


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
KINDS: dict[str, Callable[[Generator, int], tuple[Array, Array]]] = {
    "hair": hair, "fur": fur, "glass": glass, "lace": lace, "solid": solid, "cutout": cutout,
}  # fmt: skip
