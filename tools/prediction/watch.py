"""Wait for images that appear in a folder."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from data.image_io.formats import find_images
from data.image_io.images import DataError
from inference.jobs import Job, Kind, check_outputs
from tools.prediction.messages import say

INTERVAL_S = 1.0
"""Between two looks. A file is complete if its size and time are those of the last look."""


def watched_jobs(folder: Path, output: Path | None, kind: Kind, suffix: str, bits: int) -> Iterator[Job]:
    """Yield the images of a folder without a result, each when its file is complete; never ends.

    An image that fails is tried again when its file changes.

    Args:
        folder: to watch. Subfolders are not searched.
        output: folder of the results. If None, it is that of `inference.jobs.find_jobs`.
        kind: of the results.
        suffix: of the results.
        bits: per value, 8 or 16.

    Raises:
        DataError: results would be images of the folder; or as `inference.jobs.check_outputs`.
        OSError: the folder is gone, or no result can be written.
    """
    results = output or Path(f"{os.path.abspath(folder)}{kind.ending}")
    if os.path.realpath(results) == os.path.realpath(folder):
        raise DataError(f"{results}: images are looked for there too; name a folder of its own")
    check_outputs([Job(folder / f"name{suffix}", results / f"name{suffix}")], [], kind, bits)
    say(f"watching {folder}, results go to {results}; Ctrl-C ends")
    return _new_jobs(folder, results, suffix)


def _new_jobs(folder: Path, results: Path, suffix: str) -> Iterator[Job]:
    last: dict[Path, tuple[int, int]] = {}
    tried: dict[Path, tuple[int, int]] = {}
    made_of: dict[Path, Path] = {}
    while True:
        for image, state in _states(folder).items():
            is_stable = last.get(image) == state and state[0] > 0
            last[image] = state
            output = results / f"{image.stem}{suffix}"
            if not is_stable or tried.get(image) == state:
                continue
            tried[image] = state
            other = made_of.setdefault(output, image)
            if other != image:
                say(f"{other} and {image} would both be written to {output}: rename one of them")
            elif not output.is_file():
                yield Job(image, output)
        time.sleep(INTERVAL_S)


def _states(folder: Path) -> dict[Path, tuple[int, int]]:
    """Give the images of a folder with size and time of change."""
    images: list[Path] = []
    states = {}
    try:
        images = find_images(folder)
    except FileNotFoundError:
        if not folder.is_dir():
            raise
    for image in images:
        with suppress(FileNotFoundError):  # it was moved away meanwhile
            found = image.stat()
            states[image] = found.st_size, found.st_mtime_ns
    return states
