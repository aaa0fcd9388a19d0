"""Overrides of a config for commands that are printed to be pasted."""

import json
import shlex
from typing import Any


def quote_override(key: str, value: Any) -> str:
    """Write `key=value` as one word of a shell command that `engine.config.apply_overrides` reads as this value.

    Args:
        key: dotted.
        value: what JSON can hold; folders as texts.
    """
    return shlex.quote(f"{key}={json.dumps(value, ensure_ascii=False)}")
