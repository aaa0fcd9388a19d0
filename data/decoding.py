"""Pictures from the bytes of a file: grey, palette, RGB, CMYK, transparency, 8 and 16 bit, upright, limited in size."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

MAX_PIXELS = 2**27  # 134 megapixels: four times 8K UHD (33) and above a 100-megapixel camera
ORIENTATION_TAG = 0x0112
SIDEWAYS = (5, 6, 7, 8)  # the orientations that swap the sides
START_OF_JPEG, END_OF_JPEG = b"\xff\xd8\xff", b"\xff\xd9"
START_OF_SCAN, TABLES = b"\xda", b"\xc4"
IN_COMPRESSED_DATA = np.isin(np.arange(256), [0, *range(0xD0, 0xD8), TABLES[0], START_OF_SCAN[0], END_OF_JPEG[1]])
"""Which bytes follow 0xFF there: none but 0 and restarts, and between the scans of a progressive picture."""
REDUCED_FLAGS = {  # they say grey, whose own flag is 0, and come beside the one that says RGB
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}

UNREADABLE = (OSError, SyntaxError, EOFError, ValueError)
"""What Pillow raises on broken and cut-off files."""

# Pillow's limit is two thirds of ours. Not around each call: warnings' filters belong to all threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def decode(content: bytes) -> NDArray:
    """Decode a picture as stored, turned upright by its EXIF orientation.

    Returns: uint8 or uint16, (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA, alpha straight. Palettes and CMYK become
        RGB; whatever carries transparency (palette entries and transparent colours too) becomes RGBA.

    Raises:
        ValueError: not a picture, truncated, of an unsupported pixel format or above `MAX_PIXELS`; the message goes on
            after a file's name.
    """
    with _opened(content) as image:
        stored_mode = _stored_mode(image)  # before the orientation, for which Pillow loads a whole PNG
        orientation = _orientation(image)
        image.load()
    if image.mode in ("RGB", "RGBA") and "16" in stored_mode:
        if image.format == "TIFF" and orientation != 1:  # OpenCV turns these itself, or fails where the sides differ
            raise ValueError("a rotated 16-bit colour TIFF. Save it upright or as PNG")
        pixels = _decode_16_bit_colour(content, is_premultiplied=stored_mode.startswith("RGBa"))
        return np.ascontiguousarray(turn_upright(pixels, orientation))
    orientation = _orientation(image)  # Pillow turns TIFFs while it loads them
    if image.mode.startswith("I;16"):
        pixels = np.asarray(image).astype(np.uint16)
    else:
        mode = _target_mode(image)
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))  # convert always copies
    return np.ascontiguousarray(turn_upright(pixels, orientation))


class JpegHeader(NamedTuple):
    """What is known of a JPEG before it is decoded: its size in px, turned upright, and how it is stored."""

    width: int
    height: int
    orientation: int
    mode: str


def read_jpeg_header(content: bytes) -> JpegHeader | None:
    """Read the header of a JPEG; None of another format. Errors as `decode`."""
    if not content.startswith(START_OF_JPEG):
        return None
    with _opened(content) as image:
        orientation = _orientation(image)
        width, height = image.size[::-1] if orientation in SIDEWAYS else image.size
        return JpegHeader(width, height, orientation, image.mode)


def decode_jpeg(content: bytes, header: JpegHeader, reduction: int = 1) -> NDArray:
    """Decode a JPEG to the pixels that `decode` gives, in 0.8 of its time.

    OpenCV makes up what is missing without a word. Pillow is the stricter one, and gets all that looks damaged.

    Args:
        content: all bytes of the file.
        header: its own.
        reduction: 1, 2, 4 or 8. An upright picture is decoded at 1 / reduction in each direction, sides rounded up, for
            a part of the time; one that is turned comes whole, since areas are counted from the stored corner.

    Returns, Raises: as `decode`.
    """
    if header.mode in ("L", "RGB") and _looks_whole(content):
        flags = cv2.IMREAD_GRAYSCALE if header.mode == "L" else cv2.IMREAD_COLOR_RGB
        flags |= REDUCED_FLAGS[reduction if header.orientation == 1 else 1] | cv2.IMREAD_IGNORE_ORIENTATION
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
        if pixels is not None:
            return np.ascontiguousarray(turn_upright(pixels, header.orientation))
    return decode(content)


@contextmanager
def _opened(content: bytes) -> Iterator[ImageFile]:
    """Open a picture; whatever Pillow raises within becomes `decode`'s ValueError."""
    try:
        with Image.open(BytesIO(content)) as image:  # of a file that Pillow maps, it loses the rotation of grey TIFFs
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{image.width} x {image.height}")  # as Pillow does beyond its limit
            yield image
    except Image.DecompressionBombError as error:
        limit = f"the limit is {MAX_PIXELS} pixels, against decompression bombs"
        raise ValueError(f"too large ({error}); {limit}. Resize the picture") from error
    except UnidentifiedImageError as error:
        raise ValueError("not a picture that Pillow knows. Replace or remove it") from error
    except UNREADABLE as error:
        raise ValueError(f"{error}. Is it complete? Replace or remove it") from error


def _looks_whole(content: bytes) -> bool:
    """Tell whether a JPEG ends as it should and no marker stands in its compressed data that has no place there.

    Source: ITU-T T.81, B.1.1: in compressed data 0xFF is followed by 0; other bytes make it a marker.
    """
    place = len(START_OF_JPEG) - 1
    while content[place : place + 1] == b"\xff" and content[place + 1 : place + 2] != START_OF_SCAN:
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    data = np.frombuffer(content, np.uint8)[place:]
    followers = data[np.flatnonzero(data[:-1] == 0xFF) + 1]
    num_ends = np.count_nonzero(followers == END_OF_JPEG[1])
    return content.endswith(END_OF_JPEG) and num_ends == 1 and bool(IN_COMPRESSED_DATA[followers].all())


def _orientation(image: Image.Image) -> int:
    return image.getexif().get(ORIENTATION_TAG, 1)


def _stored_mode(image: ImageFile) -> str:
    """Name the layout in the file of a picture not yet loaded, such as "RGB;16B"; empty where Pillow does not tell."""
    arguments = image.tile[0].args if image.tile else ""
    return str(arguments if isinstance(arguments, str) or not arguments else arguments[0])


def _target_mode(image: Image.Image) -> str:
    """Name the Pillow mode to decode to: "L", "RGB" or "RGBA"."""
    if image.has_transparency_data:
        return "RGBA"
    if image.mode in ("1", "L"):
        return "L"
    if image.mode in ("P", "RGB", "CMYK", "YCbCr"):
        return "RGB"
    raise ValueError(f"pixel format {image.mode}; expected 8- or 16-bit grey, palette, RGB, RGBA. Convert it")


def _decode_16_bit_colour(content: bytes, is_premultiplied: bool) -> NDArray:
    """Decode 16-bit RGB and RGBA, which Pillow would cut to 8 bit, by OpenCV."""
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ValueError(f"{error.err}. Is it complete? Replace or remove it") from error
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3:
        raise ValueError("a layout of 16-bit colour that OpenCV does not read. Save it as 16-bit PNG")
    if pixels.shape[2] == 3:
        return pixels[:, :, ::-1]
    rgba = pixels[:, :, [2, 1, 0, 3]]
    if is_premultiplied:  # Pillow divides 8-bit colours itself
        full_scale = np.iinfo(np.uint16).max
        scale = np.float32(full_scale) / np.maximum(rgba[:, :, 3:], 1)
        rgba[:, :, :3] = np.rint(np.minimum(rgba[:, :, :3] * scale, full_scale))
    return rgba


def turn_upright(pixels: NDArray, orientation: int) -> NDArray:
    """Turn an array (H, W, ...) as its EXIF orientation 1 to 8 says; other values turn nothing.

    Source: EXIF 2.32, tag 0x0112; rows 5 to 8 swap the sides.
    """
    if orientation in SIDEWAYS:
        pixels = pixels.swapaxes(0, 1)
    flip_rows = orientation in (3, 4, 7, 8)
    flip_columns = orientation in (2, 3, 6, 7)
    return pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
