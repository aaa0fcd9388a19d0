"""Samples are a function of seed, epoch and index; the folders are checked when a data set is built."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.datasets import composition as datasets
from data.datasets.composition import CompositionDataset, MattingFolder
from data.image_io import images
from data.image_io.formats import find_images
from data.image_io.images import DataError, EncodedImage, to_uint8
from runtime.errors import ConfigError
from tests.helpers.dataset_settings import grouped


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def cut_out(seed: int, size_px: int = 60) -> np.ndarray:
    """Draw a soft disc of random texture, (S, S, 4) uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size_px, :size_px] - size_px / 2
    alpha = np.clip((size_px / 3 - np.hypot(x, y)) / 4, 0, 1)
    return np.dstack([rng.integers(0, 256, (size_px, size_px, 3)), 255 * alpha]).astype(np.uint8)


@pytest.fixture()
def root(tmp_path: Path) -> Path:
    """Six cut-outs, as RGBA and as foreground and alpha, and five flat backgrounds of mixed formats."""
    for number in range(6):
        pixels = cut_out(number)
        save(tmp_path / "rgba" / f"f{number}.png", pixels)
        save(tmp_path / "fg" / f"f{number}.png", pixels[:, :, :3])
        save(tmp_path / "alpha" / f"f{number}.{'png' if number % 2 else 'bmp'}", pixels[:, :, 3])
    for number, suffix in enumerate((".PNG", ".jpg", ".webp", ".bmp", ".jpeg")):
        save(tmp_path / "bg" / f"b{number}{suffix}", np.full((80, 100, 3), 40 * number, np.uint8))
    return tmp_path


def build(root: Path, **settings) -> CompositionDataset:
    return CompositionDataset(
        root / "rgba", root / "bg", **grouped({"samples_per_epoch": 10, "crop_px": 32, **settings})
    )


def same(first: dict, second: dict) -> bool:
    return all(torch.equal(first[key], second[key]) for key in ("image", "trimap", "alpha"))


def test_items_keep_the_contract(root):
    dataset = build(root)
    assert len(dataset) == 10
    for index in range(10):
        sample = dataset[3, index]
        assert {key: (tuple(value.shape), value.dtype) for key, value in sample.items()} == {
            "image": ((3, 32, 32), torch.float32),
            "trimap": ((1, 32, 32), torch.float32),
            "alpha": ((1, 32, 32), torch.float32),
        }
        assert set(sample["trimap"].unique().tolist()) <= {0, 0.5, 1}
        for value in sample.values():
            assert value.min() >= 0
            assert value.max() <= 1
        assert (sample["alpha"][sample["trimap"] == 1] > 0.998).all()
        assert (sample["alpha"][sample["trimap"] == 0] < 0.002).all()


def test_a_sample_is_a_function_of_seed_epoch_and_index(root):
    dataset = build(root)
    assert same(dataset[2, 7], build(root)[2, 7])
    dataset[0, 0]
    assert same(dataset[2, 7], build(root)[2, 7])
    for other in (dataset[2, 8], dataset[3, 7], build(root, seed=1)[2, 7]):
        assert not same(dataset[2, 7], other)


def test_both_layouts_give_the_same_samples(root):
    separate = CompositionDataset(root / "fg", root / "bg", root / "alpha", samples_per_epoch=10, crop_px=32)
    for index in range(10):
        assert same(build(root)[0, index], separate[0, index])


def record(dataset: CompositionDataset, monkeypatch: pytest.MonkeyPatch, keys: list) -> list[list[str]]:
    """Return the names that each sample opens: one or two foregrounds, then the background."""
    used: list[list[str]] = []
    opened: list[str] = []

    class Recorded(EncodedImage):
        def __init__(self, path: str | Path) -> None:
            opened.append(Path(path).name)
            super().__init__(path)

    monkeypatch.setattr(images, "EncodedImage", Recorded)
    monkeypatch.setattr(datasets, "EncodedImage", Recorded)
    for key in keys:
        opened.clear()
        dataset[key]
        used.append(opened.copy())
    return used


def test_pairs_are_drawn_anew_and_foregrounds_take_turns(root, monkeypatch):
    dataset = build(root, crop_px=8)
    used = record(dataset, monkeypatch, [(epoch, index) for epoch in range(9) for index in range(10)])
    assert set(Counter(names[0] for names in used).values()) == {15}  # 90 samples, 6 foregrounds
    backgrounds = {number: {names[-1] for names in used if names[0] == f"f{number}.png"} for number in range(6)}
    assert all(len(drawn) >= 4 for drawn in backgrounds.values())


