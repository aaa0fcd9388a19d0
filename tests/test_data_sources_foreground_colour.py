"""Colours freed of their background: against the exact ones that generated images have, and closed forms."""

import numpy as np
import pytest
from pymatting import estimate_foreground_ml

from data.composition import composite
from data.image_io.images import to_float, to_uint8
from data.procedural.demo import DEMO_KINDS
from data.procedural.surfaces import texture
from data.sources.foreground_colour import DecontaminatedForeground, decontaminate, estimate_layers
from data.sources.foregrounds import DecodedForeground, average


def scene(kind: str, size_px: int = 256) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An exact foreground (H, W, 3) and alpha (H, W) in [0, 1], and a photograph of them, (H, W, 3) uint8."""
    rng = np.random.default_rng(0)
    foreground, alpha = DEMO_KINDS[kind](rng, size_px)
    alpha = to_float(to_uint8(alpha))
    return foreground, alpha, to_uint8(composite(alpha[..., None], foreground, texture(rng, size_px)))


def visible_error(colours: np.ndarray, foreground: np.ndarray, alpha: np.ndarray) -> float:
    """Mean of alpha |estimate - F| over fractional pixels: how far composites of the estimate are off."""
    return (alpha[..., None] * np.abs(colours - foreground))[(alpha > 0) & (alpha < 1)].mean()


class Memory:
    """A foreground in memory that notes what is asked of it."""

    name = "memory"

    def __init__(self, colours: np.ndarray, alpha: np.ndarray) -> None:
        self.opened = DecodedForeground(colours, alpha)
        self.reductions: list[int] = []
        self.size = self.opened.size
        self.unknown_points = self.opened.unknown_points

    def open(self) -> "Memory":
        return self

    def read(self, box, reduction):
        self.reductions.append(reduction)
        return self.opened.read(box, reduction)


def test_estimates_of_all_kinds_together_are_nearer_to_the_exact_colours_than_pymattings():
    """One kind alone may be a sixth worse, another better by as much."""
    errors, errors_of_pymatting = [], []
    for kind in DEMO_KINDS:
        foreground, alpha, photograph = scene(kind)
        image = to_float(photograph)
        errors.append(visible_error(to_float(decontaminate(photograph, to_uint8(alpha))), foreground, alpha))
        assert errors[-1] < 0.4 * visible_error(image, foreground, alpha), kind
        errors_of_pymatting.append(visible_error(estimate_foreground_ml(image, alpha), foreground, alpha))
    assert sum(errors) < 0.9 * sum(errors_of_pymatting)


def test_layers_blend_to_the_image_and_are_the_exact_ones_nearly():
    foreground, alpha, photograph = scene("lace")
    image = to_float(photograph)
    layers = estimate_layers(image, alpha)
    assert all((layer.dtype, layer.shape) == (np.float32, image.shape) for layer in layers)
    assert all(layer.min() >= 0 and layer.max() <= 1 for layer in layers)
    assert visible_error(layers[0], foreground, alpha) < 0.15 * visible_error(image, foreground, alpha)
    np.testing.assert_allclose(layers[0][alpha == 1], image[alpha == 1], atol=1e-6)
    np.testing.assert_allclose(layers[1][alpha == 0], image[alpha == 0], atol=1e-6)
    is_inside = np.all([(layer > 0) & (layer < 1) for layer in layers], axis=0)  # not clipped
    np.testing.assert_allclose(composite(alpha[..., None], *layers)[is_inside], image[is_inside], atol=1e-5)


def test_one_colour_over_another_is_found_to_half_a_step_of_8_bit():
    alpha = scene("hair")[1]
    orange, blue = np.array([0.9, 0.5, 0.1], np.float32), np.array([0.1, 0.2, 0.8], np.float32)
    image = np.rint(65_535 * composite(alpha[..., None], orange, blue)).astype(np.uint16)
    before = image.copy()
    errors = np.abs(to_float(decontaminate(image, to_uint8(alpha))) - orange)[alpha > 0]
    np.testing.assert_array_equal(image, before)
    assert 255 * errors.mean() < 0.5
    assert 255 * np.quantile(errors, 0.99) < 5


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 1), (13, 6)])
def test_any_size_is_estimated(size):
    rng = np.random.default_rng(0)
    image, alpha = rng.integers(0, 256, (*size, 3), np.uint8), rng.integers(0, 256, size, np.uint8)
    opaque = np.full(size, 255, np.uint8)
    np.testing.assert_array_equal(decontaminate(image, opaque), image)
    assert decontaminate(image, alpha).shape == image.shape
    flat = np.full_like(image, 101)
    np.testing.assert_array_equal(decontaminate(flat, alpha), flat)
    assert all(np.isfinite(layer).all() for layer in estimate_layers(to_float(image), to_float(opaque)))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_fractional_pixels_alone_change_and_in_their_own_dtype(dtype):
    foreground, alpha, image = scene("hair")
    colours = image.astype(dtype) * (257 if dtype == np.uint16 else 1)
    source = Memory(colours.copy(), to_uint8(alpha))
    read_colours, read_alpha = DecontaminatedForeground(source).open().read((16, 8, 220, 200), 1)
    place = np.s_[8:200, 16:220]
    np.testing.assert_array_equal(read_alpha, to_uint8(alpha)[place])
    assert read_colours.dtype == dtype
    is_fractional = (read_alpha > 0) & (read_alpha < 255)
    np.testing.assert_array_equal(read_colours[~is_fractional], colours[place][~is_fractional])
    error = visible_error(to_float(read_colours), foreground[place], alpha[place])
    assert error < 0.35 * visible_error(to_float(image[place]), foreground[place], alpha[place])
    np.testing.assert_array_equal(source.opened.read((0, 0, 256, 256), 1)[0], colours)  # the source is left alone


def test_a_reduced_box_is_estimated_from_plain_averages():
    foreground, alpha, image = scene("hair")
    source = Memory(image, to_uint8(alpha))
    colours, reduced = DecontaminatedForeground(source).open().read((0, 0, 256, 256), 2)
    assert source.reductions == [1]
    np.testing.assert_array_equal(reduced, average(to_uint8(alpha), 2))
    exact = average(foreground * alpha[..., None], 2) / np.maximum(average(alpha, 2), 1e-6)[..., None]
    opacity = to_float(reduced)
    error = visible_error(to_float(colours), exact, opacity)
    assert error < 0.35 * visible_error(average(to_float(image), 2), exact, opacity)


@pytest.mark.parametrize("reduction", [1, 2])
def test_a_pixel_is_nearly_the_same_in_every_box(reduction):
    _, alpha, image = scene("fur", 300)
    opened = DecontaminatedForeground(Memory(image, to_uint8(alpha))).open()
    whole, whole_alpha = opened.read((0, 0, 300, 300), reduction)
    differences = []
    for left, top, right, bottom in ((50, 62, 251, 300), (26, 38, 300, 273)):
        colours, opacity = opened.read((left, top, right, bottom), reduction)
        height, width = -(-(bottom - top) // reduction), -(-(right - left) // reduction)
        assert colours.shape == (height, width, 3)
        first_row, first_column = top // reduction, left // reduction
        place = np.s_[first_row : first_row + height, first_column : first_column + width]
        np.testing.assert_array_equal(opacity, whole_alpha[place])
        visible = to_float(opacity)[..., None] * np.abs(colours.astype(int) - whole[place])
        differences.append(visible[20:-20, 20:-20][(opacity[20:-20, 20:-20] % 255) > 0].ravel())
    assert np.concatenate(differences).mean() < 0.15  # of 255; 0.7 where boxes begin anywhere
    assert np.quantile(np.concatenate(differences), 0.99) < 1.5


def test_opaque_boxes_and_the_rest_come_from_the_source():
    rng = np.random.default_rng(0)
    colours, alpha = rng.integers(0, 256, (9, 12, 3), np.uint8), np.full((9, 12), 255, np.uint8)
    alpha[0, 3] = 100
    foreground = DecontaminatedForeground(Memory(colours, alpha))
    opened = foreground.open()
    assert (foreground.name, opened.size) == ("memory", (12, 9))
    np.testing.assert_array_equal(opened.unknown_points(rng), np.tile([3, 0], (64, 1)))
    np.testing.assert_array_equal(opened.read((0, 1, 12, 9), 1)[0], colours[1:])
