"""A private folder for the temporary files of one server, and removal of those that killed servers left."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PREFIX = "matting_serve_"


@contextmanager
def hold_work_folder() -> Iterator[Path]:
    """Make a folder of mode 0700 that all temporary files of this process go to, and remove it at the end.

    The folders of servers that were killed are removed first. A server locks its folder, and the system unlocks it when
    the process ends, however it ends. Windows has no such lock; there, a killed server's folder stays.

    Raises:
        OSError: no temporary folder is writable.
    """
    _remove_dead(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    before = tempfile.tempdir
    try:
        with _locked(folder):
            tempfile.tempdir = str(folder)
            yield folder
    finally:
        tempfile.tempdir = before
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a folder. A child process must not inherit the lock, so the file is closed on exec."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _remove_dead(parent: Path) -> None:
    """Remove the folders whose owners have ended; those of other users and links are left alone."""
    if fcntl is None:
        return
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):  # its owner lives, or another server removes it too
            if folder.lstat().st_uid == os.getuid():
                with _locked(folder):
                    shutil.rmtree(folder)  # refuses a link