@pytest.mark.parametrize("probability", [0, 0.5, 1])
def test_second_foregrounds_come_as_often_as_asked(root, monkeypatch, probability):
    dataset = build(root, crop_px=8, merge_probability=probability)
    used = record(dataset, monkeypatch, [(epoch, index) for epoch in range(10) for index in range(10)])
    share = np.mean([len(names) == 3 for names in used])
    assert abs(share - probability) <= (0.15 if 0 < probability < 1 else 0)  # three standard deviations of 100 draws


def test_the_image_is_the_composite_of_what_was_drawn(tmp_path):
    """With flat colours and no jitter the equation must hold at every pixel, whatever the view."""
    pixels = cut_out(0)
    pixels[:, :, :3] = 200
    for number in range(3):
        save(tmp_path / "rgba" / f"{number}.png", pixels)
    save(tmp_path / "bg" / "b.png", np.full((50, 70, 3), 30, np.uint8))
    dataset = build(tmp_path, hue_deg=0, jitter_share=0)
    for index in range(10):
        sample = dataset[0, index]
        expected = (200 * sample["alpha"] + 30 * (1 - sample["alpha"])) / 255
        torch.testing.assert_close(sample["image"], expected.expand(3, -1, -1), atol=1e-5, rtol=0)


def test_the_second_foreground_lies_under_the_first_in_its_frame(tmp_path):
    """Flat colours, a view without any change: the sample is known pixel for pixel."""
    first, second = np.zeros((40, 40, 4), np.uint8), np.zeros((20, 10, 4), np.uint8)
    first[:, :] = 200, 0, 0, 0
    first[10:30, 5:25, 3] = 255
    second[:, :] = 0, 100, 0, 0
    second[5:15, 5:, 3] = 102  # 0.4; enlarged to the frame, rows 10 to 30 and columns 20 to 40
    save(tmp_path / "fg" / "a.png", first)
    save(tmp_path / "fg" / "b.png", second)
    save(tmp_path / "bg" / "c.png", np.full((40, 40, 3), 50, np.uint8))
    still = {"merge_probability": 1, "square_probability": 0, "rotation_deg": 0, "scale_range": (1, 1), "shear_deg": 0,
             "flip_probability": 0, "crop_factors": (1,), "hue_deg": 0, "jitter_share": 0}  # fmt: skip
    dataset = CompositionDataset(tmp_path / "fg", tmp_path / "bg", samples_per_epoch=40, crop_px=40, **grouped(still))
    pairs = set()
    for index in range(0, 40, 2):  # "a" is the upper one
        rng = np.random.default_rng([0, 0, index])
        pair = tuple(Path(foreground.name).name for foreground in dataset.choose((0, index), rng)[0])
        pairs.add(pair)
        sample = dataset[0, index]
        alpha, image = sample["alpha"][0].numpy(), sample["image"].numpy().transpose(1, 2, 0)
        np.testing.assert_array_equal(alpha[10:30, 5:25], 1)
        np.testing.assert_allclose(image[12:28, 7:23] * 255, np.tile([200, 0, 0], (16, 16, 1)), atol=0.01)
        np.testing.assert_allclose(image[:9, :4] * 255, 50, atol=0.01)
        beside, expected = (0.4, [30, 70, 30]) if pair == ("a.png", "b.png") else (0, [50, 50, 50])
        # Enlarged fourfold, Lanczos still ripples here.
        np.testing.assert_allclose(alpha[15:25, 30:38], beside, atol=0.02)
        np.testing.assert_allclose(image[15:25, 30:38] * 255, np.tile(expected, (10, 8, 1)), atol=3)
    assert pairs == {("a.png", "a.png"), ("a.png", "b.png")}


