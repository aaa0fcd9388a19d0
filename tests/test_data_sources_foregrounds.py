"""Foregrounds in files: what is read is what a whole decoding gives; unknown pixels are drawn evenly."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from data.image_io.images import DataError, EncodedImage, read_raw
from data.sources.foregrounds import (
    NUM_POINTS,
    DecodedForeground,
    ForegroundFile,
    average_layer,
    draw_unknown_points,
    measure_bleeding,
    unknown_points,
)
from data.sources.layouts import check_same_size
from tests.helpers.drawn_images import draw_noise, draw_waves


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_unknown_points_are_fractional_or_else_on_edges(dtype):
    full = np.iinfo(dtype).max
    alpha = np.zeros((9, 9), dtype)
    alpha[2:6, 3:7] = full
    edges = {tuple(point) for point in unknown_points(alpha)}
    assert (3, 2) in edges
    assert not edges & {(4, 4), (8, 8)}
    rng = np.random.default_rng(0)
    assert {tuple(point) for point in np.concatenate([draw_unknown_points(alpha, rng) for _ in range(9)])} == edges
    alpha[7, 1] = full // 2
    np.testing.assert_array_equal(unknown_points(alpha), [[1, 7]])
    np.testing.assert_array_equal(draw_unknown_points(alpha, rng), [[1, 7]] * NUM_POINTS)
    assert draw_unknown_points(np.full((4, 4), full, dtype), rng).shape == (0, 2)


@pytest.mark.parametrize("share", [0.3, 0.001])  # tries suffice, and a search is needed
def test_every_unknown_pixel_is_as_likely_as_another(share):
    rng = np.random.default_rng(0)
    alpha = np.zeros((200, 300), np.uint8)
    alpha[rng.random(alpha.shape) < 0.5] = 255
    alpha[rng.random(alpha.shape) < share] = 77
    points = np.concatenate([draw_unknown_points(alpha, rng) for _ in range(300)])
    assert (alpha[points[:, 1], points[:, 0]] == 77).all()
    rows, columns = np.nonzero(alpha == 77)
    for drawn, expected in ((points[:, 0], columns), (points[:, 1], rows)):
        counts = np.histogram(drawn, 10, (0, 300))[0]
        shares = np.histogram(expected, 10, (0, 300))[0] / len(expected)
        assert stats.chisquare(counts[shares > 0], shares[shares > 0] * len(drawn)).pvalue > 1e-3


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("reduction", "size"), [(2, (12, 16)), (4, (13, 18)), (8, (3, 30))])
def test_areas_are_averaged_by_alpha(dtype, reduction, size):
    colours, alpha = draw_noise(*size, 3, dtype), draw_noise(*size, 1, dtype)[:, :, 0]
    alpha[:reduction, :reduction] = 0
    reduced, reduced_alpha = average_layer(colours, alpha, reduction)
    assert (reduced.dtype, reduced_alpha.dtype) == (dtype, dtype)
    height, width = -(-size[0] // reduction), -(-size[1] // reduction)
    assert reduced.shape == (height, width, 3)
    for row, column in np.ndindex(height, width):
        rows = np.minimum(np.arange(row * reduction, (row + 1) * reduction), size[0] - 1)
        columns = np.minimum(np.arange(column * reduction, (column + 1) * reduction), size[1] - 1)
        weights = alpha[np.ix_(rows, columns)].astype(float)
        area = colours[np.ix_(rows, columns)].astype(float)
        assert abs(reduced_alpha[row, column] - weights.mean()) <= 0.501
        visible = weights if weights.any() else np.ones_like(weights)
        expected = (area * visible[:, :, None]).sum((0, 1)) / visible.sum()
        np.testing.assert_allclose(reduced[row, column], expected, atol=0.501)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_a_jpeg_is_read_in_part_at_the_scale_asked_for(tmp_path, reduction, orientation):
    colours = draw_waves(101, 150)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(colours).save(tmp_path / "fg.jpg", quality=95, exif=exif)
    upright = np.rot90(colours, -1) if orientation == 6 else colours
    alpha = 255 - draw_waves(*upright.shape[:2])[:, :, 0] // 5  # hardly weighs one pixel of an area more than another
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    source = ForegroundFile(tmp_path / "fg.jpg", tmp_path / "alpha.png").open()
    assert source.size == (alpha.shape[1], alpha.shape[0])
    left, top, right, bottom = 16, 8, alpha.shape[1], 77
    read, read_alpha = source.read((left, top, right, bottom), reduction)
    box = np.s_[top:bottom, left:right]
    expected, expected_alpha = average_layer(upright[box], np.full_like(alpha[box], 255), reduction)
    np.testing.assert_array_equal(read_alpha, average_layer(upright[box], alpha[box], reduction)[1])
    assert read.shape == expected.shape
    # JPEG itself moves these colours by up to 6; a pixel beside the right place would by 14 and more
    assert np.abs(read.astype(int) - expected)[:-1, :-1].max() <= 8


def test_a_cut_out_and_a_pair_are_the_same_foreground(tmp_path):
    rgba = draw_noise(30, 41, 4)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    Image.fromarray(rgba[:, :, :3]).save(tmp_path / "fg.png")
    Image.fromarray(rgba[:, :, 3]).save(tmp_path / "alpha.png")
    files = (ForegroundFile(tmp_path / "rgba.png"), ForegroundFile(tmp_path / "fg.png", tmp_path / "alpha.png"))
    for reduction in (1, 4):
        (colours, alpha), (others, other_alpha) = (file.open().read((8, 4, 41, 30), reduction) for file in files)
        np.testing.assert_array_equal(colours, others)
        np.testing.assert_array_equal(alpha, other_alpha)
    draws = [file.open().unknown_points(np.random.default_rng(0)) for file in files]
    np.testing.assert_array_equal(*draws)


def test_bleeding_is_what_hidden_colours_move_of_mixed_areas():
    colours, alpha = np.full((4, 8, 3), 100, np.uint8), np.full((4, 8), 255, np.uint8)
    colours[:, 3:5], alpha[:, 3:5] = 200, 0  # each half of an area: plainly averaged to 150
    plain = np.repeat(np.uint8([[100, 150, 150, 100]]), 2, axis=0)
    reduced = np.dstack([plain] * 3)
    assert measure_bleeding(colours, alpha, reduced, 2) == pytest.approx(0.5 * 50 / 255, rel=0.01)  # alpha 128 of 255
    assert measure_bleeding(colours, alpha, np.full_like(reduced, 100), 2) == 0
    assert measure_bleeding(colours, np.full_like(alpha, 255), reduced, 2) == 0
    assert measure_bleeding(colours, alpha, colours, 2) == np.inf


@pytest.mark.parametrize("reduction", [2, 4])
def test_hidden_colours_of_a_jpeg_stay_hidden(tmp_path, reduction):
    x, y = np.meshgrid(np.arange(160), np.arange(96))
    colours, stripes = np.dstack([40 + x, 60 + y, 160 - y]).astype(np.uint8), np.full((96, 160), 255, np.uint8)
    stripes[:, 5::7] = stripes[:, 6::7] = 0
    Image.fromarray(stripes).save(tmp_path / "alpha.png")
    Image.fromarray(colours).save(tmp_path / "continued.jpg", quality=95, subsampling=0)
    colours[stripes == 0] = 255
    Image.fromarray(colours).save(tmp_path / "white.jpg", quality=95, subsampling=0)
    box = (8, 16, 128, 80)
    for name, is_reduced in (("continued", True), ("white", False)):
        file = ForegroundFile(tmp_path / f"{name}.jpg", tmp_path / "alpha.png")
        whole = EncodedImage(file.path)
        weighted = average_layer(whole.read()[16:80, 8:128], stripes[16:80, 8:128], reduction)
        plain = whole.read(reduction)[16 // reduction : 80 // reduction, 8 // reduction : 128 // reduction]
        for _ in range(2):  # the first read, and one that knows the file
            read, alpha = file.open().read(box, reduction)
            np.testing.assert_array_equal(alpha, weighted[1])
            np.testing.assert_array_equal(read, plain if is_reduced else weighted[0])
        assert np.abs(plain.astype(int) - weighted[0]).max() > (20 if name == "white" else 0)
        assert pickle.loads(pickle.dumps(file)) == file


def test_colours_that_nobody_sees_are_not_decoded(tmp_path):
    Image.fromarray(draw_waves(80, 60)).save(tmp_path / "fg.jpg")
    (tmp_path / "fg.jpg").write_bytes((tmp_path / "fg.jpg").read_bytes()[:-200])
    alpha = np.zeros((80, 60), np.uint8)
    alpha[:40] = 255
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    source = ForegroundFile(tmp_path / "fg.jpg", tmp_path / "alpha.png").open()
    for reduction, shape in ((1, (40, 56)), (4, (10, 14))):
        colours, read = source.read((4, 40, 60, 80), reduction)
        assert (colours.shape, read.shape) == ((*shape, 3), shape)
        assert not read.any() and not colours.any()
    with pytest.raises(DataError, match="complete"):
        source.read((0, 39, 60, 80), 1)


def test_files_that_do_not_fit_are_named(tmp_path):
    Image.fromarray(draw_waves(40, 60)).save(tmp_path / "fg.jpg")
    Image.fromarray(draw_waves(40, 61)[:, :, 0]).save(tmp_path / "alpha.png")
    with pytest.raises(DataError, match=r"fg\.jpg is 60 x 40 px but .*alpha\.png is 61 x 40 px"):
        ForegroundFile(tmp_path / "fg.jpg", tmp_path / "alpha.png").open()
    with pytest.raises(DataError, match="no transparency"):
        ForegroundFile(tmp_path / "fg.jpg").open()
    first, second = read_raw(tmp_path / "fg.jpg"), read_raw(tmp_path / "alpha.png")
    with pytest.raises(DataError, match="must be of one size"):
        check_same_size(first, Path("a"), second, Path("b"))
    assert isinstance(ForegroundFile(tmp_path / "fg.jpg", tmp_path / "fg.jpg").name, str)
    assert DecodedForeground(first, second).size == (61, 40)
