"""Decode TIFF by tifffile if it can decompress it, else by Pillow if it reads the layout correctly."""

import logging
import struct
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from tifffile import TiffFile, TiffPage

from data.image_io.formats import decoder_errors, several_frames, too_large
from runtime.errors import UserError

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # its lines name no file; our errors do

STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # classic and BigTIFF, both byte orders
REDUCED, MASK = 1, 4  # bits of NewSubfileType: a thumbnail or overview, and a transparency mask, are no frames
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, CIELAB = 0, 1, 2, 3, 5, 6, 8
NUM_COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3}
PREMULTIPLIED, STRAIGHT = 1, 2
CONTIGUOUS, UNSIGNED = 1, 1
SUBFILE_TYPE_TAG, ORIENTATION_TAG, SHORT, UPRIGHT = 254, 274, 3, 1
DECOMPRESSED_BY_TIFFFILE = (1, 5, 8, 32773, 32946, 34925, 50000)
"""None, LZW, deflate, PackBits, deflate by its older number, LZMA, Zstandard."""
OLD_JPEG, JPEG = 6, 7
MOST_CHANNELS = 8  # of an image of the most pixels


def read_tiff(content: bytes, max_pixels: int) -> tuple[NDArray, int] | None:
    """Decode the frame of a TIFF of 8 or 16 bits a channel: grey, RGB or RGBA.

    Args:
        content: all bytes of the file.
        max_pixels: width times height at most.

    Returns: pixels as of `data.image_io.decoding.decode` but not turned, and the EXIF orientation to turn them by.
        None if Pillow reads this layout correctly.

    Raises:
        UserError: several frames, a layout that is not read, or damage.
    """
    kinds = _kinds_of_pages(content)
    num_frames = sum(not kind & (REDUCED | MASK) for kind in kinds)
    if num_frames > 1:
        raise several_frames(num_frames)
    with decoder_errors():
        page = TiffFile(BytesIO(content)).pages[0].aspage()
        orientation = int(page.tags.valueof(ORIENTATION_TAG, UPRIGHT))
        numbers = [page.imagewidth, page.imagelength, page.sampleformat, page.samplesperpixel, page.photometric]
        numbers += [page.compression, page.planarconfig, page.subfiletype]
        numbers += [*page.extrasamples, *page.dataoffsets, *page.databytecounts]
    if not all(isinstance(number, int) for number in numbers):
        raise UserError("a tag with several values where one is expected. Is it complete? Replace or remove it")
    if page.subfiletype & (REDUCED | MASK) and (num_frames or page.subifds):
        raise UserError("its first page is a thumbnail, as in camera raw. Save the image as a TIFF of one page")
    if page.imagewidth * page.imagelength > max_pixels or page.size > MOST_CHANNELS * max_pixels:
        raise too_large(f"{page.imagewidth} x {page.imagelength}")
    bits = page.bitspersample
    if page.sampleformat != UNSIGNED or bits not in ((1, 2, 4, 8, 16) if page.samplesperpixel == 1 else (8, 16)):
        kind = "" if page.sampleformat == UNSIGNED else " float or signed"
        raise UserError(f"pixel format {bits} bit{kind}; expected 8 or 16 bit unsigned. Convert it")
    num_colours = NUM_COLOURS.get(page.photometric, 0)
    if num_colours and bits >= 8 and page.compression in DECOMPRESSED_BY_TIFFFILE:
        return _arranged(_decompress(page, len(content)), page, num_colours), orientation
    is_known = num_colours > 0 or page.photometric in (PALETTE, CMYK, CIELAB)
    is_known |= (page.photometric, page.compression) == (YCBCR, JPEG)
    if bits == 16 or not is_known or page.compression == OLD_JPEG:
        raise UserError(f"a TIFF of {bits}-bit {_name(page.photometric)}, {_name(page.compression)}. Convert it to RGB")
    if page.planarconfig != CONTIGUOUS and page.photometric != RGB:
        raise UserError(f"{_name(page.compression)} compression in planes. Save it with ZIP compression, or as PNG")
    return None


