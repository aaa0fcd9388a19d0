"""Draws against their ranges, views against what they must show, colours against colorsys."""

import colorsys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.images import to_float
from data.sampling import translation
from data.transforms import (
    CompositeImage,
    CropAroundUnknown,
    JitterColour,
    MakeTrimap,
    MergeLayers,
    crop_background,
    draw_centre,
    unknown_points,
)
from data.trimap import trimap_from_alpha

PLAIN: dict[str, Any] = {
    "square_probability": 0.0,
    "square_px": 640,
    "rotation_deg": 0.0,
    "rotation_min_px": 0,
    "scale_range": (1.0, 1.0),
    "shear_deg": 0.0,
    "flip_probability": 0.0,
    "crop_factors": (1.0,),
    "max_enlargement": 2.0,
}
RECIPE: dict[str, Any] = {
    "square_probability": 0.25,
    "square_px": 640,
    "rotation_deg": 30.0,
    "rotation_min_px": 1024,
    "scale_range": (0.8, 1.25),
    "shear_deg": 10.0,
    "flip_probability": 0.5,
    "crop_factors": (1.0, 1.5, 2.0),
    "max_enlargement": 2.0,
}


def picture(height: int, width: int, channels: int = 3, dtype: type = np.uint8) -> np.ndarray:
    rng = np.random.default_rng(height * width)
    return rng.integers(0, np.iinfo(dtype).max, (height, width, channels), dtype, endpoint=True)


def disc(size_px: int, softness_px: float = 2.0) -> np.ndarray:
    y, x = np.mgrid[:size_px, :size_px] + 0.5 - size_px / 2
    return np.rint(255 * np.clip((size_px / 3 - np.hypot(x, y)) / softness_px + 0.5, 0, 1)).astype(np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_unknown_points_are_fractional_or_else_on_edges(dtype):
    full = np.iinfo(dtype).max
    alpha = np.zeros((9, 9), dtype)
    alpha[2:6, 3:7] = full
    edges = {tuple(point) for point in unknown_points(alpha)}
    assert (3, 2) in edges
    assert not edges & {(4, 4), (8, 8)}
    alpha[7, 1] = full // 2
    np.testing.assert_array_equal(unknown_points(alpha), [[1, 7]])
    assert unknown_points(np.full((4, 4), full, dtype)).shape == (0, 2)


def test_the_window_is_centred_on_unknown_pixels_and_kept_inside():
    alpha = np.zeros((80, 100), np.uint8)
    alpha[40, 50] = alpha[1, 98] = 128
    frame = np.array([100.0, 80.0])
    rng = np.random.default_rng(0)
    centres = {tuple(draw_centre(alpha, np.eye(3), frame, 20, rng)) for _ in range(50)}
    assert centres == {(50.5, 40.5), (90.0, 10.0)}
    larger = {tuple(draw_centre(alpha, np.eye(3), frame, 120, rng)) for _ in range(50)}
    assert larger == {(50.5, 40.5), (60.0, 20.0)}  # both windows hold the frame
    outside = translation(np.array([45, 0]))
    assert {tuple(draw_centre(alpha, outside, frame, 20, rng)) for _ in range(50)} == {(90.0, 40.5)}


def test_without_unknown_pixels_the_window_is_in_the_middle():
    frame = np.array([60.0, 40.0])
    centre = draw_centre(np.full((40, 60), 255, np.uint8), np.eye(3), frame, 10, np.random.default_rng(0))
    np.testing.assert_array_equal(centre, frame / 2)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(8, 200), st.integers(0, 999))
@settings(max_examples=40)
def test_any_size_of_foreground_and_background_gives_a_crop(height, width, crop_px, seed):
    alpha = picture(height, width, 1)[:, :, 0]
    sample = {"sources": [(picture(height, width), alpha)] * 2, "background": picture(width, height)}
    crop = CropAroundUnknown(crop_px, **RECIPE)(sample, np.random.default_rng(seed))
    for sampled, foreground in crop["layers"]:
        assert sampled.shape == (crop_px, crop_px, 1)
        assert foreground.shape == (crop_px, crop_px, 3)
    assert len(crop["layers"]) == 2
    assert crop["background"].shape == (crop_px, crop_px, 3)
    assert crop["background"].dtype == np.float32


