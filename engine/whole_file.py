"""Files that are whole or not there at all, wherever the process that writes them is killed."""

import itertools
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from engine.stopping import OutputError

logger = logging.getLogger(__name__)

SUFFIX = ".unfinished"

BEFORE = f".before{SUFFIX}"
"""Of a folder that is about to be replaced."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write a file under another name in its folder, and give it its own when its last byte is on the disk.

    What had the name before stays until then, and for good where the writing fails.

    Yields: the path to write to.

    Raises:
        OutputError: where the folder cannot be written.
    """
    unfinished = path.with_name(path.name + SUFFIX)
    try:
        yield unfinished
        synchronize(unfinished)
        unfinished.replace(path)
        synchronize(path.parent)  # the new name is an entry of the folder
    except (OSError, RuntimeError) as error:
        # torch closes its archive after the file's error, and raises another for what is missing in it.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        advice = "; move that folder away" if path.is_dir() else ""
        raise OutputError(f"cannot write {path}: {cause.strerror or cause}{advice}") from error
    finally:
        with suppress(OSError):  # of a folder that went
            unfinished.unlink(missing_ok=True)


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


def synchronize(path: Path) -> None:
    """Bring a file or a folder's list of names to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
