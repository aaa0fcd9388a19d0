"""configs/finetune.py and engine/checkpoint/pretrained.py: networks of a checkpoint, trained on ten images."""

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file

import main
from data.trimap import trimap_from_alpha
from engine.checkpoint.file import CheckpointError
from engine.checkpoint.pretrained import adopt_model, describe_model, read_initial
from engine.config.config import apply_overrides, load_config
from engine.config.targets import TARGETS
from evaluation.folders import evaluate_folders
from inference.formats.model_folder import CONSTRUCTORS
from inference.predictor import Predictor
from modeling.backbone import ViTDet
from runtime.errors import ConfigError
from tests.helpers.paths import DEMO, REPOSITORY
from tests.helpers.training import metrics, overrides
from tools import export

pytestmark = [pytest.mark.usefixtures("no_log_handlers_left"), pytest.mark.usefixtures("tiny_size_is_published")]


FINETUNE = str(REPOSITORY / "configs" / "finetune.py")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Ten photographs of 96 x 80 px, discs brighter than what is behind them; test/ holds the same ten."""
    folder = tmp_path_factory.mktemp("mine")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:80, :96]
    for part in ("image", "alpha", "test/trimap"):
        (folder / part).mkdir(parents=True)
    for i in range(10):
        alpha = np.clip(26 + i - np.hypot(y - 40 - i, x - 48 + i), 0, 9) / 9
        image = 60 * rng.random((80, 96, 3)) + (190 * alpha)[..., None]
        cv2.imwrite(str(folder / f"image/{i}.png"), image.astype(np.uint8))
        cv2.imwrite(str(folder / f"alpha/{i}.png"), np.round(255 * alpha).astype(np.uint8))
        trimap = trimap_from_alpha(alpha.astype(np.float32), 3, 3)
        cv2.imwrite(str(folder / f"test/trimap/{i}.png"), np.round(255 * trimap).astype(np.uint8))
    for part in ("image", "alpha"):
        shutil.copytree(folder / part, folder / "test" / part)
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A random network: `config.yaml` and `model_final.pth` of a training run, and its model folder `model`."""
    folder = tmp_path_factory.mktemp("start")
    cfg = load_config(DEMO)
    apply_overrides(cfg, [*overrides(folder, folder), "model.pixel_mean=[0.4,0.4,0.4]"])
    torch.manual_seed(0)
    torch.save({"model": instantiate(cfg.model).state_dict()}, folder / "model_final.pth")
    LazyConfig.save(cfg, str(folder / "config.yaml"))
    source = ["--config-file", folder / "config.yaml", "--weights", folder / "model_final.pth"]
    assert export.main([str(part) for part in (*source, "--output", folder / "model")]) == 0
    return folder


def finetune(checkpoint, images, output, *more):
    """Run the one command of docs/finetune.md, on crops and numbers of steps that suit tiny networks."""
    small = [
        "train.device=cpu", f"train.output_dir={output}", f"train.init_checkpoint={checkpoint}", "train.log_period=1",
        f"dataloader.folder={images}", "dataloader.train.num_workers=0", "dataloader.test.num_workers=0",
        "dataloader.train.dataset.crop_px=64", "dataloader.train.dataset.crop.square_probability=0",
        "dataloader.train.dataset.trimap.radius_px=[0,3]", "train.samples_per_epoch=8", "train.warmup_samples=4",
    ]  # fmt: skip
    main.main(["--config-file", FINETUNE, *small, *map(str, more)])


def sad(predict, folder, out):
    """Mean SAD of a network over the test images, by `tools/predict.py`'s way of running it."""
    out.mkdir()
    for path in sorted((folder / "test" / "image").iterdir()):
        trimap = cv2.imread(str(folder / "test" / "trimap" / path.name), cv2.IMREAD_UNCHANGED)
        alpha = predict(cv2.imread(str(path))[..., ::-1], trimap)
        cv2.imwrite(str(out / path.name), np.round(255 * alpha).astype(np.uint8))
    rows = evaluate_folders(out, folder / "test" / "alpha", folder / "test" / "trimap").rows
    return np.mean([row["SAD"] for row in rows.values()])


