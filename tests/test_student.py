"""evaluation.statistics.student: intervals of a mean against scipy, and what they promise."""

import math

import numpy as np
import pytest
from scipy import stats

from evaluation.statistics.student import mean_interval, t_bound


@pytest.mark.parametrize("freedom", [*range(1, 12), 30, 101, 1000])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_bounds_are_those_of_scipy(freedom, confidence):
    assert t_bound(freedom, confidence) == pytest.approx(stats.t.ppf((1 + confidence) / 2, freedom), rel=1e-9)


def test_the_bound_of_two_values_has_a_closed_form():
    assert t_bound(1, 0.95) == pytest.approx(math.tan(0.95 * math.pi / 2), rel=1e-12)


@pytest.mark.parametrize("values", [[3.0, 4.5], [1.0, 2.0, 4.0], [1e9, 1e9 + 1, 1e9 + 5, 1e9 + 2]])
def test_an_interval_is_scipys(values):
    found = mean_interval(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert found.mean == pytest.approx(np.mean(values), rel=1e-15)
    assert found.half_width == pytest.approx((high - low) / 2, rel=1e-6)


def test_one_value_says_nothing_of_others_and_equal_ones_that_there_is_no_spread():
    assert mean_interval([2.5]) == (2.5, None)
    assert mean_interval([2.5, 2.5, 2.5]) == (2.5, 0.0)


def test_three_values_in_a_hundred_intervals_miss_as_often_as_said():
    rng = np.random.default_rng(0)
    found = [mean_interval(rng.normal(7, 3, 3).tolist()) for _ in range(4000)]
    share = np.mean([abs(mean - 7) <= half_width for mean, half_width in found])
    assert share == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 4000))
