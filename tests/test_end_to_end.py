"""The whole chain by its command lines: data, checkpoint, conversion, training, alphas, numbers."""

import hashlib
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

import main
import preprocess
from engine.config.config import apply_overrides, load_config
from tests.helpers.paths import DEMO
from tests.helpers.training import last_evaluation, metrics, overrides, printed_evaluation
from tools import evaluate, export, make_test_set, predict
from tools.dataset import make_demo_data
from tools.runs import demo

pytestmark = pytest.mark.usefixtures("no_log_handlers_left")


FOLDERS = ("image", "trimap", "alpha")


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A folder with everything from drawn foregrounds to `out/model_final.pth`, made by the tools alone."""
    folder = tmp_path_factory.mktemp("chain")
    counts = {"seed": 5, "size-px": 96, "num-train": 6, "num-backgrounds": 3, "num-test": 3, "num-workers": 1}
    make_demo_data.main([f"--output={folder / 'drawn'}", *(f"--{name}={count}" for name, count in counts.items())])
    (folder / "rgba").symlink_to(folder / "drawn" / "train" / "rgba")
    (folder / "backgrounds").symlink_to(folder / "drawn" / "train" / "backgrounds")
    sources = ["--foreground-dir", str(folder / "rgba"), "--background-dir", str(folder / "backgrounds")]
    made = ["--output", str(folder), "--num", "3", "--crop-px", "80", "--seed", "9"]
    assert make_test_set.main([*sources, *made]) == 0

    settings = {"train.init_checkpoint": folder / "initial.pth", "train.device": "cpu", "optimizer.lr": 0.02}
    changes = overrides(folder, folder / "out", **settings)
    cfg = load_config(DEMO)
    apply_overrides(cfg, changes)
    demo.write_tiny_checkpoint(cfg, folder / "dinov3.pth", seed=0)
    converted = ["--checkpoint", str(folder / "dinov3.pth"), "--output", str(folder / "initial.pth"), "--keep-prefix"]
    assert preprocess.main(converted) == 0
    main.main(["--config-file", DEMO, *changes])
    return folder


def matte(folder, image_dir, trimap_dir, output, *how):
    return predict.main([*map(str, (image_dir, "--trimap-dir", trimap_dir, "--output", output, *how))])


def numbers(folder, pred_dir, label_dir, trimap_dir):
    """Averages that tools/evaluate.py writes."""
    output = folder / f"{pred_dir.name}_numbers"
    options = {"pred-dir": pred_dir, "label-dir": label_dir, "trimap-dir": trimap_dir, "output": output, "workers": 1}
    assert evaluate.main([f"--{name}={value}" for name, value in options.items()]) == 0
    return json.loads((output / "summary.json").read_text())["averages"]


def test_the_training_began_with_the_checkpoint_and_moved_every_tensor(chain):
    official = torch.load(chain / "dinov3.pth", weights_only=True)
    names = ("initial.pth", "out/model_final.pth")
    initial, final = (torch.load(chain / name, weights_only=True)["model"] for name in names)
    torch.testing.assert_close(initial["backbone.blocks.1.mlp.fc1.weight"], official["blocks.1.mlp.fc1.weight"])
    assert f"{len(initial)} of {len(final)} tensors loaded" in (chain / "out" / "log.txt").read_text()
    moved = {name for name in initial if not torch.equal(initial[name], final[name])}
    assert initial.keys() - moved == {"backbone.rope_embed.periods"}
    assert [iteration for iteration, row in metrics(chain / "out").items() if "total_loss" in row] == list(range(6))


def test_written_alphas_evaluate_to_the_numbers_of_the_training(chain, capfd):
    """`predict` and `evaluate` on files, the training's last evaluation, and --eval-only: three ways, one result."""
    config, weights = chain / "out" / "config.yaml", chain / "out" / "model_final.pth"
    network = ("--config-file", config, "--weights", weights)
    assert matte(chain, chain / "image", chain / "trimap", chain / "pred", *network) == 0
    by_files = numbers(chain, chain / "pred", chain / "alpha", chain / "trimap")
    rows = metrics(chain / "out")
    by_training = {name.removeprefix("matting/"): value for name, value in rows[6].items() if "matting/" in name}
    # The training evaluates by tiles and predict only what is needed: floats differ in their last digits, so that a
    # pixel between two of the 255 levels may round to the other: that moved Grad by 2.5e-6 of itself, and SAD by less.
    assert by_files == pytest.approx(by_training, rel=1e-5) and by_files["SAD"] > 0.1
    capfd.readouterr()
    changes = [f"train.init_checkpoint={weights}", f"train.output_dir={chain / 'alone'}"]
    main.main(["--config-file", str(config), "--eval-only", *changes])
    alone = printed_evaluation(capfd.readouterr().out)
    assert alone == last_evaluation(chain / "out") == {name: round(value, 4) for name, value in by_files.items()}


