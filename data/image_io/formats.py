"""List image files, and advise on files that are not read."""

import logging
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from runtime.errors import UserError, few, one_line

logger = logging.getLogger(__name__)

READABLE = {
    ".apng": "PNG", ".avif": "AVIF", ".bmp": "BMP", ".dib": "DIB", ".gif": "GIF", ".heic": "HEIF", ".heif": "HEIF",
    ".hif": "HEIF", ".icb": "TGA", ".j2c": "JPEG2000", ".j2k": "JPEG2000", ".jfif": "JPEG", ".jp2": "JPEG2000",
    ".jpc": "JPEG2000", ".jpe": "JPEG", ".jpeg": "JPEG", ".jpf": "JPEG2000", ".jpg": "JPEG", ".jpx": "JPEG2000",
    ".mpo": "MPO", ".pbm": "PPM", ".pgm": "PPM", ".png": "PNG", ".pnm": "PPM", ".ppm": "PPM", ".tga": "TGA",
    ".tif": "TIFF", ".tiff": "TIFF", ".vda": "TGA", ".vst": "TGA", ".webp": "WEBP",
}  # fmt: skip
"""Suffix in lower case -> Pillow's name of the format: the images of folders, patterns and single files."""

MATTED = (*READABLE, ".exr")
"""Suffixes of the images that are matted, and of alphas, masks and trimaps: an EXR is no image of 8 or 16 bits."""


VIDEO_SUFFIXES = (
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".ogv",
    ".ts", ".webm", ".wmv", ".y4m",
)  # fmt: skip
"""Suffixes of clips in lower case, see `data.video_io.reading`."""


class Foreign(NamedTuple):
    """A format that is not read.

    Attributes:
        name: what users call it.
        suffixes: of its files, in lower case.
        start: pattern of a file's first bytes.
        advice: what to do with such a file.
    """

    name: str
    suffixes: tuple[str, ...]
    start: bytes
    advice: str


FOREIGN = (
    Foreign(
        "camera raw",
        (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".rw2", ".srw"),
        rb"....ftypcrx|FUJIFILM|IIRO|IIU\0|II\*\0....CR",
        "develop it to 16-bit TIFF or PNG",
    ),
    Foreign("JPEG XL", (".jxl",), rb"\xff\x0a|\0\0\0\x0cJXL ", "convert it to PNG"),
    Foreign("scene-linear", (".exr",), rb"v/1\x01", "EXR is not read here; save it as PNG"),
    Foreign("floating-point", (".hdr", ".pfm"), rb"#\?R|P[Ff]\s", "convert it to 16-bit PNG or TIFF"),
    Foreign("layered", (".kra", ".psb", ".psd", ".xcf"), rb"8BPS|gimp xcf", "export it as PNG or TIFF"),
    Foreign("vector or page", (".ai", ".eps", ".pdf", ".svg"), rb"%PDF|%!PS|<svg|<\?xml", "render it to PNG"),
    Foreign(
        "video",
        VIDEO_SUFFIXES,
        rb"....ftyp(?!avi[fs]|hei|hev|mif1|msf1)|\x1aE\xdf\xa3|RIFF....AVI ",
        "give tools/predict.py the clip alone, by its path",
    ),
)
MAX_PIXELS = 2**27  # 134 megapixels: four times 8K UHD (33) and above a 100-megapixel camera
NUM_NAMED = 3  # of the files of one kind that are left out


def advice_for(path: Path, content: bytes = b"") -> str | None:
    """Return advice for a file of a format that is not read, by its first bytes or else its suffix; or None."""
    found = [foreign for foreign in FOREIGN if re.match(foreign.start, content, re.DOTALL)]
    found += [foreign for foreign in FOREIGN if path.suffix.lower() in foreign.suffixes]
    return f"{found[0].name}: {found[0].advice}" if found else None


def find_images(folder: str | Path, suffixes: Collection[str] = READABLE) -> list[Path]:
    """List a folder's images, files and links by their suffixes in any case; hidden ones are left out.

    A warning counts and names the other files.

    Args:
        folder: to search.
        suffixes: of images, in lower case.

    Returns: the paths sorted by name, so that every process sees one order; subfolders are not searched.

    Raises:
        FileNotFoundError: the folder does not exist or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    return select_images(folder.iterdir(), folder, f"no image in {folder}", suffixes)


def image_name(path: Path) -> str:
    """Return the name by which files belong together: without suffix, in Unicode's form NFC.

    macOS and some archives store accents as separate characters (NFD), and other systems do not.
    """
    return unicodedata.normalize("NFC", path.stem)


def select_images(
    paths: Iterable[Path], place: str | Path, none_found: str, suffixes: Collection[str] = READABLE
) -> list[Path]:
    """Choose the images among some paths, as `find_images` does.

    Args:
        paths: files, links and folders.
        place: what the warning calls the place where they are.
        none_found: how the error begins.
        suffixes: of images, in lower case.
    """
    shown = [path for path in sorted(paths) if not path.name.startswith(".")]
    images = [path for path in shown if path.suffix.lower() in suffixes]
    images = [path for path in images if path.is_file() or not path.exists()]  # a lost link fails where it is read
    others = [path for path in shown if path.suffix.lower() not in suffixes and path.is_file()]
    if not images:
        folders = [path.name for path in shown if path.is_dir()]
        held = [describe(others)] * bool(others)
        held += [f"subfolders, which are not searched: {few(folders)}"] * bool(folders)
        raise FileNotFoundError("; it holds ".join([none_found, *held]))
    if others:
        warn_once(f"{place}: images taken: {len(images)}; left out: {describe(others)}")
    return images


@lru_cache(maxsize=1024)
def warn_once(line: str) -> None:
    """Log a warning, unless it was logged before: files are read, and folders listed, several times in a run."""
    logger.warning("%s", line)


def describe(paths: Iterable[Path]) -> str:
    """Count and name files that are not read, with advice for each kind."""
    kinds: dict[str, list[str]] = {}
    for path in paths:
        kinds.setdefault(advice_for(path) or "", []).append(path.name)
    parts = []
    for advice, names in sorted(kinds.items(), reverse=True):
        parts.append(few(names, NUM_NAMED) + (f" ({advice})" if advice else ""))
    count = sum(map(len, kinds.values()))
    return f"{count} other file{'s' * (count != 1)}: {'; '.join(parts)}"


class LargeImageError(UserError):
    """An image of more pixels than are decoded."""


def too_large(size: object) -> LargeImageError:
    """Make the error of an image above `MAX_PIXELS`."""
    limit = f"the limit is {MAX_PIXELS} pixels, against decompression bombs"
    return LargeImageError(f"too large ({size}); {limit}. Resize the image")


def several_frames(count: int) -> UserError:
    """Make the error of a file with several images: none of them may be chosen silently."""
    return UserError(
        f"it holds {count} frames or pages, and one is expected. Save those that you want as files of their own "
        "(ffmpeg -i FILE frames/%06d.png; for pages ImageMagick)"
    )


@contextmanager
def decoder_errors() -> Iterator[None]:
    """Convert every exception of a decoding library to a `UserError`.

    Decoders raise nearly every class of exception on damaged files. So the block may only contain calls into a library:
    an error of our own code must keep its traceback.
    """
    try:
        yield
    except UnidentifiedImageError as error:
        raise UserError("not an image of a format that is read. Replace or remove it") from error
    except Image.DecompressionBombError as error:
        raise too_large(error) from error
    except Exception as error:
        reason = one_line(error) or type(error).__name__
        raise UserError(f"{reason.rstrip('.')}. Is it complete? Replace or remove it") from error