def test_missing_folders_are_named_at_once_with_what_else_there_is(root):
    for arguments, missing in (
        ((root / "no_fg", root / "bg", root / "no_alpha"), ("no_fg", "no_alpha")),
        ((root / "rgba", [root / "bg", root / "no_bg"]), ("no_bg",)),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            CompositionDataset(*arguments, samples_per_epoch=1)
        for part in (*missing, "Composition-1k-train", "DETECTRON2_DATASETS"):
            assert part in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no_trimaps\nName folders that are there as image_dir"):
        MattingFolder(root / "fg", root / "no_trimaps")


def test_the_layout_of_the_test_set_is_shown_for_its_own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    places = [tmp_path / "Composition-1k/test" / name for name in ("merged", "trimaps", "alpha_copy")]
    with pytest.raises(FileNotFoundError, match="(?s)alpha_copy.*Composition-1k/test/merged/NAME.*DETECTRON2_DATASETS"):
        MattingFolder(*places)


def test_sizes_that_differ_name_both_files(root):
    save(root / "alpha" / "f1.png", cut_out(1, 50)[:, :, 3])
    dataset = CompositionDataset(root / "fg", root / "bg", root / "alpha", samples_per_epoch=6, merge_probability=0)
    with pytest.raises(DataError, match=r"fg/f1\.png is 60 x 60 px but .*alpha/f1\.png is 50 x 50 px"):
        dataset[0, 1]
    save(root / "tri" / "f1.png", np.zeros((9, 9), np.uint8))
    save(root / "one" / "f1.png", cut_out(1)[:, :, :3])
    with pytest.raises(DataError, match=r"one/f1\.png is 60 x 60 px but .*tri/f1\.png is 9 x 9 px"):
        MattingFolder(root / "one", root / "tri")[0]


def test_a_matting_folder_gives_back_what_is_stored(tmp_path):
    rng = np.random.default_rng(0)
    stored = {}
    for name, (height, width) in (("b", (5, 9)), ("a", (7, 4)), ("c.1", (3, 3))):
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        trimap = np.array([0, 128, 255], np.uint8)[rng.integers(0, 3, (height, width))]
        stored[name] = [image, trimap, rng.integers(0, 256, (height, width), np.uint8)]
        for folder, pixels in zip(("merged", "trimaps", "alpha_copy"), stored[name], strict=True):
            save(tmp_path / folder / f"{name}.png", pixels)
    dataset = MattingFolder(tmp_path / "merged", tmp_path / "trimaps", tmp_path / "alpha_copy")
    assert [dataset[i]["name"] for i in range(len(dataset))] == ["a", "b", "c.1"]
    for item in (dataset[i] for i in range(3)):
        image, trimap, alpha = stored[item["name"]]
        np.testing.assert_array_equal(to_uint8(item["image"].permute(1, 2, 0).numpy()), image)
        np.testing.assert_array_equal(item["trimap"][0].numpy(), (trimap > 0) / 2 + (trimap > 128) / 2)
        np.testing.assert_array_equal(to_uint8(item["alpha"][0].numpy()), alpha)
    assert set(MattingFolder(tmp_path / "merged", tmp_path / "trimaps")[0]) == {"image", "trimap", "name"}


def test_trimaps_beside_alphas_are_read_as_strictly_as_by_the_evaluation(tmp_path):
    for folder, name in (("image", "a"), ("alpha", "a"), ("trimap", "a")):
        save(tmp_path / folder / f"{name}.png", np.array([[0, 127, 128, 255]], np.uint8))
    folders = [tmp_path / folder for folder in ("image", "trimap", "alpha")]
    with pytest.raises(DataError, match=r"trimap/a\.png: expected a trimap of 0, 128 and 255 alone, got 127 too"):
        MattingFolder(*folders)[0]
    assert MattingFolder(*folders[:2])[0]["trimap"].tolist() == [[[0, 0.5, 0.5, 1]]]
    save(tmp_path / "trimap" / "a.png", np.array([[0, 128, 128, 255]], np.uint8))
    assert MattingFolder(*folders)[0]["trimap"].tolist() == [[[0, 0.5, 0.5, 1]]]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("samples_per_epoch", 0),
        ("crop_px", 2.5),
        ("trimap_radius_px", (-1, 3)),
        ("trimap_radius_px", (0, 2.5)),
        ("seed", -1),
        ("merge_probability", 1.5),
        ("hue_deg", float("nan")),
        ("hue_deg", 181),
        ("jitter_share", -0.1),
    ],
)
def test_settings_out_of_range_are_named(root, name, value):
    with pytest.raises(ConfigError, match=name.removeprefix("trimap_")):
        build(root, **{name: value})


def test_real_cut_outs_give_crops_with_unknown_and_known_pixels(matting_folder):
    folders = [matting_folder / "cutouts_tuxpaint" / "rgba", matting_folder / "cutouts_fluent3d" / "rgba"]
    backgrounds = matting_folder / "backgrounds" / "image"
    dataset = CompositionDataset(folders, backgrounds, samples_per_epoch=1000, crop_px=160, seed=3)
    assert len(dataset.foregrounds) == sum(len(find_images(folder)) for folder in folders)
    samples = [dataset[0, index] for index in range(0, 1000, 25)]
    shares = np.array([[(s["trimap"] == value).float().mean().item() for value in (0, 0.5, 1)] for s in samples])
    assert (shares[:, 1] == 0).sum() <= 1
    assert 0.1 < shares[:, 1].mean() < 0.5
    assert (shares.mean(axis=0) > 0.1).all()
    for sample in samples:
        assert torch.isfinite(sample["image"]).all()
        assert sample["image"].min() >= 0
        assert sample["image"].max() <= 1
        unknown = sample["trimap"] == 0.5
        fractional = (sample["alpha"] > 0.01) & (sample["alpha"] < 0.99)
        assert unknown[fractional].all()
