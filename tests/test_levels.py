"""Reduced foregrounds against fractions, pixel by pixel."""

from fractions import Fraction

import numpy as np
import pytest

from data import levels
from data.levels import make_levels

REDUCTIONS = (1, 2, 4, 8)


def draw(width: int, height: int, colour_type: type, alpha_type: type) -> tuple[np.ndarray, np.ndarray]:
    """Random colours and an alpha whose left third is 0 and whose upper rows are 1."""
    rng = np.random.default_rng(width)
    colours = rng.integers(0, np.iinfo(colour_type).max, (height, width, 3), colour_type, endpoint=True)
    alpha = rng.integers(0, np.iinfo(alpha_type).max, (height, width), alpha_type, endpoint=True)
    alpha[:, : width // 3] = 0
    alpha[: height // 4] = np.iinfo(alpha_type).max
    return colours, alpha


def reduce_by_fractions(colours: np.ndarray, alpha: np.ndarray, reduction: int) -> tuple[np.ndarray, np.ndarray]:
    """Average areas as the docstring says, each in exact fractions, rounded half up."""
    height, width = (-(-side // reduction) for side in alpha.shape)
    mean, opacity = np.empty((height, width, 3), colours.dtype), np.empty((height, width), alpha.dtype)
    for y, x in np.ndindex(height, width):
        area = np.s_[y * reduction : (y + 1) * reduction, x * reduction : (x + 1) * reduction]
        weights = [int(value) for value in alpha[area].ravel()]
        opacity[y, x] = int(Fraction(sum(weights), len(weights)) + Fraction(1, 2))
        if not any(weights):
            weights = [1] * len(weights)
        for channel in range(3):
            values = [int(value) for value in colours[area][:, :, channel].ravel()]
            total = sum(weight * value for weight, value in zip(weights, values, strict=True))
            mean[y, x, channel] = int(Fraction(total, sum(weights)) + Fraction(1, 2))
    return mean, opacity


@pytest.mark.parametrize("size", [(1, 1), (16, 8), (37, 21), (3, 50)])
@pytest.mark.parametrize(
    ("colour_type", "alpha_type"), [(np.uint8, np.uint8), (np.uint16, np.uint16), (np.uint8, np.uint16)]
)
def test_levels_are_the_rounded_fractions(size, colour_type, alpha_type, monkeypatch):
    monkeypatch.setattr(levels, "BAND_PX", 16)
    colours, alpha = draw(*size, colour_type, alpha_type)
    made = list(make_levels(colours, alpha, REDUCTIONS))
    assert len(made) == len(REDUCTIONS)
    for reduction, (reduced, reduced_alpha) in zip(REDUCTIONS, made, strict=True):
        expected, expected_alpha = reduce_by_fractions(colours, alpha, reduction)
        assert (reduced.dtype, reduced_alpha.dtype) == (colour_type, alpha_type)
        np.testing.assert_array_equal(reduced, expected)
        np.testing.assert_array_equal(reduced_alpha, expected_alpha)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_brightest_picture_does_not_overflow(dtype):
    full = np.iinfo(dtype).max
    for colours, alpha in make_levels(np.full((20, 9, 3), full, dtype), np.full((20, 9), full, dtype), REDUCTIONS):
        assert (colours == full).all()
        assert (alpha == full).all()


def test_the_first_level_is_the_picture_itself():
    colours, alpha = draw(40, 30, np.uint8, np.uint8)
    reduced, reduced_alpha = next(make_levels(colours, alpha, REDUCTIONS))
    np.testing.assert_array_equal(reduced, colours)
    np.testing.assert_array_equal(reduced_alpha, alpha)
