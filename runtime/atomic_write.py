"""Write files that are complete or absent, even if the process is killed while it writes."""

import errno
import functools
import itertools
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runtime.errors import UserError

logger = logging.getLogger(__name__)

REFUSALS = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""Errors of a file system that has no fsync for folders, or none at all. A failing disk gives other errors."""

SUFFIX = ".unfinished"
"""Suffix of a file that is still being written."""

BEFORE = f".before{SUFFIX}"
"""Suffix of a folder that is about to be replaced."""


class WriteError(UserError):
    """A file cannot be written: the disk is full, or its folder is gone or read-only."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write a file under another name in its folder, and rename it when it is completely on the disk.

    An earlier file of this name stays until then. If writing fails, it stays for good.

    Yields: the path to write to.

    Raises:
        WriteError: the file cannot be written.
    """
    unfinished = path.with_name(path.name + SUFFIX)
    try:
        yield unfinished
        synchronize(unfinished)
        unfinished.replace(path)
        synchronize(path.parent)  # the new name is an entry of the folder
    except (OSError, RuntimeError) as error:
        # torch closes its archive after the file's error and raises a RuntimeError for what is missing in it.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        advice = "; move that folder away" if path.is_dir() else ""
        raise WriteError(f"cannot write {path}: {cause.strerror or cause}{advice}") from error
    finally:
        with suppress(OSError):  # the folder is gone
            unfinished.unlink(missing_ok=True)


def synchronize(path: Path) -> None:
    """Flush a file or a folder's entries to the disk; on Windows, which opens no folders, only a file.

    If the file system does not support that, a warning is logged once in a process.
    """
    if sys.platform == "win32" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows flushes only writable files
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        _warn_of_refusal(error.strerror)
    finally:
        os.close(descriptor)


@functools.cache
def _warn_of_refusal(reason: str) -> None:
    logger.warning(
        "This file system refuses to bring what is written to the disk at once (fsync: %s). A power cut may lose or "
        "damage the last files; a killed process does not",
        reason,
    )


def backup(path: Path, owner: str) -> None:
    """Rename a file to NAME_of_earlier_training_1, or the next free number.

    Args:
        path: of the file.
        owner: the run that the file belongs to, for the log.
    """
    names = (f"{path.stem}_of_earlier_training_{number}{path.suffix}" for number in itertools.count(1))
    aside = next(free for free in map(path.with_name, names) if not free.exists())
    path.replace(aside)
    logger.info("%s is of %s: moved to %s", path, owner, aside)


def remove_unfinished(folder: Path) -> None:
    """Remove the unfinished files of killed processes, and restore folders that were not replaced completely."""
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
