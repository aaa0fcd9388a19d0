"""Test sets found by name or by folder: what is missing is said, and a layout of one's own is one entry."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.datasets.composition import MattingFolder
from data.image_io.images import DataError
from data.sources.layouts import (
    LAYOUTS,
    TRAINING_LAYOUTS,
    Layout,
    find_test_set,
)
from engine.config.config import load_config
from evaluation.folders import evaluate_folders
from tests.helpers.paths import REPOSITORY


def fill(folder: Path, names: list[str], pixels: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(pixels).save(folder / name)


@pytest.fixture()
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty $DETECTRON2_DATASETS."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


GREY = np.full((4, 6), 128, np.uint8)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_found_where_it_says(root, name):
    layout = LAYOUTS[name]
    base = root.joinpath(*layout.root.split("/"))
    names = [f"{index}.png" for index in range(layout.num_images or 3)]
    folders = [layout.image_dir, layout.alpha_dir, layout.trimap_dir]
    for folder in filter(None, folders):
        fill(base / folder, names, GREY)
    found = find_test_set(name)
    assert (found.name, found.num_images, found.trimap_radius_px) == (name, len(names), layout.trimap_radius_px)
    assert [found.image_dir, found.alpha_dir, found.trimap_dir] == [base / f if f else None for f in folders]
    assert layout.source
    assert found.trimap_dir and len(MattingFolder(found.image_dir, found.trimap_dir, found.alpha_dir)) == len(names)


def test_every_missing_folder_is_named_with_the_layout(root):
    (root / "Composition-1k/test/alpha_copy").mkdir(parents=True)
    with pytest.raises(FileNotFoundError) as caught:
        find_test_set("Composition-1k")
    message = str(caught.value)
    for folder in ("merged", "trimaps"):
        assert f"  {root}/Composition-1k/test/{folder}\n" in message
    assert f"{root}/Composition-1k/test/alpha_copy" not in message
    for part in ("Composition-1k/test/alpha_copy/NAME.*  true alphas", "trimaps of 0, 128, 255", "DETECTRON2_DATASETS"):
        assert part in message


def test_without_the_variable_sets_lie_in_datasets(tmp_path, monkeypatch):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    monkeypatch.chdir(tmp_path)
    for folder in ("image", "alpha", "trimap2"):
        fill(tmp_path / "datasets/alphamatting" / folder, ["a.png"], GREY)
    assert find_test_set("alphamatting-trimap2").trimap_dir == Path("datasets/alphamatting/trimap2")
    with pytest.raises(FileNotFoundError, match="datasets/alphamatting/trimap1"):
        find_test_set("alphamatting-trimap1")


@pytest.mark.parametrize("count", [999, 1001])
def test_a_set_of_another_size_is_refused(root, count):
    for folder in ("merged", "alpha_copy", "trimaps"):
        (root / "Composition-1k/test" / folder).mkdir(parents=True)
    for index in range(count):
        (root / f"Composition-1k/test/alpha_copy/{index}.png").touch()
    with pytest.raises(DataError, match=f"alpha_copy holds {count} images, but Composition-1k has 1000"):
        find_test_set("Composition-1k")


def test_a_plain_folder_is_taken_by_its_path(tmp_path):
    for folder in ("image", "alpha", "trimap"):
        fill(tmp_path / folder, ["a.png", "b.png"], GREY)
    found = find_test_set(str(tmp_path))
    assert (found.image_dir, found.alpha_dir, found.trimap_dir) == tuple(
        tmp_path / folder for folder in ("image", "alpha", "trimap")
    )
    assert (found.name, found.num_images) == (str(tmp_path), 2)
    (tmp_path / "trimap").rename(tmp_path / "trimaps")
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path}/trimap\n")):
        find_test_set(str(tmp_path))


@pytest.mark.parametrize("name", ["alphamatting-trimap1", None])
def test_trimaps_may_be_absent_where_none_are_needed(root, name):
    folder = root / LAYOUTS[name].root if name else root
    for kind in ("image", "alpha"):
        fill(folder / kind, ["a.png"], GREY)
    with pytest.raises(FileNotFoundError, match="trimap"):
        find_test_set(name or str(root))
    found = find_test_set(name or str(root), needs_trimaps=False)
    assert (found.trimap_dir, found.trimap_radius_px, found.alpha_dir) == (None, None, folder / "alpha")
    trimaps = folder / (name or "trimap").removeprefix("alphamatting-")
    fill(trimaps, ["a.png"], GREY)
    assert find_test_set(name or str(root), needs_trimaps=False).trimap_dir == trimaps
    (folder / "image").rename(folder / "images")
    with pytest.raises(FileNotFoundError, match="image\n"):
        find_test_set(name or str(root), needs_trimaps=False)


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(DataError) as caught:
        find_test_set("Composition-2k")
    assert "'Composition-2k'" in str(caught.value)
    assert all(name in str(caught.value) for name in LAYOUTS)


def test_a_layout_of_ones_own_is_one_entry(root, monkeypatch):
    """Found, read and evaluated: a prediction that is 51 of 255 too low everywhere."""
    monkeypatch.setitem(
        LAYOUTS, "mine", Layout("in/photos", "mattes", "tri", None, root="my/set", num_images=2, source="this test")
    )
    for folder, suffix, value in (("in/photos", "jpg", 99), ("mattes", "png", 153), ("tri", "bmp", 128)):
        fill(root / "my/set" / folder, [f"x.{suffix}", f"y.{suffix}"], np.full((4, 6), value, np.uint8))
    fill(root / "pred", ["x.png", "y.png"], np.full((4, 6), 102, np.uint8))
    found = find_test_set("mine")
    assert found.trimap_dir
    dataset = MattingFolder(found.image_dir, found.trimap_dir, found.alpha_dir)
    assert [dataset[index]["name"] for index in range(2)] == ["x", "y"]
    rows = evaluate_folders(root / "pred", found.alpha_dir, found.trimap_dir, found.image_dir).rows
    assert {name: row["MAD"] for name, row in rows.items()} == {"x": pytest.approx(0.2), "y": pytest.approx(0.2)}


def test_trimaps_of_a_stated_rule_take_the_place_of_a_folder(root, monkeypatch):
    made = Layout("image", "alpha", None, 10, root="made", num_images=None, source="this test")
    monkeypatch.setitem(LAYOUTS, "made", made)
    with pytest.raises(FileNotFoundError, match=r"trimap_from_alpha\(alpha, 10, 10\)"):
        find_test_set("made")
    for folder in ("image", "alpha"):
        fill(root / "made" / folder, ["a.png"], GREY)
    found = find_test_set("made")
    assert (found.trimap_dir, found.trimap_radius_px) == (None, 10)


def test_finding_imports_no_torch():
    code = "import sys, data.sources.layouts; print({'torch', 'detectron2'} & sys.modules.keys())"
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


def test_the_config_trains_on_composition_1k_where_its_layouts_lie(root):
    dataset = load_config(REPOSITORY / "configs/ViTMatte_S_100ep.py").dataloader.train.dataset
    folders = zip(dataset.foreground_dirs, dataset.alpha_dirs, strict=True)
    assert [tuple(map(Path, pair)) for pair in folders] == TRAINING_LAYOUTS["Composition-1k-train"].find()
    assert [(Path(folder), None) for folder in dataset.background_dirs] == TRAINING_LAYOUTS["COCO-train2017"].find()
