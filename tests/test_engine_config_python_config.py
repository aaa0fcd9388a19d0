"""`.py` configs are code: their own mistakes are one line with its place, and they may name any class."""

import pytest
import torch

import main
from engine.config.config import load_config, save_config
from runtime.errors import ConfigError
from runtime.yaml_files import Reference, load_yaml
from tests.helpers.paths import DEMO, REPOSITORY
from tests.helpers.training import last_evaluation, make_data, metrics, overrides
from tools import predict

pytestmark = pytest.mark.usefixtures("no_log_handlers_left")


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


OWN_MODULE = """
import os
import signal

from modeling.backbone import ViT


class OwnViT(ViT):
    num_stopped_after = None

    def __init__(self, scale, **arguments):
        super().__init__(**arguments)
        self.scale = scale

    def forward(self, x):
        if self.training and OwnViT.num_stopped_after is not None:
            OwnViT.num_stopped_after -= 1
            if OwnViT.num_stopped_after == 0:
                os.kill(os.getpid(), signal.SIGTERM)
        return self.scale * super().forward(x)
"""

OWN_CONFIG = """
from own_networks.nets import OwnViT

from .demo import dataloader, lr_multiplier, model, optimizer, train

model.backbone._target_ = OwnViT
model.backbone.scale = 0.5
"""


@pytest.mark.slow
def test_a_backbone_of_ones_own_trains_stops_resumes_is_evaluated_and_predicts(tmp_path, monkeypatch, capsys):
    """From its `.py` config all works; its config.yaml needs --trust-module with the exact module."""
    (tmp_path / "own_networks").mkdir()
    (tmp_path / "own_networks" / "__init__.py").touch()
    (tmp_path / "own_networks" / "nets.py").write_text(OWN_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import own_networks.nets  # type: ignore[import-not-found]

    (tmp_path / "common").symlink_to(REPOSITORY / "configs" / "common")
    (tmp_path / "demo.py").symlink_to(DEMO)
    config, out = tmp_path / "own.py", tmp_path / "lr=1e-4 (1) #实验"  # as it is typed in overrides
    config.write_text(OWN_CONFIG)
    make_data(tmp_path)
    settings = [*overrides(tmp_path, out), "train.device=cpu"]

    own_networks.nets.OwnViT.num_stopped_after = 2
    with pytest.raises(SystemExit, match="75"):
        main.main(["--config-file", str(config), *settings])
    assert "_target_: own_networks.nets.OwnViT" in (out / "config.yaml").read_text()
    main.main(["--config-file", str(config), "--resume", *settings])
    assert list(metrics(out))[:6] == list(range(6))  # the last evaluation follows
    expected = last_evaluation(out)
    weights, saved = str(out / "model_final.pth"), str(out / "config.yaml")
    capsys.readouterr()
    main.main(["--config-file", str(config), "--eval-only", *settings, f"train.init_checkpoint={weights}"])
    assert f"{expected['SAD']:.4f}" in capsys.readouterr().out

    trust = ["--trust-module", "own_networks.nets"]
    for wrong in ([], ["--trust-module", "own_networks"]):
        with pytest.raises(SystemExit, match="2"):
            main.main(["--config-file", saved, "--resume", *wrong])
        assert "--trust-module own_networks.nets lets it run" in capsys.readouterr().err
    main.main(["--config-file", saved, "--resume", *trust])  # it is finished
    tests = [line for line in settings if ".test.dataset." in line]
    main.main(["--config-file", str(REPOSITORY / "configs" / "finetune.py"), *trust, "--eval-only", *tests,
               "train.device=cpu", "dataloader.test.num_workers=0", f"train.init_checkpoint={weights}"])  # fmt: skip
    assert f"{expected['SAD']:.4f}" in capsys.readouterr().out

    source = [str(tmp_path / "image/0.png"), "--trimap", str(tmp_path / "trimap/0.png"), "--config-file", saved]
    source += ["--weights", weights, "--output", str(tmp_path / "alpha.png")]
    assert predict.main(source) != 0 and "--trust-module own_networks.nets" in capsys.readouterr().err
    assert predict.main([*source, *trust]) == 0 and (tmp_path / "alpha.png").is_file()
