"""Reading and writing pictures: 8 and 16 bit, grey, palette, RGB, RGBA, EXIF rotation honoured, sizes limited.

Raw arrays are what the file stores (uint8 or uint16, (H, W), (H, W, 3) RGB or (H, W, 4) RGBA, alpha straight); float
arrays are float32 in [0, 1]. Nothing is ever resized here.
"""

from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
LOSSLESS_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")  # others would blur what is exactly 0 or 255
MAX_PIXELS = 2**27  # 134 megapixels: four times 8K UHD (33) and above a 100-megapixel camera
ORIENTATION_TAG = 0x0112


class DataError(ValueError):
    """A file or an array whose content is not what its place in the data asks for."""


def find_images(folder: str | Path) -> list[Path]:
    """List a folder's pictures, by the suffixes of `IMAGE_SUFFIXES` in any case, hidden files left out.

    Returns: the paths sorted by name, so that every process sees one order; subfolders are not searched.

    Raises:
        FileNotFoundError: the folder does not exist or holds no picture.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    if not paths:
        raise FileNotFoundError(f"no picture in {folder} (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
    return paths


def read_raw(path: str | Path) -> NDArray:
    """Decode a picture as stored, turned upright by its EXIF orientation.

    Returns: uint8 or uint16, (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA. Palettes and CMYK become RGB; whatever
        carries transparency (palette entries and transparent colours too) becomes RGBA.

    Raises:
        DataError: not a picture, truncated, of an unsupported pixel format or above `MAX_PIXELS`.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    try:
        # From memory: of a file that Pillow maps, it loses the rotation of grey TIFFs.
        with Image.open(BytesIO(path.read_bytes())) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(_too_large(path, f"{image.width} x {image.height}"))
            is_16_bit_colour = image.mode in ("RGB", "RGBA") and "16" in _stored_mode(image)
            orientation = image.getexif().get(ORIENTATION_TAG, 1)
            image.load()
            if is_16_bit_colour:
                return _read_16_bit_colour(path, image.format, orientation)
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):
                return np.asarray(upright).astype(np.uint16)
            return np.asarray(upright.convert(_target_mode(path, upright)))
    except Image.DecompressionBombError as error:
        raise DataError(_too_large(path, str(error))) from error
    except FileNotFoundError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"cannot read {path}: not a picture that Pillow knows. Replace or remove it") from error
    except (OSError, SyntaxError, EOFError) as error:  # what Pillow raises on broken and cut-off files
        raise DataError(f"cannot read {path} as a picture: {error}. Is it complete? Replace or remove it") from error


def _too_large(path: Path, size: str) -> str:
    return f"{path} is too large ({size}); the limit is {MAX_PIXELS} pixels, against bombs: resize the picture"


def _stored_mode(image: ImageFile) -> str:
    """Name the layout in the file of a picture not yet loaded, such as "RGB;16B"; empty where Pillow does not tell."""
    arguments = image.tile[0].args if image.tile else ""
    return str(arguments if isinstance(arguments, str) or not arguments else arguments[0])


def _target_mode(path: Path, image: Image.Image) -> str:
    """Name the Pillow mode to decode to: "L", "RGB" or "RGBA"."""
    if image.has_transparency_data:
        return "RGBA"
    if image.mode in ("1", "L"):
        return "L"
    if image.mode in ("P", "RGB", "CMYK", "YCbCr"):
        return "RGB"
    raise DataError(f"{path} has pixel format {image.mode}; expected 8- or 16-bit grey, palette, RGB, RGBA: convert it")


def _read_16_bit_colour(path: Path, file_format: str | None, orientation: int) -> NDArray[np.uint16]:
    """Decode 16-bit RGB and RGBA, which Pillow would cut to 8 bit, by OpenCV."""
    if file_format == "TIFF" and orientation != 1:  # OpenCV turns these itself, or fails where the sides differ
        raise DataError(f"{path} is a rotated 16-bit colour TIFF, which cannot be read: save it upright or as PNG")
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3:
        raise DataError(f"cannot read {path} as 16-bit colour: save it as 16-bit PNG")
    order = [2, 1, 0, 3] if pixels.shape[2] == 4 else [2, 1, 0]
    return np.ascontiguousarray(turn_upright(pixels[:, :, order], orientation))


def turn_upright(pixels: NDArray, orientation: int) -> NDArray:
    """Turn an array (H, W, ...) as its EXIF orientation 1 to 8 says; other values turn nothing.

    Source: EXIF 2.32, tag 0x0112; rows 5 to 8 swap the sides.
    """
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    flip_rows = orientation in (3, 4, 7, 8)
    flip_columns = orientation in (2, 3, 6, 7)
    return pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


