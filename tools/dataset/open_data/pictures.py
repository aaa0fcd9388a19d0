"""Write the images of the open set: cut-outs, photographs, drawn foregrounds and drawn surfaces."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from data.image_io.decoding import decode
from data.image_io.images import as_colours, read_image, to_float, write_image, write_rgba
from data.procedural import EFFECTS, KINDS
from data.procedural.canvas import Array
from data.procedural.effects import defocus_kernel
from data.procedural.surfaces import texture
from runtime.errors import UserError

SHORTEST_SIDE_PX = 64
PHOTOGRAPH_PX = 1280  # longest side of a background
FEWEST_COLOURS = 0.2  # distinct colours by opaque pixels: images with fewer are drawn, not photographed
LEAST_TRANSPARENT, LEAST_FRACTIONAL = 0.05, 0.004  # shares of a cut-out's pixels
EFFECT_SHARE = 0.3  # of the drawn foregrounds
TEXTURED_KINDS = ("hair", "fur", "feathers", "foliage", "lace")  # the others show what lies behind them
TEXTURED_SHARE = 0.5  # of the drawn foregrounds of these kinds, if there are photographs
DEFOCUS = 0.008, 0.06  # diameters of the blur, as shares of a photograph's longest side
HELD_OUT_SHARE = 0.15


def is_held_out(name: str) -> bool:
    """Tell whether an image belongs to the test set, by a hash of its name: other images do not change it."""
    return int.from_bytes(sha256(name.encode()).digest()[:4]) < HELD_OUT_SHARE * 2**32


def why_unfit(rgba: NDArray) -> str | None:
    """Tell why a decoded image is no useful cut-out for training; None if it is one."""
    if rgba.ndim != 3 or rgba.shape[2] != 4:
        return "has no transparency"
    if min(rgba.shape[:2]) < SHORTEST_SIDE_PX:
        return f"has a side below {SHORTEST_SIDE_PX} px"
    alpha = to_float(rgba[..., 3])
    if (alpha < 0.02).mean() < LEAST_TRANSPARENT:
        return "fills its frame"
    if ((alpha > 0.02) & (alpha < 0.98)).mean() < LEAST_FRACTIONAL:
        return "has a hard edge"
    opaque = rgba[alpha > 0.98][:, :3]
    if len(np.unique(opaque, axis=0)) < FEWEST_COLOURS * len(opaque):
        return "is drawn in few colours"
    return None


def write_cutout(content: bytes, path: Path) -> str | None:
    """Write a useful RGBA image as PNG; otherwise return why it is not (see `why_unfit`) or cannot be read."""
    try:
        rgba = decode(content)
    except UserError as error:
        return f"cannot be read ({error})"
    reason = why_unfit(rgba)
    if reason is None:
        write_rgba(path, to_float(rgba))
    return reason


def write_photograph(content: bytes, path: Path) -> str | None:
    """Write a photograph as JPEG, at most `PHOTOGRAPH_PX` long; otherwise return why it cannot be read."""
    try:
        image: NDArray = to_float(as_colours(decode(content)))
    except UserError as error:
        return f"cannot be read ({error})"
    factor = PHOTOGRAPH_PX / max(image.shape[:2])
    if factor < 1:
        image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    write_image(path, image)
    return None


def drawn_name(index: int) -> str:
    """Name the index-th drawn foreground; the kinds alternate."""
    return f"drawn_{list(KINDS)[index % len(KINDS)]}_{index:05d}.png"


def choose_texture(photographs: Sequence[str], seed: int, stream: int, index: int) -> str | None:
    """Choose the photograph that colours the index-th foreground of a random stream; None for its drawn colours."""
    rng = np.random.default_rng([seed, stream, index, 1])
    is_textured = list(KINDS)[index % len(KINDS)] in TEXTURED_KINDS and rng.random() < TEXTURED_SHARE
    return photographs[int(rng.integers(len(photographs)))] if is_textured and photographs else None


def write_drawn(path: Path, seed: int, stream: int, index: int, size_px: int, photograph: Path | None = None) -> None:
    """Draw and write the index-th foreground of a random stream; `EFFECT_SHARE` of them are blurred as by a camera.

    A photograph gives it the colours of a random crop.
    """
    rng = np.random.default_rng([seed, stream, index])
    effect = rng.choice([*EFFECTS]) if rng.random() < EFFECT_SHARE else None
    foreground, alpha = list(KINDS.values())[index % len(KINDS)](rng, size_px)
    if photograph is not None:
        crop_rng = np.random.default_rng([seed, stream, index, 2])  # apart: the photograph changes no alpha
        foreground = dye(foreground, alpha, random_crop(crop_rng, read_image(photograph), size_px))
    if effect is not None:
        foreground, alpha = EFFECTS[effect](rng, foreground, alpha)
    write_rgba(path, np.dstack([foreground, alpha]))


def random_crop(rng: Generator, image: Array, size_px: int) -> Array:
    """Cut a random square of half to all of the shorter side from an image (H, W, 3) and resize it to size_px."""
    side = int(min(image.shape[:2]) * rng.uniform(0.5, 1))
    top, left = (int(rng.integers(length - side + 1)) for length in image.shape[:2])
    interpolation = cv2.INTER_AREA if side > size_px else cv2.INTER_CUBIC
    crop = cv2.resize(image[top : top + side, left : left + side], (size_px, size_px), interpolation=interpolation)
    return crop.clip(0, 1)


def dye(foreground: Array, alpha: Array, colours: Array) -> Array:
    """Give a foreground the colours of an image (H, W, 3), darker and brighter where the foreground was."""
    shade = cv2.cvtColor(foreground, cv2.COLOR_RGB2GRAY)
    mean = (shade * alpha).sum() / max(alpha.sum(), 1.0)
    return (colours * (shade / max(mean, 0.05))[..., None]).clip(0, 1)


def write_defocused(path: Path, photograph: Path, seed: int) -> None:
    """Write a photograph out of focus: most photographs of a subject have such a background.

    The blur is a disc in linear light, so that highlights become discs.
    """
    image = read_image(photograph)
    rng = np.random.default_rng([seed, int.from_bytes(sha256(photograph.name.encode()).digest()[:4])])
    diameter_px = max(1.0, rng.uniform(*DEFOCUS) * max(image.shape[:2]))
    blurred = cv2.filter2D(image**2.2, cv2.CV_32F, defocus_kernel(diameter_px), borderType=cv2.BORDER_REFLECT_101)
    write_image(path, blurred.clip(0, 1) ** (1 / 2.2))


def write_surface(path: Path, seed: int, stream: int, index: int, size_px: int) -> None:
    """Draw and write a background, for sets with few photographs."""
    write_image(path, texture(np.random.default_rng([seed, stream, index]), size_px))
