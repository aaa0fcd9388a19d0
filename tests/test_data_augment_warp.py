"""Sampling against slices, block means and scipy."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from data.augment import warp as sampling
from data.augment.random_crop import Matrix, scaling, translation
from data.augment.warp import (
    INTERPOLATIONS,
    crop_background,
    merge_layers,
    premultiply,
    split_layer,
)
from data.composition import composite, merge_foregrounds
from data.image_io.images import to_float
from data.sources.foregrounds import DecodedForeground, average
from tests.helpers.drawn_images import draw_disc, draw_noise


def smooth(height: int, width: int) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(height, width)), 3)
    return np.rint(255 * (noise - noise.min()) / np.ptp(noise)).astype(np.uint8)


def sample_layer(
    colour: np.ndarray, alpha: np.ndarray, to_crop: Matrix, crop_px: int, interpolation: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sample arrays to alpha (S, S, 1) and foreground (S, S, 3)."""
    return sampling.sample_layer(DecodedForeground(colour, alpha), to_crop, crop_px, interpolation)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_shift_by_whole_pixels_is_a_slice_with_zeros_around(interpolation, dtype):
    colour, alpha = draw_noise(20, 30, dtype=dtype), draw_noise(20, 30, 1, dtype)[:, :, 0]
    sampled, foreground = sample_layer(colour, alpha, translation(np.array([-5, 4])), 24, interpolation)
    expected = np.pad(to_float(alpha), ((4, 0), (0, 0)))[:24, 5:29]
    np.testing.assert_allclose(sampled[:, :, 0], expected, atol=1e-6)
    colours = np.pad(to_float(colour), ((4, 0), (0, 0), (0, 0)))[:24, 5:29]
    is_visible = expected > 0.01
    np.testing.assert_allclose(foreground[is_visible], colours[is_visible], atol=1e-5)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_flips_and_quarter_turns_are_exact(interpolation):
    alpha, colour = smooth(16, 16), draw_noise(16, 16)
    flip = translation(np.array([16, 0])) @ scaling(np.array([-1, 1]))
    turn = translation(np.array([16, 0])) @ np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]])
    for matrix, expected in ((flip, alpha[:, ::-1]), (turn, np.rot90(alpha, -1))):
        sampled = sample_layer(colour, alpha, matrix, 16, interpolation)[0]
        np.testing.assert_allclose(sampled[:, :, 0], to_float(expected), atol=1e-5)


def test_an_affine_map_agrees_with_scipy():
    alpha = smooth(90, 120)
    to_crop = translation(np.array([20, 10])) @ np.array([[0.9, 0.3, 0], [-0.2, 1.1, 0], [0, 0, 1]])
    to_image = np.linalg.inv(to_crop)
    x, y = np.meshgrid(np.arange(64) + 0.5, np.arange(64) + 0.5)
    columns = to_image[0, 0] * x + to_image[0, 1] * y + to_image[0, 2] - 0.5
    rows = to_image[1, 0] * x + to_image[1, 1] * y + to_image[1, 2] - 0.5
    sampled = sample_layer(draw_noise(90, 120), alpha, to_crop, 64, cv2.INTER_LINEAR)[0][:, :, 0]
    is_inside = (rows > 1) & (rows < 88) & (columns > 1) & (columns < 118)
    assert is_inside.mean() > 0.4
    expected = ndimage.map_coordinates(to_float(alpha), [rows, columns], order=1)
    # OpenCV before 5 knows 32 steps between two pixels, whose greatest difference here is 0.12.
    np.testing.assert_allclose(sampled[is_inside], expected[is_inside], atol=0.12 / 32)
    assert (sampled[(rows < -1) | (columns < -1)] == 0).all()


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_shrinking_averages_premultiplied_blocks(factor):
    colour, alpha = draw_noise(24, 24), draw_noise(24, 24, 1)[:, :, 0]
    size = 24 // factor
    sampled, foreground = sample_layer(colour, alpha, scaling(1 / factor), size, cv2.INTER_LINEAR)

    def block_mean(values: np.ndarray) -> np.ndarray:
        return values.reshape(size, factor, size, factor, -1).mean(axis=(1, 3))

    half_a_step = 0.501 / 255  # colours and alpha are rounded on the way
    expected = block_mean(to_float(alpha))
    np.testing.assert_allclose(sampled, expected, atol=half_a_step)
    premultiplied = block_mean(to_float(alpha)[:, :, None] * to_float(colour))
    np.testing.assert_allclose(foreground, premultiplied / expected, atol=half_a_step)