def test_a_small_foreground_is_enlarged_no_more_than_allowed_and_padded():
    sample = {"sources": [(picture(50, 60), np.full((50, 60), 255, np.uint8))], "background": picture(50, 60)}
    crop = CropAroundUnknown(200, **{**PLAIN, "max_enlargement": 3.0})(sample, np.random.default_rng(0))
    alpha = crop["layers"][0][0]
    assert alpha.sum() == 9 * 50 * 60
    assert alpha[100, 100] == 1
    assert alpha[0, 0] == 0


def test_a_large_foreground_is_cropped_at_each_of_the_window_sizes():
    ramp = np.tile(np.linspace(0, 65_535, 400, dtype=np.uint16), (400, 1))
    slopes = set()
    for seed in range(20):
        sample = {"sources": [(picture(400, 400, dtype=np.uint16), ramp)], "background": picture(40, 40)}
        crop = CropAroundUnknown(100, **{**PLAIN, "crop_factors": (1.0, 1.5, 2.0)})(sample, np.random.default_rng(seed))
        alpha = crop["layers"][0][0][50, :, 0]
        slopes.add(round(float((alpha[90] - alpha[10]) / 80 * 399), 1))
    assert slopes == {1.0, 1.5, 2.0}


@pytest.mark.parametrize(("side_px", "is_turned"), [(1023, False), (1024, True)])
def test_only_large_foregrounds_are_rotated(side_px, is_turned):
    stripes = np.zeros((600, side_px), np.uint8)
    stripes[290:310] = 128
    sample = {"sources": [(np.dstack([stripes] * 3), stripes)], "background": picture(40, 40)}
    settings_ = {**PLAIN, "rotation_deg": 30.0, "rotation_min_px": 1024}
    crops = [CropAroundUnknown(64, **settings_)(sample, np.random.default_rng(seed)) for seed in range(10)]
    varies = [np.ptp(crop["layers"][0][0][:, :, 0], axis=1).max() > 0.1 for crop in crops]
    assert sum(varies) == (10 if is_turned else 0)


def test_the_square_step_changes_the_aspect():
    bars = np.zeros((100, 300), np.uint8)
    bars[:, 100:200] = 255
    sample = {"sources": [(np.dstack([bars] * 3), bars)], "background": picture(40, 40)}
    crop = CropAroundUnknown(150, **{**PLAIN, "square_probability": 1.0, "square_px": 150})(
        sample, np.random.default_rng(0)
    )
    assert abs(crop["layers"][0][0].mean() - 1 / 3) < 0.02  # the whole picture is in the window


def test_a_second_foreground_is_laid_into_the_frame_of_the_first():
    first, second = disc(90), np.full((30, 60), 255, np.uint8)
    sample = {"sources": [(picture(90, 90), first), (picture(30, 60), second)], "background": picture(9, 9)}
    (alpha, _), (lower, _) = CropAroundUnknown(90, **PLAIN)(sample, np.random.default_rng(0))["layers"]
    np.testing.assert_allclose(alpha[:, :, 0], to_float(first), atol=1e-6)
    assert (lower == 1).all()


def test_backgrounds_cover_the_frame_and_are_cropped_to_the_same_share():
    ramp = np.dstack([np.tile(np.linspace(0, 65_535, 800, dtype=np.uint16), (400, 1))] * 3)
    for seed in range(10):
        crop = crop_background(ramp, np.array([200.0, 100.0]), 50, 100, np.random.default_rng(seed))[:, :, 0]
        # covering 200 x 100 px takes a quarter of 800 x 400; 50 px of that are 200 of 800
        assert abs((crop[50, -5] - crop[50, 5]) / 90 * 100 - 200 / 799) < 0.01
    frame = np.array([200.0, 100.0])
    starts = {crop_background(ramp, frame, 50, 100, np.random.default_rng(seed))[0, 0, 0] for seed in range(9)}
    assert len(starts) > 5


