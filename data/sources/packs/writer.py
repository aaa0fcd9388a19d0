"""Write packs, one file for each foreground; see `data.sources.packs.reader`."""

import json
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from data.image_io.images import DataError
from data.sources.foregrounds import REDUCTIONS, ForegroundFile, average_layer, unknown_points
from data.sources.packs.reader import FORMAT, INDEX, MAX_POINTS, VERSION, file_of, is_pack, read_index
from runtime.atomic_write import SUFFIX, atomic_write
from runtime.errors import UserError
from runtime.worker_pool import map_in_workers

Entry = dict[str, Any]  # of the index
Sources = dict[str, list[int]]  # path -> bytes, time of change in ns


def make_pack(
    foregrounds: Sequence[ForegroundFile], folder: Path, num_workers: int, advance: Callable[[int], object]
) -> None:
    """Pack foregrounds into a folder, or continue an interrupted call.

    Files of an interrupted call are kept if size and time of change of their sources are the same. The index gets its
    list when all files are on the disk. The files' bytes do not depend on the number of workers.

    Args:
        foregrounds: at least one.
        folder: an empty or missing one, or a pack.
        num_workers: processes, each of which packs a foreground at a time.
        advance: called with the number of foregrounds that were finished since.

    Raises:
        DataError: the folder holds something else, or a finished pack of other or changed files; or foregrounds cannot
            be read, all of which are listed.
        WriteError: a file cannot be written.
        OSError: a source is missing, or a worker was killed.
    """
    sources = [describe_sources(foreground) for foreground in foregrounds]
    if is_pack(folder) and (packed := read_index(folder)) is not None:
        check_unchanged(folder, [entry["sources"] for entry in packed], sources)
        advance(len(foregrounds))
        return
    prepare_folder(folder)
    paths = [file_of(folder, number) for number in range(len(foregrounds))]
    entries: list[Entry] = []
    problems: list[str] = []
    try:
        for outcome in map_in_workers(
            pack_foreground, zip(paths, foregrounds, strict=True), min(num_workers, len(paths))
        ):
            if isinstance(outcome, str):
                problems.append(outcome)
            else:
                entries.append(outcome)
            advance(1)
        if problems:
            raise DataError("\n".join([f"{len(problems)} foregrounds cannot be packed, replace or remove:", *problems]))
    except (OSError, UserError) as error:
        error.add_note("Once that is put right, the same command continues from here.")
        raise
    for path in {*folder.glob("*.safetensors*")} - {*paths}:
        path.unlink()  # of an interrupted call with more foregrounds
    write_index(folder, entries)


def describe_sources(foreground: ForegroundFile) -> Sources:
    """Return a foreground's files: resolved path -> bytes and time of change in ns."""
    paths = [path for path in (foreground.path, foreground.alpha_path) if path is not None]
    return {os.path.realpath(path): [path.stat().st_size, path.stat().st_mtime_ns] for path in paths}


def check_unchanged(folder: Path, packed: Sequence[Sources], sources: Sequence[Sources]) -> None:
    """Refuse a finished pack of other files. A run may be reading it, so it stays unchanged.

    Raises:
        DataError: it lists the files that are new, missing or changed.
    """
    if packed == sources:
        return
    before, now = ({path: state for files in group for path, state in files.items()} for group in (packed, sources))
    changed = sorted(path for path in before | now if before.get(path) != now.get(path))
    advice = "name another folder, or remove it and pack them again. New, gone or changed:"
    raise DataError("\n".join([f"{folder} was packed of other files, or they changed since: {advice}", *changed]))


def prepare_folder(folder: Path) -> None:
    """Create a folder and mark it as an unfinished pack.

    Raises:
        DataError: it is a file, or there are other things in it.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file: name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    if not is_pack(folder):
        for path in sorted(folder.iterdir()):
            if path.suffix != SUFFIX:
                raise DataError(f"{folder} holds {path.name}: expected an empty folder or a pack. Name another folder")
        write_index(folder, None)


def write_index(folder: Path, entries: list[Entry] | None) -> None:
    """Write the index; None marks an unfinished pack."""
    index = {"format": FORMAT, "version": VERSION, "foregrounds": entries}
    with atomic_write(folder / INDEX) as unfinished:
        unfinished.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def pack_foreground(task: tuple[Path, ForegroundFile]) -> Entry | str:
    """Write a foreground's file in a worker, unless it is there already.

    Args:
        task: the file's path and the foreground.

    Returns: its entry of the index, or why the foreground cannot be read.

    Raises:
        WriteError: the file cannot be written.
    """
    path, foreground = task
    try:
        sources = describe_sources(foreground)
        entry = read_entry(path)
        if entry is None or entry["sources"] != sources:
            opened = foreground.open()
            entry = {"name": foreground.path.name, "size": opened.size, "sources": sources}
            tensors = make_tensors(*opened.read((0, 0, *opened.size), 1))
            with atomic_write(path) as unfinished:
                unfinished.write_bytes(save(tensors, {"entry": json.dumps(entry)}))
        content = path.read_bytes()
    except (OSError, DataError) as error:
        return str(error)
    return entry | {"num_bytes": len(content), "checksum": zlib.crc32(content)}


def read_entry(path: Path) -> Entry | None:
    """Read the part of an entry that a foreground's file states; None without such a file."""
    try:
        with safe_open(path, "np") as tensors:
            return json.loads(tensors.metadata()["entry"])
    except (FileNotFoundError, SafetensorError):
        return None


def make_tensors(colours: NDArray, alpha: NDArray) -> dict[str, NDArray]:
    """Make the tensors of a foreground's file.

    Args:
        colours: raw (H, W, 3), not premultiplied.
        alpha: raw (H, W).
    """
    points = unknown_points(alpha)
    if len(points) > MAX_POINTS:
        points = points[np.sort(np.random.default_rng(0).choice(len(points), MAX_POINTS, replace=False, shuffle=False))]
    tensors = {"points": points}
    for reduction in REDUCTIONS:
        layers = average_layer(colours, alpha, reduction)
        tensors |= {f"{name}_{reduction}": layer for name, layer in zip(("colours", "alpha"), layers, strict=True)}
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
