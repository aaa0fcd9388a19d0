"""Decode images: grey, palette, RGB, CMYK, transparency, 8 and 16 bit, upright, limited in size."""

import warnings
from contextlib import suppress
from io import BytesIO
from typing import Any, NamedTuple, cast

import cv2
import numpy as np
import pillow_heif
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from PIL.ImageFile import ImageFile

from data.image_io.colour import refuse_hdr, to_srgb
from data.image_io.formats import MAX_PIXELS, READABLE, decoder_errors, several_frames, too_large
from data.image_io.tiff import STARTS, read_tiff
from runtime.errors import UserError

ORIENTATION_TAG = 0x0112
SIDEWAYS = (5, 6, 7, 8)  # the orientations that swap the sides
START_OF_JPEG, END_OF_JPEG = b"\xff\xd8\xff", b"\xff\xd9"
START_OF_SCAN, TABLES = b"\xda", b"\xc4"
IN_COMPRESSED_DATA = np.isin(np.arange(256), [0, *range(0xD0, 0xD8), TABLES[0], START_OF_SCAN[0], END_OF_JPEG[1]])
"""Which bytes follow 0xFF there: none but 0 and restarts, and between the scans of a progressive image."""
REDUCED_FLAGS = {  # they say grey, whose own flag is 0, and come beside the one that says RGB
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}

START_OF_J2K, NUM_CHANNELS_OF_J2K = b"\xff\x4f\xff\x51", 40  # of a JPEG 2000 codestream; place of their number in it
MP_ENTRIES = 0xB002  # of a camera's JPEG with several images

Image.init()
pillow_heif.register_heif_opener()
FORMATS = tuple(sorted(Image.OPEN.keys() & set(READABLE.values())))  # a Pillow may be built without AVIF

# Pillow's limit is two thirds of ours, and its lines about damaged tags name no file. Not around each call: warnings'
# filters belong to all threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # 64 MiB: XMP and ICC profiles pass 1 MiB, Pillow's own


def decode(content: bytes) -> NDArray:
    """Decode an image as stored, turned upright by its EXIF orientation.

    Returns: uint8 or uint16, (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA, alpha straight. Palettes and CMYK become
        RGB; images with any kind of transparency become RGBA.

    Raises:
        UserError: not an image, truncated, of several frames, of an unsupported pixel format or above `MAX_PIXELS`.
            The message continues a file's name.
    """
    if content.startswith(STARTS) and (tiff := read_tiff(content, MAX_PIXELS)):
        return np.ascontiguousarray(turn_upright(*tiff))
    image = _open(content)
    with decoder_errors():
        num_frames = getattr(image, "n_frames", 1)
    if image.format == "MPO":
        num_frames = _num_views(image)
    if num_frames > 1 and image.format != "TIFF":  # `data.image_io.tiff` has counted
        raise several_frames(num_frames)
    if image.format == "PPM" and (pixels := _decode_ppm(content, image)) is not None:
        return pixels
    if image.format == "JPEG2000":
        _check_depth_of_j2k(content)
    refuse_hdr(content)
    if image.format == "HEIF":
        return _decode_heif(content)
    layout = _stored_layout(image)  # before the orientation, for which Pillow loads a whole PNG
    with decoder_errors():
        image.load()
    orientation = _orientation(image)  # Pillow turns TIFFs while it loads them
    transparent = None if image.mode == "P" else image.info.pop("transparency", None)
    if "16" not in layout or image.mode.startswith("I;16"):
        pixels = _loaded_pixels(image)
    elif image.format == "PNG":
        pixels = _decode_16_bit_png(content)
    else:
        raise UserError(f"pixel format {layout}. Save it as 16-bit PNG or TIFF")
    if transparent is not None:
        pixels = _with_transparent_colour(pixels, transparent, layout)
    return np.ascontiguousarray(turn_upright(pixels, orientation))


def pixels_of(image: Image.Image) -> NDArray:
    """Convert an open Pillow image to the pixels that `decode` gives; of 16-bit colour, Pillow has kept 8 bits.

    Raises:
        UserError: it is truncated, or of an unsupported pixel format.
    """
    with decoder_errors():
        image.load()
    return np.ascontiguousarray(turn_upright(_loaded_pixels(image), _orientation(image)))


def _loaded_pixels(image: Image.Image) -> NDArray:
    """Convert a loaded Pillow image to grey, RGB or RGBA; `convert` of the same mode would copy."""
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode in ("CMYK", "LAB"):
        return np.asarray(to_srgb(image))
    mode = _target_mode(image)
    with decoder_errors():
        return np.asarray(image if image.mode == mode else image.convert(mode))


