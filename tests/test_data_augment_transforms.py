"""Colours against colorsys, trimaps and composites against their definitions."""

import colorsys

import numpy as np

from data.augment.transforms import CompositeImage, JitterColour, MakeTrimap
from data.image_io.images import to_float
from data.trimap import trimap_from_alpha
from tests.helpers.drawn_images import draw_disc


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
    alpha = to_float(draw_disc(64))[:, :, None]
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
