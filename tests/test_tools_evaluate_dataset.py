"""tools/evaluate.py --dataset: folders found by a layout, trimaps made by its rule, predictions of a network."""

import hashlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from data.image_io.images import read_image, read_raw_alpha
from data.sources import layouts
from data.trimap import trimap_from_alpha
from evaluation.metrics import measure
from evaluation.output.report import CELL_PX, GAP_PX
from runtime.optional_packages import MissingExtraError
from tests.helpers.evaluation import summary_of
from tools import evaluate


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Data set "mine" of the two images, with trimaps of a radius of 2 px; one ground truth has a square of 1."""
    rng = np.random.default_rng(5)
    for name in "ab":
        label = np.zeros((20, 30), np.uint8)
        label[5:15, 6:20] = 255
        for folder, image in (("photos", rng.integers(0, 256, (20, 30, 3))), ("mattes", label)):
            (tmp_path / "sets" / "my_set" / folder).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / "sets" / "my_set" / folder / f"{name}.png"), image.astype(np.uint8))
        (tmp_path / "pred").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "pred" / f"{name}.png"), np.full((20, 30), 60, np.uint8))
    mine = layouts.Layout("photos", "mattes", None, 2, root="my_set", num_images=2, source="made here")
    monkeypatch.setitem(layouts.LAYOUTS, "mine", mine)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "sets"))
    return tmp_path


def test_a_data_set_is_found_by_name(dataset, capsys):
    parts = ["--dataset", "mine", "--pred-dir", str(dataset / "pred"), "--workers", "1"]
    assert evaluate.main([*parts, "--output", str(dataset / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["Data set mine", "Trimaps made from the ground truth: trimap_from_alpha(alpha, 2, 2)"]
    summary = summary_of(dataset / "out")
    label = read_raw_alpha(dataset / "sets" / "my_set" / "mattes" / "a.png")
    unknown = trimap_from_alpha(label / 255, 2, 2) == 0.5
    row = measure(np.full((20, 30), 60, np.uint8), label, unknown)
    assert summary["per_image"]["a"] == {"foreground": "a", **row}
    assert (summary["test_set"]["dataset"], summary["test_set"]["trimap_radius_px"]) == ("mine", 2)
    sheet = read_image(dataset / "out" / "worst.png")
    assert sheet.shape[1] == 5 * CELL_PX + 4 * GAP_PX, "image, made trimap, prediction, ground truth, error"
    (dataset / "sets" / "my_set" / "mattes" / "b.png").unlink()
    assert evaluate.main(parts) == 1
    assert "holds 1 images, but mine has 2" in capsys.readouterr().err
    assert evaluate.main(["--dataset", "theirs", "--pred-dir", "x"]) == 1
    assert "Composition-1k" in capsys.readouterr().err


@pytest.fixture
def network(monkeypatch):
    """A network that gives the image's first channel, in place of those of a config and of a model folder.

    Returns: what it was loaded from, and, to be set, the number of images after which it is interrupted.
    """
    from inference import predictor

    seen = SimpleNamespace(loaded=[], num_images=None)

    class FirstChannel:
        @classmethod
        def load(cls, *source, trusted_modules, **settings):
            assert not trusted_modules
            seen.loaded.append((*source, settings))
            return cls()

        def alpha(self, image, trimap):
            assert set(np.unique(trimap)) <= {0, 0.5, 1}
            if seen.num_images == 0:
                raise KeyboardInterrupt
            seen.num_images = seen.num_images and seen.num_images - 1
            return image[:, :, 0]

    monkeypatch.setattr(predictor, "Predictor", FirstChannel)
    return seen


@pytest.fixture
def by_network(dataset):
    """Options of a network on "mine", whose checkpoint is a file, all but the folder to write."""
    (dataset / "w.pth").write_bytes(b"weights")
    options = ["--config-file", "c.py", "--weights", str(dataset / "w.pth"), "--device", "cpu"]
    return ["--dataset", "mine", *options, "--workers", "1", "--pred-dir"]


def test_a_network_writes_the_predictions_first(dataset, network, by_network, capsys):
    assert evaluate.main([*by_network, str(dataset / "pred")]) == 1
    assert "pred holds images already" in capsys.readouterr().err and not network.loaded
    new, out = dataset / "new", dataset / "new" / "out"
    assert evaluate.main([*by_network, str(new), "--output", str(out)]) == 0
    assert network.loaded == [(Path("c.py"), dataset / "w.pth", {"device": "cpu", "precision": "float32"})]
    assert {path.name for path in new.iterdir()} == {"a.png", "b.png", "out"}
    for name in "ab":
        photograph = cv2.imread(str(dataset / "sets" / "my_set" / "photos" / f"{name}.png"))
        assert (cv2.imread(str(new / f"{name}.png"), -1) == photograph[:, :, 2]).all()
    by_files = ["--dataset", "mine", "--workers", "1", "--pred-dir", str(new)]
    assert evaluate.main([*by_files, "--output", str(dataset / "again")]) == 0
    ours, theirs = summary_of(out), summary_of(dataset / "again")
    assert ours.pop("predictions") == {
        "dir": str(new),
        "config_file": "c.py",
        "weights": str(dataset / "w.pth"),
        "weights_sha256": hashlib.sha256(b"weights").hexdigest(),
        "torch": torch.__version__,
    }
    nothing = dict.fromkeys(("config_file", "weights", "weights_sha256", "torch"))
    assert theirs.pop("predictions") == {"dir": str(new), **nothing}
    assert ours == theirs


def test_the_settings_of_a_network_reach_it_and_those_that_change_alpha_are_in_the_summary(dataset, network):
    (dataset / "m.onnx").write_bytes(b"tensors")
    parts = ["--dataset", "mine", "--model", str(dataset / "m.onnx"), "--workers", "1", "--pred-dir"]
    changing = ["--precision", "bf16", "--backbone-px", "512", "--tta", "flips"]
    others = ["--device", "cpu", "--max-memory", "3", "--tile-px", "64"]
    out = str(dataset / "out")
    assert evaluate.main([*parts, str(dataset / "new"), "--output", out, *changing, *others]) == 0
    expected = {"precision": "bf16", "backbone_px": 512, "views": "flips"}
    assert network.loaded == [
        (dataset / "m.onnx", None, expected | {"device": "cpu", "max_memory_gb": 3.0, "tile_px": 64})
    ]
    found = summary_of(dataset / "out")["predictions"]
    assert found.items() >= expected.items() and not found.keys() & {"device", "max_memory_gb", "tile_px"}


def test_a_test_image_may_be_known_everywhere(dataset, network, by_network):
    """Foreground and background without unknown, which is no mask here: its alpha is its trimap."""
    known = np.zeros((20, 30), np.uint8)
    known[:, 15:] = 255
    root = dataset / "all_known"
    for folder, image in (("image", known), ("alpha", known), ("trimap", known)):
        (root / folder).mkdir(parents=True)
        cv2.imwrite(str(root / folder / "a.png"), image)
        cv2.imwrite(str(root / folder / "b.png"), np.repeat(np.uint8([[0, 128, 255]]), 10, axis=1).repeat(20, axis=0))
    options = [part if part != "mine" else str(root) for part in by_network]
    assert evaluate.main([*options, str(dataset / "new")]) == 0
    np.testing.assert_array_equal(cv2.imread(str(dataset / "new" / "a.png"), -1), known)


@pytest.mark.parametrize(
    ("model", "weights", "config_file"),
    [("model", "model/model.safetensors", "model/config.json"), ("model.onnx", "model.onnx", None)],
)
def test_a_model_folder_or_onnx_file_is_a_network_too(dataset, network, model, weights, config_file):
    (dataset / weights).parent.mkdir(exist_ok=True)
    (dataset / weights).write_bytes(b"tensors")
    parts = ["--dataset", "mine", "--model", dataset / model, "--workers", "1", "--pred-dir", dataset / "new"]
    assert evaluate.main([*map(str, parts), "--output", str(dataset / "out")]) == 0
    assert network.loaded == [(dataset / model, None, {"device": "auto", "precision": "float32"})]
    found = summary_of(dataset / "out")["predictions"]
    assert found["weights_sha256"] == hashlib.sha256(b"tensors").hexdigest()
    assert found["weights"] == str(dataset / weights)
    assert found["config_file"] == (config_file and str(dataset / config_file))


def test_a_network_without_its_package_is_one_line(dataset, network, monkeypatch, capsys):
    def load(*source, **options):
        raise MissingExtraError("model.onnx needs the optional package onnxruntime")

    monkeypatch.setattr("inference.predictor.Predictor.load", load)
    parts = ["--dataset", "mine", "--model", dataset / "model.onnx", "--workers", "1", "--pred-dir", dataset / "new"]
    assert evaluate.main([*map(str, parts)]) == 1
    assert capsys.readouterr().err == "evaluate.py: model.onnx needs the optional package onnxruntime\n"


@pytest.mark.parametrize(
    ("pred_dir", "words"),
    [
        ("dangling", "cannot write into {}/dangling: File exists; name another place"),
        ("w.pth/new", "{}/w.pth is no folder: name another place"),
    ],
)
def test_a_folder_that_cannot_be_written_is_one_line_and_nothing_is_loaded(
    dataset, network, by_network, capsys, pred_dir, words
):
    (dataset / "dangling").symlink_to(dataset / "gone")
    assert evaluate.main([*by_network, str(dataset / pred_dir)]) == 1
    assert capsys.readouterr().err == f"evaluate.py: {words.format(dataset)}\n" and not network.loaded


def test_an_interrupted_network_can_be_run_again(dataset, network, by_network, capsys):
    """Of the first run one alpha of two is there, and one that the second run does not make."""
    network.num_images = 1
    assert evaluate.main([*by_network, str(dataset / "new")]) == 130
    (unfinished,) = (dataset / "new").iterdir()
    assert unfinished.is_dir() and [path.name for path in unfinished.iterdir()] == ["a.png"]
    (unfinished / "z.png").write_bytes(b"of another test set")
    network.num_images = None
    assert evaluate.main([*by_network, str(dataset / "new")]) == 0
    assert {path.name for path in (dataset / "new").iterdir()} == {"a.png", "b.png"}


def test_a_network_starts_only_on_a_whole_test_set(dataset, network, by_network, capsys, monkeypatch):
    for kind in ("photos", "mattes"):
        cv2.imwrite(str(dataset / "sets" / "my_set" / kind / "c.png"), np.zeros((9, 9), np.uint8))
    photo = dataset / "sets" / "my_set" / "photos"
    cv2.imwrite(str(photo / "b.png"), np.zeros((4, 4, 3), np.uint8))
    (photo / "a.png").write_bytes(b"broken")
    (photo / "c.png").unlink()
    monkeypatch.setitem(layouts.LAYOUTS, "mine", replace(layouts.LAYOUTS["mine"], num_images=3))
    assert evaluate.main([*by_network, str(dataset / "third")]) == 1
    problems = capsys.readouterr().err.splitlines()
    assert problems[0] == "evaluate.py: 3 problems, nothing evaluated:" and len(problems) == 4
    for words in ("photos/c.* is missing", "photos/a.png: not an image", "photos/b.png is 4 x 4 px, but"):
        assert any(words in line for line in problems), words
    assert not (dataset / "third").exists()


@pytest.fixture
def plain_folder(dataset):
    """The photographs and ground truths of "mine" as image/ and alpha/, without trimap/."""
    for theirs, ours in (("photos", "image"), ("mattes", "alpha")):
        (dataset / "sets" / "my_set" / theirs).rename(dataset / ours)
    return dataset


def test_a_plain_folder_needs_trimaps_where_they_count(plain_folder, network, by_network, capsys):
    by_files = ["--dataset", str(plain_folder), "--pred-dir", str(plain_folder / "pred"), "--workers", "1"]
    assert evaluate.main([*by_files, "--protocol", "whole", "--output", str(plain_folder / "out")]) == 0
    assert summary_of(plain_folder / "out")["test_set"]["trimap_dir"] is None
    network_too = ["--dataset", str(plain_folder), *by_network[2:], str(plain_folder / "new")]
    for parts in (by_files, [*network_too, "--protocol", "whole"]):
        assert evaluate.main(parts) == 1
        assert f"Missing folders:\n  {plain_folder / 'trimap'}\n" in capsys.readouterr().err
