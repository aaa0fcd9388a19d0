"""Values of overrides: texts as they are typed, and commands that are printed to be pasted."""

import json
import os
import re
import shlex
from collections.abc import Iterator
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString

from runtime.errors import ConfigError

PLACE = re.compile(r"(_dirs?|_files?|_paths?|folder|init_checkpoint)$")
"""How the names of settings end that hold paths, and so texts, where they are null."""

QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")


def takes_text(key: str, present: Any) -> bool:
    """Tell whether a setting holds text or a list of texts, so that a new value is taken as it is typed.

    Args:
        key: dotted.
        present: what it stands for; null and empty lists are texts where the key's name is that of a path.
    """
    values = [value for value in (present if isinstance(present, list) else [present]) if value is not None]
    return all(isinstance(value, str) for value in values) if values else PLACE.search(key) is not None


def read_text(key: str, text: str, present: Any) -> Any:
    """Read the value of an override whose setting `takes_text`.

    Everything stands for itself but `null`, text in quotes, and a `~` of the home folder at the beginning; `${...}`
    stays an interpolation. Lists are in brackets, split at commas outside quotes and interpolations.

    Raises:
        ConfigError: an entry of a list is empty.
    """
    is_list = isinstance(present, list) or (present is None and key.endswith("s"))
    if not (is_list and text.startswith("[") and text.endswith("]")):
        return _read_one(text)
    if not (inner := text[1:-1].strip()):
        return []
    entries = list(_split(inner))
    if "" in entries:
        raise ConfigError("an entry of the list is empty: write '' for an empty text")
    return [_read_one(entry) for entry in entries]


def _read_one(text: str) -> str | None:
    """Read one text."""
    if text == "null":
        return None
    if QUOTED.fullmatch(text):
        return str(OverridesParser.create().parse_override(f"key={text}").value())
    return os.path.expanduser(text) if text == "~" or text.startswith("~/") else text


def _split(text: str) -> Iterator[str]:
    """Split at commas that are outside quotes, which begin an entry, and outside `${...}`."""
    start = position = depth = 0
    while position <= len(text):
        rest = text[position:]
        at_start = not text[start:position].strip()
        if at_start and (quoted := QUOTED.match(rest)) and re.match(r"\s*(,|$)", rest[quoted.end() :]):
            position += quoted.end()
        elif rest.startswith("${"):
            depth, position = depth + 1, position + 2
        elif not rest or (rest[0] == "," and not depth):
            yield text[start:position].strip()
            start = position = position + 1
        else:
            depth -= bool(depth) and rest[0] == "}"
            position += 1


def quote_override(key: str, value: Any) -> str:
    """Write `key=value` as one word of a shell command that `engine.config.config.apply_overrides` reads as this value.

    Args:
        key: dotted.
        value: null, boolean, number, text or list of these; folders as texts.
    """
    return shlex.quote(write_override(key, value))


def write_override(key: str, value: Any) -> str:
    """Write `key=value` in Hydra's grammar; `value` as for `quote_override`."""
    return f"{key}={_quote(value)}"


def _quote(value: Any) -> str:
    """Write a value in Hydra's grammar."""
    if isinstance(value, str):
        return QuotedString(value, Quote.double).with_quotes()
    return f"[{','.join(map(_quote, value))}]" if isinstance(value, list) else json.dumps(value)
