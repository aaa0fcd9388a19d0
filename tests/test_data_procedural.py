"""Procedural foregrounds: coverage and colour against brute force and closed forms; what each kind must contain."""

import numpy as np
import pytest

from data.procedural.canvas import SCALE, blob, canvas_for, fill, resolve, strand
from data.procedural.demo import DEMO_KINDS
from data.procedural.surfaces import noise, texture

SIZE_PX = 128


def brute_force_strand(root, control, tip, width, taper, size_px, samples_per_side):
    """Coverage (size_px, size_px): the share of samples within half the local width of the curve's nearest point."""
    t = np.linspace(0, 1, 800)
    curve = np.outer((1 - t) ** 2, root) + np.outer(2 * t * (1 - t), control) + np.outer(t**2, tip)
    coverage = np.zeros((size_px, size_px))
    offsets = (np.arange(samples_per_side) + 0.5) / samples_per_side
    for y in range(size_px):
        for x in range(size_px):
            for offset_y in offsets:
                points = np.stack([x + offsets, np.full_like(offsets, y + offset_y)], 1)
                distance = np.linalg.norm(points[:, None] - curve, axis=2)
                nearest = distance.argmin(1)
                within = distance.min(1) <= width * (1 - taper * t[nearest]) / 2
                coverage[y, x] += (within & (nearest > 0) & (nearest < len(t) - 1)).sum()
    return coverage / samples_per_side**2


@pytest.mark.parametrize("width", [1.0, 3.0])
def test_a_strand_covers_what_a_brute_force_drawing_covers(width):
    root, control, tip = np.array([3.2, 2.7]), np.array([8.0, 20.1]), np.array([20.4, 16.3])
    canvas = canvas_for(24)
    fill(canvas, strand(root, control, tip, width, num_points=40), 255)
    alpha, _ = resolve(canvas)
    expected = brute_force_strand(root, control, tip, width, 0.8, 24, samples_per_side=10)
    assert ((alpha > 0) & (alpha < 1)).sum() > 20
    # An edge is off by at most half a sample, a pixel of a thin strand has two of them.
    np.testing.assert_allclose(alpha, expected, atol=1.1 / SCALE)
    assert abs(alpha.sum() / expected.sum() - 1) < 0.05


def test_a_circle_covers_its_area_and_lies_where_it_should():
    canvas = canvas_for(40)
    centre = np.array([17.3, 22.6])
    fill(canvas, blob(np.random.default_rng(0), centre, 11.0, roughness=0), 255)
    alpha, _ = resolve(canvas)
    y, x = np.mgrid[:40, :40] + 0.5
    half_a_sample = 2 * np.pi * 11.0 * 0.5 / SCALE
    assert abs(alpha.sum() - np.pi * 11.0**2) < 1.2 * half_a_sample
    np.testing.assert_allclose([(alpha * x).sum() / alpha.sum(), (alpha * y).sum() / alpha.sum()], centre, atol=0.05)


def test_resolving_is_the_mean_over_the_samples_and_over_the_painted_ones():
    rng = np.random.default_rng(1)
    canvas = rng.integers(1, 256, (3 * SCALE, 2 * SCALE), np.uint8)
    canvas[rng.random(canvas.shape) < 0.7] = 0
    canvas[:SCALE, :SCALE] = 0
    alpha, shade = resolve(canvas)
    for y in range(3):
        for x in range(2):
            samples = canvas[y * SCALE : (y + 1) * SCALE, x * SCALE : (x + 1) * SCALE].ravel()
            painted = samples[samples > 0]
            assert alpha[y, x] == pytest.approx(len(painted) / SCALE**2)
            if len(painted):
                assert shade[y, x] == pytest.approx(painted.mean() / 255, rel=1e-5)
    assert 0.3 < shade[0, 0] < 0.7  # nothing painted here: continued from the neighbours


def test_random_fields_fill_their_range():
    field = noise(np.random.default_rng(2), 64, cells=3)
    assert (field.min(), field.max()) == (0, 1)
    surfaces = np.stack([texture(np.random.default_rng([2, i]), 64) for i in range(40)])
    assert surfaces.min() >= 0 and surfaces.max() <= 1
    strongest = np.bincount(surfaces.mean((1, 2)).argmax(1), minlength=3)
    assert strongest.min() >= 5  # reddish, greenish and bluish ones: no colour gives the foreground away


@pytest.mark.parametrize("kind", DEMO_KINDS)
def test_every_kind_has_background_opaque_and_fractional_pixels(kind):
    for index in range(4):
        foreground, alpha = DEMO_KINDS[kind](np.random.default_rng([3, index]), SIZE_PX)
        assert foreground.shape == (SIZE_PX, SIZE_PX, 3) and alpha.shape == (SIZE_PX, SIZE_PX)
        assert foreground.dtype == alpha.dtype == np.float32
        for values in (foreground, alpha):
            assert values.min() >= 0 and values.max() <= 1
        assert (alpha == 0).mean() > 0.25 and (alpha > 0.998).mean() > 0.02
        assert ((alpha > 0.02) & (alpha < 0.98)).mean() > 0.01


@pytest.mark.parametrize("kind", ["hair", "fur", "lace"])
def test_colours_are_not_premultiplied(kind):
    foreground, alpha = DEMO_KINDS[kind](np.random.default_rng(5), SIZE_PX)
    brightness = foreground.mean(2)
    faint = brightness[(alpha > 0) & (alpha < 0.3)].mean()  # premultiplied, it would be below 0.3 of the opaque ones
    assert faint > 0.7 * brightness[alpha == 1].mean()
