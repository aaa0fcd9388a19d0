"""Write packs (`data.sources.packs.reader`): shards of `SHARD_FOREGROUNDS` foregrounds, with reproducible bytes."""

import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from data.image_io.images import DataError
from data.sources.foregrounds import REDUCTIONS, ForegroundFile, average_layer, unknown_points
from data.sources.packs.reader import (
    FORMAT,
    HEADER,
    INDEX,
    MAX_POINTS,
    REMEDY,
    TILE_PX,
    UNFINISHED_INDEX,
    VERSION,
    PackedForeground,
    as_foreground,
    compute_index_checksum,
    count_tiles,
    find_broken_shards,
    is_pack,
    pad_to_page,
    read_index,
    tile_type,
)
from runtime.atomic_write import synchronize
from runtime.errors import UserError
from runtime.worker_pool import map_in_workers

SHARD_FOREGROUNDS = 32  # 0.5 GB of 1500 x 2000 px, which a stopped run makes again at most
PART_SUFFIX = ".part"

Entry = dict[str, Any]  # of the index
Sources = dict[str, list[int]]  # path -> bytes, time of change in ns


def make_pack(
    foregrounds: Sequence[ForegroundFile], folder: Path, num_workers: int, advance: Callable[[int], object]
) -> None:
    """Pack foregrounds into a folder, or go on where an earlier call was stopped.

    Shards that were finished stay, unless their foregrounds are others by now or their files' size or time of change
    differ. The index is put in place when all shards are on the disk.

    Args:
        foregrounds: at least one.
        folder: an empty one, one that is not there yet, or a pack.
        num_workers: processes, each of which makes a shard.
        advance: told how many more foregrounds are done.

    Raises:
        DataError: the folder holds something else, or a finished pack of other files or of these as they were before;
            foregrounds that cannot be read, all of them listed.
        OSError: a file cannot be written, or a worker was killed.
    """
    sources = [describe_sources(foreground) for foreground in foregrounds]
    if (folder / INDEX).is_file():
        check_finished(folder, sources)
        advance(len(foregrounds))
        return
    prepare_folder(folder)
    known: dict[str, list[Entry]] = {}
    if (folder / UNFINISHED_INDEX).is_file():
        for entry in read_index(folder / UNFINISHED_INDEX):
            known.setdefault(entry["shard"], []).append(entry)
    done, tasks = {}, {}
    for number, start in enumerate(range(0, len(foregrounds), SHARD_FOREGROUNDS)):
        shard, group = f"shard-{number:05d}.bin", slice(start, start + SHARD_FOREGROUNDS)
        if is_made(folder, known.get(shard, []), sources[group]):
            done[shard] = known[shard]
            advance(len(foregrounds[group]))
        else:
            tasks[shard] = list(foregrounds[group])
    try:
        make_shards(tasks, folder, num_workers, done, advance)
    except (OSError, DataError) as error:
        error.add_note("Once that is put right, the same command goes on from here.")
        raise
    for path in set(folder.glob("shard-*.bin")) - {folder / shard for shard in done}:
        path.unlink()  # of foregrounds that are gone by now
    os.replace(folder / UNFINISHED_INDEX, folder / INDEX)
    synchronize(folder)


def make_shards(
    tasks: dict[str, list[ForegroundFile]],
    folder: Path,
    num_workers: int,
    done: dict[str, list[Entry]],
    advance: Callable[[int], object],
) -> None:
    """Make shards and add each to the index as soon as it is on the disk; arguments and errors as for `make_pack`.

    Args:
        tasks: shard -> what goes into it.
        folder: of the pack.
        num_workers: processes.
        done: shards that are there, with their entries; those made are added.
        advance: told how many more foregrounds are done.
    """
    write_index(folder / UNFINISHED_INDEX, done)  # before a shard that it names is replaced
    problems: list[str] = []
    made = map_in_workers(partial(make_shard, folder=folder), tasks.items(), min(num_workers, len(tasks)))
    for shard, (entries, broken) in zip(tasks, made, strict=True):
        problems += broken
        done[shard] = entries
        write_index(folder / UNFINISHED_INDEX, done)
        advance(len(tasks[shard]))
    if problems:
        raise DataError("\n".join([f"{len(problems)} foregrounds cannot be packed, replace or remove:", *problems]))


def describe_sources(foreground: ForegroundFile) -> Sources:
    """Tell the files of a foreground: path -> bytes and time of change in ns; one path however a file was named."""
    paths = [path for path in (foreground.path, foreground.alpha_path) if path is not None]
    return {os.path.realpath(path): [path.stat().st_size, path.stat().st_mtime_ns] for path in paths}


def check_finished(folder: Path, sources: Sequence[Sources]) -> None:
    """Refuse a finished pack of other files. A run may be reading it, so it stays unchanged."""
    packed = [entry["sources"] for entry in read_index(folder / INDEX)]
    if packed == list(sources):
        return
    before, now = ({path: state for files in group for path, state in files.items()} for group in (packed, sources))
    changed = sorted(path for path in before | now if before.get(path) != now.get(path))
    advice = "name another folder, or remove it and pack them again. New, gone or changed:"
    raise DataError("\n".join([f"{folder} was packed of other files, or they changed since: {advice}", *changed]))


