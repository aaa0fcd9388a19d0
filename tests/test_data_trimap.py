"""One decoder of trimaps, erosion against scipy, bands around masks against loops, baselines against closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy import ndimage

from data.image_io.formats import find_images
from data.image_io.images import DataError
from data.mask import decode_mask, read_mask, resize_mask
from data.trimap import (
    decode_trimap,
    encode_trimap,
    ramp_alpha,
    read_strict_trimap,
    read_trimap,
    trimap_from_alpha,
    trimap_from_mask,
    trivial_alpha,
    unknown_mask,
    write_trimap,
)
from runtime.errors import ConfigError

trimaps = arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.sampled_from([0, 0.5, 1]))


def test_every_grey_value_is_decoded():
    values = np.arange(256, dtype=np.uint8)[None]
    expected = [0.0] + [0.5] * 254 + [1.0]
    trimap = decode_trimap(values)
    assert trimap.dtype == np.float32
    np.testing.assert_array_equal(trimap[0], expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1, 2], [0, 0.5, 1]),
        ([1, 2, 2], [0.5, 1, 1]),
        ([0, 2, 0], [0, 1, 0]),
        ([0, 0, 0], [0, 0, 0]),
        ([0, 1, 3], [0, 0.5, 0.5]),
        ([0, 2, 255], [0, 0.5, 1]),
    ],
)
def test_class_ids_are_told_by_the_maximum(values, expected):
    np.testing.assert_array_equal(decode_trimap(np.array([values], np.uint8))[0], expected)


@pytest.mark.parametrize("values", [[0, 1], [1, 1]])
def test_0_and_1_alone_are_ambiguous(values):
    with pytest.raises(DataError, match=r"mask\.png holds only 0 and 1"):
        decode_trimap(np.array([values], np.uint8), "mask.png")


def test_floats_beside_a_half_become_a_half():
    trimap = decode_trimap(np.array([[0, 127 / 255, 128 / 255, 0.5, 1, 1e-4]]))
    np.testing.assert_array_equal(trimap[0], [0, 0.5, 0.5, 0.5, 1, 0])


@pytest.mark.parametrize("value", [0.3, 0.51, -0.5, 1.5, 128.0, np.nan])
def test_other_floats_are_refused(value):
    with pytest.raises(DataError, match=r"not 0, 0\.5 or 1"):
        decode_trimap(np.array([[0.0, value]]))


@pytest.mark.parametrize("values", [np.zeros((2, 2), bool), np.zeros((2, 2), np.int64), np.zeros((2, 2), np.uint16)])
def test_other_dtypes_are_refused(values):
    with pytest.raises(DataError, match=f"is {values.dtype}; expected uint8"):
        decode_trimap(values)


def test_shapes_are_checked():
    grey = np.array([[0, 128, 255]], np.uint8)
    np.testing.assert_array_equal(decode_trimap(np.dstack([grey] * 3)), [[0, 0.5, 1]])
    with pytest.raises(DataError, match="coloured"):
        decode_trimap(np.dstack([grey, grey, 255 - grey]))
    with pytest.raises(DataError, match="shape"):
        decode_trimap(np.zeros((1, 3, 4, 4), np.uint8))
    with pytest.raises(DataError, match="empty"):
        decode_trimap(np.zeros((0, 4), np.uint8))


@given(trimaps)
def test_encoding_and_decoding_are_inverse(trimap):
    np.testing.assert_array_equal(decode_trimap(encode_trimap(trimap)), trimap)


def test_encoding_writes_128_and_refuses_the_rest():
    np.testing.assert_array_equal(encode_trimap(np.array([0, 0.5, 1])), [0, 128, 255])
    with pytest.raises(DataError, match="decode_trimap first"):
        encode_trimap(np.array([128 / 255]))


def test_the_input_is_left_alone():
    values = np.array([[0, 0.5, 1]], np.float32)
    decode_trimap(values)[:] = 7
    trivial_alpha(values)[:] = 7
    np.testing.assert_array_equal(values, [[0, 0.5, 1]])


def test_the_mask_is_the_half_in_arrays_and_tensors():
    trimap = np.array([[0, 0.5, 1]], np.float32)
    np.testing.assert_array_equal(unknown_mask(trimap), [[False, True, False]])
    assert torch.equal(unknown_mask(torch.from_numpy(trimap)), torch.tensor([[False, True, False]]))


def test_real_trimaps_agree_with_their_alphas(matting_folder):
    folder = matting_folder / "alphamatting"
    for path in find_images(folder / "trimap1")[:6]:
        trimap = read_trimap(path)
        assert set(np.unique(trimap)) == {0, 0.5, 1}
        alpha = np.asarray(Image.open(folder / "alpha" / path.name).convert("L"), np.float32) / 255
        assert alpha[trimap == 1].mean() > 0.99
        assert alpha[trimap == 0].mean() < 0.01


def blob(seed: int) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(240, 200)), 14)
    return np.clip(noise / noise.std() + 0.5, 0, 1).astype(np.float32)


@pytest.mark.parametrize(("foreground_px", "background_px"), [(0, 0), (1, 6), (9, 2), (14, 14)])
def test_erosion_agrees_with_distances(foreground_px, background_px):
    """An ellipse as wide as high is a disc: known are the pixels farther than its radius, up to its pixel outline."""
    alpha = blob(foreground_px)
    levels = np.rint(255 * alpha)
    trimap = trimap_from_alpha(alpha, foreground_px, background_px)
    for value, side, radius_px in ((1, levels == 255, foreground_px), (0, levels == 0, background_px)):
        distance = ndimage.distance_transform_edt(side)
        assert (trimap[distance > radius_px + 1] == value).all()
        assert (trimap[distance <= radius_px] != value).all()
        assert (distance > radius_px + 1).any()
    assert unknown_mask(trimap)[(levels > 0) & (levels < 255)].all()


def test_a_straight_edge_is_moved_by_exactly_the_radius():
    alpha = np.zeros((40, 40), np.float32)
    alpha[:, 20:] = 1
    trimap = trimap_from_alpha(alpha, foreground_radius_px=5, background_radius_px=3)
    np.testing.assert_array_equal(trimap, np.tile([0.0] * 17 + [0.5] * 8 + [1.0] * 15, (40, 1)))


def test_what_8_bit_stores_as_known_is_known():
    alpha = np.array([[0.4 / 255, 0.6 / 255, 0.5, 1 - 0.6 / 255, 1 - 0.4 / 255]], np.float32)
    np.testing.assert_array_equal(trimap_from_alpha(alpha, 0, 0), [[0, 0.5, 0.5, 0.5, 1]])


soft_masks = arrays(
    np.float32, st.tuples(st.integers(1, 9), st.integers(2, 9)), elements=st.sampled_from([0, 1, 0, 1, 0.3, 0.8])
).filter(lambda mask: mask.min() < 0.5 < mask.max())


def naive_band(mask: np.ndarray, width_px: int) -> np.ndarray:
    """Look from each known pixel at every other: one that is not of its side and near enough makes it unknown."""
    trimap = np.where((mask == 0) | (mask == 1), mask, 0.5)
    for y, x in np.ndindex(mask.shape):
        reach_px = width_px // 2 if mask[y, x] == 1 else width_px - width_px // 2
        for other in np.ndindex(mask.shape):
            squared_px = (y - other[0]) ** 2 + (x - other[1]) ** 2
            if mask[other] != mask[y, x] and squared_px <= reach_px**2:
                trimap[y, x] = 0.5
    return trimap


@given(soft_masks, st.integers(1, 9))
def test_a_band_agrees_with_looking_at_every_pair_of_pixels(mask, width_px):
    trimap = trimap_from_mask(mask, width_px)
    assert trimap.dtype == np.float32
    np.testing.assert_array_equal(trimap, naive_band(mask, width_px))


@pytest.mark.parametrize(("width_px", "inside_px", "outside_px"), [(1, 0, 1), (2, 1, 1), (5, 2, 3), (14, 7, 7)])
def test_a_straight_edge_gets_exactly_the_width_up_to_the_border(width_px, inside_px, outside_px):
    mask = np.zeros((30, 40), bool)
    mask[:, 20:] = True
    columns = [0.0] * (20 - outside_px) + [0.5] * width_px + [1.0] * (20 - inside_px)
    np.testing.assert_array_equal(trimap_from_mask(mask, width_px), np.tile(columns, (30, 1)))


@pytest.mark.parametrize("kind", [bool, np.uint8, np.uint16, np.float32, np.float64])
def test_every_kind_of_hard_mask_gives_one_trimap(kind):
    hard = blob(3) > 0.5
    expected = trimap_from_mask(hard, 7)
    scales = [1] if kind in (bool, np.float32, np.float64) else [1, np.iinfo(kind).max]
    for scale in scales:
        np.testing.assert_array_equal(trimap_from_mask(hard.astype(kind) * kind(scale), 7), expected)


def test_a_soft_mask_keeps_its_levels():
    np.testing.assert_array_equal(decode_mask(np.array([[0, 1, 51, 255]], np.uint8))[0] * 255, [0, 1, 51, 255])
    np.testing.assert_array_equal(
        decode_mask(np.array([[0, 13107, 65535]], np.uint16))[0], np.float32([0, 13107 / 65535, 1])
    )
    values = np.array([[0, 0.25, 1]], np.float32)
    decode_mask(values)[:] = 7
    np.testing.assert_array_equal(values, [[0, 0.25, 1]])


def test_transparency_one_colour_or_equal_channels_are_a_mask():
    soft = np.rint(255 * blob(4)).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (*soft.shape, 3), np.uint8)
    opaque = np.full_like(soft, 255)
    for image in (np.dstack([noise, soft]), np.dstack([soft] * 3), np.dstack([soft] * 3 + [opaque])):
        np.testing.assert_array_equal(decode_mask(image), np.float32(soft / 255))
    red = np.zeros((*soft.shape, 3), np.uint8)
    red[soft > 99] = (128, 0, 0)
    np.testing.assert_array_equal(decode_mask(red), soft > 99)


def test_a_palette_of_classes_is_read_from_its_file(tmp_path):
    hard = blob(5) > 0.5
    image = Image.fromarray(hard.astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 128, 0, 0])
    image.save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), hard)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.array([[0, 2]], np.uint8), r"mask holds 0 to 0\.00784\d* of 0 to 1: expected foreground above a half"),
        (np.array([[0, 255]], np.uint16), r"holds 0 to 0\.00389"),
        (np.array([[0.0, 0.5]]), r"holds 0 to 0\.5 of"),
        (np.array([[0.5, 1.0]]), r"holds 0\.5 to 1 of"),
        (np.array([[0.0, 1.5]]), r"floats between 0 and 1\.5"),
        (np.array([[-0.1, 1.0]]), r"floats between -0\.1 and 1"),
        (np.array([[np.nan, 1.0]]), "floats between nan and nan"),
        (np.array([[0, 1]]), "is int64; expected bool, uint8"),
        (np.zeros((0, 4)), "is empty"),
        (np.zeros((4, 4, 2), np.uint8), "has shape"),
        (np.eye(3, dtype=np.uint8)[None], "holds several colours beside black"),
        (np.full((2, 2, 4), 9, np.uint8), "has transparency of its own"),
    ],
)
def test_what_is_no_mask_is_refused(mask, words):
    with pytest.raises(DataError, match=words):
        trimap_from_mask(mask, 3)


@pytest.mark.parametrize(
    ("mask", "value", "word"),
    [
        (np.zeros((4, 5), np.uint8), 0, "empty"),
        (np.zeros((4, 5), bool), 0, "empty"),
        (np.zeros((4, 5)), 0, "empty"),
        (np.zeros((4, 5, 3), np.uint8), 0, "empty"),
        (np.zeros((4, 5, 4), np.uint8), 0, "empty"),
        (np.full((4, 5), 255, np.uint8), 1, "covers all"),
        (np.full((4, 5), 65535, np.uint16), 1, "covers all"),
        (np.ones((4, 5), bool), 1, "covers all"),
    ],
)
def test_a_mask_of_one_side_alone_is_that_side_everywhere_with_a_warning(mask, value, word, caplog):
    np.testing.assert_array_equal(trimap_from_mask(mask, 3, "m.png"), np.full((4, 5), value))
    (message,) = caplog.messages
    assert message.startswith(f"m.png {word}") or message.startswith(f"m.png is {word}")


def soft_disc(height: int, width: int) -> np.ndarray:
    """A disc of a quarter of the shorter side, at any size in the same place, with a soft edge 1/20 wide."""
    y, x = (np.mgrid[:height, :width] + 0.5) / min(height, width)
    return np.clip((0.25 - np.hypot(y - 0.5, x - 0.6)) * 20 + 0.5, 0, 1).astype(np.float32)


@pytest.mark.parametrize("size", [(48, 64), (96, 128), (300, 400), (1200, 1600)])
def test_a_resized_mask_is_what_would_have_been_drawn_at_that_size(size, caplog):
    """Soft within what a pixel of the coarser one covers of the edge; hard but for pixels beside the outline."""
    mask = soft_disc(192, 256)
    drawn = soft_disc(*size)
    resized = resize_mask(mask, size[::-1], "m.png")
    assert resized.shape == size and np.abs(resized - drawn).max() < 0.1
    hard = resize_mask((mask > 0.5).astype(np.float32), size[::-1], "m.png")
    assert set(np.unique(hard)) == {0, 1}
    wrong = hard != (drawn > 0.5)
    assert wrong.sum() < 0.02 * (drawn > 0.5).sum()
    assert [message.endswith("the mask is resized") for message in caplog.messages] == [True, True]


def test_a_stretched_mask_is_told_and_a_turned_one_refused(caplog):
    mask = soft_disc(64, 64)
    assert resize_mask(mask, (128, 96), "m.png").shape == (96, 128)
    assert "m.png is 64 x 64 px and the image 128 x 96 px: the mask is resized, and stretched" in caplog.text
    with pytest.raises(DataError, match=r"m\.png is 64 x 48 px .* turned by 90 degrees"):
        resize_mask(mask[:48], (48, 64), "m.png")


def test_a_band_has_a_width():
    with pytest.raises(ConfigError, match="at least 1 px, got 0"):
        trimap_from_mask(np.array([[0, 1]], bool), 0)


@given(trimaps)
def test_the_trivial_alpha_is_a_half_on_unknown(trimap):
    np.testing.assert_array_equal(trivial_alpha(trimap), np.where(unknown_mask(trimap), 0.5, trimap))


@given(trimaps)
def test_the_ramp_agrees_with_scipy(trimap):
    ramp = ramp_alpha(trimap)
    assert ramp.dtype == np.float32
    if (trimap == 0).any() and (trimap == 1).any():
        to_foreground = ndimage.distance_transform_edt(trimap != 1)
        to_background = ndimage.distance_transform_edt(trimap != 0)
        np.testing.assert_allclose(ramp, to_background / (to_background + to_foreground), atol=1e-6)
    else:
        expected = 1.0 if (trimap == 1).any() else 0.0 if (trimap == 0).any() else 0.5
        np.testing.assert_array_equal(ramp, np.full(trimap.shape, expected))


def test_a_written_trimap_reads_back_and_holds_128(tmp_path):
    trimap = np.array([[0, 0.5, 1], [1, 0.5, 0]], np.float32)
    write_trimap(tmp_path / "t.png", trimap)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "t.png")), [[0, 128, 255], [255, 128, 0]])
    np.testing.assert_array_equal(read_strict_trimap(tmp_path / "t.png"), trimap)
    with pytest.raises(DataError, match="0.5"):
        write_trimap(tmp_path / "t.png", np.full((2, 2), 0.502))


@pytest.mark.parametrize("channels", [3, 4])
def test_a_boolean_mask_may_have_channels(channels):
    mask = np.zeros((9, 9), bool)
    mask[3:6, 2:7] = True
    expected = trimap_from_mask(mask, 3)
    repeated = np.repeat(mask[:, :, None], channels, axis=2)
    if channels == 4:
        repeated[:, :, 3] = True  # opaque
    assert np.array_equal(trimap_from_mask(repeated, 3), expected)
