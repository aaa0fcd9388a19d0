"""Gamma and white balance of the layers: against the formula in float64 and the statistics of the draws."""

import numpy as np
import pytest

from data.augment.tone_jitter import JitterTones, change_tones
from runtime.errors import ConfigError


def sample() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    names = ("foreground", "background", "image", "alpha")
    return {name: rng.random((16, 16, 3), np.float32) * np.float32(0.7) + np.float32(0.05) for name in names}


def recovered(colours: np.ndarray, changed: np.ndarray) -> tuple[float, np.ndarray]:
    """Fit exponent and gains: log c' = g log c + log k, a line per channel; clipped values are left out."""
    fits = []
    for channel in range(3):
        before, after = colours[:, :, channel].ravel().astype(float), changed[:, :, channel].ravel().astype(float)
        inside = after < 1
        fits.append(np.polyfit(np.log(before[inside]), np.log(after[inside]), 1))
    slopes, offsets = np.array(fits).T
    np.testing.assert_allclose(slopes, slopes[0], rtol=1e-4)
    return slopes[0], np.exp(offsets)


def draw(number: int, **settings) -> tuple[np.ndarray, np.ndarray]:
    """Recover the tones of many samples: exponents (N, 2) and gains (N, 2, 3), foreground before background."""
    given, transform = sample(), JitterTones(**settings)
    exponents, gains = [], []
    for seed in range(number):
        result = transform(given, np.random.default_rng(seed))
        tones = [recovered(given[name], result[name]) for name in ("foreground", "background")]
        exponents.append([exponent for exponent, _ in tones])
        gains.append([gain for _, gain in tones])
    return np.array(exponents), np.array(gains)


def test_neutral_gives_back_the_sample_and_draws_nothing():
    rng, given = np.random.default_rng(5), sample()
    assert JitterTones()(given, rng) is given
    assert rng.random() == np.random.default_rng(5).random()


def test_only_the_layers_change_and_the_given_ones_stay():
    given, before = sample(), sample()
    result = JitterTones(1.3, 1.2)(given, np.random.default_rng(0))
    assert result["image"] is given["image"] and result["alpha"] is given["alpha"]
    for name in ("foreground", "background"):
        assert result[name].dtype == np.float32 and result[name].shape == (16, 16, 3)
        np.testing.assert_array_equal(given[name], before[name])
        assert np.abs(result[name] - given[name]).max() > 0.01


def test_the_formula_in_double_precision():
    colours = sample()["image"]
    gains = np.array([1.4, 1.0, 0.6])
    expected = np.minimum(gains * colours.astype(float) ** 1.37, 1)
    np.testing.assert_allclose(change_tones(colours, 1.37, gains), expected, atol=1e-6)
    np.testing.assert_array_equal(change_tones(colours, 1, np.ones(3)), colours)
    assert change_tones(np.ones((1, 1, 3), np.float32), 0.5, np.array([2, 1, 0.5])).tolist() == [[[1, 1, 0.5]]]


def test_exponents_and_gains_are_log_uniform_and_independent():
    exponents, gains = draw(1000, gamma=1.5, white_balance=1.25)
    np.testing.assert_allclose(np.log(gains[:, :, 1]), 0, atol=1e-4)  # green
    logs = np.concatenate(
        [np.log(exponents) / np.log(1.5), np.log(gains[:, :, [0, 2]].reshape(1000, 4)) / np.log(1.25)], 1
    )
    assert np.abs(logs).max() <= 1.002
    np.testing.assert_allclose(logs.mean(axis=0), 0, atol=0.06)  # three standard deviations of the mean
    np.testing.assert_allclose(logs.std(axis=0), 1 / np.sqrt(3), atol=0.03)
    assert np.abs(np.corrcoef(logs.T) - np.eye(6)).max() < 0.1


def test_a_kind_switched_on_leaves_the_other_as_it_was():
    exponents, gains = draw(5, gamma=1.4, white_balance=1.2)
    np.testing.assert_allclose(exponents, draw(5, gamma=1.4)[0], rtol=1e-4)
    np.testing.assert_allclose(gains, draw(5, white_balance=1.2)[1], rtol=1e-4)


@pytest.mark.parametrize("name", ["gamma", "white_balance"])
@pytest.mark.parametrize("value", [0.9, float("nan"), float("inf"), None])
def test_ranges_below_neutral_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"{name} must be a number of at least 1, got {value}"):
        JitterTones(**{name: value})
