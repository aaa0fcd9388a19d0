"""Check one file: whether it can be read, is complete, and has the format of its suffix."""

import struct
import warnings
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from numpy.typing import NDArray
from PIL import Image

from data.checks.faults import Finding
from data.image_io.decoding import ORIENTATION_TAG, decode
from data.image_io.formats import READABLE, advice_for, decoder_errors
from runtime.errors import UserError

SAME_FORMATS = {"MPO": "JPEG", "DIB": "BMP"}  # a camera's JPEG with a preview behind it; a BMP without its header
PNG_END = b"IEND\xaeB`\x82"
TAG_CHUNKS = (b"eXIf", b"exif", b"xmp")  # of a PNG without these, Pillow would decode all to see that it has no EXIF
TAIL = 64  # bytes at the end, of which some may follow the image


class StoredImage(NamedTuple):
    """An image that could be read: `pixels` as `read_raw` gives them, `orientation` of its EXIF, or 1."""

    path: Path
    pixels: NDArray
    orientation: int


def read_stored_image(path: Path) -> tuple[StoredImage | None, list[Finding]]:
    """Read an image file and report what is wrong with the file itself.

    Returns: the image, None where it cannot be had, and at most one finding.
    """
    try:
        content = path.read_bytes()
    except PermissionError:
        return None, [Finding("no-permission", path, "permission denied")]
    except OSError as error:
        return None, [Finding("unreadable", path, error.strerror or str(error))]
    if not content:
        return None, [Finding("zero-bytes", path, "0 bytes")]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about tags; an image that it cannot read is an error
            pixels = decode(content)
            with decoder_errors():
                image = Image.open(BytesIO(content))
            has_tags = image.format != "PNG" or any(chunk in content for chunk in TAG_CHUNKS)
            with decoder_errors():
                orientation = image.getexif().get(ORIENTATION_TAG, 1) if has_tags else 1
    except UserError as error:
        code = "truncated" if "truncated" in str(error).lower() or is_cut_off(content) else "unreadable"
        return None, [Finding(code, path, f"{len(content)} bytes: {str(error).partition('. ')[0]}")]
    named, stored = READABLE.get(path.suffix.lower()), str(image.format)
    found = StoredImage(path, pixels, orientation)
    if named is None or SAME_FORMATS.get(stored, stored) == SAME_FORMATS.get(named, named):
        return found, []
    return found, [Finding("wrong-extension", path, f"its content is {stored}")]


def find_ignored(folder: Path) -> Iterator[Finding]:
    """Find the images in a folder that have another suffix than those that are read; other files may be there."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in READABLE and not path.name.startswith(".") and path.is_file():
            advice = advice_for(path)
            with suppress(UserError), decoder_errors(), Image.open(path) as image:
                advice = f"its content is {image.format}"
            if advice:
                yield Finding("ignored-picture", path, advice)


def is_cut_off(content: bytes) -> bool:
    """Tell whether an image that cannot be decoded is truncated, by the length that its format states.

    Args:
        content: bytes of a PNG, WebP, BMP or TIFF. For JPEG and PPM, Pillow reports it.
    """
    if content.startswith(b"\x89PNG"):
        return PNG_END not in content[-TAIL:]
    if content.startswith(b"RIFF"):
        return 8 + int.from_bytes(content[4:8], "little") > len(content)
    if content.startswith(b"BM"):
        return int.from_bytes(content[2:6], "little") > len(content)
    if content[:4] in (b"II*\0", b"MM\0*"):
        order = "<" if content.startswith(b"II") else ">"
        (start,) = struct.unpack(f"{order}4xI", content[:8].ljust(8, b"\xff"))
        (num_entries,) = struct.unpack(f"{order}H", content[start : start + 2].ljust(2, b"\xff"))
        return start + 2 + 12 * num_entries > len(content)
    return False
