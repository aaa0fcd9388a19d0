"""Views against what they must show, draws against their ranges."""

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from data.augment.random_crop import DrawView, choose_centre, scaling, translation
from data.augment.warp import sample_layer
from data.image_io.images import to_float
from data.sources.foregrounds import DecodedForeground
from runtime.errors import ConfigError
from tests.helpers.drawn_images import draw_disc, draw_noise

PLAIN: dict[str, Any] = {
    "square_probability": 0.0,
    "rotation_deg": 0.0,
    "rotation_min_px": 0,
    "scale_range": (1.0, 1.0),
    "shear_deg": 0.0,
    "flip_probability": 0.0,
    "crop_factors": (1.0,),
}


def alphas(crop_px: int, seed: int, *images: np.ndarray, **ranges: Any) -> list[np.ndarray]:
    """Sample alphas (H, W) through a view drawn on the first, each to (S, S) in [0, 1]."""
    rng = np.random.default_rng(seed)
    sources = [DecodedForeground(np.dstack([alpha] * 3), alpha) for alpha in images]
    view = DrawView(**{**PLAIN, **ranges})(crop_px, sources[0].size, sources[0].unknown_points(rng), rng)
    matrices = [view.from_image(source.size) for source in sources]
    pairs = zip(sources, matrices, strict=True)
    return [sample_layer(source, matrix, crop_px, cv2.INTER_LINEAR)[0][:, :, 0] for source, matrix in pairs]


@pytest.fixture
def affine_maps() -> dict[str, np.ndarray]:
    """Angle, shear and scales of 2000 views on a frame that needs no resizing, read off their matrices."""
    draw, rng = DrawView(**{"square_probability": 0.0, "crop_factors": (1.0,)}), np.random.default_rng(0)
    rows = []
    for _ in range(2000):
        matrix = draw(100, (2000, 2000), np.empty((0, 2)), rng).from_frame[:2, :2]
        angle = np.arctan2(*(matrix[::-1, 0] * np.sign(matrix[0, 0])))
        turned_back = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) @ matrix
        shear = np.arctan2(turned_back[0, 1], turned_back[1, 1] * np.sign(turned_back[1, 1]))
        shear *= np.sign(turned_back[1, 1])
        rows.append((np.rad2deg(angle), np.rad2deg(shear), turned_back[0, 0], turned_back[1, 1]))
    return dict(zip(("angle", "shear", "x", "y"), np.array(rows).T, strict=True))


def test_affine_maps_are_uniform_in_the_ranges_of_the_recipe(affine_maps):
    """By Kolmogorov-Smirnov tests, which refuse ranges that are a tenth wider."""
    scales = {f"scale {axis}": np.abs(affine_maps.pop(axis)) for axis in "xy"}
    ranges = {"angle": (-30, 30), "shear": (-10, 10), "scale x": (0.8, 1.25), "scale y": (0.8, 1.25)}
    for name, values in (affine_maps | scales).items():
        low, high = ranges[name]
        margin = (high - low) / 20
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3, name
        assert stats.kstest(values, stats.uniform(low - margin, high - low + 2 * margin).cdf).pvalue < 1e-3, name


def test_each_axis_is_flipped_half_of_the_time(affine_maps):
    flipped = [affine_maps[axis] < 0 for axis in "xy"]
    for number in (*(each.sum() for each in flipped), (flipped[0] == flipped[1]).sum()):
        assert stats.binomtest(int(number), 2000).pvalue > 1e-3


def test_the_window_is_centred_on_the_first_point_inside_and_kept_inside():
    frame = np.array([100.0, 80.0])
    points = np.array([[130, 40], [50, 40], [98, 1]])
    assert tuple(choose_centre(points, np.eye(3), frame, 20)) == (50.5, 40.5)
    assert tuple(choose_centre(points[2:], np.eye(3), frame, 20)) == (90.0, 10.0)
    assert tuple(choose_centre(points[2:], np.eye(3), frame, 120)) == (60.0, 20.0)  # the window holds the frame
    assert tuple(choose_centre(points[:1], np.eye(3), frame, 20)) == (90.0, 40.5)
    assert tuple(choose_centre(points, translation(np.array([45, 0])), frame, 20)) == (90.0, 40.5)
    assert tuple(choose_centre(points[1:], scaling(0.5), frame, 20)) == (25.25, 20.25)


