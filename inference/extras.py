"""Optional packages, which only some functions need."""

import importlib
from types import ModuleType

EXTRAS_FILE = "requirements-extra.txt"


class MissingExtraError(ImportError):
    """An optional package that is not installed; the message says how to get it."""


def import_extra(name: str, purpose: str) -> ModuleType:
    """Import an optional package.

    Args:
        name: of the module.
        purpose: what needs it, for the message.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{purpose} needs the optional package {error.name}: pip install -r {EXTRAS_FILE}"
        ) from error