def test_shrunk_backgrounds_are_averaged():
    background = picture(320, 320)
    crop = crop_background(background, np.array([40.0, 40.0]), 40, 40, np.random.default_rng(0))
    block_means = to_float(background).reshape(40, 8, 40, 8, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(crop, block_means, atol=0.51 / 255)


def test_merging_keeps_the_upper_layer_where_the_lower_fills_the_crop():
    rng = np.random.default_rng(0)
    upper = (rng.random((5, 5, 1), np.float32), rng.random((5, 5, 3), np.float32))
    full = (np.ones((5, 5, 1), np.float32), rng.random((5, 5, 3), np.float32))
    half = (full[0] / 2, full[1])
    background = rng.random((5, 5, 3), np.float32)
    kept = MergeLayers()({"layers": [upper, full], "background": background}, rng)
    np.testing.assert_array_equal(kept["alpha"], upper[0])
    merged = MergeLayers()({"layers": [upper, half], "background": background}, rng)
    np.testing.assert_allclose(merged["alpha"], 1 - (1 - upper[0]) / 2, atol=1e-6)


def test_colour_jitter_agrees_with_colorsys():
    rng = np.random.default_rng(0)
    foreground = rng.random((6, 6, 3), np.float32)
    alpha = rng.random((6, 6, 1), np.float32) * (np.arange(6) > 2)[:, None]
    sample = {"foreground": foreground, "alpha": alpha}
    jittered = JitterColour(40.0, 0.1)(sample, np.random.default_rng(5))["foreground"]
    draws = np.random.default_rng(5)
    hue, shifts = draws.uniform(-40, 40), draws.uniform(-0.1, 0.1, size=2)
    hsv = np.array([[colorsys.rgb_to_hsv(*pixel) for pixel in row] for row in foreground.tolist()])
    move = shifts * (1.1 - hsv[alpha[:, :, 0] > 0][:, 1:].mean(axis=0))
    for y, x in np.ndindex(6, 6):
        h, s, v = hsv[y, x]
        s, v = np.clip([s + move[0], v + move[1]], 0, 1)
        np.testing.assert_allclose(jittered[y, x], colorsys.hsv_to_rgb((h + hue / 360) % 1, s, v), atol=1e-4)


def test_colour_jitter_leaves_an_empty_crop_and_no_jitter_alone():
    rng = np.random.default_rng(0)
    foreground = rng.random((6, 6, 3), np.float32)
    for alpha, jitter in (
        (np.zeros((6, 6, 1), np.float32), JitterColour(40, 0.1)),
        (np.ones((6, 6, 1), np.float32), JitterColour(0, 0)),
    ):
        jittered = jitter({"foreground": foreground, "alpha": alpha}, rng)["foreground"]
        np.testing.assert_allclose(jittered, foreground, atol=1e-5)


def test_trimaps_are_those_of_the_crops_own_alpha_at_every_radius():
    alpha = to_float(disc(64))[:, :, None]
    seen = set()
    for seed in range(60):
        trimap = MakeTrimap((1, 3))({"alpha": alpha}, np.random.default_rng(seed))["trimap"][:, :, 0]
        seen |= {
            (inner, outer)
            for inner in range(5)
            for outer in range(5)
            if (trimap == trimap_from_alpha(alpha[:, :, 0], inner, outer)).all()
        }
    assert seen == {(inner, outer) for inner in (1, 2, 3) for outer in (1, 2, 3)}


def test_the_composite_is_in_range():
    rng = np.random.default_rng(0)
    sample = {key: rng.random((5, 5, 3), np.float32) for key in ("foreground", "background")}
    sample |= {"alpha": rng.random((5, 5, 1), np.float32)}
    image = CompositeImage()(sample, rng)["image"]
    expected = sample["alpha"] * sample["foreground"] + (1 - sample["alpha"]) * sample["background"]
    np.testing.assert_allclose(image, expected, atol=1e-6)
    ones = {key: np.full((5, 5, 3), np.nextafter(np.float32(1), np.float32(2))) for key in ("foreground", "background")}
    assert CompositeImage()({**sample, **ones}, rng)["image"].max() <= 1
