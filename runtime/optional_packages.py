"""Import optional packages, and set what they need before."""

import importlib
import importlib.util
import logging
import os
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from runtime.errors import UserError, one_line
from runtime.threads import num_threads

logger = logging.getLogger(__name__)

EXTRAS_FILE = "requirements-extra.txt"
NUMBA_CACHE = "NUMBA_CACHE_DIR"


class MissingExtraError(UserError):
    """An optional package that is not installed, or cannot be imported; the message says how to get it."""


def import_extra(name: str, purpose: str, file: str = EXTRAS_FILE) -> ModuleType:
    """Import an optional package.

    Args:
        name: of the module.
        purpose: what needs it, for the message.
        file: of requirements that lists it.

    Raises:
        MissingExtraError: it is not installed, or its import fails, for example beside another version of a package.
    """
    _prepare(name.partition(".")[0])
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingExtraError(_missing(str(error.name), purpose, file)) from error
    except ImportError as error:
        found = f"{name}, which cannot be imported ({one_line(error)})"
        raise MissingExtraError(_missing(found, purpose, file)) from error


def find_extra(name: str, purpose: str) -> Path:
    """Find the folder of an optional package without importing it, for the files inside.

    Args:
        name: of the module, without dots.
        purpose: what needs it, for the message.

    Raises:
        MissingExtraError: it is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise MissingExtraError(_missing(name, purpose))
    return Path(spec.origin).parent


def _prepare(package: str) -> None:
    """Set what a package, or one that it imports, reads during its import; the user's own settings stay."""
    # onnxruntime, which other packages import too, reports its use online and keeps an id in the user's cache.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    if package == "pymatting" and (spec := importlib.util.find_spec(package)) and spec.origin:
        folder = Path(spec.origin).parent
        choose_numba_cache(folder)
        if package not in sys.modules and not has_compiled(folder, "estimate_foreground_ml"):
            logger.info("numba compiles pymatting, once on this machine; it takes about a minute")


def session_options(onnxruntime: ModuleType) -> Any:
    """Make onnxruntime's `SessionOptions`: as many threads as other libraries use, which sleep while they wait."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _missing(name: str, purpose: str, file: str = EXTRAS_FILE) -> str:
    return f"{purpose} needs the optional package {name}: pip install -r {file}"


def choose_numba_cache(package: Path) -> None:
    """Set numba's cache folder for a package by `NUMBA_CACHE_DIR`; call this before the package is imported.

    If the variable is set or numba can write beside the package's files, nothing changes. Otherwise it is the user's
    cache or, if the home folder is not writable, a private folder for temporary files.

    Args:
        package: folder of the package.

    Raises:
        UserError: no folder is writable.
    """
    if NUMBA_CACHE in os.environ or "numba" in sys.modules or _is_writable(package / "__pycache__"):
        return
    of_user = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "numba")
    # It is relative if the user's home is unknown.
    cache = of_user if of_user.is_absolute() and _is_writable(of_user) else _temporary_folder()
    os.environ[NUMBA_CACHE] = str(cache)


def has_compiled(package: Path, module: str) -> bool:
    """Tell whether numba has already compiled a module of a package for this Python version.

    Args:
        package: folder of the package, after `choose_numba_cache`.
        module: name of the file without suffix.
    """
    folder = Path(os.environ.get(NUMBA_CACHE) or package)
    return any(folder.rglob(f"{module}.*.py{sys.version_info.major}{sys.version_info.minor}.nbi"))


def _temporary_folder() -> Path:
    """Make a folder for temporary files that the processes of this user share.

    Numba runs the code that it reads from the folder. So no other user may have write access to it.
    """
    try:
        parent = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise UserError(
            f"no folder can be written for what numba compiles: name one by {NUMBA_CACHE}, or mount one at /tmp"
        ) from error
    if hasattr(os, "getuid"):
        folder = parent / f"matting_numba_{os.getuid()}"
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
            return folder
    return Path(tempfile.mkdtemp(prefix="matting_numba_"))


def _is_writable(folder: Path) -> bool:
    """Tell whether files can be made in a folder, which is made if it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
