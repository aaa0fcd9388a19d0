"""`.py` configs are code: their own mistakes are one line with its place, and they may name any class."""

import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

from engine.config import ConfigError, load_config, save_config
from runtime.yaml_files import Reference, load_yaml
from tests.tiny_training import DEMO, REPOSITORY, make_data, overrides

MISTAKES = {
    "import timmm": "ModuleNotFoundError: No module named 'timmm'",
    "from os import nothing": "ImportError: cannot import name 'nothing'",
    "from .nowhere import train": "ImportError: Cannot import name nowhere",
    "from .other import nothing": "KeyError: 'nothing'",
    "train = dict(seed=sead)": "NameError: name 'sead' is not defined",
    "train = dict()\ntrain.seed = 3": "AttributeError: 'dict' object has no attribute 'seed'",
    "from .other import train\ntrain.checkpointer.period = 3": "ConfigAttributeError: ",
    "raise SystemError": "SystemError",
    "open('absent.txt')": "FileNotFoundError: .*absent.txt",
    "def f():\n    return 1 / 0\n\ntrain = dict(seed=f())": "ZeroDivisionError",
    "from detectron2.config import LazyCall as L\nmodel = L(dict)(3)": "TypeError: ",
}


@pytest.mark.parametrize(("mistake", "words"), MISTAKES.items())
@pytest.mark.parametrize("is_imported", [False, True])
def test_a_configs_own_mistake_is_one_line_with_its_place(tmp_path, mistake, words, is_imported):
    (tmp_path / "other.py").write_text("train = dict(seed=1)\n")
    (tmp_path / "broken.py").write_text(f"\n\n{mistake}\nother = dict()\n")
    (tmp_path / "mine.py").write_text("from .broken import other\n")
    path = tmp_path / ("mine.py" if is_imported else "broken.py")
    line = r"line \d+" if "def f" in mistake else f"line {2 + len(mistake.splitlines())}"
    with pytest.raises(ConfigError, match=f"^{tmp_path}/broken.py, {line}: {words}") as refused:
        load_config(path)
    assert "\n" not in str(refused.value)


def test_a_mistake_deeper_inside_shows_its_traceback(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "deep_module.py").write_text("import timmm\n")
    (tmp_path / "deep_call.py").write_text("def f():\n    return {}['key']\n")
    (tmp_path / "mine.py").write_text("import deep_module\n")
    with pytest.raises(ModuleNotFoundError, match="timmm"):
        load_config(tmp_path / "mine.py")
    (tmp_path / "mine.py").write_text("import deep_call\ntrain = deep_call.f()\n")
    with pytest.raises(KeyError, match="key"):
        load_config(tmp_path / "mine.py")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("model = L(lambda: 3)()", "model._target_ is <lambda>, which cannot be imported"),
        ("def build(): pass\nmodel = L(build)()", "model._target_ is build, which cannot be imported"),
        ("class Net: pass\nmodel = L(Net)()", "model._target_ is Net, which cannot be imported"),
        ("model = dict(activation=lambda x: x)", "model.activation is <lambda>, which cannot be imported"),
        ("model = dict(layers=[torch.nn.Linear(1, 1)])", "model.layers.0 is a Linear, which the config.yaml of a run"),
        ("model = dict(dtype=torch.float32)", "model.dtype is a dtype, which the config.yaml of a run cannot hold"),
        ("model = L('no.such.Net')()", "model._target_ is 'no.such.Net', and no class"),
        ("import __main__\n__main__.Net = type('Net', (), {'__module__': '__main__'})\nmodel = L(__main__.Net)()",
         "model._target_ is Net, which cannot be imported"),
    ],
)  # fmt: skip
def test_what_a_saved_config_cannot_hold_is_refused_before_anything_starts(tmp_path, lines, words):
    (tmp_path / "mine.py").write_text(f"import torch\nfrom detectron2.config import LazyCall as L\n\n{lines}\n")
    with pytest.raises(ConfigError, match=f"mine.py: {words}") as refused:
        load_config(tmp_path / "mine.py")
    assert "\n" not in str(refused.value)


def test_a_config_may_name_any_class_and_its_saved_one_holds_the_names(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import pathlib\nimport torch\nfrom detectron2.config import LazyCall as L\n\n"
        "model = L('torch.nn.Sequential')(act=torch.nn.GELU, folder=pathlib.Path('a'), rate=1e-4, items=(1, 2))\n"
    )
    cfg = load_config(tmp_path / "mine.py")
    assert cfg.model._target_ is torch.nn.Sequential and cfg.model.act is torch.nn.GELU
    save_config(cfg, tmp_path / "config.yaml")
    saved = load_yaml(tmp_path / "config.yaml")["model"]
    expected = {"_target_": "torch.nn.Sequential", "act": "torch.nn.GELU", "folder": "a", "rate": 1e-4, "items": [1, 2]}
    assert saved == expected and isinstance(saved["act"], Reference)
    assert load_config(tmp_path / "config.yaml", (), ["torch.nn"]).model.act is torch.nn.GELU
    with pytest.raises(ConfigError, match="model._target_ is 'torch.nn.Sequential', which is none of this project's"):
        load_config(tmp_path / "config.yaml")


