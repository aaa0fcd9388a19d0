"""Folders for what libraries compile, where those that they would take cannot be written."""

import os
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from runtime.errors import UserError

NUMBA_CACHE = "NUMBA_CACHE_DIR"


def choose_numba_cache(package: Path) -> None:
    """Name a folder for what numba compiles of a package, by `NUMBA_CACHE_DIR`; call this before the package's import.

    Nothing is done where the variable is set or numba can write beside the package's files. Else it is the user's
    cache or, without a home that can be written, a folder for temporary files that is this user's alone.

    Args:
        package: folder of the package.

    Raises:
        UserError: no folder can be written.
    """
    if NUMBA_CACHE in os.environ or "numba" in sys.modules or _is_writable(package / "__pycache__"):
        return
    of_user = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "numba")
    # Relative where nobody knows the user's home.
    cache = of_user if of_user.is_absolute() and _is_writable(of_user) else _temporary_folder("numba")
    os.environ[NUMBA_CACHE] = str(cache)


def has_compiled(package: Path, module: str) -> bool:
    """Tell whether numba has compiled a module of a package before, for this Python; else it does so when imported.

    Args:
        package: folder of the package, after `choose_numba_cache`.
        module: name of the file without suffix.
    """
    folder = Path(os.environ.get(NUMBA_CACHE) or package)
    return any(folder.rglob(f"{module}.*.py{sys.version_info.major}{sys.version_info.minor}.nbi"))


def _temporary_folder(name: str) -> Path:
    """Make a folder for temporary files that the processes of this user share.

    What numba reads from it runs as code. So it is used only where no other user can have written to it.
    """
    try:
        place = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise UserError(
            f"no folder can be written for what numba compiles: name one by {NUMBA_CACHE}, or mount one at /tmp"
        ) from error
    if hasattr(os, "getuid"):
        folder = place / f"matting_{name}_{os.getuid()}"
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
            return folder
    return Path(tempfile.mkdtemp(prefix=f"matting_{name}_"))


def _is_writable(folder: Path) -> bool:
    """Tell whether files can be made in a folder, which is made where it is absent: rights alone do not tell."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
