"""Packs: foregrounds that lie uncompressed, in tiles, at four sizes, so that a crop is a few plain reads.

A pack is a folder, little-endian throughout:

    pack.json          which foreground lies where; written last, so that a pack that has one is whole
    shard-00000.bin    `HEADER`, then foregrounds one after another
    ...

A foreground is the pictures of 1/1, 1/2, 1/4 and 1/8 size, their sides rounded up, then its unknown points. A picture
is tiles of 64 x 64 px, row by row, each the colours (64, 64, 3) and then the alpha (64, 64), uint8 or uint16 as in the
files; beyond the picture tiles hold 0. Points are uint32, y * width + x, at most `MAX_POINTS` of them drawn evenly and
in ascending order. Everything starts at a multiple of `PAGE` bytes.

Reads are plain reads of a file opened for each: nothing stays open, memory does not grow with what was read as that of
a memory map does, and a file that was cut off is an error rather than the end of the process. Workers share what the
system keeps of the files.
"""

import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from data.image_io.images import DataError
from data.sources.foregrounds import NUM_POINTS, REDUCTIONS, Box

INDEX = "pack.json"
UNFINISHED_INDEX = "pack.unfinished.json"
FORMAT, VERSION = "DINOv3-ViTMatte pack", 1
PAGE = 4096  # what systems read at once; a tile is a multiple of it
HEADER = f"{FORMAT} {VERSION}\n".encode().ljust(PAGE, b"\0")
TILE_PX = 64  # 16 KB; a crop of 512 px reads 9 x 9, a quarter more than it needs, in 9 runs
MAX_POINTS = 2**14  # as many centres as one foreground has samples in 160 epochs of Composition-1k; 64 KB
MAX_SIDE_PX = 2**20
CHUNK_BYTES = 2**24
PACK_TOOL = "tools/dataset/pack_dataset.py"
REMEDY = f"pack it again with {PACK_TOOL}"


ENTRY_KEYS = {*("name", "shard", "offset", "size", "colour_type", "alpha_type", "num_points", "checksum", "sources")}
"""Of a foreground in the index."""


