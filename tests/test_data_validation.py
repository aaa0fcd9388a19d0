"""Settings that are no numbers, or out of their limits, are refused by their names; others are taken as they are."""

import re

import numpy as np
import pytest
from omegaconf import ListConfig

from data.validation import check_number, checked_range
from runtime.errors import ConfigError


@pytest.mark.parametrize("bounds", [(0, 3), [0.5, 0.5], ListConfig([1, 2.5]), (np.float64(1), np.int64(3))])
def test_a_range_is_given_as_a_tuple(bounds):
    assert checked_range("a", bounds, 0, 3) == (bounds[0], bounds[1])


@pytest.mark.parametrize(
    "bounds", [3, None, "ab", [1], [1, 2, 2], [-1, 2], [2, 1], [1, 4], [1, None], [1, float("nan")]]
)
def test_what_is_no_range_is_refused(bounds):
    message = f"a must be [low, high], numbers with 0 <= low <= high <= 3, got {bounds}"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        checked_range("a", bounds, 0, 3)


def test_without_a_limit_infinity_is_none():
    assert checked_range("a", [0, 1e9], 0) == (0, 1e9)
    with pytest.raises(ConfigError, match=r"with 0 <= low <= high, got \[0, inf\]"):
        checked_range("a", [0, float("inf")], 0)
    with pytest.raises(ConfigError, match="a must be a number of at least 0, got inf"):
        check_number("a", float("inf"), 0)


def test_whole_numbers_are_whole():
    assert checked_range("a", [1, np.int64(2)], 0, is_whole=True) == (1, 2)
    with pytest.raises(
        ConfigError, match=r"a must be \[low, high\], whole numbers with 0 <= low <= high, got \[1, 2.5\]"
    ):
        checked_range("a", [1, 2.5], 0, is_whole=True)
    for value in (2.5, 2.0):
        with pytest.raises(ConfigError, match=f"a must be a whole number of at least 0, got {value}"):
            check_number("a", value, 0, is_whole=True)


def test_numbers_are_within_their_limits():
    for value in (0, 0.5, 1):
        check_number("a", value, 0, 1)
    for value in (-0.1, 1.1, None, "1", [1], True, float("nan")):
        with pytest.raises(ConfigError, match=f"^{re.escape(f'a must be a number within 0 to 1, got {value!r}')}$"):
            check_number("a", value, 0, 1)
