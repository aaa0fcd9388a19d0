"""Files that are whole or not there at all, wherever the process that writes them is killed."""

import itertools
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.stopping import OutputError
from runtime.atomic_write import SUFFIX, WriteError, atomic_write

logger = logging.getLogger(__name__)

BEFORE = f".before{SUFFIX}"
"""Of a folder that is about to be replaced."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write a file of a run by `atomic_write`; a failure ends the run.

    Yields: the path to write to.

    Raises:
        OutputError: where the folder cannot be written.
    """
    try:
        with atomic_write(path) as unfinished:
            yield unfinished
    except WriteError as error:
        raise OutputError(str(error)) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises:
        OutputError: where the folder cannot be written.
    """
    with whole_file(path) as unfinished:
        unfinished.write_text(text)


def set_aside(path: Path, owner: str) -> None:
    """Give a file a name that no other has: NAME_of_earlier_training_1, or the next number that is free.

    Args:
        path: of the file.
        owner: what it is of, for the log.
    """
    names = (f"{path.stem}_of_earlier_training_{number}{path.suffix}" for number in itertools.count(1))
    aside = next(free for free in map(path.with_name, names) if not free.exists())
    path.replace(aside)
    logger.info("%s is of %s: moved to %s", path, owner, aside)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes left of what they wrote; a folder that was to be replaced, and was not, stays."""
    for before in sorted(folder.glob(f"*{BEFORE}")):
        path = before.with_name(before.name.removesuffix(BEFORE))
        if not path.exists():
            before.replace(path)
            logger.info("%s is back: a process was killed while it replaced it", path)
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        if path.is_dir():  # a checkpoint of a sharded network
            shutil.rmtree(path)
        else:
            path.unlink()
        logger.info("Removed %s, left by a process that was killed while it wrote", path)