def test_averages_of_views_are_the_same_in_files_and_in_eval_only(chain, tmp_path, capfd):
    config, weights = chain / "out" / "config.yaml", chain / "out" / "model_final.pth"
    network = ("--config-file", config, "--weights", weights, "--tta", "flips,0.75,1")
    assert matte(chain, chain / "image", chain / "trimap", chain / "pred_views", *network) == 0
    by_files = numbers(chain, chain / "pred_views", chain / "alpha", chain / "trimap")
    for name, kind in zip(FOLDERS, ("image", "trimap", "alpha"), strict=True):
        (tmp_path / kind).symlink_to(chain / name)
    dataset = ("--dataset", tmp_path, "--pred-dir", tmp_path / "pred", "--output", tmp_path / "numbers", "--workers", 1)
    assert evaluate.main([str(part) for part in (*dataset, *network)]) == 0
    summary = json.loads((tmp_path / "numbers" / "summary.json").read_text())
    assert summary["averages"] == by_files and summary["predictions"]["views"] == network[-1]
    capfd.readouterr()
    changes = [f"train.init_checkpoint={weights}", f"train.output_dir={chain / 'views'}"]
    views = [f"dataloader.test_views.{view}" for view in ("flips=true", "scales=[0.75,1.0]")]
    main.main(["--config-file", str(config), "--eval-only", *changes, *views])
    alone = printed_evaluation(capfd.readouterr().out)
    assert alone == {name: round(value, 4) for name, value in by_files.items()}
    assert alone != last_evaluation(chain / "out")


def test_a_data_set_is_matted_and_evaluated_by_one_command(chain, tmp_path):
    """`evaluate --dataset` with a network, and with its model folder: the alphas of `predict`, and their numbers."""
    for name, kind in zip(FOLDERS, ("image", "trimap", "alpha"), strict=True):
        (tmp_path / kind).symlink_to(chain / name)
    network = ("--config-file", str(chain / "out" / "config.yaml"), "--weights", str(chain / "out" / "model_final.pth"))
    assert export.main([*network, "--output", str(tmp_path / "model")]) == 0
    assert matte(chain, chain / "image", chain / "trimap", tmp_path / "again", *network) == 0
    expected = numbers(tmp_path, tmp_path / "again", chain / "alpha", chain / "trimap")
    for how in (network, ("--model", str(tmp_path / "model"), "--device", "cpu")):
        pred_dir, output = tmp_path / f"pred{how[0]}", tmp_path / f"numbers{how[0]}"
        parts = [f"--dataset={tmp_path}", *how, f"--pred-dir={pred_dir}", f"--output={output}", "--workers=1"]
        assert evaluate.main(parts) == 0
        for path in (tmp_path / "again").iterdir():
            assert path.read_bytes() == (pred_dir / path.name).read_bytes()
        summary = json.loads((output / "summary.json").read_text())
        assert summary["averages"] == expected
        weights = Path(summary["predictions"]["weights"])
        assert summary["predictions"]["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_the_trained_network_is_not_a_baseline(chain):
    """The alphas come from the network, and other weights give other numbers."""
    results = {}
    network = ("--config-file", chain / "out" / "config.yaml", "--weights")
    for name, how in {
        "early": (*network, chain / "out" / "model_0000002.pth"),
        "late": (*network, chain / "out" / "model_final.pth"),
        "trivial": ("--baseline", "trivial"),
        "ramp": ("--baseline", "ramp"),
    }.items():
        assert matte(chain, chain / "image", chain / "trimap", chain / name, *how) == 0
        results[name] = numbers(chain, chain / name, chain / "alpha", chain / "trimap")
    assert len({round(averages["SAD"], 6) for averages in results.values()}) == 4


def test_the_initial_checkpoint_alone_mattes_nothing(chain, capsys):
    network = ("--config-file", chain / "out" / "config.yaml", "--weights", chain / "initial.pth")
    assert matte(chain, chain / "image", chain / "trimap", chain / "never", *network) == 1
    assert "initial.pth does not fit the model" in capsys.readouterr().err
    assert not (chain / "never").exists()


def test_the_ramp_on_real_photographs(matting_folder, tmp_path):
    """Against scipy's exact distances and sums of our own on the narrow trimaps of alphamatting.com."""
    photographs = matting_folder / "alphamatting"
    trimap_dir = photographs / "trimap1"
    assert matte(tmp_path, photographs / "image", trimap_dir, tmp_path / "ramp", "--baseline", "ramp") == 0
    found = numbers(tmp_path, tmp_path / "ramp", photographs / "alpha", trimap_dir)
    sads, mses = [], []
    for path in sorted(trimap_dir.iterdir()):
        trimap, alpha = (cv2.imread(str(folder / path.name), 0) for folder in (trimap_dir, photographs / "alpha"))
        to_background, to_foreground = distance_transform_edt(trimap != 0), distance_transform_edt(trimap != 255)
        differences = (np.rint(255 * to_background / (to_background + to_foreground)) - alpha)[trimap == 128] / 255
        sads.append(np.abs(differences).sum() / 1000)
        mses.append(np.square(differences).mean())
    assert len(sads) == 18
    assert found["SAD"] == pytest.approx(math.fsum(sads) / 18, rel=1e-3)
    assert found["MSE"] == pytest.approx(math.fsum(mses) / 18, rel=1e-3)
    assert found["SAD"] == pytest.approx(12.647, rel=1e-3) and found["MSE"] == pytest.approx(0.065513, rel=1e-3)