@dataclass(frozen=True)
class PackedForeground:
    """A foreground of a pack; it is its own `OpenForeground`, since opening it reads nothing.

    Args:
        name: the file that it was made of, below its pack.
        shard: file that holds it.
        offset: of its first byte there.
        size: (width, height) in px.
        colour_type: "uint8" or "uint16".
        alpha_type: as `colour_type`.
        num_points: unknown points stored.
        checksum: CRC-32 of its bytes.
        changed_ns: when the shard was last written, in ns, as `find_packed` found it; None for not to be checked.
    """

    name: str
    shard: Path
    offset: int
    size: tuple[int, int]
    colour_type: str
    alpha_type: str
    num_points: int
    checksum: int
    changed_ns: int | None = field(default=None, compare=False)

    def open(self) -> "PackedForeground":
        return self

    def unknown_points(self, rng: np.random.Generator) -> NDArray:
        """Draw `NUM_POINTS` of the stored points, independently; (0, 2) where there are none."""
        if not self.num_points:
            return np.empty((0, 2), np.int32)
        points = np.empty(self.num_points, "<u4")
        with self._open_shard() as file:
            self._fill(points, file, self._level_offset(len(REDUCTIONS)))
        rows, columns = np.divmod(points[rng.integers(self.num_points, size=NUM_POINTS)], self.size[0])
        return np.stack([columns, rows], axis=1).astype(np.int32)

    def read(self, box: Box, reduction: int) -> tuple[NDArray, NDArray]:
        """Read a box of one of the stored sizes.

        Args:
            box: inside the picture, its left and top multiples of `reduction`.
            reduction: one of `REDUCTIONS`.

        Returns: colours (h, w, 3), not premultiplied, and alpha (h, w), raw, sides rounded up; each pixel averages
            those that the picture has in its area.

        Raises:
            DataError: the shard is cut off, or was written to since `find_packed` saw it.
            OSError: the shard is not there, or may not be read.
            ValueError: another box or reduction.
        """
        left, top, right, bottom = box
        width, height = self.size
        if reduction not in REDUCTIONS or left % reduction or top % reduction:
            raise ValueError(f"expected one of {REDUCTIONS} that divides left and top, got {reduction} for {box}")
        if not (0 <= left <= right <= width and 0 <= top <= bottom <= height):
            raise ValueError(f"expected a box inside {width} x {height} px, got {box}")
        left, top, right, bottom = left // reduction, top // reduction, -(-right // reduction), -(-bottom // reduction)
        first_row, first_column = top // TILE_PX, left // TILE_PX
        tiles = np.empty((-(-bottom // TILE_PX) - first_row, -(-right // TILE_PX) - first_column), self._tile_type)
        level = REDUCTIONS.index(reduction)
        _, columns = count_tiles(self.size, reduction)
        with self._open_shard() as file:
            for row, run in enumerate(tiles, first_row):
                self._fill(run, file, self._level_offset(level) + (row * columns + first_column) * tiles.itemsize)
        origin_y, origin_x = first_row * TILE_PX, first_column * TILE_PX
        window = np.s_[top - origin_y : bottom - origin_y, left - origin_x : right - origin_x]
        return join_tiles(tiles["colours"])[window], join_tiles(tiles["alpha"])[window]

    @property
    def num_bytes(self) -> int:
        """Bytes that it takes in its shard."""
        return self._level_offset(len(REDUCTIONS)) + pad_to_page(4 * self.num_points)

    def compute_checksum(self) -> int:
        """Compute the CRC-32 of its bytes as they are now.

        Raises:
            DataError: the shard is cut off.
            OSError: the shard is not there, or may not be read.
        """
        checksum = 0
        with self.shard.open("rb") as file:
            for start in range(0, self.num_bytes, CHUNK_BYTES):
                chunk = np.empty(min(CHUNK_BYTES, self.num_bytes - start), np.uint8)
                self._fill(chunk, file, start)
                checksum = zlib.crc32(chunk.data, checksum)
        return checksum

    @property
    def _tile_type(self) -> np.dtype:
        return tile_type(np.dtype(self.colour_type), np.dtype(self.alpha_type))

    def _level_offset(self, level: int) -> int:
        """Tell where a picture starts, counted from `offset`; that of the number of pictures is the points'."""
        counts = [rows * columns for rows, columns in (count_tiles(self.size, r) for r in REDUCTIONS[:level])]
        return sum(counts) * self._tile_type.itemsize

    @contextmanager
    def _open_shard(self) -> Iterator[BinaryIO]:
        """Open the shard if it is as it was found: pixels have no checksum of their own."""
        with self.shard.open("rb") as file:
            if self.changed_ns not in (None, os.fstat(file.fileno()).st_mtime_ns):
                raise DataError(f"cannot read {self.name}: {self.shard} was written to since the start; check the pack")
            yield file

    def _fill(self, target: NDArray, file: BinaryIO, start: int) -> None:
        """Read into an array from a place counted from `offset`."""
        file.seek(self.offset + start)
        if file.readinto(target) != target.nbytes:  # type: ignore[attr-defined]  # typeshed's BinaryIO lacks it
            raise DataError(f"cannot read {self.name}: {self.shard} is cut off. Copy it again from where it is whole")


def tile_type(colour_type: np.dtype, alpha_type: np.dtype) -> np.dtype:
    """Make the record of one tile."""
    side = (TILE_PX, TILE_PX)
    return np.dtype(
        [("colours", colour_type.newbyteorder("<"), (*side, 3)), ("alpha", alpha_type.newbyteorder("<"), side)]
    )


def count_tiles(size: tuple[int, int], reduction: int) -> tuple[int, int]:
    """Count the rows and columns of tiles of a (width, height) reduced."""
    width, height = size
    return -(-height // (reduction * TILE_PX)), -(-width // (reduction * TILE_PX))


def join_tiles(tiles: NDArray) -> NDArray:
    """Put tiles (rows, columns, T, T, ...) together to (rows T, columns T, ...)."""
    rows, columns, height, width, *channels = tiles.shape
    return tiles.swapaxes(1, 2).reshape(rows * height, columns * width, *channels)


def pad_to_page(num_bytes: int) -> int:
    """Round up to a multiple of `PAGE`."""
    return -(-num_bytes // PAGE) * PAGE


def is_pack(folder: str | Path) -> bool:
    """Tell whether a folder is a pack, finished or not."""
    return any((Path(folder) / name).is_file() for name in (INDEX, UNFINISHED_INDEX))


def find_packed(folder: str | Path) -> list[PackedForeground]:
    """List the foregrounds of a pack, having checked that its shards are there, of this format and of full length.

    Returns: in the order in which they were packed, that of their files' names.

    Raises:
        DataError: no pack, an unfinished one, one of another version, or a damaged one.
        OSError: a file of it may not be read.
    """
    folder = Path(folder)
    if not is_pack(folder):
        raise DataError(f"{folder} is no pack: expected a folder with {INDEX} in it, as {PACK_TOOL} makes it")
    if not (folder / INDEX).is_file() and (folder / UNFINISHED_INDEX).is_file():
        raise DataError(f"{folder} is an unfinished pack: run {PACK_TOOL} as before, it goes on from there")
    foregrounds = [as_foreground(folder, entry) for entry in read_index(folder / INDEX)]
    if problems := list(find_broken_shards(foregrounds)):
        raise DataError("\n".join(problems))
    return [replace(foreground, changed_ns=foreground.shard.stat().st_mtime_ns) for foreground in foregrounds]


def read_index(path: Path) -> list[dict[str, Any]]:
    """Read the entries of an index, one a foreground.

    Raises:
        DataError: no index, a damaged one, or one of another version.
        OSError: it is not there, or may not be read.
    """
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        named, version = index["format"], index["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not the index of a pack, or is damaged: remove the folder and {REMEDY}") from error
    if (named, version) != (FORMAT, VERSION):
        raise DataError(
            f"{path} is of {named}, version {version}; this code reads {FORMAT}, version {VERSION}: {REMEDY}"
        )
    entries = index.get("foregrounds")
    if index.get("checksum") != compute_index_checksum(entries) or not are_entries(entries):
        raise DataError(f"{path} is damaged: copy it again from where it is whole, or remove the folder and {REMEDY}")
    return entries


def are_entries(entries: Any) -> bool:
    """Tell whether what an index holds are foregrounds in files of its own folder."""
    try:
        return all(
            Path(entry["shard"]).name == entry["shard"] != ".."
            and isinstance(entry["name"], str)
            and len(entry["size"]) == 2
            and all(type(side) is int and 0 < side < MAX_SIDE_PX for side in entry["size"])
            and {entry["colour_type"], entry["alpha_type"]} <= {"uint8", "uint16"}
            and 0 <= entry["num_points"] <= MAX_POINTS
            and all(type(entry[key]) is int and entry[key] >= 0 for key in ("offset", "checksum"))
            and entry.keys() <= ENTRY_KEYS
            for entry in entries
        )
    except (KeyError, TypeError, AttributeError):  # other JSON
        return False


def compute_index_checksum(entries: list[dict[str, Any]]) -> int:
    """Compute the CRC-32 of an index's entries as JSON writes them by default."""
    return zlib.crc32(json.dumps(entries).encode())


def as_foreground(folder: Path, entry: dict[str, Any]) -> PackedForeground:
    """Make a foreground of its entry in the index."""
    fields = {key: value for key, value in entry.items() if key != "sources"}
    fields |= {"name": f"{folder}:{entry['name']}", "shard": folder / entry["shard"], "size": tuple(entry["size"])}
    return PackedForeground(**fields)


def find_broken_shards(foregrounds: list[PackedForeground]) -> Iterator[str]:
    """Describe each shard that is missing, of another format or of another length than its foregrounds have."""
    lengths = {foreground.shard: foreground.offset + foreground.num_bytes for foreground in foregrounds}  # the last's
    for shard, length in lengths.items():
        if not shard.is_file():
            yield f"{shard} is missing: copy it from where the pack is whole, or {REMEDY}"
            continue
        with shard.open("rb") as file:
            is_ours = file.read(PAGE) == HEADER
        if not is_ours or shard.stat().st_size != length:
            yield (
                f"{shard} is damaged: expected {length} bytes that begin with {FORMAT} {VERSION}, got "
                f"{shard.stat().st_size}{'' if is_ours else ' that do not'}. Copy it again from where it is whole, "
                f"or {REMEDY}"
            )