def prepare_folder(folder: Path) -> None:
    """Make a folder, or clear away what a stopped run had not finished.

    Raises:
        DataError: it is a file, or there are other things in it.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file: name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.iterdir()):
        if path.suffix == PART_SUFFIX and path.name.startswith("."):
            path.unlink()
        elif not is_pack(folder):
            raise DataError(f"{folder} holds {path.name}: expected an empty folder or a pack. Name another folder")


def is_made(folder: Path, entries: list[Entry], sources: Sequence[Sources]) -> bool:
    """Tell whether a shard is whole and of these files."""
    if [entry["sources"] for entry in entries] != sources:
        return False
    return not any(find_broken_shards([as_foreground(folder, entry) for entry in entries]))


def make_shard(task: tuple[str, Sequence[ForegroundFile]], folder: Path) -> tuple[list[Entry], list[str]]:
    """Make one shard, in a worker.

    Args:
        task: name of the shard and what goes into it.
        folder: of the pack.

    Returns: the entries for the index, and a line for each foreground that could not be read and is not in the shard.
    """
    shard, foregrounds = task
    entries, problems = [], []
    with write_whole(folder / shard) as file:
        file.write(HEADER)
        for foreground in foregrounds:
            try:
                sources = describe_sources(foreground)
                opened = foreground.open()
                colours, alpha = opened.read((0, 0, *opened.size), 1)
            except (OSError, UserError) as error:
                problems.append(str(error))
                continue
            place = {"name": foreground.path.name, "shard": shard, "offset": file.tell()}
            entries.append(place | write_foreground(file, colours, alpha) | {"sources": sources})
    return entries, problems


def write_foreground(file: BinaryIO, colours: NDArray, alpha: NDArray) -> Entry:
    """Write a foreground where a file stands; the format is that of `data.sources.packs.reader`.

    Args:
        file: at a multiple of `PAGE` bytes.
        colours: raw (H, W, 3), not premultiplied.
        alpha: raw (H, W).

    Returns: its entry, as far as it follows from the pixels.
    """
    points = choose_points(alpha)
    parts = [make_tiles(*average_layer(colours, alpha, reduction)) for reduction in REDUCTIONS]
    parts.append(np.pad(points, (0, pad_to_page(points.nbytes) // points.itemsize - len(points))))
    checksum = 0
    for part in parts:
        content = part.view(np.uint8).data
        checksum = zlib.crc32(content, checksum)
        file.write(content)
    return {
        "size": [alpha.shape[1], alpha.shape[0]],
        "colour_type": colours.dtype.name,
        "alpha_type": alpha.dtype.name,
        "num_points": len(points),
        "checksum": checksum,
    }


def choose_points(alpha: NDArray) -> NDArray:
    """List the unknown pixels of a raw alpha (H, W), or `MAX_POINTS` of them drawn evenly, as ascending y * W + x."""
    x, y = unknown_points(alpha).T.astype("<u4")
    points = y * np.uint32(alpha.shape[1]) + x
    if len(points) > MAX_POINTS:
        points = np.random.default_rng(0).choice(points, MAX_POINTS, replace=False, shuffle=False)
    return np.sort(points)


def make_tiles(colours: NDArray, alpha: NDArray) -> NDArray:
    """Cut a picture into tiles (rows, columns) of `tile_type`, 0 beyond its end."""
    height, width = alpha.shape
    rows, columns = count_tiles((width, height), 1)
    tiles = np.empty((rows, columns), tile_type(colours.dtype, alpha.dtype))
    for name, values in (("colours", colours), ("alpha", alpha)):
        margins = ((0, rows * TILE_PX - height), (0, columns * TILE_PX - width), (0, 0))[: values.ndim]
        padded = np.pad(values, margins).reshape(rows, TILE_PX, columns, TILE_PX, *values.shape[2:])
        tiles[name] = padded.swapaxes(1, 2)
    return tiles


def write_index(path: Path, shards: dict[str, list[Entry]]) -> None:
    """Replace an index at once by one of these shards."""
    entries = [entry for _, entries in sorted(shards.items()) for entry in entries]
    checksum = compute_index_checksum(entries)
    index = {"format": FORMAT, "version": VERSION, "checksum": checksum, "foregrounds": entries}
    with write_whole(path) as file:
        file.write((json.dumps(index, indent=1) + "\n").encode())


@contextmanager
def write_whole(path: Path) -> Iterator[BinaryIO]:
    """Open a file that comes to its place, and onto the disk, when all of it is written, or else not at all.

    Raises:
        OSError: naming the path: a full disk, or no permission.
    """
    part = path.with_name(f".{uuid4().hex}{PART_SUFFIX}")  # two runs at once do not write into one file
    try:
        with part.open("xb") as file:
            yield file
        synchronize(part)
        part.replace(path)
        synchronize(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def find_damage(foregrounds: Sequence[PackedForeground], num_workers: int) -> Iterator[str | None]:
    """Read foregrounds wholly and compare the checksums.

    Yields: for each, None or what is wrong with it.
    """
    return map_in_workers(check, foregrounds, num_workers)


def check(foreground: PackedForeground) -> str | None:
    """Do the work of `find_damage` for one, in a worker."""
    try:
        if foreground.compute_checksum() == foreground.checksum:
            return None
    except DataError as error:
        return str(error)
    return f"{foreground.name} in {foreground.shard} is damaged. Copy it again from where it is whole, or {REMEDY}"
