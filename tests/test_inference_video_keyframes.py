"""Trimaps carried from keyframes: against the moved ground truth, across cuts, in pieces, in flat memory."""

import tracemalloc

import numpy as np
import pytest

from data.image_io.images import DataError
from data.trimap import FOREGROUND, UNKNOWN
from inference.video.keyframes import MIN_TRUST, carried_trimaps
from tests.helpers.moving_disc import SHAPE, band, moving_disc, reader, texture


def wrong_share(trimap, alpha):
    """Share of the known pixels whose alpha is another."""
    known = trimap != UNKNOWN
    return np.abs(trimap - alpha)[known].mean()


@pytest.mark.parametrize("numbers", [(0, 11), (0,), (11,), (5,)])
def test_the_band_follows_a_moving_disc(numbers):
    frames, alphas = moving_disc(12)
    carried = list(carried_trimaps({number: band(alphas[number]) for number in numbers}, reader(frames), 0, 12))
    assert len(carried) == 12
    for number, (result, alpha) in enumerate(zip(carried, alphas, strict=True)):
        assert wrong_share(result.trimap, alpha) < 0.002
        assert result.trust > MIN_TRUST or min(abs(number - key) for key in numbers) > 1
        expected = band(alpha)
        assert (result.trimap == UNKNOWN).mean() < 2.5 * (expected == UNKNOWN).mean()
        assert ((result.trimap == FOREGROUND) & (expected == FOREGROUND)).sum() > 0.5 * (expected == FOREGROUND).sum()


def test_a_keyframe_keeps_its_trimap_and_is_trusted():
    frames, alphas = moving_disc(6)
    keyframes = {number: band(alphas[number]) for number in (1, 4)}
    carried = list(carried_trimaps(keyframes, reader(frames), 0, 6))
    for number, trimap in keyframes.items():
        assert np.array_equal(carried[number].trimap, trimap) and carried[number].trust == 1


@pytest.mark.parametrize("parts", [(0, 8, 14), (0, 5, 10, 14)])
def test_results_do_not_depend_on_where_a_run_starts_and_stops(parts):
    frames, alphas = moving_disc(14, radius=12.0)
    keyframes = {number: band(alphas[number]) for number in (4, 10)}
    whole = list(carried_trimaps(keyframes, reader(frames), 0, 14))
    pieces = [result for pair in zip(parts[:-1], parts[1:], strict=True)
              for result in carried_trimaps(keyframes, reader(frames), *pair)]  # fmt: skip
    for result, piece in zip(whole, pieces, strict=True):
        assert np.array_equal(result.trimap, piece.trimap) and result.trust == piece.trust


def test_nothing_is_carried_across_a_cut():
    """A scene of four frames between two others gets no trimap; the others get those of their own keyframe."""
    scenes = [moving_disc(4, seed=seed, start=(30.0 + 5 * seed, 34.0)) for seed in (0, 3, 6)]
    frames = [frame for scene in scenes for frame in scene[0]]
    alphas = [alpha for scene in scenes for alpha in scene[1]]
    carried = list(carried_trimaps({0: band(alphas[0]), 11: band(alphas[11])}, reader(frames), 0, 12))
    for number in (0, 1, 2, 3, 8, 9, 10, 11):
        assert wrong_share(carried[number].trimap, alphas[number]) < 0.002, number
    for result in carried[4:8]:
        assert result.trust == 0 and (result.trimap == UNKNOWN).all()


def test_frames_that_the_flow_cannot_follow_are_not_trusted():
    """Where the disc is replaced by noise of each frame, flow there and back disagrees."""
    frames, alphas = moving_disc(8)
    rng = np.random.default_rng(0)
    for frame, alpha in zip(frames, alphas, strict=True):
        near = alpha > 0
        frame[near] = rng.integers(0, 256, (near.sum(), 3))
    results = list(carried_trimaps({0: band(alphas[0])}, reader(frames), 0, 8))
    assert results[7].trust < MIN_TRUST < results[0].trust
    assert (results[7].trimap == UNKNOWN).sum() > (results[0].trimap == UNKNOWN).sum()


def test_a_subject_that_comes_in_is_taken_from_the_keyframe_that_has_it():
    frames, alphas = moving_disc(10, speed=(6, 0), start=(-30.0, 34.0))
    carried = list(carried_trimaps({0: band(alphas[0]), 9: band(alphas[9])}, reader(frames), 0, 10))
    for result, alpha in zip(carried, alphas, strict=True):
        assert wrong_share(result.trimap, alpha) < 0.01


def test_a_keyframe_of_another_size_is_refused():
    frames, alphas = moving_disc(3)
    with pytest.raises(DataError, match="keyframe 2: its trimap is 96 x 70 px, but the frames are 96 x 72 px"):
        list(carried_trimaps({0: band(alphas[0]), 2: band(alphas[2])[:70]}, reader(frames), 0, 3))


def test_memory_does_not_grow_with_the_distance_of_keyframes():
    still, trimap = texture(0), np.full(SHAPE, UNKNOWN, np.float32)

    def peak(num_frames):
        tracemalloc.start()
        results = carried_trimaps({0: trimap, num_frames: trimap}, lambda a, b: (still for _ in range(a, b)), 0, 2)
        assert len(list(results)) == 2
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(3)
    assert peak(40) < peak(8) + still.nbytes
