"""Photographs as they are: image and alpha through one map, nothing invented beyond the border, hidden colours kept."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.augment.degradation import DegradeImage
from data.datasets.photographs import DrawInnerView, OpenPhotograph, RealImageDataset
from data.image_io.images import DataError, read_image, write_alpha, write_image
from data.sources.foregrounds import REDUCTIONS
from runtime.errors import ConfigError
from tests.helpers.dataset_settings import grouped

PLAIN = {"square_probability": 0, "rotation_deg": 0, "scale_range": (1, 1), "shear_deg": 0, "flip_probability": 0}
SAME_COLOURS = {"hue_deg": 0, "jitter_share": 0}


def save(root: Path, name: str, image: np.ndarray, alpha: np.ndarray, suffix: str = "png") -> None:
    for folder in ("image", "alpha"):
        (root / folder).mkdir(exist_ok=True)
    write_image(root / f"image/{name}.{suffix}", image, bits=16 if suffix == "png" else 8)
    write_alpha(root / f"alpha/{name}.png", alpha, bits=16)


def coordinates(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """An image whose red and green say where a pixel lies, 0 to 1 from border to border, and an alpha of both."""
    y, x = np.mgrid[:height, :width] + 0.5
    x, y = x / width, y / height
    return np.dstack([x, y, np.full_like(x, 0.5)]), (x + 2 * y) / 3


def build(root: Path, **changes) -> RealImageDataset:
    return RealImageDataset(
        root / "image", root / "alpha", **grouped({"samples_per_epoch": 10, "crop_px": 32, **changes}, DrawInnerView)
    )


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (300, 200), (20, 24)])
def test_image_and_alpha_come_through_one_affine_map_from_inside(tmp_path, size):
    save(tmp_path, "a", *coordinates(*size))
    dataset = build(tmp_path, rotation_min_px=0, **SAME_COLOURS)
    grid = np.mgrid[:32, :32].reshape(2, -1)[::-1].T + 0.5
    design = np.hstack([grid, np.ones((1024, 1))])
    for index in range(10):
        sample = dataset[0, index]
        places = sample["image"][:2].reshape(2, -1).T.double().numpy()
        torch.testing.assert_close(
            sample["alpha"][0], (sample["image"][0] + 2 * sample["image"][1]) / 3, atol=2e-3, rtol=0
        )
        to_place, *_ = np.linalg.lstsq(design, places, rcond=None)
        pixel = 1 / min(size)
        assert np.abs(design @ to_place - places).max() < 1.1 * pixel  # that of nearest neighbours, beside the border
        corners = np.array([[0, 0, 1], [0, 32, 1], [32, 0, 1], [32, 32, 1]]) @ to_place
        assert corners.min() > -0.2 * pixel and corners.max() < 1 + 0.2 * pixel


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(8, 900), st.integers(8, 900))
def test_a_view_is_inside_holds_its_point_and_shrinks_no_more_than_it_must(seed, width, height):
    size = (width, height)
    draw_view = DrawInnerView(0.25, 640, 30.0, 0, (0.8, 1.25), 10.0, 0.5, (1.0, 1.5, 2.0), 2.0)
    point = np.random.default_rng(seed).integers(size)
    view = draw_view(64, size, point[None], np.random.default_rng(seed))
    to_crop = view.from_image(size)
    corners = np.array([[0, 0, 1], [0, 64, 1], [64, 0, 1], [64, 64, 1]]) @ np.linalg.inv(to_crop).T
    assert (corners[:, :2] > -1e-6).all() and (corners[:, :2] < np.array(size) + 1e-6).all()
    spans = np.ptp(corners[:, :2], axis=0)
    is_as_asked = np.isclose(view.window_px, [64, 96, 128]).any()
    assert is_as_asked or np.isclose(spans, size).any()
    seen = to_crop @ [*(point + 0.5), 1]
    far_from_border = ((point + 0.5 >= spans / 2) & (point + 0.5 <= size - spans / 2)).all()
    assert not far_from_border or np.allclose(seen[:2], 32)


def test_a_whole_photograph_is_given_as_stored(tmp_path):
    rng = np.random.default_rng(0)
    image, alpha = rng.random((32, 32, 3)), np.zeros((32, 32))
    alpha[8:24, 8:24] = rng.random((16, 16))
    save(tmp_path, "a", image, alpha)
    sample = build(tmp_path, **PLAIN, **SAME_COLOURS)[0, 0]
    np.testing.assert_allclose(sample["image"].permute(1, 2, 0), image, atol=2e-5)
    np.testing.assert_allclose(sample["alpha"][0], alpha, atol=2e-5)
    assert set(sample["trimap"].unique().tolist()) <= {0, 0.5, 1}


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_what_is_shrunk_is_averaged_without_regard_to_alpha(tmp_path, suffix, reduction):
    y, x = np.mgrid[:72, :88] / 88
    image = np.dstack([x, y, (np.sin(9 * x) + 1) / 2])
    alpha = (x + y > 0.9).astype(float)
    save(tmp_path, "a", image, alpha, suffix)
    stored = read_image(tmp_path / f"image/a.{suffix}")
    colours, opacity = OpenPhotograph(tmp_path / f"image/a.{suffix}", tmp_path / "alpha/a.png").read(
        (8, 16, 80, 72), reduction
    )
    for raw, whole, tolerance in ((colours, stored, 0.012 if suffix == "jpg" else 1e-4), (opacity, alpha, 1e-4)):
        window = whole[16:72, 8:80].reshape(56 // reduction, reduction, 72 // reduction, reduction, -1)
        found = raw.reshape(*raw.shape[:2], -1) / np.iinfo(raw.dtype).max
        np.testing.assert_allclose(found, window.mean(axis=(1, 3)), atol=tolerance)


def test_a_sample_is_a_function_of_seed_epoch_and_index_and_photographs_take_turns(tmp_path):
    for number in range(4):  # told apart by blue
        save(tmp_path, str(number), np.full((40, 40, 3), (0, 0, number / 3)), coordinates(40, 40)[1])
    first, second = (build(tmp_path, **SAME_COLOURS) for _ in range(2))
    keys = [(epoch, index) for epoch in range(2) for index in range(10)]
    backwards = {key: second[key] for key in reversed(keys)}
    assert all(
        torch.equal(first[key][name], backwards[key][name]) for key in keys for name in ("image", "alpha", "trimap")
    )
    for other in ((0, 4), (1, 0)):
        assert not torch.equal(first[0, 0]["alpha"], first[other]["alpha"])
    assert not torch.equal(first[0, 0]["alpha"], build(tmp_path, seed=1)[0, 0]["alpha"])
    blues = Counter(round(3 * float(first[key]["image"][2].mean())) for key in keys)
    assert blues == dict.fromkeys(range(4), 5)


def test_the_colours_of_all_the_crop_are_jittered_by_one_draw(tmp_path):
    image = np.full((40, 40, 3), (0.6, 0.4, 0.3))
    alpha = coordinates(40, 40)[1] > 0.5
    save(tmp_path, "a", image, alpha.astype(float))
    dataset = build(tmp_path)
    colours = [dataset[0, index]["image"].reshape(3, -1) for index in range(3)]
    for colour in colours:
        torch.testing.assert_close(colour, colour[:, :1].expand_as(colour), atol=1e-4, rtol=0)
    assert (colours[0][:, 0] - colours[1][:, 0]).abs().max() > 0.01


def test_degradation_is_that_of_composites_and_changes_the_image_alone(tmp_path):
    save(tmp_path, "a", *coordinates(90, 60))
    degradation = DegradeImage(blur_probability=0.5, noise_probability=0.5, jpeg_probability=0.5)
    plain, off, on = (build(tmp_path, seed=3, degradation=chosen) for chosen in (None, DegradeImage(), degradation))
    for index in range(5):
        before, same, after = (dataset[1, index] for dataset in (plain, off, on))
        expected = degradation(
            {"image": before["image"].permute(1, 2, 0).numpy()}, np.random.default_rng([3, 1, index, 2])
        )
        np.testing.assert_array_equal(after["image"].permute(1, 2, 0), expected["image"])
        assert all(torch.equal(before[name], same[name]) for name in before)
        assert all(torch.equal(before[name], after[name]) for name in ("alpha", "trimap"))


def test_what_is_wrong_is_said(tmp_path):
    save(tmp_path, "a", *coordinates(40, 30))
    for changes in ({"crop_px": 0}, {"seed": -1}):
        with pytest.raises(ConfigError, match=next(iter(changes))):
            build(tmp_path, **changes)
    with pytest.raises(ConfigError, match="scale_range must be"):
        build(tmp_path, scale_range=[2, 1])
    with pytest.raises(ConfigError, match="radius_px must be"):
        build(tmp_path, trimap_radius_px=(3, 2))
    with pytest.raises(DataError, match="no alphas are named"):
        RealImageDataset(tmp_path / "image", samples_per_epoch=1)
    write_alpha(tmp_path / "alpha/a.png", np.zeros((30, 41)))
    with pytest.raises(DataError, match=r"image/a\.png is 40 x 30 px but .*alpha/a\.png is 41 x 30 px"):
        build(tmp_path)[0, 0]


def test_real_photographs_keep_the_contract(matting_folder):
    folder = matting_folder / "alphamatting"
    dataset = RealImageDataset(folder / "image", folder / "alpha", samples_per_epoch=18, crop_px=128)
    for index in (0, 7):
        sample = dataset[0, index]
        assert {name: tuple(value.shape) for name, value in sample.items()} == {
            "image": (3, 128, 128),
            "trimap": (1, 128, 128),
            "alpha": (1, 128, 128),
        }
        assert all(value.dtype == torch.float32 and 0 <= value.min() <= value.max() <= 1 for value in sample.values())
        assert ((sample["alpha"] > 0.01) & (sample["alpha"] < 0.99)).any()
        assert (sample["trimap"][sample["alpha"] == 0.5] == 0.5).all()
        assert (sample["alpha"][sample["trimap"] == 1] > 0.998).all()
        assert (sample["alpha"][sample["trimap"] == 0] < 0.002).all()