@pytest.mark.slow
def test_ten_images_make_the_network_of_a_folder_better(images, start, tmp_path):
    """Loss falls, the images are matted better than before, BatchNorm stays, and the result is a model folder again."""
    more = ("train.epochs=20", "train.epochs_per_checkpoint=20", "optimizer.lr=5e-3", "train.pictures=null")
    finetune(start / "model", images, tmp_path / "run", *more)
    losses = [row["total_loss"] for row in metrics(tmp_path / "run").values() if "total_loss" in row]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    weights = tmp_path / "run" / "model_final.pth"
    before, after = load_file(start / "model" / "model.safetensors"), torch.load(weights, weights_only=True)["model"]
    assert before.keys() == after.keys()
    statistics = [name for name in before if "running_" in name]
    assert statistics and all(torch.equal(before[name], after[name]) for name in statistics)

    source = ["--config-file", tmp_path / "run" / "config.yaml", "--weights", weights]
    assert export.main([str(part) for part in (*source, "--output", tmp_path / "model")]) == 0
    folders = {"start": start / "model", "result": tmp_path / "model"}
    sads = {name: sad(Predictor.load(path, device="cpu").predict, images, tmp_path / name)
            for name, path in folders.items()}  # fmt: skip
    assert sads["result"] < 0.8 * sads["start"]
    last = metrics(tmp_path / "run")
    assert last[max(last)]["matting/SAD"] == pytest.approx(sads["result"])


@pytest.mark.parametrize("checkpoint", ["model", "model/model.safetensors", "model_final.pth"])
def test_every_kind_of_checkpoint_brings_its_network_and_its_numbers(images, start, tmp_path, checkpoint):
    """At a rate of nearly 0 the network stays; the saved config names it, and no checkpoint."""
    more = ("train.epochs=2", "optimizer.lr=1e-30", "dataloader.test=null", "model.backbone.drop_path_rate=0.25")
    finetune(start / checkpoint, images, tmp_path, *more)
    after = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    before = torch.load(start / "model_final.pth", weights_only=True)["model"]
    torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-12)
    saved, theirs = load_config(tmp_path / "config.yaml"), load_config(start / "config.yaml")
    assert saved.train.model_of_checkpoint is None and saved.model.backbone.drop_path_rate == 0.25
    expected = OmegaConf.to_container(theirs.model, resolve=True)
    expected["backbone"]["drop_path_rate"] = 0.25
    found = OmegaConf.to_container(saved.model, resolve=True)
    assert found == expected and found["pixel_mean"] == [0.4, 0.4, 0.4]


@pytest.mark.slow
def test_published_vitmatte_weights_keep_their_windows_colours_and_padding(images, vitmatte_folder, tmp_path):
    """transformers' tiny network, converted: a few steps, and no weight stays what it was."""
    assert export.main(["--from-vitmatte", str(vitmatte_folder), "--output", str(tmp_path / "model")]) == 0
    finetune(tmp_path / "model", images, tmp_path / "run", "train.epochs=2", "dataloader.test=null")
    model = load_config(tmp_path / "run" / "config.yaml").model
    assert model.backbone._target_ is ViTDet and model.backbone.window_size == 14
    assert model.pixel_mean == [0.5, 0.5, 0.5] and model.padding == "zero"
    before = load_file(tmp_path / "model" / "model.safetensors")
    after = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)["model"]
    assert before.keys() == after.keys()
    same = {name for name in before if torch.equal(before[name], after[name])}
    norms = {name.removesuffix("running_mean") for name in before if name.endswith("running_mean")}
    assert same == {name for name in before if name.startswith(tuple(norms))}, "BatchNorm is frozen, nothing else"


def test_evaluating_alone_measures_what_it_starts_from(images, start, tmp_path, capsys):
    options = ["train.device=cpu", f"train.output_dir={tmp_path / 'run'}", f"dataloader.folder={images}",
               f"train.init_checkpoint={start / 'model'}", "dataloader.test.num_workers=0"]  # fmt: skip
    main.main(["--config-file", FINETUNE, "--eval-only", *options])
    expected = sad(Predictor.load(start / "model", device="cpu").predict, images, tmp_path / "pred")
    assert f"{expected:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("path", ["${oc.env:NO_SUCH_VARIABLE}/model", "${no.such.key}"])
def test_a_checkpoint_named_by_an_interpolation_that_cannot_be_computed_is_a_config_error(path):
    with pytest.raises(ConfigError, match="train.init_checkpoint"):
        apply_overrides(load_config(FINETUNE), [f"train.init_checkpoint={path}"], adopt_model)


def test_a_run_can_build_each_network_of_a_model_folder():
    classes = [kind for kinds in CONSTRUCTORS.values() for kind in kinds.values()]
    assert {f"{kind.__module__}.{kind.__name__}" for kind in classes} <= TARGETS