@given(st.sampled_from(INTERPOLATIONS), st.floats(0.2, 4), st.floats(0, 3))
@settings(max_examples=30)
def test_hidden_colours_do_not_bleed_and_values_stay_in_range(interpolation, factor, angle):
    alpha = draw_disc(40)
    colour = np.zeros((40, 40, 3), np.uint8)
    colour[alpha > 0] = 255, 128, 0
    colour[alpha == 0] = 0, 0, 255
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    to_crop = translation(np.full(2, 20.0)) @ rotation @ scaling(factor) @ translation(np.full(2, -20.0))
    sampled, foreground = sample_layer(colour, alpha, to_crop, 40, interpolation)
    for values in (sampled, foreground):
        assert values.dtype == np.float32
        assert values.min() >= 0
        assert values.max() <= 1
    assert sampled.max() > 0.9
    is_visible = sampled[:, :, 0] > 0.02
    np.testing.assert_allclose(foreground[is_visible], np.tile([1, 128 / 255, 0], (is_visible.sum(), 1)), atol=1e-3)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("factor", [0.15, 0.21, 0.27, 0.7, 2.3])
def test_what_a_view_leaves_out_does_not_change_it(interpolation, factor):
    """A view reads its own part of the image alone; it must be the middle of a larger view."""
    colour, alpha = draw_noise(600, 600), smooth(600, 600)
    to_view = translation(np.full(2, 8.0)) @ scaling(factor) @ translation(np.array([-300.37, -290.21]))
    small = sample_layer(colour, alpha, to_view, 16, interpolation)
    large = sample_layer(colour, alpha, translation(np.full(2, 24.0)) @ to_view, 64, interpolation)
    # OpenCV rounds places between pixels to 1/32, here or there by float rounding.
    np.testing.assert_allclose(small[0], large[0][24:40, 24:40], atol=0.01)
    assert np.ptp(small[0]) > 0.1


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_leaving_out_what_is_transparent_changes_nothing(interpolation, monkeypatch):
    alpha = np.zeros((300, 260), np.uint8)
    alpha[150:190, 90:100] = draw_disc(60)[10:50, 10:20]
    colour = np.dstack([smooth(300, 260)] * 3)
    for factor, angle in ((0.15, 0.3), (0.7, 1.9), (1.6, 4.0), (2.3, 0)):
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        to_crop = translation(np.full(2, 33.0)) @ turn @ scaling(factor) @ translation(np.array([-97.3, -171.6]))
        with monkeypatch.context() as patch:
            patch.setattr(sampling, "crop_to_visible", lambda window: window)
            whole = sample_layer(colour, alpha, to_crop, 64, interpolation)
        part = sample_layer(colour, alpha, to_crop, 64, interpolation)
        # OpenCV rounds places between pixels to 1/32, here or there by float rounding.
        np.testing.assert_allclose(part[0], whole[0], atol=0.01)
        np.testing.assert_allclose(part[0] * part[1], whole[0] * whole[1], atol=0.01)
        assert whole[0].max() > 0.2


def test_a_view_beside_the_image_is_empty():
    alpha, foreground = sample_layer(draw_noise(9, 9), draw_disc(9), translation(np.array([99, 0])), 8, cv2.INTER_CUBIC)
    assert (alpha == 0).all()
    assert alpha.shape == (8, 8, 1)
    assert foreground.shape == (8, 8, 3)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_foreground_cut_by_its_own_border_ends_there_without_a_seam(interpolation):
    full = np.full((40, 50), 255, np.uint8)
    for factor in (0.44, 1.7):
        alpha, foreground = sample_layer(np.dstack([full] * 3), full, scaling(factor), 100, interpolation)
        rows, columns = (np.flatnonzero(alpha[:, :, 0].any(axis=axis)) for axis in (1, 0))
        np.testing.assert_allclose(alpha[: len(rows), : len(columns)], 1, atol=1e-6)
        assert (len(columns), len(rows)) == (round(50 * factor), round(40 * factor))


def test_alpha_keeps_its_ends_exactly_at_8_bit():
    levels = np.arange(256, dtype=np.uint8)
    sampled, _ = split_layer(premultiply(np.full((1, 256, 3), 200, np.uint8), levels[None]))
    np.testing.assert_allclose(sampled[0, :, 0], levels / 255, rtol=1e-6)
    assert (sampled[0, 0], sampled[0, 255]) == (0, 1)


