"""Metrics against the MATLAB reference, against naive loops over pixels and closed forms."""

import csv

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from evaluation.metrics import average, mad, measure, mse, sad, unknown_region

SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 6))


@st.composite
def cases(draw, kind):
    """A prediction, a truth and a region of one shape."""
    shape = draw(SHAPES)
    values = st.integers(0, 255) if kind is np.uint8 else st.floats(0, 1, width=32)
    pictures = arrays.arrays(kind, shape, elements=values)
    return draw(pictures), draw(pictures), draw(arrays.arrays(np.bool_, shape))


def naive(pred_alpha, alpha, region):
    """SAD, MSE and MAD, one pixel at a time in Python's own numbers."""
    scale = 255 if pred_alpha.dtype == np.uint8 else 1
    absolute, squared, count = 0.0, 0.0, 0
    for y in range(alpha.shape[0]):
        for x in range(alpha.shape[1]):
            if region[y, x]:
                difference = (pred_alpha[y, x].item() - alpha[y, x].item()) / scale
                absolute += abs(difference)
                squared += difference**2
                count += 1
    return {"SAD": absolute / 1000, "MSE": squared / max(count, 1), "MAD": absolute / max(count, 1)}


@given(cases(np.uint8))
def test_uint8_equals_a_naive_loop(case):
    assert measure(*case) == pytest.approx(naive(*case), rel=1e-12, abs=1e-15)


@given(cases(np.float32))
def test_float_equals_a_naive_loop(case):
    assert measure(*case) == pytest.approx(naive(*case), rel=1e-12, abs=1e-15)


def test_values_are_those_of_the_matlab_code(metric_reference):
    """The reference sums in single precision: 1e-6, and the same integer sum of absolute differences."""
    for case, *pairs in csv.reader((metric_reference / "reference_values.csv").open()):
        expected = {name: float(value) for name, value in (pair.split("=") for pair in pairs)}
        pred_alpha, alpha, trimap = (
            cv2.imread(str(metric_reference / folder / f"{case}.png"), cv2.IMREAD_UNCHANGED)
            for folder in ("pred", "alpha", "trimap")
        )
        measured = measure(pred_alpha, alpha, unknown_region(trimap))
        for name in measured.keys() & expected.keys():
            assert measured[name] == pytest.approx(expected[name], rel=1e-6), (case, name)
        assert round(measured["SAD"] * 255_000) == round(expected["SAD"] * 255_000)


def test_closed_form():
    """A region of 30 pixels that are all off by 51 of 255, a fifth; what is wrong outside it does not count."""
    alpha = np.full((10, 10), 100, np.uint8)
    pred_alpha = np.full((10, 10), 255, np.uint8)
    region = np.zeros((10, 10), bool)
    region[:3] = True
    pred_alpha[region] = 49
    assert measure(pred_alpha, alpha, region) == pytest.approx({"SAD": 30 * 0.2 / 1000, "MSE": 0.04, "MAD": 0.2})


def test_an_empty_region_has_no_error():
    wrong, right, nothing = np.full((2, 3), 255, np.uint8), np.zeros((2, 3), np.uint8), np.zeros((2, 3), bool)
    assert measure(wrong, right, nothing) == {"SAD": 0, "MSE": 0, "MAD": 0}


@pytest.mark.parametrize("metric", [sad, mse, mad])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pred_alpha": np.zeros((3, 2), np.uint8)}, r"expected one shape, got prediction \(3, 2\), truth \(2, 3\)"),
        ({"region": np.ones((2, 2), bool)}, "expected one shape"),
        ({"region": np.ones((2, 3), np.uint8)}, "expected a boolean region, got uint8"),
        ({"pred_alpha": np.zeros((2, 3), np.float32)}, "expected uint8 or float twice, got float32 and uint8"),
        ({"pred_alpha": np.zeros((2, 3), np.int64)}, "expected uint8 or float alphas, got int64"),
        ({"pred_alpha": np.full((2, 3), 1.5)}, r"in \[0, 1\], got 1.5 to 1.5"),
        ({"pred_alpha": np.full((2, 3), np.nan)}, r"in \[0, 1\], got nan"),
    ],
)
def test_what_does_not_fit_is_refused(metric, change, message):
    black = np.zeros((2, 3), np.uint8)
    with pytest.raises(ValueError, match=message):
        metric(**{"pred_alpha": black, "alpha": black, "region": np.ones((2, 3), bool), **change})


def test_average_counts_every_image_once_in_any_order():
    rng = np.random.default_rng(0)
    rows = [{"SAD": value} for value in rng.random(1000) * 10.0 ** rng.integers(-8, 8, 1000)]
    assert average([{"SAD": 1.0, "MSE": 0.5}, {"SAD": 4.0, "MSE": 0.25}]) == {"SAD": 2.5, "MSE": 0.375}
    assert average(rows) == average(rows[::-1]) == average(sorted(rows, key=lambda row: row["SAD"]))
    with pytest.raises(ValueError, match="at least one image"):
        average([])


def test_unknown_is_128_alone():
    trimap = np.array([[0, 128, 255]], np.uint8)
    assert unknown_region(trimap).tolist() == [[False, True, False]]
    with pytest.raises(ValueError, match="got 127, 129 too"):
        unknown_region(np.array([[0, 127, 129, 128]], np.uint8))
    with pytest.raises(ValueError, match="expected a trimap of uint8, got float32"):
        unknown_region(np.array([[0, 0.5, 1]], np.float32))
