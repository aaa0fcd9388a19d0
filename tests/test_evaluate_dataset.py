"""tools/evaluate.py --dataset: folders found by a layout, trimaps made by its rule, predictions of a network."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_evaluate_tool import values

from data import layouts
from data.images import read_image, read_raw_alpha
from data.trimap import trimap_from_alpha
from evaluation.metrics import measure
from evaluation.report import CELL_PX, GAP_PX
from tools import evaluate


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Data set "mine" of the two images, whose trimaps are made by a radius of 2 px; a truth has a square of 1."""
    rng = np.random.default_rng(5)
    for name in "ab":
        label = np.zeros((20, 30), np.uint8)
        label[5:15, 6:20] = 255
        for folder, picture in (("photos", rng.integers(0, 256, (20, 30, 3))), ("mattes", label)):
            (tmp_path / "sets" / "my_set" / folder).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / "sets" / "my_set" / folder / f"{name}.png"), picture.astype(np.uint8))
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
    assert lines[1:3] == ["Data set mine", "Trimaps made from the truths: trimap_from_alpha(alpha, 2, 2)"]
    summary = values(dataset / "out")
    label = read_raw_alpha(dataset / "sets" / "my_set" / "mattes" / "a.png")
    unknown = trimap_from_alpha(label / 255, 2, 2) == 0.5
    assert summary["per_image"]["a"] == measure(np.full((20, 30), 60, np.uint8), label, unknown)
    assert (summary["test_set"]["dataset"], summary["test_set"]["trimap_radius_px"]) == ("mine", 2)
    sheet = read_image(dataset / "out" / "worst.png")
    assert sheet.shape[1] == 5 * CELL_PX + 4 * GAP_PX, "image, made trimap, prediction, truth, error"
    (dataset / "sets" / "my_set" / "mattes" / "b.png").unlink()
    assert evaluate.main(parts) == 1
    assert "holds 1 pictures, but mine has 2" in capsys.readouterr().err
    assert evaluate.main(["--dataset", "theirs", "--pred-dir", "x"]) == 1
    assert "Composition-1k" in capsys.readouterr().err


def test_a_network_writes_the_predictions_first(dataset, capsys, monkeypatch):
    """The network here gives the image's first channel; the predictor pastes nothing, it only hands over."""
    import torch

    from engine import model

    class FirstChannel(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, batch):
            assert set(batch["trimap"].unique().tolist()) == {0, 0.5, 1}
            return {"pred_alpha": batch["image"][:, :1]}

    calls = []
    monkeypatch.setattr(model, "load_model", lambda *arguments: calls.append(arguments) or FirstChannel())
    network = ["--config-file", "c.py", "--weights", "w.pth", "--device", "cpu"]
    parts = ["--dataset", "mine", *network, "--workers", "1", "--pred-dir"]
    assert evaluate.main([*parts, str(dataset / "pred")]) == 1
    assert "pred holds pictures already" in capsys.readouterr().err and not calls
    assert evaluate.main([*parts, str(dataset / "new"), "--output", str(dataset / "out")]) == 0
    assert calls == [(Path("c.py"), Path("w.pth"), "cpu")]
    for name in "ab":
        photograph = cv2.imread(str(dataset / "sets" / "my_set" / "photos" / f"{name}.png"))
        assert (cv2.imread(str(dataset / "new" / f"{name}.png"), -1) == photograph[:, :, 2]).all()
    by_files = ["--dataset", "mine", "--workers", "1", "--pred-dir", str(dataset / "new")]
    assert evaluate.main([*by_files, "--output", str(dataset / "again")]) == 0
    assert values(dataset / "out") == values(dataset / "again")

    for kind in ("photos", "mattes"):
        cv2.imwrite(str(dataset / "sets" / "my_set" / kind / "c.png"), np.zeros((9, 9), np.uint8))
    photo = dataset / "sets" / "my_set" / "photos"
    cv2.imwrite(str(photo / "b.png"), np.zeros((4, 4, 3), np.uint8))
    (photo / "a.png").write_bytes(b"broken")
    (photo / "c.png").unlink()
    monkeypatch.setitem(layouts.LAYOUTS, "mine", replace(layouts.LAYOUTS["mine"], num_images=3))
    assert evaluate.main([*parts, str(dataset / "third")]) == 1
    problems = capsys.readouterr().err.splitlines()
    assert problems[0] == "evaluate.py: 3 problems, nothing evaluated:" and len(problems) == 4
    for words in ("photos/c.* is missing", "photos/a.png: not a picture", "photos/b.png is 4 x 4 px, but"):
        assert any(words in line for line in problems), words
    assert not (dataset / "third").exists()
