"""Errors that a user can cause, and helpers for their messages."""

import re
from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from typing import Any


class UserError(Exception):
    """Base of every error that a user's file, setting or command line can cause.

    A command prints its message as one line and ends with an exit status; any other exception is a bug and shows its
    traceback. The message says what is wrong, where, and what to do.
    """


class ConfigError(UserError):
    """A config, an override or an option that cannot be used."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class name if the message is empty."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def check_minimum(minimum: int, **settings: int | Iterable[int]) -> None:
    """Raise a ConfigError if a setting, or an entry of its list, is below a minimum."""
    for name, value in settings.items():
        if any(entry < minimum for entry in (value if isinstance(value, Iterable) else [value])):
            raise ConfigError(f"{name} must be at least {minimum}, got {value}")


def one_line(error: BaseException) -> str:
    """Return an error's whole message on one line; "" if it is empty."""
    return " ".join(str(error).split())


def torch_reason(error: Exception) -> str:
    """Return what torch says of an error between processes, without source files, C++ stack and guesses."""
    text = str(error).partition("\nException raised from")[0].partition(" This is typically caused by")[0]
    return " ".join(re.sub(r"^\[(enforce fail at )?\S*\] ", "", text).split())


def few(names: Collection[str], most: int = 8) -> str:
    """List the first names on one line, and count the others."""
    rest = len(names) - most
    return ", ".join(islice(names, most)) + (f" and {rest} more" if rest > 0 else "")


def list_mismatches(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """List how named tensors differ from the expected ones in name and shape, such as "2 missing (norm.weight, ...)".

    Args:
        found: name -> tensor.
        expected: name -> tensor, "meta" tensors suffice.

    Returns: one part of a message for each kind of fault; empty if all names and shapes match.
    """
    faults = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": [
            f"{name} {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}"
            for name, tensor in found.items()
            if name in expected and tensor.shape != expected[name].shape
        ],
    }
    return [f"{len(names)} {fault} ({few(names, 4)})" for fault, names in faults.items() if names]