def as_grey(pixels: NDArray, name: str | Path) -> NDArray:
    """Reduce grey values stored as grey, RGB or opaque RGBA to (H, W), dtype kept.

    Args:
        pixels: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
        name: what the error calls it.

    Raises:
        DataError: the colour channels differ, or there is transparency, so that grey and alpha could both be meant.
    """
    if pixels.ndim == 2:
        return pixels
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise DataError(f"{name} has shape {pixels.shape}; expected (H, W) grey, or RGB or RGBA of equal channels")
    if pixels.shape[2] == 4:
        opaque = np.iinfo(pixels.dtype).max if np.issubdtype(pixels.dtype, np.integer) else 1
        if (pixels[:, :, 3] != opaque).any():
            raise DataError(f"{name} has transparency of its own where grey values are expected: save one grey channel")
    grey = pixels[:, :, 0]
    if (pixels[:, :, :3] != grey[:, :, None]).any():
        raise DataError(f"{name} is coloured where grey values are expected: save one grey channel")
    return grey


def read_raw_image(path: str | Path) -> NDArray:
    """Read colours as (H, W, 3) uint8 or uint16 RGB; grey is repeated, transparency is left out (alpha is straight)."""
    pixels = read_raw(path)
    return np.repeat(pixels[:, :, None], 3, axis=2) if pixels.ndim == 2 else pixels[:, :, :3]


def read_raw_alpha(path: str | Path) -> NDArray:
    """Read an alpha matte as (H, W) uint8 or uint16; see `as_grey` for what else than grey is accepted."""
    return as_grey(read_raw(path), path)


def read_raw_rgba(path: str | Path) -> tuple[NDArray, NDArray]:
    """Read a cut-out: colours (H, W, 3), not premultiplied, and its alpha (H, W), both uint8 or both uint16.

    Raises:
        DataError: the file has no transparency.
    """
    pixels = read_raw(path)
    if pixels.ndim != 3 or pixels.shape[2] != 4:
        raise DataError(f"{path} has no transparency; a cut-out is RGBA: add its alpha, or give a folder of alphas")
    return pixels[:, :, :3], pixels[:, :, 3]


def read_image(path: str | Path) -> NDArray[np.float32]:
    """Read colours as (H, W, 3) RGB in [0, 1]; see `read_raw_image`."""
    return to_float(read_raw_image(path))


def read_alpha(path: str | Path) -> NDArray[np.float32]:
    """Read an alpha matte as (H, W) in [0, 1]; see `read_raw_alpha`."""
    return to_float(read_raw_alpha(path))


def read_rgba(path: str | Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Read a cut-out: foreground (H, W, 3) RGB, not premultiplied, and alpha (H, W), both in [0, 1]."""
    foreground, alpha = read_raw_rgba(path)
    return to_float(foreground), to_float(alpha)


def to_float(pixels: NDArray) -> NDArray[np.float32]:
    """Scale uint8 by 1/255 or uint16 by 1/65535 to float32 in [0, 1]; full scale becomes exactly 1.

    Raises:
        DataError: another dtype.
    """
    if pixels.dtype not in (np.uint8, np.uint16):
        raise DataError(f"expected uint8 or uint16 pixels, got {pixels.dtype}")
    return np.divide(pixels, np.iinfo(pixels.dtype).max, dtype=np.float32)


def to_uint8(values: NDArray) -> NDArray[np.uint8]:
    """Round 255 times the values to uint8, never truncating; values outside [0, 1] are clipped.

    Raises:
        DataError: not a float array, or NaN or infinity in it.
    """
    if not np.issubdtype(values.dtype, np.floating):
        raise DataError(f"expected float values in [0, 1], got {values.dtype}")
    if not np.isfinite(values).all():
        raise DataError("expected values in [0, 1], got NaN or infinity")
    return np.rint(values.clip(0, 1) * 255).astype(np.uint8)


def write_image(path: str | Path, image: NDArray) -> None:
    """Write (H, W, 3) RGB floats in [0, 1] as 8 bit, in the format that the suffix names (.png loses nothing more)."""
    if image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"expected an image (H, W, 3) for {path}, got {image.shape}")
    Image.fromarray(to_uint8(image)).save(path)


def write_alpha(path: str | Path, alpha: NDArray) -> None:
    """Write (H, W) floats in [0, 1] as 8-bit grey, `round(255 * alpha)`."""
    if alpha.ndim != 2:
        raise DataError(f"expected an alpha (H, W) for {path}, got {alpha.shape}")
    Image.fromarray(to_uint8(alpha)).save(path)
