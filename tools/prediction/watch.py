"""Wait for images that appear in a folder."""

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from data.image_io.formats import MATTED, find_images
from data.image_io.images import DataError
from data.sources.layouts import image_name
from inference.jobs import Job, Kind, check_outputs
from tools.prediction.messages import say

INTERVAL_S = 1.0
"""Between two looks. Files are complete if their sizes and times are those of the last look."""

State = tuple[tuple[int, int], ...]
"""Size and time of change of an image, and of its trimaps or masks."""


def watched_jobs(
    folder: Path, partners: Path | None, output: Path | None, kind: Kind, suffix: str, bits: int | None
) -> Iterator[Job]:
    """Yield the images of a folder without a result, each when its files are complete; never ends.

    An image that fails is tried again when it or its trimap or mask changes, or comes.

    Args:
        folder: to watch. Subfolders are not searched.
        partners: folder of trimaps or masks, or None.
        output: folder of the results. If None, it is that of `inference.jobs.find_jobs`.
        kind: of the results.
        suffix: of the results.
        bits: per value; see `inference.jobs.check_outputs`.

    Raises:
        DataError: results would be images of the folder; or as `inference.jobs.check_outputs`.
        OSError: the folder is gone, or no result can be written.
    """
    results = output or Path(f"{os.path.abspath(folder)}{kind.ending}")
    if os.path.realpath(results) == os.path.realpath(folder):
        raise DataError(f"{results}: images are looked for there too; name a folder of its own")
    check_outputs([Job(folder / f"name{suffix}", results / f"name{suffix}")], [], kind, bits)
    say(f"watching {folder}, results go to {results}; Ctrl-C ends")
    return _new_jobs(folder, partners, results, suffix)


def _new_jobs(folder: Path, partners: Path | None, results: Path, suffix: str) -> Iterator[Job]:
    last: dict[Path, State] = {}
    tried: dict[Path, State] = {}
    made_of: dict[Path, Path] = {}
    while True:
        others: defaultdict[str, State] = defaultdict(tuple)
        for path, of_path in _states(partners).items() if partners else ():
            others[image_name(path)] += (of_path,)
        for image, of_image in _states(folder).items():
            state = (of_image, *others[image_name(image)])
            is_stable = last.get(image) == state and all(size > 0 for size, _ in state)
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
        images = find_images(folder, MATTED)
    except FileNotFoundError:
        if not folder.is_dir():
            raise
    for image in images:
        with suppress(FileNotFoundError):  # it was moved away meanwhile
            found = image.stat()
            states[image] = found.st_size, found.st_mtime_ns
    return states
