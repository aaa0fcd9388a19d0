"""Read and write images. `data.image_io.decoding` and `data.image_io.encoding` decide what files can hold.

Raw arrays are what the file stores (uint8 or uint16, (H, W), (H, W, 3) RGB or (H, W, 4) RGBA, alpha straight); float
arrays are float32 in [0, 1], but light has no bound. Nothing is ever resized here.
"""

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from data.image_io.colour import convert
from data.image_io.decoding import JpegHeader, decode, decode_jpeg, read_jpeg_header
from data.image_io.encoding import FORMATS, NO_PROFILE_SUFFIXES, encode
from data.image_io.exr import START, SceneLinear, decode_exr, decode_grey_exr, encode_exr
from data.image_io.formats import advice_for, warn_once
from data.image_io.light import to_light
from data.image_io.metadata import NO_METADATA, Metadata, read_metadata
from runtime.errors import UserError, few

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(FORMATS)  # that can be written; `data.image_io.formats.READABLE` are those that are read
LOSSLESS_SUFFIXES = (".png", ".tif", ".tiff", ".webp", ".bmp")  # others would blur what is exactly 0 or 255


class DataError(UserError):
    """A file or an array whose content is not valid where it is used."""


class EncodedImage:
    """An image file, read once and decoded on demand.

    Args:
        path: of the file.

    Raises:
        DataError: from `size` and `read`, the file is no usable image.
        OSError: no such file, or it may not be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._content = self.path.read_bytes()

    def size(self) -> tuple[int, int]:
        """Return (width, height) in px, upright; of a JPEG from its header."""
        if self._header is not None:
            return self._header.width, self._header.height
        return self._whole.shape[1], self._whole.shape[0]

    def read(self, reduction: int = 1) -> NDArray:
        """Decode as stored, upright; a JPEG at 1 / reduction if possible, see `data.image_io.decoding.decode_jpeg`."""
        if self._header is not None:
            return self._named(decode_jpeg, self._content, self._header, reduction)
        return self._whole

    @cached_property
    def _header(self) -> JpegHeader | None:
        return self._named(read_jpeg_header, self._content)

    @cached_property
    def _whole(self) -> NDArray:
        return self._named(decode, self._content)

    def _named(self, work: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return work(*arguments)
        except UserError as error:
            reason = advice_for(self.path, self._content) or error
            raise DataError(f"cannot read {self.path}: {reason}") from error


def read_raw(path: str | Path) -> NDArray:
    """Read an image as stored, upright; see `data.image_io.decoding.decode`.

    Returns: uint8 or uint16, (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA.

    Raises:
        DataError: the file is no usable image.
        OSError: no such file, or it may not be read.
    """
    return EncodedImage(path).read()


def as_grey(pixels: NDArray, name: str | Path) -> NDArray:
    """Reduce grey values stored as grey, RGB or opaque RGBA to (H, W), dtype kept.

    Args:
        pixels: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
        name: its name in errors.

    Raises:
        DataError: the colour channels differ, or there is transparency, so that grey or alpha could be meant.
    """
    if pixels.ndim == 2:
        return pixels
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise DataError(f"{name} has shape {pixels.shape}; expected (H, W) grey, or RGB or RGBA of equal channels")
    if _has_transparency(pixels):
        raise DataError(f"{name} has transparency of its own where grey values are expected: save one grey channel")
    grey = pixels[:, :, 0]
    if (pixels[:, :, :3] != grey[:, :, None]).any():
        raise DataError(f"{name} is coloured where grey values are expected: save one grey channel")
    return grey


def _has_transparency(pixels: NDArray) -> bool:
    """Tell whether any pixel of (H, W, C) is not opaque."""
    opaque = np.iinfo(pixels.dtype).max if np.issubdtype(pixels.dtype, np.integer) else 1
    return pixels.shape[2] == 4 and bool((pixels[:, :, 3] != opaque).any())


def as_colours(pixels: NDArray, name: str | Path = "the image") -> NDArray:
    """Convert grey, RGB or RGBA to (H, W, 3) RGB, dtype kept: grey is repeated, transparency removed with a warning.

    Args:
        pixels: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); alpha is straight, so colours are valid without it.
        name: its name in messages; each `Path` is warned about once.

    Raises:
        DataError: another shape.
    """
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise DataError(f"{name} has shape {pixels.shape}; expected (H, W, 3) RGB, (H, W, 4) RGBA or (H, W) grey")
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    if _has_transparency(pixels):
        warn = _warn_once_of_transparency if isinstance(name, Path) else _warn_of_transparency
        warn(name)
    return pixels[:, :, :3]


def _warn_of_transparency(name: str | Path) -> None:
    logger.warning("%s: its transparency is ignored, its colours are taken as they are", name)


_warn_once_of_transparency = lru_cache(maxsize=1024)(_warn_of_transparency)  # a run reads a file many times


def read_raw_image(path: str | Path) -> NDArray:
    """Read colours as (H, W, 3) uint8 or uint16 RGB; see `as_colours`."""
    return as_colours(read_raw(path), Path(path))


def read_raw_alpha(path: str | Path) -> NDArray:
    """Read an alpha matte as (H, W) uint8 or uint16; `as_grey` accepts more than grey files."""
    return as_grey(read_raw(path), path)


def read_values(path: str | Path) -> NDArray:
    """Read an alpha, a mask or a trimap as stored: see `read_raw`, and of an EXR `decode_grey_exr`."""
    return _decoded(decode_grey_exr, path) if is_exr(path) else read_raw(path)


def read_alpha_values(path: str | Path) -> NDArray:
    """Read an alpha matte as (H, W): as `read_raw_alpha`, but an EXR as float32 in [0, 1].

    Raises:
        DataError, OSError: as `read_raw_alpha`; or an EXR with values outside [0, 1].
    """
    values = as_grey(read_values(path), path)
    return as_unit_floats(values, path) if values.dtype == np.float32 else values


def read_raw_rgba(path: str | Path) -> tuple[NDArray, NDArray]:
    """Read a cut-out: colours (H, W, 3), not premultiplied, and its alpha (H, W), both uint8 or both uint16.

    Raises:
        DataError: the file has no transparency.
    """
    pixels = read_raw(path)
    if pixels.ndim != 3 or pixels.shape[2] != 4:
        raise DataError(f"{path} has no transparency; a cut-out is RGBA: add its alpha, or give a folder of alphas")
    return pixels[:, :, :3], pixels[:, :, 3]


class Colours(NamedTuple):
    """RGB colours (..., 3) in [0, 1], and the ICC profile of their space; None is sRGB."""

    values: NDArray[np.float32]
    icc_profile: bytes | None = None


def read_colours(path: str | Path) -> Colours:
    """Read colours in the space in which they are stored; see `read_raw_image` and `read_metadata`.

    An EXR's light has no bound. Its colours are those that it has on a display, see `SceneLinear.shown`.
    """
    if is_exr(path):
        return Colours(read_light(path).shown())
    return Colours(to_float(read_raw_image(path)), read_metadata(Path(path)).icc_profile)


def is_exr(path: str | Path) -> bool:
    """Tell by its first bytes whether a file is an EXR."""
    with Path(path).open("rb") as file:
        return file.read(len(START)) == START


def read_light(path: str | Path) -> SceneLinear:
    """Read scene-linear light: of an EXR as it is stored, of another image as of `data.image_io.light.to_light`.

    A warning names the channels of an EXR that are left out.

    Raises:
        DataError: the file is no usable image.
        OSError: no such file, or it may not be read.
    """
    if not is_exr(path):
        dpi = read_metadata(Path(path)).dpi
        return SceneLinear(to_light(*read_colours(path)), {"xDensity": dpi[0]} if dpi else {})
    light: SceneLinear = _decoded(decode_exr, path)
    if light.left_out:
        warn_once(f"{path}: channels that are left out: {few(light.left_out)}. Its colours are taken as they are")
    return light


def _decoded(decode_content: Callable[[bytes], Any], path: str | Path) -> Any:
    """Decode an EXR; what is wrong with it becomes a DataError."""
    try:
        return decode_content(Path(path).read_bytes())
    except UserError as error:
        raise DataError(f"cannot read {path}: {error}") from error


def read_image(path: str | Path) -> NDArray[np.float32]:
    """Read colours as (H, W, 3) sRGB in [0, 1], converted from the space in which they are stored."""
    return convert(*read_colours(path))


def read_alpha(path: str | Path) -> NDArray[np.float32]:
    """Read an alpha matte as (H, W) in [0, 1]; see `read_alpha_values`."""
    return as_unit_floats(as_grey(read_values(path), path), path)


def to_float(pixels: NDArray) -> NDArray[np.float32]:
    """Scale uint8 by 1/255 or uint16 by 1/65535 to float32 in [0, 1]; full scale becomes exactly 1.

    Raises:
        DataError: another dtype.
    """
    if pixels.dtype not in (np.uint8, np.uint16):
        raise DataError(f"expected uint8 or uint16 pixels, got {pixels.dtype}")
    return np.divide(pixels, np.iinfo(pixels.dtype).max, dtype=np.float32)


def as_unit_floats(pixels: NDArray, name: str | Path = "the image") -> NDArray[np.float32]:
    """Convert uint8, uint16 or floats in [0, 1] of any shape to float32; float32 is returned without a copy.

    Args:
        pixels: see above. Floats may be off by the rounding of a resize, 1e-5, and are then clipped.
        name: its name in errors.

    Raises:
        DataError: another dtype, or floats outside [0, 1].
    """
    if not np.issubdtype(pixels.dtype, np.floating):
        return to_float(pixels)
    if ((pixels >= 0) & (pixels <= 1)).all():  # false for NaN
        return pixels.astype(np.float32, copy=False)
    if ((pixels >= -1e-5) & (pixels <= 1 + 1e-5)).all():
        return pixels.clip(0, 1).astype(np.float32, copy=False)
    raise DataError(f"expected {name} in [0, 1], got {pixels.min():.4g} to {pixels.max():.4g}: scale it")


def to_uint8(values: NDArray) -> NDArray[np.uint8]:
    """Round 255 times the values to uint8, never truncating; values outside [0, 1] are clipped.

    Raises:
        DataError: not a float array, or NaN or infinity in it.
    """
    return _rounded(values).astype(np.uint8)


def to_uint16(values: NDArray) -> NDArray[np.uint16]:
    """Round 65535 times the values to uint16; otherwise as `to_uint8`."""
    return _rounded(values, np.iinfo(np.uint16).max).astype(np.uint16)


def _rounded(values: NDArray, full_scale: int = 255) -> NDArray:
    if not np.issubdtype(values.dtype, np.floating):
        raise DataError(f"expected float values in [0, 1], got {values.dtype}")
    if not np.isfinite(values).all():
        raise DataError("expected values in [0, 1], got NaN or infinity")
    scaled = values.astype(np.promote_types(values.dtype, np.float32))  # float16 ends at 65504
    np.multiply(scaled.clip(0, 1, out=scaled), full_scale, out=scaled)
    return np.rint(scaled, out=scaled)


def write_image(path: str | Path, image: NDArray, bits: int = 8, metadata: Metadata = NO_METADATA) -> None:
    """Write (H, W, 3) RGB floats in [0, 1].

    Args:
        path: the suffix names the format; see `data.image_io.encoding`. An existing file is replaced atomically.
        image: values outside [0, 1] are clipped.
        bits: 8, or for PNG and TIFF also 16.
        metadata: to store, if the format can.

    Raises:
        DataError: another shape, values that are not finite, or a format that cannot hold this.
        OSError: no permission, or a full disk; no unfinished file is left.
    """
    if image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"expected an image (H, W, 3) for {path}, got {image.shape}")
    _write(Path(path), image, bits, metadata)


def write_alpha(path: str | Path, alpha: NDArray, bits: int = 8, metadata: Metadata = NO_METADATA) -> None:
    """Write (H, W) floats in [0, 1] as grey, `round(255 * alpha)` or `round(65535 * alpha)`; see `write_image`.

    Alpha is no colour: of the metadata, only the resolution is stored.
    """
    if alpha.ndim != 2:
        raise DataError(f"expected an alpha (H, W) for {path}, got {alpha.shape}")
    _write(Path(path), alpha, bits, metadata._replace(icc_profile=None))


def write_rgba(
    path: str | Path,
    rgba: NDArray,
    bits: int = 8,
    is_premultiplied: bool = False,
    metadata: Metadata = NO_METADATA,
) -> None:
    """Write a cut-out (H, W, 4), colours and alpha in [0, 1], as PNG, TIFF or, 8 bit alone, WebP; see `write_image`.

    Args:
        path: as for `write_image`.
        rgba: values outside [0, 1] are clipped.
        bits: as for `write_image`.
        is_premultiplied: the colours are multiplied by alpha, and are written so. A TIFF states it, and readers divide.
            PNG and WebP cannot state it: who opens the file must know.
        metadata: as for `write_image`.

    Raises: as `write_image`.
    """
    if rgba.ndim != 3 or rgba.shape[2] != 4:
        raise DataError(f"expected a cut-out (H, W, 4) for {path}, got {rgba.shape}")
    _write(Path(path), rgba, bits, metadata, is_premultiplied)


def write_exr(path: str | Path, channels: Mapping[str, NDArray], light: SceneLinear, bits: int | None = None) -> None:
    """Write channels as an EXR; see `data.image_io.exr.encode_exr`. An existing file is replaced atomically.

    Raises:
        DataError: values that the file cannot hold.
        OSError: no permission, or a full disk; no unfinished file is left.
    """
    try:
        content = encode_exr(channels, light, bits)
    except UserError as error:
        raise DataError(f"{path}: {error}") from error
    _replace(Path(path), content)


def _write(path: Path, values: NDArray, bits: int, metadata: Metadata, is_premultiplied: bool = False) -> None:
    if bits not in (8, 16):
        raise DataError(f"{path}: expected 8 or 16 bit, got {bits}")
    try:
        pixels = to_uint16(values) if bits == 16 else to_uint8(values)
        content = encode(pixels, path.suffix, is_premultiplied, metadata)
    except UserError as error:
        raise DataError(f"{path}: {error}") from error
    if metadata.icc_profile and path.suffix.lower() in NO_PROFILE_SUFFIXES:
        logger.warning("%s: this format holds no colour profile. Write PNG, TIFF, JPEG or WebP to keep it", path)
    _replace(path, content)


def _replace(path: Path, content: bytes) -> None:
    """Write a file atomically: it gets its name when it is complete."""
    target = Path(os.path.realpath(path))  # a link stays one; Path.resolve raises for a circle of them
    unfinished = target.with_name(f".{uuid4().hex}.tmp")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(target)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            unfinished.unlink()
