"""tools/export.py --config-file: a training's network to a model folder that gives the same alpha."""

import json
import re

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from test_main import DEMO, REPOSITORY, overrides
from test_published_vitmatte import picture, randomised, refused, run

from engine.config import apply_overrides, load_config
from inference.model_folder import build
from inference.predictor import Predictor
from tools import export

CONFIGS = sorted((REPOSITORY / "configs").glob("*.py"))


def save_checkpoint(cfg, folder):
    """`config.yaml` and `weights.pth` of random weights, as a training leaves them."""
    torch.manual_seed(0)
    model = randomised(instantiate(cfg.model))
    torch.save({"model": model.state_dict(), "iteration": 7}, folder / "weights.pth")
    LazyConfig.save(cfg, str(folder / "config.yaml"))


@pytest.mark.parametrize("name", ["demo.py", "ViTMatte_S_100ep.py", "ViTMatte_S_original.py"])
def test_a_config_and_its_checkpoint_give_the_same_alpha_to_the_bit(tmp_path, capsys, name):
    config_file = REPOSITORY / "configs" / name
    cfg = load_config(config_file)
    if name == "demo.py":
        apply_overrides(
            cfg, [*overrides(tmp_path, tmp_path), "model.pixel_mean=[0.4,0.5,0.6]", "model.backbone.norm_eps=0.1"]
        )
    save_checkpoint(cfg, tmp_path)
    if name == "demo.py":
        config_file = tmp_path / "config.yaml"
    command = ["--config-file", config_file, "--weights", tmp_path / "weights.pth", "--output", tmp_path / "model"]
    assert run(*command) == 0
    shown = capsys.readouterr().out
    assert ("ViTMatte weights." if "original" in name else "Built with DINOv3.") in shown
    assert "they are the same to the bit" in shown
    expected = Predictor.load(config_file, tmp_path / "weights.pth").predict(*picture())
    assert expected[picture()[1] == 128].std() > 0.02
    np.testing.assert_array_equal(Predictor.load(tmp_path / "model").predict(*picture()), expected)


@pytest.mark.parametrize("config_file", CONFIGS, ids=lambda path: path.stem)
def test_every_config_can_be_described(config_file):
    """The network of the description has the parameters, buffers and settings of the config's own."""
    cfg = load_config(config_file)
    with torch.device("meta"):
        expected = instantiate(cfg.model)
        found = build("model", json.loads(json.dumps(export.describe("model", cfg.model))))
    del expected.criterion
    shapes = [{name: tensor.shape for name, tensor in net.state_dict().items()} for net in (found, expected)]
    assert shapes[0] == shapes[1]
    plain = [
        {name: [v for v in vars(part).items() if isinstance(v[1], (int, float, str, tuple))] for name, part in named}
        for named in (found.named_modules(), expected.named_modules())
    ]
    assert plain[0] == plain[1] and any("window_size" in dict(values) for values in plain[0].values())


def test_what_cannot_be_exported_is_one_line(tmp_path, capsys):
    cfg = load_config(DEMO)
    apply_overrides(cfg, overrides(tmp_path, tmp_path))
    save_checkpoint(cfg, tmp_path)
    taken = ["--config-file", tmp_path / "config.yaml", "--weights", tmp_path / "weights.pth", "--output", tmp_path]
    assert run(*taken) == 1
    assert "exists and is no empty folder" in capsys.readouterr().err
    for part, target in (("backbone", "detectron2.modeling.backbone.vit.ViT"), ("decoder", "modeling.backbone.ViT")):
        other = load_config(tmp_path / "config.yaml")
        other.model[part]._target_ = target
        LazyConfig.save(other, str(tmp_path / "other.yaml"))
        command = ["--config-file", tmp_path / "other.yaml", "--weights", tmp_path / "weights.pth"]
        assert re.search(rf"the config's {part} is .*: a model folder can hold", refused(capsys, tmp_path, *command))
    command = ["--config-file", DEMO, "--weights", tmp_path / "weights.pth"]
    assert "weights.pth does not fit the model" in refused(capsys, tmp_path, *command)
    assert "no checkpoint 'absent.pth'" in refused(capsys, tmp_path, "--config-file", DEMO, "--weights", "absent.pth")


@pytest.mark.parametrize(
    "arguments",
    [[], ["--weights", "w"], ["--config-file", "c"], ["--from-vitmatte", "p", "--weights", "w"]],
    ids=["nothing", "weights alone", "config alone", "both ways"],
)
def test_wrong_usage_is_status_2(tmp_path, capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        run(*arguments, "--output", tmp_path / "model")
    assert stop.value.code == 2
    assert "give either --config-file and --weights, or --from-vitmatte" in capsys.readouterr().err
