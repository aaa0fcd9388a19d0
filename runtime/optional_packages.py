"""Optional packages, which only some functions need, and what they need before they are imported."""

import importlib
import importlib.util
import logging
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from runtime.caches import choose_numba_cache, has_compiled
from runtime.errors import UserError
from runtime.threads import num_threads

logger = logging.getLogger(__name__)

EXTRAS_FILE = "requirements-extra.txt"


class MissingExtraError(UserError):
    """An optional package that is not installed, or cannot be imported; the message says how to get it."""


def import_extra(name: str, purpose: str) -> ModuleType:
    """Import an optional package.

    Args:
        name: of the module.
        purpose: what needs it, for the message.

    Raises:
        MissingExtraError: it is not installed, or refuses to be imported, beside another version of a package say.
    """
    _prepare(name.partition(".")[0])
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingExtraError(_missing(str(error.name), purpose)) from error
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise MissingExtraError(_missing(f"{name}, which cannot be imported ({reason})", purpose)) from error


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
    """Set what a package, or one that it imports, reads when it is imported; a user's own setting stays."""
    # onnxruntime, which other packages import too, reports its use online and keeps an id in the user's cache.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    if package == "pymatting" and (spec := importlib.util.find_spec(package)) and spec.origin:
        folder = Path(spec.origin).parent
        choose_numba_cache(folder)
        if package not in sys.modules and not has_compiled(folder, "estimate_foreground_ml"):
            logger.info("numba compiles pymatting, once on this machine; it takes about a minute")


def session_options(onnxruntime: ModuleType) -> Any:
    """Make onnxruntime's `SessionOptions` with as many threads as other libraries take, which sleep while they wait."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _missing(name: str, purpose: str) -> str:
    return f"{purpose} needs the optional package {name}: pip install -r {EXTRAS_FILE}"