def _kinds_of_pages(content: bytes) -> list[int]:
    """List the NewSubfileType of each existing page; in damaged files tifffile would find no end.

    Source: TIFF 6.0, section 2, and the BigTIFF design.
    """
    order, is_big = "<" if content.startswith(b"II") else ">", content[2:4] in (b"+\0", b"\0+")
    count_type, offset_type, entry_bytes = ("Q", "Q", 20) if is_big else ("H", "I", 12)
    count_bytes, offset_bytes = struct.calcsize(f"={count_type}"), struct.calcsize(f"={offset_type}")

    def number(kind: str, place: int) -> int:
        return int(struct.unpack_from(order + kind, content, place)[0])

    kinds: dict[int, int] = {}
    link = 8 if is_big else 4  # where the place of the next page stands
    while link + offset_bytes <= len(content) and (start := number(offset_type, link)) not in kinds:
        if not 0 < start <= len(content) - count_bytes:
            break
        first = start + count_bytes
        link = first + number(count_type, start) * entry_bytes
        if link > len(content):
            break
        tags = {number("H", entry): entry for entry in range(first, link, entry_bytes)}
        entry = tags.get(SUBFILE_TYPE_TAG)
        is_short = entry is not None and number("H", entry + 2) == SHORT
        kinds[start] = 0 if entry is None else number("H" if is_short else "I", entry + entry_bytes - offset_bytes)
    return list(kinds.values())


def _name(value: int) -> str:
    """Name a tag's value as in the specification, if it is known."""
    return str(getattr(value, "name", value))


def _decompress(page: TiffPage, num_bytes: int) -> NDArray:
    """Decode to (H, W, samples) by tifffile, after checking that no part is missing: it would fill it with zeros."""
    starts, sizes = page.dataoffsets, page.databytecounts
    is_there = starts and len(starts) == len(sizes) and min(sizes) > 0
    if not is_there or max(map(sum, zip(starts, sizes, strict=True))) > num_bytes:
        raise UserError("truncated: parts of the image are missing. Is it complete? Replace or remove it")
    with decoder_errors():
        planes = page.asarray(squeeze=False, maxworkers=1)  # (planes, depth, H, W, samples)
    if planes.ndim != 5 or planes.shape[1] != 1:
        raise UserError("no flat image: a volume, or damaged. Replace or remove it")
    return np.moveaxis(planes[:, 0], 0, 2).reshape(*planes.shape[2:4], -1)


def _arranged(samples: NDArray, page: TiffPage, num_colours: int) -> NDArray:
    """Convert samples (H, W, S) to grey (H, W), RGB or RGBA, alpha straight.

    Channels of unspecified meaning are removed. If the file states nothing, a fourth channel (or second, of grey) is
    alpha, as in Pillow and OpenCV: OpenCV writes RGBA this way.
    """
    num_extra = samples.shape[2] - num_colours
    colours = samples[:, :, :num_colours]
    if num_extra < 0:
        raise UserError(f"{samples.shape[2]} channels of {_name(page.photometric)}. Convert it to RGB")
    if page.photometric == WHITE_IS_ZERO:
        colours = np.iinfo(colours.dtype).max - colours
    meanings = page.extrasamples or (STRAIGHT,) * (num_extra == 1)
    if num_extra == 0 or meanings[:1] not in ((PREMULTIPLIED,), (STRAIGHT,)):
        return colours[:, :, 0] if num_colours == 1 else colours
    alpha = samples[:, :, num_colours][:, :, None]
    if meanings[0] == PREMULTIPLIED:
        full_scale = np.iinfo(samples.dtype).max
        divisor = np.maximum(alpha, 1).astype(np.uint32)  # 65535 * 65535 + 32767 fits
        colours = (colours * np.uint32(full_scale) + divisor // 2) // divisor
        colours = np.minimum(colours, full_scale).astype(alpha.dtype)
    return np.concatenate([np.broadcast_to(colours, (*colours.shape[:2], 3)), alpha], 2)