@pytest.fixture
def model(start, tmp_path):
    return Path(shutil.copytree(start / "model", tmp_path / "model"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"type": "System"}, "a part of the model is 'System'"),
        ({"type": "DINOV3_SIZES"}, "a part of the model is 'DINOV3_SIZES'"),
        ({"type": "os.system"}, "a part of the model is 'os.system'"),
        ({"backbone": {"_target_": "os.system", "command": "true"}}, "a part of the model is 'os.system'"),
        ({"type": "MattingFolder"}, "is no part of a network"),
        ({"backbone": {"type": "ViT", "_args_": [1]}}, "'_args_' is no name of an argument"),
        ({"pixel_mean": ["${oc.env:HOME}", 0, 0]}, "expected plain values, got '${oc.env:HOME}'"),
        ({"size_divisibility": {"_target_": "os.getcwd"}}, "a part of the model is 'os.getcwd'"),
    ],
)
def test_nothing_else_than_networks_is_built(model, change, words):
    content = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**content, "model": {**content["model"], **change}}))
    with pytest.raises(CheckpointError) as refused:
        describe_model(model)
    assert words in str(refused.value) and str(model / "config.json") in str(refused.value)


def test_a_config_of_another_training_runs_nothing_either(start, tmp_path):
    for name in ("config.yaml", "model_final.pth"):
        shutil.copy(start / name, tmp_path / name)
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(re.sub(r"\S+MattingCriterion", "os.getcwd", text))
    with pytest.raises(CheckpointError, match="criterion._target_ is 'os.getcwd'"):
        describe_model(tmp_path / "model_final.pth")


def remove(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (remove("config.json"), "config.json is not there, which would say what network this is"),
        (remove("model.safetensors"), "is no model folder: it lacks model.safetensors"),
        (shutil.rmtree, "there is no checkpoint"),
        (remove("config.json", "model.safetensors"), "name a file such as model_final.pth in a run's folder"),
        (write("config.json", b"{"), "config.json is damaged or no JSON"),
        (write("config.json", b'{"model_type": "vitmatte"}'), "published ViTMatte weights become such a folder by"),
        (write("model.safetensors", b"123"), "model.safetensors is damaged or no safetensors file"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_line(model, images, tmp_path, capsys, damage, words):
    damage(model)
    with pytest.raises(SystemExit) as ended:
        finetune(model, images, tmp_path / "run")
    message = capsys.readouterr().err
    assert ended.value.code == 1 and words in message and "Traceback" not in message
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_config_that_takes_its_network_from_a_checkpoint_needs_one(images, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        finetune("''", images, tmp_path / "run")
    assert ended.value.code == 2 and "train.init_checkpoint=PATH" in capsys.readouterr().err


def test_tensors_of_another_network_are_refused_with_the_config_that_fits(start, model, images, tmp_path, capsys):
    content = json.loads((model / "config.json").read_text())
    content["model"]["decoder"]["fusion_chans"] = [8, 8, 8, 4]
    (model / "config.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="1"):
        finetune(model, images, tmp_path / "run", "dataloader.test=null")
    assert re.search(r"model does not fit the model. .*of another shape", capsys.readouterr().err)
    test_dirs = [f"dataloader.test.dataset.{part}_dir={images}/test/{part}" for part in ("image", "trimap", "alpha")]
    with pytest.raises(SystemExit, match="1"):
        main.main(["--config-file", DEMO, "--eval-only", f"train.init_checkpoint={start / 'model'}",
                   "train.device=cpu", f"train.output_dir={tmp_path / 'run'}",
                   *test_dirs])  # fmt: skip
    assert re.search("configs/finetune.py builds the network that .*config.json describes", capsys.readouterr().err)


def test_alphas_that_are_missing_are_named_before_anything_starts(start, images, tmp_path, capsys):
    mine = shutil.copytree(images, tmp_path / "mine")
    (mine / "alpha" / "3.png").unlink()
    with pytest.raises(SystemExit, match="1"):
        finetune(start / "model", mine, tmp_path / "run")
    assert re.search(r"1 files lack their partners. Missing:\n  .*alpha/3\.\*", capsys.readouterr().err)
    shutil.rmtree(mine / "alpha")
    with pytest.raises(SystemExit, match="1"):
        finetune(start / "model", mine, tmp_path / "run")
    assert re.search("Missing folders:\n  .*mine/alpha", capsys.readouterr().err)


def test_weights_are_the_same_from_file_folder_and_checkpoint(start):
    ways = [read_initial(start / name) for name in ("model", "model/model.safetensors", "model_final.pth")]
    for weights in ways[1:]:
        assert weights.keys() == ways[0].keys() and all(torch.equal(weights[name], ways[0][name]) for name in weights)


def test_other_configs_keep_their_network(start):
    cfg = load_config(DEMO)
    cfg.train.init_checkpoint = str(start / "model")
    before = OmegaConf.to_yaml(cfg.model)
    adopt_model(cfg)
    assert OmegaConf.to_yaml(cfg.model) == before
