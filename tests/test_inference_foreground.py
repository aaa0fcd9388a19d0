"""Colours without their background: against exact ones, against pymatting, against loops and identities."""

import os
import subprocess
import sys
import tracemalloc

import cv2
import numpy as np
import pytest
from pymatting import estimate_foreground_ml

from data.composition import composite
from data.image_io.images import DataError
from data.procedural.demo import DEMO_KINDS
from data.procedural.surfaces import texture
from inference.foreground import cover, cut_out, estimate_foreground, estimate_foreground_light, over
from runtime import optional_packages as extras
from runtime.optional_packages import MissingExtraError
from tests.helpers.paths import REPOSITORY


def scene(kind="hair", size_px=128, seed=0):
    """An exact foreground (H, W, 3) and alpha (H, W), and what a camera sees of them in 8 bit, (H, W, 3) float32."""
    rng = np.random.default_rng(seed)
    foreground, alpha = DEMO_KINDS[kind](rng, size_px)
    image = composite(alpha[..., None], foreground, texture(rng, size_px))
    return foreground, alpha, np.rint(255 * image).astype(np.float32) / 255


def visible_error(estimate, foreground, alpha):
    """Mean of alpha |estimate - F| over the unknown region: how far the estimate's composites are off."""
    return (alpha[..., None] * np.abs(estimate - foreground))[(alpha > 0) & (alpha < 1)].mean()


@pytest.mark.parametrize("kind", DEMO_KINDS)
def test_estimated_colours_are_nearer_to_the_exact_ones_than_the_images(kind):
    foreground, alpha, image = scene(kind)
    estimate = estimate_foreground(image, alpha)
    assert (estimate.dtype, estimate.shape) == (np.float32, image.shape)
    assert estimate.min() >= 0 and estimate.max() <= 1
    error = visible_error(estimate, foreground, alpha)
    assert error < 0.6 * visible_error(image, foreground, alpha)
    assert error <= 1.05 * visible_error(estimate_foreground_ml(image, alpha), foreground, alpha)


def test_opaque_pixels_keep_their_colour_to_the_bit():
    _, alpha, image = scene("solid")
    opaque = alpha == 1
    assert 0.1 < opaque.mean() < 0.9
    np.testing.assert_array_equal(estimate_foreground(image, alpha)[opaque], image[opaque])


def test_one_colour_over_another_is_found_exactly():
    alpha = scene("hair")[1]
    orange, blue = np.array([0.9, 0.5, 0.1], np.float32), np.array([0.1, 0.2, 0.8], np.float32)
    estimate = estimate_foreground(composite(alpha[..., None], orange, blue), alpha)
    np.testing.assert_allclose(
        estimate[alpha > 0.02], np.broadcast_to(orange, (*alpha.shape, 3))[alpha > 0.02], atol=2e-3
    )


def test_light_without_a_bound_is_estimated_as_well():
    alpha = scene("hair")[1]
    lamp, shade = np.array([20, 7, 0.5], np.float32), np.array([0.1, -0.25, 3], np.float32)
    light = composite(alpha[..., None], lamp, shade).astype(np.float32)
    estimate = estimate_foreground_light(light, alpha)
    clear = alpha > 0.02
    np.testing.assert_allclose(estimate[clear], np.broadcast_to(lamp, (*alpha.shape, 3))[clear], atol=4e-2)
    np.testing.assert_array_equal(estimate[alpha == 1], light[alpha == 1])


def test_light_of_one_value_stays_it():
    light = np.full((8, 8, 3), 5, np.float32)
    np.testing.assert_array_equal(estimate_foreground_light(light, np.full((8, 8), 0.5, np.float32)), light)


def test_images_of_any_dtype_give_one_estimate_and_stay_as_they_are():
    _, alpha, image = scene(size_px=48)
    expected = estimate_foreground(image, alpha)
    pixels = np.rint(255 * image).astype(np.uint8)
    for same in (pixels, pixels.astype(np.uint16) * 257, image.astype(np.float64), np.asfortranarray(image)):
        before, alpha_before = same.copy(), alpha.copy()
        np.testing.assert_allclose(estimate_foreground(same, alpha.astype(np.float64)), expected, rtol=0, atol=1e-5)
        estimate_foreground(same, alpha)[:] = 7
        np.testing.assert_array_equal(same, before)
        np.testing.assert_array_equal(alpha, alpha_before)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3)])
@pytest.mark.parametrize("value", [0, 0.5, 1])
def test_any_size_and_any_alpha_are_estimated(size, value):
    image = np.random.default_rng(0).random((*size, 3), np.float32)
    estimate = estimate_foreground(image, np.full(size, value, np.float32))
    assert estimate.shape == image.shape and np.isfinite(estimate).all() and not np.shares_memory(estimate, image)
    if value == 1 or size == (1, 1):
        np.testing.assert_array_equal(estimate, image)


ESTIMATE_IN_THREADS = """
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from inference.foreground import estimate_foreground

rng = np.random.default_rng(0)
image, alpha = rng.random((300, 300, 3), np.float32), rng.random((300, 300), np.float32)
expected = estimate_foreground(image, alpha)
with ThreadPoolExecutor(4) as pool:
    for estimate in pool.map(lambda _: estimate_foreground(image, alpha), range(100)):
        assert np.array_equal(estimate, expected)
"""


def test_threads_take_turns():
    """With the threads that numba has everywhere, and which end the process otherwise."""
    environment = {**os.environ, "NUMBA_THREADING_LAYER": "workqueue", "NUMBA_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", ESTIMATE_IN_THREADS], cwd=REPOSITORY, env=environment, check=True)


