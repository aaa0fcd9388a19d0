"""Encode images: 8 and 16 bit, PNG, TIFF, WebP, JPEG, BMP, PPM.

tifffile writes TIFF: OpenCV does not state the kind of alpha, and Pillow writes no 16-bit colours.
"""

import struct
import zlib
from io import BytesIO

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from data.image_io.metadata import NO_METADATA, Metadata
from runtime.errors import UserError

TIFF_SUFFIXES = (".tif", ".tiff")
SUFFIXES_16_BIT = (".png", *TIFF_SUFFIXES)
RGBA_SUFFIXES = (*SUFFIXES_16_BIT, ".webp")
FORMATS = {
    ".bmp": "BMP", ".jpeg": "JPEG", ".jpg": "JPEG", ".png": "PNG", ".ppm": "PPM", ".tif": "TIFF", ".tiff": "TIFF",
    ".webp": "WebP",
}  # fmt: skip
OPTIONS: dict[str, dict[str, int]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WebP": {"lossless": True, "exact": True},  # exact: colours stay where alpha is 0
}

NO_PROFILE_SUFFIXES = (".bmp", ".ppm")
INCHES_PER_METRE = 1 / 0.0254
PNG_HEADER_BYTES = 33  # signature and first chunk


def encode(pixels: NDArray, suffix: str, is_premultiplied: bool = False, metadata: Metadata = NO_METADATA) -> bytes:
    """Encode an image. Only JPEG loses information; it gets a high quality.

    Args:
        pixels: (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA; uint8 or uint16.
        suffix: of the file's name, key of `FORMATS` in any case.
        is_premultiplied: kind of alpha that a TIFF states. Other formats cannot; the values are written as they are.
        metadata: to store. BMP and PPM have no profile, WebP and PPM no resolution.

    Raises:
        UserError: no such format, or one that cannot hold this image. The message continues a file's name.
    """
    suffix = suffix.lower()
    if suffix not in FORMATS:
        raise UserError(f"expected the name of an image, with a suffix of {', '.join(FORMATS)}")
    if pixels.size == 0:
        raise UserError(f"an empty image cannot be written: shape {pixels.shape}")
    if pixels.dtype == np.uint16 and suffix not in SUFFIXES_16_BIT:
        raise UserError(f"{FORMATS[suffix]} holds no 16 bit: take one of {', '.join(SUFFIXES_16_BIT)}, or 8 bit")
    if pixels.ndim == 3 and pixels.shape[2] == 4 and suffix not in RGBA_SUFFIXES:
        raise UserError(f"{FORMATS[suffix]} holds no transparency: take one of {', '.join(RGBA_SUFFIXES)}")
    if suffix in TIFF_SUFFIXES:
        return encode_tiff(pixels, is_premultiplied, metadata)
    size = f"{pixels.shape[1]} x {pixels.shape[0]} px"
    if pixels.dtype == np.uint16:
        to_bgr = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}
        samples = pixels.reshape(*pixels.shape[:2], -1)
        is_encoded, encoded = cv2.imencode(".png", samples[:, :, to_bgr[samples.shape[2]]])
        if not is_encoded:
            raise UserError(f"{size} cannot be written as PNG (a side holds at most 1000000 px): take TIFF")
        return with_png_metadata(encoded.tobytes(), metadata)
    content = BytesIO()
    options = dict(OPTIONS.get(FORMATS[suffix], {}))
    if suffix != ".png":
        options |= {name: value for name, value in metadata._asdict().items() if value is not None}
    try:
        Image.fromarray(pixels).save(content, FORMATS[suffix], **options)
    except (OSError, ValueError) as error:  # a side beyond 65500 or, in WebP, 16383 px
        raise UserError(f"{size} cannot be written as {FORMATS[suffix]} ({error}): take PNG") from error
    return with_png_metadata(content.getvalue(), metadata) if suffix == ".png" else content.getvalue()


def with_png_metadata(content: bytes, metadata: Metadata) -> bytes:
    """Insert profile and resolution after the header of a PNG. Source: PNG, sections 11.3.2.3 and 11.3.4.3."""
    chunks = b""
    if metadata.icc_profile:
        chunks += png_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.icc_profile))
    if metadata.dpi:
        chunks += png_chunk(b"pHYs", struct.pack(">IIB", *(round(dpi * INCHES_PER_METRE) for dpi in metadata.dpi), 1))
    return content[:PNG_HEADER_BYTES] + chunks + content[PNG_HEADER_BYTES:]


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """Make a PNG chunk from its four letters and its content."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def encode_tiff(pixels: NDArray, is_premultiplied: bool = False, metadata: Metadata = NO_METADATA) -> bytes:
    """Encode an image as one deflated strip of differences between neighbours in a row.

    Args:
        pixels: as `encode` takes them.
        is_premultiplied: kind of alpha that the file states, if it has one; the values are written as they are.
        metadata: to store.
    """
    content = BytesIO()
    is_rgba = pixels.shape[2:] == (4,)
    tifffile.imwrite(
        content,
        pixels,
        byteorder="<",
        photometric="rgb" if pixels.ndim == 3 else "minisblack",
        extrasamples=["assocalpha" if is_premultiplied else "unassalpha"] if is_rgba else None,
        rowsperstrip=len(pixels),
        compression="zlib",
        compressionargs={"level": 1},  # higher levels save 2 % of a photograph and take four times as long
        predictor=True,
        iccprofile=metadata.icc_profile,
        resolution=metadata.dpi,
        resolutionunit="inch" if metadata.dpi else None,
        metadata=None,  # no description that only tifffile reads
        software=False,
        maxworkers=1,
    )
    return content.getvalue()
