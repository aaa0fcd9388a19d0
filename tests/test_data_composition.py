"""Compositing against a loop, merging against compositing twice, arrays against tensors."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from data.composition import composite, merge_foregrounds

alphas = arrays(np.float64, (3, 4, 1), elements=st.sampled_from([0, 1]) | st.floats(0, 1))
colours = arrays(np.float64, (3, 4, 3), elements=st.floats(0, 1))


@given(alphas, colours, colours)
def test_composite_is_the_equation_pixel_by_pixel(alpha, foreground, background):
    image = composite(alpha, foreground, background)
    for y, x, c in np.ndindex(image.shape):
        a = alpha[y, x, 0]
        assert image[y, x, c] == a * foreground[y, x, c] + (1 - a) * background[y, x, c]


@given(alphas, colours, alphas, colours, colours)
def test_a_merged_foreground_looks_like_the_two_laid_one_by_one(alpha1, foreground1, alpha2, foreground2, background):
    alpha, foreground = merge_foregrounds(alpha1, foreground1, alpha2, foreground2)
    one_by_one = composite(alpha1, foreground1, composite(alpha2, foreground2, background))
    np.testing.assert_allclose(composite(alpha, foreground, background), one_by_one, atol=1e-12)
    np.testing.assert_allclose(alpha, 1 - (1 - alpha1) * (1 - alpha2), atol=1e-12)
    assert foreground.min() >= 0
    assert foreground.max() <= 1 + 1e-6


def test_where_both_are_transparent_the_upper_colour_stays():
    zero, colour = np.zeros((1, 1, 1)), np.array([[[0.2, 0.4, 0.6]]])
    alpha, foreground = merge_foregrounds(zero, colour, zero, 1 - colour)
    assert alpha == 0
    np.testing.assert_array_equal(foreground, colour)


def test_arrays_and_batches_of_tensors_agree():
    rng = np.random.default_rng(0)
    alpha1, alpha2 = (rng.random((5, 7, 1)).astype(np.float32) for _ in range(2))
    colours = [rng.random((5, 7, 3)).astype(np.float32) for _ in range(3)]
    alpha, foreground = merge_foregrounds(alpha1, colours[0], alpha2, colours[1])

    def batched(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).permute(2, 0, 1)[None]

    alpha_t, foreground_t = merge_foregrounds(
        batched(alpha1), batched(colours[0]), batched(alpha2), batched(colours[1])
    )
    torch.testing.assert_close(alpha_t, batched(alpha))
    torch.testing.assert_close(foreground_t, batched(foreground))
    image = composite(alpha_t, foreground_t, batched(colours[2]))
    assert image.dtype == torch.float32
    torch.testing.assert_close(image, batched(composite(alpha, foreground, colours[2])))