OWN_MODULE = '''
"""A backbone from outside the repository."""

from modeling.backbone import ViT


class OwnViT(ViT):
    """Scales what it gives."""

    def __init__(self, scale, **arguments):
        super().__init__(**arguments)
        self.scale = scale

    def forward(self, x):
        return self.scale * super().forward(x)
'''

OWN_CONFIG = """
from detectron2.config import LazyCall as L
from own_networks.nets import OwnViT

from .demo import dataloader, lr_multiplier, model, optimizer, train

model.backbone = L(OwnViT)(scale=0.5, **{key: value for key, value in model.backbone.items() if key != "_target_"})
model.backbone.conv_residual_block_indexes = [1]
"""


@pytest.mark.slow
def test_a_backbone_of_ones_own_trains_stops_resumes_is_evaluated_and_predicts(tmp_path):
    """From its `.py` config all works; its config.yaml needs --trust-module with the exact module."""
    (tmp_path / "own_networks").mkdir()
    (tmp_path / "own_networks" / "__init__.py").write_text("")
    (tmp_path / "own_networks" / "nets.py").write_text(OWN_MODULE)
    config = tmp_path / "own.py"
    demo = os.path.relpath(DEMO, tmp_path)[: -len(".py")]
    levels = demo.count("../")
    relative = "." * (levels + 1) + demo.replace("../", "").replace("/", ".")
    config.write_text(OWN_CONFIG.replace("from .demo", f"from {relative}"))
    make_data(tmp_path)
    out = tmp_path / "out"
    settings = [line for line in overrides(tmp_path, out) if not line.startswith("model.backbone.conv_")]

    def run(script, *arguments, path=str(tmp_path)):
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore", script, *map(str, arguments)]
        return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)

    first = run("main.py", "--config-file", config, *settings, "train.max_iter=4", "train.device=cpu")
    assert first.returncode == 0, first.stderr
    saved = out / "config.yaml"
    assert "_target_: own_networks.nets.OwnViT" in saved.read_text() and "trust" not in saved.read_text()
    resumed = run("main.py", "--config-file", config, "--resume", *settings, "train.max_iter=6", "train.device=cpu")
    assert resumed.returncode == 0, resumed.stderr
    assert "train.max_iter: 4 -> 6" in resumed.stderr + resumed.stdout

    refused = run("main.py", "--config-file", saved, "--resume")
    assert refused.returncode == 2 and "--trust-module own_networks.nets lets it run" in refused.stderr
    assert "Traceback" not in refused.stderr
    refused = run("main.py", "--config-file", saved, "--resume", "--trust-module", "own_networks")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    trust = ["--trust-module", "own_networks.nets"]
    lost = run("main.py", "--config-file", saved, "--eval-only", *trust, path="")
    assert lost.returncode == 2 and "no module own_networks: is its folder in PYTHONPATH?" in lost.stderr
    weights = out / "model_final.pth"
    evaluated = run("main.py", "--config-file", saved, "--eval-only", *trust, f"train.init_checkpoint={weights}")
    assert evaluated.returncode == 0 and "SAD" in evaluated.stdout + evaluated.stderr

    cv2.imwrite(str(tmp_path / "trimap.png"), np.full((80, 96), 128, np.uint8))
    source = ["--config-file", saved, "--weights", weights]
    predict = [tmp_path / "merged/0.png", "--trimap", tmp_path / "trimaps/0.png", *source]
    predicted = run("tools/predict.py", *predict, *trust, "--output", tmp_path / "alpha.png")
    assert predicted.returncode == 0 and (tmp_path / "alpha.png").is_file(), predicted.stderr
    refused = run("tools/predict.py", *predict, "--output", tmp_path / "other.png")
    assert refused.returncode != 0 and "--trust-module own_networks.nets" in refused.stderr
    tune = ["--config-file", "configs/finetune.py", "--eval-only", "train.device=cpu", "dataloader.test=null"]
    tune += [f"train.init_checkpoint={weights}", f"train.output_dir={tmp_path / 'tuned'}"]
    tuned = run("main.py", *tune[:2], *trust, *tune[2:])
    assert tuned.returncode == 2 and "needs a test set" in tuned.stderr, tuned.stderr
