"""Write the images of the open set: cut-outs, photographs, drawn foregrounds and drawn surfaces."""

from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from data.image_io.decoding import decode
from data.image_io.images import as_colours, to_float, write_image, write_rgba
from data.procedural import EFFECTS, KINDS
from data.procedural.surfaces import texture
from runtime.errors import UserError

SHORTEST_SIDE_PX = 64
PHOTOGRAPH_PX = 1280  # longest side of a background
FEWEST_COLOURS = 0.2  # distinct colours by opaque pixels: images with fewer are drawn, not photographed
LEAST_TRANSPARENT, LEAST_FRACTIONAL = 0.05, 0.004  # shares of a cut-out's pixels
EFFECT_SHARE = 0.3  # of the drawn foregrounds
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


def write_drawn(path: Path, seed: int, stream: int, index: int, size_px: int) -> None:
    """Draw and write the index-th foreground of a random stream; `EFFECT_SHARE` of them are blurred as by a camera."""
    rng = np.random.default_rng([seed, stream, index])
    effect = rng.choice([*EFFECTS]) if rng.random() < EFFECT_SHARE else None
    foreground, alpha = list(KINDS.values())[index % len(KINDS)](rng, size_px)
    if effect is not None:
        foreground, alpha = EFFECTS[effect](rng, foreground, alpha)
    write_rgba(path, np.dstack([foreground, alpha]))


def write_surface(path: Path, seed: int, stream: int, index: int, size_px: int) -> None:
    """Draw and write a background, for sets with few photographs."""
    write_image(path, texture(np.random.default_rng([seed, stream, index]), size_px))
