"""tools/runs/demo.py: its parts quickly, and the whole demo slowly, with three seeds."""

import json
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

import preprocess
from data.datasets.composition import MattingFolder
from data.trimap import trivial_alpha
from engine.config.config import apply_overrides, load_config
from engine.config.overrides import write_override
from evaluation.metrics import METRICS
from tests.helpers.paths import REPOSITORY
from tools.runs import demo


@pytest.fixture(scope="module")
def cfg():
    return load_config(demo.CONFIG)


def test_the_checkpoint_has_the_official_layout(cfg, tmp_path):
    path = tmp_path / "made" / "tiny.pth"
    demo.write_tiny_checkpoint(cfg, path, seed=0)
    state = torch.load(path, weights_only=True)
    assert {"cls_token", "storage_tokens", "mask_token", "rope_embed.periods", "norm.weight"} <= state.keys()
    assert {f"blocks.{i}.attn.qkv.bias_mask" for i in range(cfg.model.backbone.depth)} <= state.keys()
    assert not [name for name in state if "residual" in name]
    result = preprocess.convert(preprocess.read_checkpoint(path), keep_prefix=True)
    assert (result.layout, result.size) == ("official", "unlisted")
    assert result.account.keys() == state.keys()
    fates = {key: fate.split(":")[0] for key, fate in result.account.items() if not fate.startswith("converted")}
    assert fates == {"patch_embed.proj.weight": "inflated", "mask_token": "dropped"}
    for name in ("embed_dim", "depth", "num_heads"):
        assert result.vit_args[name] == cfg.model.backbone[name]
    network = demo.build_section(cfg.model, "model").state_dict()
    lacking = [name for name in network if name not in result.model]
    assert not result.model.keys() - network.keys()
    assert all(any(part in name for part in cfg.train.init_checkpoint_may_lack) for name in lacking)


def test_the_checkpoint_follows_from_the_seed(cfg, tmp_path):
    states = []
    for number, seed in enumerate((0, 0, 1)):
        demo.write_tiny_checkpoint(cfg, tmp_path / f"{number}.pth", seed)
        states.append(torch.load(tmp_path / f"{number}.pth", weights_only=True))
    name = "blocks.0.attn.qkv.weight"
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0][name], states[2][name])


@pytest.mark.parametrize("name", ["démo", "a (1), b=c", "it's", "{x: [y]}", "100%, 'a\\'b'", "end\\"])
def test_any_output_folder_passes_as_an_override(name):
    cfg = load_config(demo.CONFIG)
    apply_overrides(cfg, [write_override("train.output_dir", f"/tmp/{name}")])
    assert cfg.train.output_dir == f"/tmp/{name}"


@pytest.fixture
def test_set(tmp_path):
    """Four images of two kinds; half of each 32 x 40 px is unknown."""
    rng = np.random.default_rng(0)
    for folder in ("image", "trimap", "alpha"):
        (tmp_path / folder).mkdir()
    for name in ("fur_000", "fur_001", "lace_000", "lace_001"):
        alpha = rng.integers(0, 256, (32, 40), np.uint8)
        alpha[:8], alpha[-8:] = 0, 255
        trimap = np.full_like(alpha, 128)
        trimap[:8], trimap[-8:] = 0, 255
        cv2.imwrite(str(tmp_path / "image" / f"{name}.png"), rng.integers(0, 256, (32, 40, 3), np.uint8))
        cv2.imwrite(str(tmp_path / "trimap" / f"{name}.png"), trimap)
        cv2.imwrite(str(tmp_path / "alpha" / f"{name}.png"), alpha)
    return tmp_path