def test_without_unknown_pixels_the_window_is_in_the_middle():
    frame = np.array([60.0, 40.0])
    np.testing.assert_array_equal(choose_centre(np.empty((0, 2)), np.eye(3), frame, 10), frame / 2)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(8, 200), st.integers(0, 999))
@settings(max_examples=40)
def test_any_size_of_foreground_gives_a_crop(height, width, crop_px, seed):
    alpha = draw_noise(height, width, 1)[:, :, 0]
    drawn = {"square_probability": 0.25, "rotation_deg": 30.0, "scale_range": (0.8, 1.25), "shear_deg": 10.0}
    for sampled in alphas(crop_px, seed, alpha, alpha.T.copy(), **drawn, crop_factors=(1.0, 1.5, 2.0)):
        assert sampled.shape == (crop_px, crop_px)
        assert np.isfinite(sampled).all()


def test_a_small_foreground_is_enlarged_no_more_than_allowed_and_padded():
    (alpha,) = alphas(200, 0, np.full((50, 60), 255, np.uint8), max_enlargement=3.0)
    assert abs(alpha.sum() - 9 * 50 * 60) < 0.01
    assert alpha[100, 100] == 1
    assert alpha[0, 0] == 0


def test_a_large_foreground_is_cropped_at_each_of_the_window_sizes():
    ramp = np.tile(np.linspace(0, 65_535, 400, dtype=np.uint16), (400, 1))
    slopes = set()
    for seed in range(20):
        (alpha,) = alphas(100, seed, ramp, crop_factors=(1.0, 1.5, 2.0))
        slopes.add(round(float((alpha[50, 90] - alpha[50, 10]) / 80 * 399), 1))
    assert slopes == {1.0, 1.5, 2.0}


@pytest.mark.parametrize(("side_px", "is_turned"), [(1023, False), (1024, True)])
def test_only_large_foregrounds_are_rotated(side_px, is_turned):
    stripes = np.zeros((600, side_px), np.uint8)
    stripes[290:310] = 128
    crops = [alphas(64, seed, stripes, rotation_deg=30.0, rotation_min_px=1024)[0] for seed in range(10)]
    assert sum(np.ptp(crop, axis=1).max() > 0.1 for crop in crops) == (10 if is_turned else 0)


def test_a_second_foreground_is_laid_into_the_frame_of_the_first():
    first = draw_disc(90)
    alpha, lower = alphas(90, 0, first, np.full((30, 60), 255, np.uint8))
    np.testing.assert_allclose(alpha, to_float(first), atol=1e-6)
    np.testing.assert_allclose(lower, 1, atol=1e-6)


def test_an_image_is_resized_onto_its_frame():
    view = DrawView(**{**PLAIN, "square_probability": 1.0, "square_px": 150})(
        100, (300, 100), np.empty((0, 2)), np.random.default_rng(0)
    )
    np.testing.assert_allclose(view.frame, [150, 150])
    np.testing.assert_allclose(view.from_image((300, 100)) @ [300, 100, 1], view.from_frame @ [150, 150, 1])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("square_probability", 1.5),
        ("flip_probability", -1),
        ("square_px", 0),
        ("rotation_deg", -30.0),
        ("rotation_min_px", None),
        ("scale_range", [1.25, 0.8]),
        ("scale_range", [0, 1]),
        ("shear_deg", 90),
        ("crop_factors", []),
        ("crop_factors", 1.5),
        ("crop_factors", [1, 0]),
        ("max_enlargement", 0),
    ],
)
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(ConfigError, match=name):
        DrawView(**{name: value})
