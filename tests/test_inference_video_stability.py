"""The stabiliser: what it leaves alone, closed forms at rest and in motion, cuts, state."""

import numpy as np
import pytest

from data.trimap import UNKNOWN
from inference.video.stability import ALPHA_DIFFERENCE, Stabiliser
from runtime.errors import ConfigError
from tests.helpers.moving_disc import SHAPE, band, moving_disc, texture

ALL_UNKNOWN = np.full(SHAPE, UNKNOWN, np.float32)


def noisy(alphas, seed=0, deviation=0.1):
    rng = np.random.default_rng(seed)
    return [np.clip(alpha + rng.normal(0, deviation, alpha.shape), 0, 1).astype(np.float32) for alpha in alphas]


def test_strength_0_returns_the_given_alpha():
    frames, alphas = moving_disc(3)
    stabiliser = Stabiliser(0)
    for frame, alpha in zip(frames, noisy(alphas), strict=True):
        before = alpha.copy()
        assert stabiliser.next(frame, band(alpha), alpha) is alpha and np.array_equal(alpha, before)


def test_known_pixels_keep_their_alpha():
    frames, alphas = moving_disc(4)
    stabiliser = Stabiliser(1)
    for frame, alpha, given in zip(frames, alphas, noisy(alphas), strict=True):
        trimap = band(alpha)
        mixed = np.where(trimap == UNKNOWN, given, trimap)
        result = stabiliser.next(frame, trimap, mixed)
        assert np.array_equal(result[trimap != UNKNOWN], trimap[trimap != UNKNOWN])
        assert result.dtype == np.float32 and result.min() >= 0 and result.max() <= 1


def test_at_rest_small_changes_are_averaged_over_time():
    """Each frame follows by w = s / (1 + (c / `ALPHA_DIFFERENCE`)^2) of the change c that is left."""
    still, level = texture(0), 0.5
    stabiliser = Stabiliser(0.5)
    stabiliser.next(still, ALL_UNKNOWN, np.full(SHAPE, level, np.float32))
    for _ in range(3):
        change = level - 0.6
        level = 0.6 + 0.5 / (1 + (change / ALPHA_DIFFERENCE) ** 2) * change
        result = stabiliser.next(still, ALL_UNKNOWN, np.full(SHAPE, 0.6, np.float32))
        assert np.allclose(result, level, atol=1e-5)


def test_flicker_and_error_fall_in_motion():
    """Alphas between 0.3 and 0.7, so that noise is not cut off at 0 and 1 and averages out."""
    frames, discs = moving_disc(10)
    alphas = [0.3 + 0.4 * disc for disc in discs]
    given = noisy(alphas, deviation=0.05)
    stabiliser = Stabiliser()
    results = [stabiliser.next(frame, ALL_UNKNOWN, alpha) for frame, alpha in zip(frames, given, strict=True)]

    def flicker(predictions):
        changes = np.diff(np.stack(predictions), axis=0) - np.diff(np.stack(alphas), axis=0)
        return np.sqrt((changes**2).mean())

    assert flicker(results) < 0.6 * flicker(given)
    errors = [np.abs(np.stack(predictions) - np.stack(alphas))[3:].mean() for predictions in (results, given)]
    assert errors[0] < 0.8 * errors[1]


def test_a_subject_that_left_leaves_no_ghost():
    """Its frame gives no hint: the image is at rest, and only alpha says that the subject is gone."""
    still, gone = texture(0), np.zeros(SHAPE, np.float32)
    stabiliser = Stabiliser()
    stabiliser.next(still, ALL_UNKNOWN, np.ones(SHAPE, np.float32))
    assert stabiliser.next(still, ALL_UNKNOWN, gone).max() < 0.01


def test_a_wide_change_of_a_pixel_alone_is_averaged():
    still, spot = texture(0), np.zeros(SHAPE, np.float32)
    spot[20, 20] = 1
    stabiliser = Stabiliser()
    stabiliser.next(still, ALL_UNKNOWN, np.zeros(SHAPE, np.float32))
    assert stabiliser.next(still, ALL_UNKNOWN, spot)[20, 20] == pytest.approx(0.5, abs=0.1)


def test_a_change_of_colour_that_keeps_the_grey_value_is_not_averaged():
    """A red and a blue of the same grey value: an uncovered background may differ from the subject like this."""
    red, blue = np.zeros((2, *SHAPE, 3), np.uint8)
    red[..., 0], blue[..., 2] = 95, 249
    level = np.full(SHAPE, 0.5, np.float32)
    stabiliser = Stabiliser()
    stabiliser.next(red, ALL_UNKNOWN, level)
    assert np.abs(stabiliser.next(blue, ALL_UNKNOWN, level + 0.05) - level - 0.05).max() < 0.001


def test_a_frame_may_be_overwritten_after_the_call():
    frames, alphas = moving_disc(3)
    given, buffer = noisy(alphas), np.empty_like(frames[0])
    kept, shared = Stabiliser(), Stabiliser()
    for frame, alpha in zip(frames, given, strict=True):
        buffer[:] = frame
        assert np.array_equal(kept.next(frame, ALL_UNKNOWN, alpha), shared.next(buffer, ALL_UNKNOWN, alpha))
        buffer[:] = 0


def test_a_cut_starts_anew():
    (first, alphas), (second, others) = moving_disc(2), moving_disc(2, seed=5)
    stabiliser = Stabiliser(1)
    for frame, alpha in zip(first, alphas, strict=True):
        stabiliser.next(frame, ALL_UNKNOWN, alpha)
    assert stabiliser.next(second[0], ALL_UNKNOWN, others[0]) is others[0]


def test_a_restored_state_continues_bit_exact():
    frames, alphas = moving_disc(6)
    given = noisy(alphas)
    through, resumed = Stabiliser(), Stabiliser()
    assert through.state() == {}
    for index, (frame, alpha) in enumerate(zip(frames, given, strict=True)):
        expected = through.next(frame, ALL_UNKNOWN, alpha)
        fresh = Stabiliser()
        fresh.restore({name: values.copy() for name, values in resumed.state().items()})
        assert np.array_equal(fresh.next(frame, ALL_UNKNOWN, alpha), expected), index
        resumed = fresh


@pytest.mark.parametrize("strength", [-0.1, 1.5, float("nan")])
def test_another_strength_is_refused(strength):
    with pytest.raises(ConfigError, match="strength of 0 to 1"):
        Stabiliser(strength)