def test_torch_keeps_its_number_of_threads():
    code = """if True:
        import numpy as np, torch
        from inference.foreground import estimate_foreground
        print(torch.get_num_threads())
        estimate_foreground(np.zeros((9, 9, 3)), np.zeros((9, 9)))
        print(torch.get_num_threads())"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, stdout=subprocess.PIPE)
    assert done.stdout.split() == [b"1", b"1"]


def test_a_cut_out_holds_colours_and_alpha():
    foreground, alpha, _ = scene(size_px=32)
    straight = cut_out(foreground, alpha)
    assert straight.dtype == np.float32
    np.testing.assert_array_equal(straight[:, :, :3], foreground)  # where alpha is 0 too
    np.testing.assert_array_equal(straight[:, :, 3], alpha)
    multiplied = cut_out(foreground, alpha, is_premultiplied=True)
    np.testing.assert_array_equal(multiplied, straight * np.dstack([alpha, alpha, alpha, np.ones_like(alpha)]))


def test_a_subject_over_its_own_background_is_the_image():
    rng = np.random.default_rng(0)
    foreground, alpha = DEMO_KINDS["glass"](rng, 64)
    background = texture(rng, 64)
    image = over(foreground, alpha, background)
    for row, column in rng.integers(0, 64, (50, 2)):
        opacity = float(alpha[row, column])
        for channel in range(3):
            expected = foreground[row, column, channel] * opacity + background[row, column, channel] * (1 - opacity)
            assert abs(image[row, column, channel] - expected) < 1e-6
    colour = np.array([0.2, 0.9, 0.4])
    everywhere = np.broadcast_to(colour, image.shape)
    np.testing.assert_array_equal(over(foreground, alpha, colour), over(foreground, alpha, everywhere))
    in_8_bit = over(foreground, alpha, np.array([51, 0, 255], np.uint8))
    np.testing.assert_array_equal(in_8_bit[alpha == 0], np.float32([[0.2, 0, 1]]).repeat((alpha == 0).sum(), axis=0))


@pytest.mark.parametrize("size", [(20, 90), (90, 20), (31, 31), (7, 300), (1, 1), (400, 33)])
@pytest.mark.parametrize("own_size", [(64, 48), (10, 11), (1, 5), (300, 100), (20, 400)])
def test_a_background_is_the_window_of_one_that_is_resized_as_a_whole(size, own_size):
    """To half a pixel of the result: a ramp says where each was taken from."""
    rows, columns = np.mgrid[: own_size[0], : own_size[1]].astype(np.float32)
    scale = max(size[0] / own_size[0], size[1] / own_size[1])
    whole = [max(wanted, round(own * scale)) for wanted, own in zip(size, own_size, strict=True)]
    resized = cv2.resize(
        np.dstack([rows, columns, rows]), whole[::-1], interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    )
    top, left = (whole[0] - size[0]) // 2, (whole[1] - size[1]) // 2
    expected = resized[top : top + size[0], left : left + size[1]]
    np.testing.assert_allclose(cover(np.dstack([rows, columns, rows]), *size), expected, rtol=0, atol=0.501 / scale)


def test_no_more_of_a_background_is_resized_than_is_seen():
    image = np.zeros((1500, 2000, 3), np.float32)
    tracemalloc.start()
    try:
        found = cover(image, 6000, 600)  # the whole would be 8000 px wide
        assert tracemalloc.get_traced_memory()[1] < 1.1 * found.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda F, a: estimate_foreground(F[1:], a), r"of one size, got \(7, 8, 3\) and \(8, 8\)"),
        (lambda F, a: estimate_foreground(F, F), r"alpha \(H, W\) of one size, got \(8, 8, 3\) and \(8, 8, 3\)"),
        (lambda F, a: estimate_foreground(F[:0], a[:0]), r"got \(0, 8, 3\)"),
        (lambda F, a: estimate_foreground(F[..., :2], a), r"the image has shape \(8, 8, 2\)"),
        (lambda F, a: estimate_foreground(F * 255, a), r"the image in \[0, 1\], got 127.5 to 127.5"),
        (lambda F, a: estimate_foreground(F, a * np.nan), r"the alpha in \[0, 1\], got nan to nan"),
        (lambda F, a: estimate_foreground(F, a.astype(int)), "expected uint8 or uint16"),
        (lambda F, a: cut_out(F - 1, a), r"the foreground in \[0, 1\], got -0.5"),
        (lambda F, a: over(F, a, np.full(3, 255.0)), r"the background in \[0, 1\], got 255"),
        (lambda F, a: over(F, a, np.zeros((5, 5, 2))), r"the background has shape \(5, 5, 2\)"),
        (lambda F, a: over(F, a, np.zeros(4)), r"the background has shape \(4,\)"),
    ],
)
def test_what_cannot_be_used_is_refused(act, words):
    with pytest.raises(DataError, match=words):
        act(np.full((8, 8, 3), 0.5, np.float32), np.full((8, 8), 0.5, np.float32))


def test_without_pymatting_the_way_to_get_it_is_said(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(extras.importlib, "import_module", absent)
    with pytest.raises(MissingExtraError, match="foreground estimation needs the optional package pymatting"):
        estimate_foreground(np.zeros((2, 2, 3)), np.zeros((2, 2)))


def test_cutting_out_loads_neither_torch_nor_pymatting():
    code = "import sys, inference.foreground; print({'torch', 'pymatting', 'numba'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout.strip() == "set()"