def test_methods_are_compared_on_the_unknown_region_of_every_image(test_set, tmp_path, monkeypatch):
    sheets = []
    monkeypatch.setattr(demo, "image_sheet", lambda rows, path, cell_px: sheets.append((rows, path)))
    names = [path.stem for path in sorted((test_set / "image").iterdir())]
    calls = []

    def constant(image, trimap):
        calls.append((image, trimap))
        return np.where(trimap == 0.5, 0.25, trimap)

    data_set = MattingFolder(*(test_set / folder for folder in ("image", "trimap", "alpha")))
    methods = {"trivial": lambda image, trimap: trivial_alpha(trimap), "constant": constant}
    results = demo.compare(methods, data_set, tmp_path / "sheet.png")
    alphas = [cv2.imread(str(test_set / "alpha" / f"{name}.png"), 0)[8:-8].astype(float) for name in names]
    for method, level in (("trivial", 128), ("constant", 64)):  # 0.5 and 0.25 in 8 bit
        sad, mse = (np.mean([f(alpha - level) for alpha in alphas]) for f in (
            lambda difference: np.abs(difference).sum() / 255 / 1000,
            lambda difference: np.square(difference / 255).mean(),
        ))  # fmt: skip
        assert results[method]["SAD"] == pytest.approx(sad, rel=1e-9)
        assert results[method]["MSE"] == pytest.approx(mse, rel=1e-9)
    rgb = cv2.imread(str(test_set / "image" / f"{names[1]}.png"))[:, :, ::-1]
    np.testing.assert_allclose(calls[1][0], rgb / 255, atol=1e-6)
    assert len(calls) == 4 and calls[1][1].shape == (32, 40)
    ((rows, path),) = sheets
    assert path == tmp_path / "sheet.png" and list(rows) == ["fur", "lace"]
    np.testing.assert_array_equal(rows["lace"]["image"], calls[2][0])  # the first of its kind
    assert (rows["lace"]["prediction"][8:-8] == 0.25).all()  # by the last method


GOOD = {
    "trivial": {"SAD": 1.0, "MSE": 1.0},
    "ramp": {"SAD": 0.7, "MSE": 1.0},
    "grey image": {"SAD": 0.9, "MSE": 1.0},
    "trained": {"SAD": 0.6, "MSE": 0.8},
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"trained": {"SAD": 0.61, "MSE": 0.8}}, ["SAD / trivial is 0.610, expected at most 0.6"]),
        ({"trained": {"SAD": 0.6, "MSE": 0.81}}, ["MSE / trivial is 0.810, expected at most 0.8"]),
        ({"ramp": {"SAD": 0.5}}, ["SAD / ramp is 1.200, expected at most 1.0"]),
        ({"grey image": {"SAD": 0.6}}, ["SAD / grey image is 1.000, expected at most 0.9"]),
    ],
)
def test_missed_targets_are_listed_with_their_figures(changes, expected):
    assert demo.missed_targets(GOOD | changes) == expected


def test_a_command_that_fails_ends_the_demo(capfd):
    with pytest.raises(subprocess.CalledProcessError):
        demo.run("-c", "raise SystemExit(3)")
    assert "$ python -c 'raise SystemExit(3)'" in capfd.readouterr().out


SAMPLES = 3000
"""Of the 8000 of the config: enough for all targets."""


@pytest.mark.slow
def test_the_whole_demo(tmp_path):
    command = [
        sys.executable,
        "tools/runs/demo.py",
        "--output",
        str(tmp_path / "demo"),
        f"train.samples_per_epoch={SAMPLES}",
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for name in ("metrics.json", "loss_curve.png", "sheet.png", "results.md", "model_final.pth", "config.yaml"):
        assert (tmp_path / "demo" / name).stat().st_size > 0, name
    table = done.stdout[done.stdout.index("held-out composites, dim: ") :].splitlines()
    heads = ["method", *(metric.label for metric in METRICS.values()), "SAD / trivial"]
    assert re.split(r"\s{2,}", table[1]) == heads
    rows = {line[:12].strip(): [float(cell) for cell in line[12:].split()] for line in table[2:7]}
    assert list(rows) == ["trivial", "ramp", "untrained", "grey image", "trained"]
    sad, mse = ({name: row[column] for name, row in rows.items()} for column in (0, 1))
    assert sad["trained"] <= 0.6 * sad["trivial"] and mse["trained"] <= 0.8 * mse["trivial"]
    assert sad["trained"] < sad["ramp"] and sad["trained"] < sad["untrained"]
    assert sad["trained"] <= 0.9 * sad["grey image"]
    assert (tmp_path / "demo" / "results.md").read_text().count("\n| ") == 6  # a head and five rows
    losses = [json.loads(line) for line in (tmp_path / "demo" / "metrics.json").read_text().splitlines()]
    totals = [row["total_loss"] for row in losses if "total_loss" in row]
    assert len(totals) > 15 and np.mean(totals[-5:]) < 0.7 * totals[0]
