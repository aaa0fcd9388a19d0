"""Check the numbers of a config, so that an error names the setting before anything is drawn."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from runtime.errors import ConfigError


def check_number(name: str, value: Any, least: float, most: float = math.inf, is_whole: bool = False) -> None:
    """Raise a ConfigError unless a setting is a finite number, whole if required, from least to most."""
    if not (is_number(value, is_whole) and least <= value <= most):
        limits = f"of at least {least}" if most == math.inf else f"within {least} to {most}"
        raise ConfigError(f"{name} must be a {'whole number' if is_whole else 'number'} {limits}, got {value!r}")


def checked_range(
    name: str, bounds: Any, least: float, most: float = math.inf, is_whole: bool = False
) -> tuple[float, float]:
    """Return a setting that is a range as a tuple.

    Raises:
        ConfigError: not (low, high), finite and whole if required, with least <= low <= high <= most.
    """
    is_pair = isinstance(bounds, Sequence) and len(bounds) == 2 and all(is_number(bound, is_whole) for bound in bounds)
    if not (is_pair and least <= bounds[0] <= bounds[1] <= most):
        limits = f"{least} <= low <= high{'' if most == math.inf else f' <= {most}'}"
        kind = "whole numbers" if is_whole else "numbers"
        raise ConfigError(f"{name} must be [low, high], {kind} with {limits}, got {bounds}")
    return bounds[0], bounds[1]


def is_number(value: Any, is_whole: bool) -> bool:
    """Tell whether a value is a finite number, and an integer if required: 512.0 is no size."""
    return isinstance(value, Integral if is_whole else Real) and math.isfinite(value) and not isinstance(value, bool)
