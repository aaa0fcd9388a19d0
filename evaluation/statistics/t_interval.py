"""Student's t interval of the mean of a few runs that differ only in their seed."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from evaluation.statistics.bootstrap import CONFIDENCE


class MeanInterval(NamedTuple):
    """A mean and half the width of its interval; None for a single value, which says nothing about the spread."""

    mean: float
    half_width: float | None


def mean_interval(values: Sequence[float]) -> MeanInterval:
    """Bound the mean of independent draws from a normal distribution.

    The half width is t s / sqrt(n): s is the standard deviation over n - 1, t has n - 1 degrees of freedom. For three
    values at 95 % (`CONFIDENCE`), t is 4.30, where a normal distribution would give 1.96.

    Args:
        values: at least one, finite.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return MeanInterval(mean, None)
    return MeanInterval(mean, float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stats.sem(values)))
