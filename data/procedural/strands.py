"""Shape and light the strands of hair, fur and feathers. Positions (..., 2) lie in the image, (..., 3) in space.

In space, x points to the right, y down and z towards the camera. The projection is parallel.
"""

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from data.procedural.canvas import Array, Points
from data.procedural.drawing import Drawing
from data.procedural.effects import defocus_kernel, filter_foreground
from data.procedural.surfaces import gradient, over

HAIR_HUES = ((14, 27), (6, 18), (28, 38), (200, 230), (0, 360))  # brown, red, blond, grey, dyed
HAIR_SATURATIONS = ((0.3, 0.7), (0.5, 0.8), (0.3, 0.55), (0.02, 0.1), (0.4, 0.7))
FINE_SAMPLES = 6144  # along a side: the finest strand is 1/12 pixel wide at 512 px
STEPS_PER_PIECE = 4  # pieces of a strand have one shade each


def grow(roots: Points, headings: Points, pulls: Points, lengths: NDArray, num_points: int, yielding: float) -> Points:
    """Grow strands from their roots; each turns from its heading towards its pull.

    Args:
        roots: (N, D) start of each, in 2 or 3 dimensions.
        headings: (N, D) direction at the root.
        pulls: (N, D) final direction, by weight and wind.
        lengths: (N,) length of each.
        num_points: K, points along a strand.
        yielding: share of the direction that the pull replaces at each point, 0 to 1.

    Returns: (N, K, D).
    """
    points, direction = [roots], headings
    for _ in range(num_points - 1):
        direction = (1 - yielding) * direction + yielding * pulls
        points.append(points[-1] + (lengths / (num_points - 1))[:, None] * unit(direction))
    return np.stack(points, 1)


def curl(strands: Points, amplitudes: NDArray, waves: NDArray, phases: NDArray) -> Points:
    """Sway strands (N, K, 2) sideways by a sine of the given amplitudes (N,), full at the tip, `waves` along each."""
    t = np.linspace(0, 1, strands.shape[1])
    tangent = unit(np.gradient(strands, axis=1))
    sway = amplitudes[:, None] * t * np.sin(2 * np.pi * waves[:, None] * t + phases[:, None])
    return strands + sway[..., None] * np.stack([-tangent[..., 1], tangent[..., 0]], 2)


def coil(strands: Points, amplitudes: NDArray, waves: NDArray, phases: NDArray) -> Points:
    """Wind strands (N, K, 3) into helices of the given radii (N,), full from a third on, `waves` (N,) along each."""
    t = np.linspace(0, 1, strands.shape[1])
    tangent = unit(np.gradient(strands, axis=1))
    across = unit(np.cross(tangent, [0.3, 0.2, 1.0]))
    turn = (2 * np.pi * waves[:, None] * t + phases[:, None])[..., None]
    radius = (amplitudes[:, None] * np.minimum(3 * t, 1))[..., None]
    return strands + radius * (np.cos(turn) * across + np.sin(turn) * np.cross(tangent, across))


def gather_tips(
    rng: Generator, guides: Points, per_guide: int, spread: float, closing: NDArray, shares: tuple[float, float]
) -> Points:
    """Grow a lock around each guide: strands that start beside it and come nearer to it towards its tip.

    Args:
        rng: source of the strands.
        guides: (L, K, 3).
        per_guide: S, strands around each.
        spread: standard deviation of the distances between the roots.
        closing: (L,) share of its distance that a strand has lost at the tip; below 0 the locks open.
        shares: range of a strand's length, relative to its guide's.

    Returns: (L * S, K, 3), those of a guide beside each other.
    """
    num, num_points = guides.shape[:2]
    t = np.linspace(0, 1, num_points)
    along = rng.uniform(*shares, (num, per_guide, 1)) * t * (num_points - 1)
    before = np.minimum(along.astype(int), num_points - 2)
    lock = np.arange(num)[:, None, None]
    beyond = (along - before)[..., None]
    lines = (1 - beyond) * guides[lock, before] + beyond * guides[lock, before + 1]
    offsets = rng.normal(0, spread, (num, per_guide, 1, 3))
    apart = 1 - closing[:, None, None] * t**1.3
    return (lines + offsets * apart[..., None]).reshape(-1, num_points, 3)


def ruffle(rng: Generator, strands: Points, amplitudes: NDArray) -> Points:
    """Bend each strand (N, K, 3) its own way: two random waves, as large as its amplitude (N,) at the tip."""
    t = np.linspace(0, 1, strands.shape[1])[:, None]
    for waves in (1.0, 2.7):
        swing = rng.normal(0, 1, (len(strands), 1, 3)) * np.sin(
            2 * np.pi * waves * rng.uniform(0.6, 1.3, (len(strands), 1, 1)) * t
            + rng.uniform(0, 6.3, (len(strands), 1, 1))
        )
        strands = strands + amplitudes[:, None, None] / waves * t * swing
    return strands


def shine(strands: Points, normals: Points, light: Points, tilt: NDArray, sharpness: float) -> tuple[NDArray, NDArray]:
    """Light strands as thin cylinders (Kajiya and Kay, Rendering fur with three dimensional textures, 1989).

    Args:
        strands: (N, K, 3).
        normals: (N, K, 3) unit vectors out of the surface below; the highlight moves along a strand with `tilt`.
        light: (3,) unit vector towards the light.
        tilt: (N,) by how much each strand's scales lean towards the normal.
        sharpness: exponent of the highlight.

    Returns: diffuse and specular light, (N, K) each, in [0, 1].
    """
    tangent = unit(np.gradient(strands, axis=1))
    diffuse = np.sqrt(np.maximum(1 - (tangent @ light) ** 2, 0)) * (0.55 + 0.45 * normals @ light)
    half_way = unit(light + [0, 0, 1])
    leaning = unit(tangent + tilt[:, None, None] * normals)
    specular = np.maximum(1 - (leaning @ half_way) ** 2, 0) ** (sharpness / 2)
    return diffuse, specular * np.clip(0.5 + normals @ light, 0, 1)


def paint(drawing: Drawing, strands: Points, widths: NDArray, shades: NDArray) -> None:
    """Paint strands (N, K, 3), each over those before it; widths and shades (N, K)."""
    middle = STEPS_PER_PIECE // 2
    drawing.strokes(strands[..., :2], widths, shades[:, middle:-1:STEPS_PER_PIECE])


def layer(
    drawing: Drawing, stops: NDArray, blur: float = 0.0, skin: tuple[Array, Array] | None = None
) -> tuple[Array, Array]:
    """Resolve strands, colour them by their shade, lay them over the skin, and put all of it out of focus.

    Args:
        drawing: the strands.
        stops: colours from dark to bright.
        blur: diameter of the disc that a point becomes, in sides.
        skin: alpha and RGB below the strands.

    Returns: alpha (H, W) and RGB (H, W, 3).
    """
    alpha, shade = drawing.resolve()
    colour = gradient(shade, stops)
    if skin is not None:
        colour, alpha = over([skin, (alpha, colour)])
    if blur * drawing.size_px > 1:
        colour, alpha = filter_foreground(colour, alpha, defocus_kernel(blur * drawing.size_px))
    return alpha, colour


def polar(angle: NDArray) -> Points:
    """Return the unit vectors (..., 2) of angles in radians."""
    return np.stack([np.cos(angle), np.sin(angle)], -1)


def unit(vectors: Points) -> Points:
    """Scale vectors (..., D) to length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)