class JpegHeader(NamedTuple):
    """Facts about a JPEG before it is decoded: its upright size in px, and how it is stored."""

    width: int
    height: int
    orientation: int
    mode: str


def read_jpeg_header(content: bytes) -> JpegHeader | None:
    """Read the header of a JPEG; None of another format. Errors as `decode`."""
    if not content.startswith(START_OF_JPEG):
        return None
    image = _open(content)
    orientation = _orientation(image)
    width, height = image.size[::-1] if orientation in SIDEWAYS else image.size
    return JpegHeader(width, height, orientation, image.mode)


def decode_jpeg(content: bytes, header: JpegHeader, reduction: int = 1) -> NDArray:
    """Decode a JPEG to the pixels that `decode` gives, in 0.8 of its time.

    OpenCV silently fills missing parts. So Pillow, which is stricter, decodes files that look damaged.

    Args:
        content: all bytes of the file.
        header: its own.
        reduction: 1, 2, 4 or 8. An upright image is decoded at 1 / reduction in each direction, sides rounded up, for
            a part of the time. A turned image comes at full size, because areas are counted from the stored corner.

    Returns, Raises: as `decode`.
    """
    if header.mode in ("L", "RGB") and _looks_whole(content):
        flags = cv2.IMREAD_GRAYSCALE if header.mode == "L" else cv2.IMREAD_COLOR_RGB
        flags |= REDUCED_FLAGS[reduction if header.orientation == 1 else 1] | cv2.IMREAD_IGNORE_ORIENTATION
        pixels = None
        with suppress(cv2.error):  # Pillow says what is wrong
            pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
        if pixels is not None:
            return np.ascontiguousarray(turn_upright(pixels, header.orientation))
    return decode(content)


def _open(content: bytes) -> ImageFile:
    """Open an image of a known format, within the limit of size."""
    with decoder_errors():
        image = Image.open(BytesIO(content), formats=FORMATS)  # of a mapped file it loses a TIFF's rotation
    if image.width * image.height > MAX_PIXELS:
        raise too_large(f"{image.width} x {image.height}")
    return image


def _num_views(image: Image.Image) -> int:
    """Count the images of an MPO that are views of their own: its first one, and those of stereo or a panorama.

    Previews, and images of no stated type, such as gain maps, are none. Source: CIPA DC-007, 5.2.3.3.
    """
    with decoder_errors():
        entries = cast(Any, image).mpinfo[MP_ENTRIES]
        return 1 + sum(entry["Attribute"]["MPType"].startswith("Multi-Frame") for entry in entries[1:])


def _looks_whole(content: bytes) -> bool:
    """Tell whether a JPEG has its end, and no wrong marker in its compressed data.

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
    with decoder_errors():
        return image.getexif().get(ORIENTATION_TAG, 1)


def _stored_layout(image: ImageFile) -> str:
    """Name the stored layout of an image not yet loaded, such as "RGB;16B"; empty if Pillow does not tell."""
    arguments = image.tile[0].args if image.tile else ""
    return str(arguments if isinstance(arguments, str) or not arguments else arguments[0])


def _target_mode(image: Image.Image) -> str:
    """Name the Pillow mode to decode to: "L", "RGB" or "RGBA"."""
    with decoder_errors():
        has_transparency = image.has_transparency_data  # fails for a palette that is not there
    if has_transparency:
        return "RGBA"
    if image.mode in ("1", "L"):
        return "L"
    if image.mode in ("P", "RGB", "YCbCr"):
        return "RGB"
    raise UserError(f"pixel format {image.mode}; expected 8- or 16-bit grey, palette, RGB, RGBA. Convert it")


def _with_transparent_colour(pixels: NDArray, transparent: int | tuple[int, ...], layout: str) -> NDArray:
    """Add an alpha to grey or RGB pixels: 0 where they have the transparent colour of a PNG or GIF.

    Args:
        pixels: (H, W) or (H, W, 3), scaled to all of their 8 or 16 bits.
        transparent: the colour as it is stored, in the bits of the file.
        layout: in the file; grey of 2 and 4 bits is scaled by Pillow.
    """
    full_scale = np.iinfo(pixels.dtype).max
    steps = {"L;2": 3, "L;4": 15}.get(layout, full_scale)
    colour = (np.atleast_1d(transparent) & steps) * (full_scale // steps)  # the lower bits count, says the PNG standard
    samples = pixels[:, :, None] if pixels.ndim == 2 else pixels
    alpha = np.where((samples == colour).all(2), 0, full_scale).astype(pixels.dtype)
    return np.dstack([np.broadcast_to(samples, (*alpha.shape, 3)), alpha])


def _decode_16_bit_png(content: bytes) -> NDArray:
    """Decode 16-bit RGB, RGBA and grey with alpha, which Pillow cuts to 8 bit, by OpenCV."""
    with decoder_errors():
        pixels = cv2.imdecode(np.frombuffer(_critical_chunks(content), np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3:
        raise UserError("a layout of 16-bit colour that OpenCV does not read. Save it as 8-bit PNG")
    return pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]]


def _critical_chunks(content: bytes) -> bytes:
    """Remove the ancillary chunks of a PNG: OpenCV refuses large texts and makes alpha of a transparent colour.

    Source: PNG, section 5.4: an ancillary chunk's name begins in lower case.
    """
    parts, place = [content[:8]], 8
    while place < len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4], "big")
        if content[place + 4 : place + 5].isupper():
            parts.append(content[place:end])
        place = end
    return b"".join(parts)


def _decode_heif(content: bytes) -> NDArray:
    """Decode HEIF, 10 and 12 bit scaled to 16; libheif turns it upright, and EXIF's orientation has no meaning."""
    with decoder_errors():
        pixels = np.asarray(pillow_heif.open_heif(BytesIO(content), convert_hdr_to_8bit=False))
    if pixels.ndim == 3 and pixels.shape[2] not in (3, 4):
        raise UserError(f"HEIF of {pixels.shape[2]} channels. Save it as PNG")
    return pixels


