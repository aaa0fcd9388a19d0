"""Bootstrap intervals against a loop with the same draws, the normal law's width, and identities of composites."""

import numpy as np
import pytest

from data.image_io.images import DataError
from evaluation.metrics import METRICS
from evaluation.statistics import bootstrap
from evaluation.statistics.bootstrap import bootstrap_intervals, group_by_foreground


def make_rows(values):
    """Rows whose metrics are multiples of one value, so that a mix-up of columns shows."""
    return {name: {metric: value * (i + 1) for i, metric in enumerate(METRICS)} for name, value in values.items()}


@pytest.mark.parametrize(
    ("names", "foregrounds"),
    [
        (["b_0", "a", "b_1"], {"a": ["a"], "b": ["b_0", "b_1"]}),
        ([f"x_{k}" for k in range(12)], {"x": sorted(f"x_{k}" for k in range(12))}),
        (["a_0"], {"a_0": ["a_0"]}),
        (["a_1", "a_2"], {"a_1": ["a_1"], "a_2": ["a_2"]}),
        (["a_0", "a_2"], {"a_0": ["a_0"], "a_2": ["a_2"]}),
        (["f_0000", "f_0001"], {"f_0000": ["f_0000"], "f_0001": ["f_0001"]}),
        (["a_0", "a_01", "a_1"], {"a": ["a_0", "a_1"], "a_01": ["a_01"]}),
        (["5f0", "5f1", "_0", "_1"], {name: [name] for name in ("5f0", "5f1", "_0", "_1")}),
        (["a_0_0", "a_0_1", "a_1_0"], {"a_0": ["a_0_0", "a_0_1"], "a_1_0": ["a_1_0"]}),
        (["a", "a_0", "a_1"], {"a": ["a"], "a_*": ["a_0", "a_1"]}),
    ],
)
def test_composites_are_numbered_from_0_without_a_gap(names, foregrounds):
    grouped = group_by_foreground(names)
    assert grouped == foregrounds
    assert grouped == group_by_foreground(reversed(names))


@pytest.mark.parametrize(
    ("pattern", "names", "foregrounds"),
    [
        ("^img_(.+)", ["img_0", "img_1"], {"0": ["img_0"], "1": ["img_1"]}),
        ("[a-z]+", ["a1", "a2", "3b"], {"b": ["3b"], "a": ["a1", "a2"]}),
        (r"(.+)_\d+$", ["f_01", "f_02", "f_4", "g"], {"f": ["f_01", "f_02", "f_4"], "g": ["g"]}),
        ("(x)|y", ["x1", "x2", "y1", "y2"], {"x": ["x1", "x2"], "y1": ["y1"], "y2": ["y2"]}),
        ("z*", ["a", "b", "z"], {"a": ["a"], "b": ["b"], "z": ["z"]}),
        ("(.+)_", ["f", "f_0", "f_1"], {"f": ["f"], "f_*": ["f_0", "f_1"]}),
        ("^[^_]+", ["f", "f_0"], {"f": ["f", "f_0"]}),
        ("(f)(.)", ["f0", "f1"], {"f": ["f0", "f1"]}),
    ],
)
def test_a_pattern_names_the_foreground(pattern, names, foregrounds):
    """Its first group, or all it finds; an image in which it finds nothing is its own."""
    assert group_by_foreground(names, pattern) == foregrounds


def naive_means(rows, foregrounds, metric):
    """Draw foregrounds one by one 200 times, and average over all of their images with Python's own numbers."""
    rng = np.random.default_rng(0)
    groups = list(foregrounds.values())
    means = []
    for _ in range(200):
        drawn = [rows[name][metric] for _ in groups for name in groups[rng.integers(len(groups))] if name in rows]
        means.append(sum(drawn) / len(drawn))
    return means


NAMES = [*(f"a_{k}" for k in range(5)), "b_0", "b_1", "c", "d", "e_0", "e_1", "e_2"]


@pytest.fixture
def few_resamples(monkeypatch):
    monkeypatch.setattr(bootstrap, "NUM_RESAMPLES", 200)


def test_equals_a_loop_with_the_same_draws(few_resamples):
    """With foregrounds of unequal size; one image of `b` is not measured."""
    rng = np.random.default_rng(3)
    rows = make_rows({name: rng.random() for name in NAMES if name != "b_1"})
    foregrounds = group_by_foreground(NAMES)
    found = bootstrap_intervals(rows, foregrounds)
    for metric in METRICS:
        means = naive_means(rows, foregrounds, metric)
        assert found[metric] == pytest.approx(np.percentile(means, [2.5, 97.5]), rel=1e-12)


def test_differences_give_the_paired_interval(few_resamples):
    """The same draws for both methods: the differences' means are the differences of the means."""
    rng = np.random.default_rng(4)
    a, b = ({name: rng.random() for name in NAMES} for _ in range(2))
    foregrounds = group_by_foreground(NAMES)
    found = bootstrap_intervals(make_rows({n: b[n] - a[n] for n in NAMES}), foregrounds)["SAD"]
    means_a, means_b = (naive_means(make_rows(rows), foregrounds, "SAD") for rows in (a, b))
    assert found == pytest.approx(np.percentile(np.subtract(means_b, means_a), [2.5, 97.5]), rel=1e-12)


def test_width_is_that_of_the_normal_law():
    """The mean of n values drawn with repetition has the standard deviation s / sqrt(n), s with 1 / n.

    An end of the interval is a quantile of 10,000 means, known to sqrt(0.025 x 0.975 / 10,000) / 0.058 = 0.027 standard
    deviations, so that the width of 3.92 is known to 1 %: four times that is allowed.
    """
    values = np.random.default_rng(0).normal(5, 2, 400)
    low, high = bootstrap_intervals(
        make_rows({str(i): v for i, v in enumerate(values)}), {str(i): [str(i)] for i in range(400)}
    )["SAD"]
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.04)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.1 * values.std() / 20)


def test_copies_of_an_image_add_no_certainty():
    """20 composites that are all alike tell what one does; taken for foregrounds, the interval shrinks by sqrt(20)."""
    values = dict(zip("abcdefghij", np.random.default_rng(2).random(10), strict=True))
    copies = {f"{name}_{k}": value for name, value in values.items() for k in range(20)}
    once = bootstrap_intervals(make_rows(values), group_by_foreground(values))
    assert bootstrap_intervals(make_rows(copies), group_by_foreground(copies)) == {
        metric: pytest.approx(bounds, rel=1e-12) for metric, bounds in once.items()
    }
    as_images = bootstrap_intervals(make_rows(copies), {name: [name] for name in copies})
    widths = [high - low for low, high in (once["SAD"], as_images["SAD"])]
    assert widths[0] / widths[1] == pytest.approx(np.sqrt(20), rel=0.1)


def test_one_foreground_has_no_interval():
    rows = make_rows({"a_0": 1.0, "a_1": 2.0})
    assert bootstrap_intervals(rows, group_by_foreground(rows)) is None
    assert bootstrap_intervals(rows, group_by_foreground([*rows, "b"])) is None, "b was not measured"
    assert bootstrap_intervals({**rows, "b": rows["a_0"]}, group_by_foreground([*rows, "b"])) is not None


@pytest.mark.parametrize("pattern", ["zzz", "", "a(x)?"])
def test_a_pattern_that_finds_nothing_is_an_error(pattern):
    with pytest.raises(DataError, match="finds nothing in any name, such as 'a_1'"):
        group_by_foreground(["a_1", "a_2"], pattern)
