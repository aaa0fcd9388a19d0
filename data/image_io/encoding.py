"""Pictures as the bytes of a file: 8 and 16 bit, PNG, TIFF, WebP, JPEG, BMP, PPM.

TIFF is written here: OpenCV does not say what kind of alpha a file holds, and Pillow writes no 16-bit colours.
"""

import struct
import zlib
from io import BytesIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.image_io.metadata import NO_METADATA, PROFILE_TAG, UNIT_TAG, X_RESOLUTION_TAG, Y_RESOLUTION_TAG, Metadata

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
SHORT, LONG, RATIONAL, UNDEFINED = 3, 4, 5, 7  # types of the values of a TIFF's tag
TYPE_CODES = {SHORT: "H", LONG: "I", RATIONAL: "II", UNDEFINED: "B"}
RESOLUTION_STEP = 1000  # denominator of a TIFF's px an inch
INCH, INCHES_PER_METRE = 2, 1 / 0.0254
PNG_HEADER_BYTES = 33  # signature and first chunk
DEFLATE, HORIZONTAL_DIFFERENCES = 8, 2
BLACK_IS_ZERO, RGB = 1, 2
PREMULTIPLIED, STRAIGHT = 1, 2  # "associated" and "unassociated" alpha in the specification


def encode(pixels: NDArray, suffix: str, is_premultiplied: bool = False, metadata: Metadata = NO_METADATA) -> bytes:
    """Encode a picture, without loss but for JPEG, which gets its finest common quality.

    Args:
        pixels: (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA; uint8 or uint16.
        suffix: of the file's name, key of `FORMATS` in any case.
        is_premultiplied: kind of alpha that a TIFF states. No other format can; the values are written as they are.
        metadata: that the file states, where its format can: BMP and PPM have no profile, WebP and PPM no resolution.

    Raises:
        ValueError: no such format, or one that cannot hold this picture; the message goes on after a file's name.
    """
    suffix = suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"expected the name of a picture, with a suffix of {', '.join(FORMATS)}")
    if pixels.size == 0:
        raise ValueError(f"an empty picture cannot be written: shape {pixels.shape}")
    if pixels.dtype == np.uint16 and suffix not in SUFFIXES_16_BIT:
        raise ValueError(f"{FORMATS[suffix]} holds no 16 bit: take one of {', '.join(SUFFIXES_16_BIT)}, or 8 bit")
    if pixels.ndim == 3 and pixels.shape[2] == 4 and suffix not in RGBA_SUFFIXES:
        raise ValueError(f"{FORMATS[suffix]} holds no transparency: take one of {', '.join(RGBA_SUFFIXES)}")
    if suffix in TIFF_SUFFIXES:
        return encode_tiff(pixels, is_premultiplied, metadata)
    size = f"{pixels.shape[1]} x {pixels.shape[0]} px"
    if pixels.dtype == np.uint16:
        to_bgr = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}
        samples = pixels.reshape(*pixels.shape[:2], -1)
        is_encoded, encoded = cv2.imencode(".png", samples[:, :, to_bgr[samples.shape[2]]])
        if not is_encoded:
            raise ValueError(f"{size} cannot be written as PNG (a side holds at most 1000000 px): take TIFF")
        return with_png_metadata(encoded.tobytes(), metadata)
    content = BytesIO()
    options = dict(OPTIONS.get(FORMATS[suffix], {}))
    if suffix != ".png":
        options |= {name: value for name, value in metadata._asdict().items() if value is not None}
    try:
        Image.fromarray(pixels).save(content, FORMATS[suffix], **options)
    except (OSError, ValueError) as error:  # a side beyond 65500 or, in WebP, 16383 px
        raise ValueError(f"{size} cannot be written as {FORMATS[suffix]} ({error}): take PNG") from error
    return with_png_metadata(content.getvalue(), metadata) if suffix == ".png" else content.getvalue()


def with_png_metadata(content: bytes, metadata: Metadata) -> bytes:
    """Put profile and resolution behind the header of a PNG. Source: PNG, sections 11.3.2.3 and 11.3.4.3."""
    chunks = b""
    if metadata.icc_profile:
        chunks += png_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.icc_profile))
    if metadata.dpi:
        chunks += png_chunk(b"pHYs", struct.pack(">IIB", *(round(dpi * INCHES_PER_METRE) for dpi in metadata.dpi), 1))
    return content[:PNG_HEADER_BYTES] + chunks + content[PNG_HEADER_BYTES:]


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """Make a chunk of its four letters and its content."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def encode_tiff(pixels: NDArray, is_premultiplied: bool = False, metadata: Metadata = NO_METADATA) -> bytes:
    """Encode a picture as one deflated strip of differences between neighbours in a row.

    Args:
        pixels: as `encode` takes them.
        is_premultiplied: kind of alpha that the file states, where it has one; the values are written as they are.
        metadata: that the file states.

    Source: TIFF 6.0 with Adobe's supplement 2; little endian.
    """
    height, width = pixels.shape[:2]
    samples = pixels.reshape(height, width, -1)
    num_samples = samples.shape[2]
    differences = samples.astype(samples.dtype.newbyteorder("<"), order="C")
    differences[:, 1:] -= samples[:, :-1]  # modulo the full scale, as the reader adds
    strip = zlib.compress(differences.data, 1)  # higher levels save 2 % of a photograph and take four times as long
    header = struct.Struct("<2sHI")
    strip_end = header.size + len(strip)
    strip_end += strip_end % 2  # what offsets point to begins at even bytes
    tags = {
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [8 * pixels.dtype.itemsize] * num_samples),
        259: (SHORT, [DEFLATE]),
        262: (SHORT, [RGB if num_samples >= 3 else BLACK_IS_ZERO]),
        273: (LONG, [header.size]),  # where the strip begins
        277: (SHORT, [num_samples]),
        278: (LONG, [height]),  # rows of a strip
        279: (LONG, [len(strip)]),
        317: (SHORT, [HORIZONTAL_DIFFERENCES]),
    }
    if num_samples == 4:
        tags[338] = (SHORT, [PREMULTIPLIED if is_premultiplied else STRAIGHT])
    if metadata.dpi:
        x, y = (round(dpi * RESOLUTION_STEP) for dpi in metadata.dpi)
        tags |= {X_RESOLUTION_TAG: (RATIONAL, [x, RESOLUTION_STEP]), Y_RESOLUTION_TAG: (RATIONAL, [y, RESOLUTION_STEP])}
        tags[UNIT_TAG] = (SHORT, [INCH])
    if metadata.icc_profile:
        tags[PROFILE_TAG] = (UNDEFINED, list(metadata.icc_profile))
    entries, beyond = [], b""
    for tag, (kind, values) in sorted(tags.items()):  # ascending, as the specification asks
        count = len(values) // len(TYPE_CODES[kind])
        content = struct.pack("<" + count * TYPE_CODES[kind], *values)
        if len(content) > 4:  # an entry holds four bytes, or where there are more
            content, beyond = struct.pack("<I", strip_end + len(beyond)), beyond + content + bytes(len(content) % 2)
        entries.append(struct.pack("<HHI4s", tag, kind, count, content))
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)  # no further picture
    start = header.pack(b"II", 42, strip_end + len(beyond))
    return (start + strip).ljust(strip_end, b"\0") + beyond + directory