def _decode_ppm(content: bytes, image: ImageFile) -> NDArray | None:
    """Decode binary PGM and PPM of another full scale than 255, which Pillow cuts to 8 bit; None for others.

    Source: the formats' man pages: two bytes a sample, big endian, where the full scale is above 255.
    """
    codec, _, offset, arguments = image.tile[0]
    full_scale = arguments[1] if isinstance(arguments, tuple) else 65535 if arguments == "I;16B" else 255
    if codec == "ppm_plain":
        if full_scale > 255:
            raise UserError("a plain (ASCII) PGM or PPM of more than 8 bit. Save it as 16-bit PNG")
        return None
    num_channels = 3 if image.mode == "RGB" else 1
    target = np.uint8 if full_scale < 256 else np.uint16
    dtype = np.dtype(target).newbyteorder(">")
    row_bytes = -(-image.width // 8) if image.mode == "1" else image.width * num_channels * dtype.itemsize
    end = offset + image.height * row_bytes
    if content[end:].lstrip().startswith(b"P"):
        raise several_frames(2)
    if full_scale == 255 or image.mode not in ("L", "I", "RGB"):
        return None
    if end > len(content):
        raise UserError("truncated: rows are missing. Is it complete? Replace or remove it")
    samples: NDArray = np.frombuffer(content, dtype, image.height * image.width * num_channels, offset)
    if samples.max() > full_scale:
        raise UserError(f"samples above its full scale {full_scale}. Is it complete? Replace or remove it")
    scaled = np.rint(samples * float(np.iinfo(target).max) / full_scale).astype(target)
    shape = (image.height, image.width, 3)[: 3 if num_channels == 3 else 2]
    return scaled.reshape(shape)


def _check_depth_of_j2k(content: bytes) -> None:
    """Raise a UserError if Pillow would cut the channels of a JPEG 2000, or not scale them.

    Source: ITU-T T.800, A.5.1: number of channels, then three bytes of each, the first of which is its bits - 1.
    """
    place = content.find(START_OF_J2K) + NUM_CHANNELS_OF_J2K
    num_channels = int.from_bytes(content[place : place + 2], "big")
    depths = [1 + bits for bits in content[place + 2 : place + 2 + 3 * num_channels : 3]]
    if set(depths) != {8} and depths != [16]:
        raise UserError(f"JPEG 2000 of {', '.join(map(str, depths))} bit; expected 8. Save it as 16-bit PNG")


def turn_upright(pixels: NDArray, orientation: int) -> NDArray:
    """Turn an array (H, W, ...) upright by its EXIF orientation 1 to 8; other values turn nothing.

    Source: EXIF 2.32, tag 0x0112; rows 5 to 8 swap the sides.
    """
    if orientation in SIDEWAYS:
        pixels = pixels.swapaxes(0, 1)
    flip_rows = orientation in (3, 4, 7, 8)
    flip_columns = orientation in (2, 3, 6, 7)
    return pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
