"""Optional packages, which only some functions need."""

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

EXTRAS_FILE = "requirements-extra.txt"


class MissingExtraError(ImportError):
    """An optional package that is not installed, or cannot be imported; the message says how to get it."""


def import_extra(name: str, purpose: str) -> ModuleType:
    """Import an optional package.

    Args:
        name: of the module.
        purpose: what needs it, for the message.

    Raises:
        MissingExtraError: it is not installed, or refuses to be imported, beside another version of a package say.
    """
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


def _missing(name: str, purpose: str) -> str:
    return f"{purpose} needs the optional package {name}: pip install -r {EXTRAS_FILE}"
