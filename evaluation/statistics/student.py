"""How far the mean of a few runs may be off: Student's t interval, for runs that differ by their seed alone."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from evaluation.statistics.bootstrap import CONFIDENCE

HALVINGS = 60  # of an angle below 2, to the last digit of a float


class MeanInterval(NamedTuple):
    """A mean and half the width of its interval, which nothing is known of (None) where there is one value alone."""

    mean: float
    half_width: float | None


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> MeanInterval:
    """Bound the mean of what values are drawn from, as if drawn independently from a normal distribution.

    The half width is t s / sqrt(n), with s the standard deviation over n - 1 and t of n - 1 degrees of freedom: 4.30
    for three values at 95 %, where a normal distribution would pretend 1.96.

    Args:
        values: at least one, finite.
        confidence: in (0, 1).
    """
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return MeanInterval(mean, None)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return MeanInterval(mean, t_bound(count - 1, confidence) * math.sqrt(variance / count))


def t_bound(freedom: int, confidence: float) -> float:
    """Find t such that |T| <= t with probability `confidence`, T of Student's distribution.

    Args:
        freedom: degrees of freedom, at least 1.
        confidence: in (0, 1).
    """
    low, high = 0.0, math.pi / 2
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _probability(middle, freedom) < confidence else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _probability(angle: float, freedom: int) -> float:
    """Give P(|T| <= sqrt(freedom) tan(angle)), by the finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    is_odd = freedom % 2
    term = math.cos(angle) if is_odd else 1.0
    total = 0.0
    for index in range(freedom // 2):
        total += term
        term *= (2 * index + 1 + is_odd) / (2 * index + 2 + is_odd) * math.cos(angle) ** 2
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if is_odd else total