def test_merging_keeps_the_upper_layer_where_the_lower_fills_the_crop():
    rng = np.random.default_rng(0)
    upper, lower = ((rng.random((5, 5, 1), np.float32), rng.random((5, 5, 3), np.float32)) for _ in range(2))
    full = np.ones((5, 5, 1), np.float32), lower[1]
    for merged, expected in (
        (merge_layers([upper, full]), upper),
        (merge_layers([upper, lower]), merge_foregrounds(*upper, *lower)),
        (merge_layers([upper, full, lower]), merge_foregrounds(*upper, *lower)),
        (merge_layers([upper]), upper),
    ):
        assert merged[0].shape == (5, 5, 1)
        for values, others in zip(merged, expected, strict=True):
            np.testing.assert_allclose(values, others, atol=1e-6)


@pytest.mark.parametrize("interpolation", [cv2.INTER_CUBIC, cv2.INTER_LANCZOS4])
def test_merging_after_an_interpolation_that_overshoots_draws_no_halo(interpolation):
    """Beside a hard edge they give alphas below 0 and above 1, which would weigh the lower one too much."""
    size = 40
    disc_alpha = np.where(draw_disc(size) > 127, 255, 0).astype(np.uint8)
    to_crop = translation(np.full(2, 0.3)) @ scaling(1.4)
    upper, lower = (
        sample_layer(np.full((size, size, 3), grey, np.uint8), alpha, to_crop, size, interpolation)
        for grey, alpha in ((255, disc_alpha), (128, np.full((size, size), 128, np.uint8)))
    )
    alpha, foreground = merge_layers([upper, lower])
    image = composite(alpha, foreground, np.zeros(3))
    expected = upper[0] + (1 - upper[0]) * (128 / 255) ** 2
    np.testing.assert_allclose(image, np.repeat(expected, 3, axis=2), atol=1e-4)
    assert alpha.min() > 0.5


class Picture:
    """What `crop_background` asks of a file, for an array; `reductions` are what it was asked for."""

    path = Path("array")

    def __init__(self, pixels: np.ndarray, can_reduce: bool = False) -> None:
        self.pixels, self.can_reduce = pixels, can_reduce
        self.reductions: list[int] = []

    def size(self) -> tuple[int, int]:
        return self.pixels.shape[1], self.pixels.shape[0]

    def read(self, reduction: int) -> np.ndarray:
        self.reductions.append(reduction)
        return average(self.pixels, reduction if self.can_reduce else 1)


def crop(picture_: Picture, frame: tuple[float, float], window_px: float, crop_px: int, seed: int) -> np.ndarray:
    return crop_background(picture_, np.array(frame), window_px, crop_px, np.random.default_rng(seed))  # type: ignore[arg-type]


def test_backgrounds_cover_the_frame_and_are_cropped_to_the_same_share():
    ramp = Picture(np.dstack([np.tile(np.linspace(0, 65_535, 800, dtype=np.uint16), (400, 1))] * 3))
    for seed in range(10):
        row = crop(ramp, (200, 100), 50, 100, seed)[50, :, 0]
        # covering 200 x 100 px takes a quarter of 800 x 400; 50 px of that are 200 of 800
        assert abs((row[-5] - row[5]) / 90 * 100 - 200 / 799) < 0.01
    assert len({crop(ramp, (200, 100), 50, 100, seed)[0, 0, 0] for seed in range(9)}) > 5


@pytest.mark.parametrize("can_reduce", [False, True])
def test_shrunk_backgrounds_are_averaged(can_reduce):
    background = Picture(draw_noise(320, 320), can_reduce)
    cropped = crop(background, (40, 40), 40, 40, 0)
    block_means = to_float(background.pixels).reshape(40, 8, 40, 8, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(cropped, block_means, atol=0.51 / 255)
    assert background.reductions == [8]


def test_a_background_that_comes_reduced_is_cropped_at_the_same_place():
    x, y = np.meshgrid(np.linspace(0, 65_535, 300), np.linspace(0, 65_535, 400))
    pixels = np.dstack([x, y, x]).astype(np.uint16)
    for seed in range(5):
        whole, reduced = (crop(Picture(pixels, can), (400, 300), 270, 60, seed) for can in (False, True))
        np.testing.assert_allclose(reduced, whole, atol=1.5 / 300)  # its corner is that of an area of 2 x 2
        assert np.ptp(whole) > 0.3
