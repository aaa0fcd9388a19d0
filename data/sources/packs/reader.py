"""Read packs: folders of foregrounds that are stored uncompressed, at four sizes, so that reading a crop is fast.

    pack.json          lists the foregrounds; it stays without a list until all of them are packed
    00000.safetensors  one foreground
    ...

A foreground's tensors are `colours_R` (h, w, 3) and `alpha_R` (h, w) for each R of `REDUCTIONS`: the image at 1/R of
its size, sides rounded up, uint8 or uint16 as in its files. `points` (N, 2) int32 are x, y of unknown pixels: at most
`MAX_POINTS` of them, drawn evenly. A file is only open while it is read, so a worker's memory does not grow.
"""

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from data.image_io.images import DataError
from data.sources.foregrounds import NUM_POINTS, REDUCTIONS, Box

INDEX = "pack.json"
FORMAT, VERSION = "DINOv3-ViTMatte pack", 2
MAX_POINTS = 2**14  # as many centres as one foreground has samples in 160 epochs of Composition-1k
PACK_TOOL = "tools/dataset/pack_dataset.py"
REMEDY = f"pack it again with {PACK_TOOL}"


@dataclass(frozen=True)
class PackedForeground:
    """A foreground of a pack. It is its own `OpenForeground`, because opening it reads nothing.

    Args:
        name: the pack and the file that the foreground was read from, for messages.
        path: file that holds it.
        size: (width, height) in px.
        num_bytes: length of the file.
        checksum: CRC-32 of the file.
    """

    name: str
    path: Path
    size: tuple[int, int]
    num_bytes: int
    checksum: int

    def open(self) -> "PackedForeground":
        return self

    def unknown_points(self, rng: np.random.Generator) -> NDArray:
        """Draw `NUM_POINTS` of the stored points, independently; (0, 2) if there are none."""
        with self._open_file() as tensors:
            points = tensors.get_tensor("points")
        return points[rng.integers(len(points), size=NUM_POINTS)] if len(points) else points

    def read(self, box: Box, reduction: int) -> tuple[NDArray, NDArray]:
        """Read a box of one of the stored sizes.

        Args:
            box: at least one pixel of the image; left and top are multiples of `reduction`.
            reduction: one of `REDUCTIONS`.

        Returns: raw colours (h, w, 3), not premultiplied, and raw alpha (h, w), sides rounded up. Each pixel averages
            the image's pixels in its area.

        Raises:
            DataError: the file is damaged.
            OSError: the file is missing, or may not be read.
            ValueError: a box outside the image, or another reduction.
        """
        left, top, right, bottom = box
        width, height = self.size
        if reduction not in REDUCTIONS or left % reduction or top % reduction:
            raise ValueError(f"expected one of {REDUCTIONS} that divides left and top, got {reduction} for {box}")
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise ValueError(f"expected a box inside {width} x {height} px, got {box}")
        rows = slice(top // reduction, -(-bottom // reduction))
        columns = slice(left // reduction, -(-right // reduction))
        with self._open_file() as tensors:
            colours, alpha = (tensors.get_slice(f"{name}_{reduction}")[rows, columns] for name in ("colours", "alpha"))
        return colours, alpha

    def describe_damage(self) -> str | None:
        """Read the complete file and compare its checksum; return None, or what is wrong."""
        if zlib.crc32(self.path.read_bytes()) == self.checksum:
            return None
        return f"{self.name} in {self.path} is damaged. Copy it again from an intact pack, or {REMEDY}"

    @contextmanager
    def _open_file(self) -> Iterator[Any]:
        try:
            with safe_open(self.path, "np") as tensors:
                yield tensors
        except SafetensorError as error:  # cut off, for instance
            raise DataError(
                f"cannot read {self.name}: {self.path} is damaged ({error}). Copy it again from an intact pack"
            ) from error


def is_pack(folder: str | Path) -> bool:
    """Tell whether a folder is a pack, finished or not."""
    return (Path(folder) / INDEX).is_file()


def find_packed(folder: str | Path) -> list[PackedForeground]:
    """List the foregrounds of a pack, after checking that all files are there with their full lengths.

    Returns: in the order of packing, which is the order of the source files' names.

    Raises:
        DataError: the folder is no pack, or an unfinished, damaged or older one.
        OSError: a file may not be read.
    """
    folder = Path(folder)
    if not is_pack(folder):
        raise DataError(f"{folder} is no pack: expected a folder with {INDEX} in it, as {PACK_TOOL} makes it")
    entries = read_index(folder)
    if entries is None:
        raise DataError(f"{folder} is an unfinished pack: repeat the command of {PACK_TOOL} to continue it")
    try:
        foregrounds = [as_foreground(folder, number, entry) for number, entry in enumerate(entries)]
    except (KeyError, TypeError, ValueError) as error:  # other JSON
        raise DataError(f"{folder / INDEX} is damaged: remove the folder and {REMEDY}") from error
    if problems := [problem for foreground in foregrounds for problem in check_length(foreground)]:
        raise DataError("\n".join(problems))
    return foregrounds


def as_foreground(folder: Path, number: int, entry: dict[str, Any]) -> PackedForeground:
    """Make a foreground of its entry in the index; a ValueError for an impossible size."""
    width, height = entry["size"]
    if min(width, height) < 1:
        raise ValueError(f"expected sides of at least 1 px, got {width} x {height}")
    path = file_of(folder, number)
    return PackedForeground(f"{folder}:{entry['name']}", path, (width, height), entry["num_bytes"], entry["checksum"])


def file_of(folder: Path, number: int) -> Path:
    """Return the path of a pack's foreground."""
    return folder / f"{number:05d}.safetensors"


def check_length(foreground: PackedForeground) -> Iterator[str]:
    """Yield what is wrong if a foreground's file is missing or has another length than the index states."""
    if not foreground.path.is_file():
        yield f"{foreground.path} is missing: copy it from an intact pack, or {REMEDY}"
    elif (found := foreground.path.stat().st_size) != foreground.num_bytes:
        yield (
            f"{foreground.path} is damaged: expected {foreground.num_bytes} bytes, got {found}. Copy it again from an "
            f"intact pack, or {REMEDY}"
        )


def read_index(folder: Path) -> list[dict[str, Any]] | None:
    """Read the entries of a pack's index, one for each foreground; None for an unfinished pack.

    Raises:
        DataError: the index is damaged, or of another version.
        OSError: it may not be read.
    """
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        named, version, entries = index["format"], index["version"], index["foregrounds"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path} is not the index of a pack, or is damaged: remove the folder and {REMEDY}") from error
    if (named, version) != (FORMAT, VERSION):
        raise DataError(
            f"{path} is of {named}, version {version}; this code reads {FORMAT}, version {VERSION}: remove the folder "
            f"and {REMEDY}"
        )
    return entries
