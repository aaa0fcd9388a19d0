"""tools/export.py --config-file: the network of a run to a model folder that gives the same alpha; --format onnx."""

import json
import re
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from PIL import Image
from safetensors.torch import load_file

from engine.checkpoint.pretrained import load_initial
from engine.config.config import apply_overrides, load_config
from inference.formats.model_folder import build
from inference.network import TorchNetwork
from inference.predictor import Predictor
from tests.helpers.networks import randomise_vitmatte
from tests.helpers.paths import DEMO, REPOSITORY
from tests.helpers.published_vitmatte import random_image_and_trimap, refused_export, run_export
from tests.helpers.training import overrides
from tools import evaluate, export

CONFIGS = sorted((REPOSITORY / "configs").glob("*.py"))


def save_checkpoint(cfg, folder):
    """`config.yaml` and `weights.pth` of random weights, as a run leaves them."""
    torch.manual_seed(0)
    model = randomise_vitmatte(instantiate(cfg.model))
    torch.save({"model": model.state_dict(), "iteration": 7}, folder / "weights.pth")
    LazyConfig.save(cfg, str(folder / "config.yaml"))


@pytest.mark.parametrize(
    "name",
    [
        "demo.py",
        *(pytest.param(f"ViTMatte_S_{name}.py", marks=pytest.mark.slow) for name in ("100ep", "original", "dinov2")),
    ],
)
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
    assert run_export(*command) == 0
    shown = capsys.readouterr().out
    licences = {"S_original": "ViTMatte weights.", "S_dinov2": "Backbone from DINOv2."}
    assert licences.get(name[len("ViTMatte_") : -len(".py")], "Built with DINOv3.") in shown
    assert "they are identical" in shown
    expected = Predictor.load(config_file, tmp_path / "weights.pth").predict(*random_image_and_trimap())
    assert expected[random_image_and_trimap()[1] == 128].std() > 0.02
    np.testing.assert_array_equal(Predictor.load(tmp_path / "model").predict(*random_image_and_trimap()), expected)


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


def test_what_cannot_be_exported_is_one_line(tmp_path, capsys, demo):
    assert run_export(*demo, "--output", tmp_path) == 1
    assert "exists and is no empty folder" in capsys.readouterr().err
    for part, target in (("backbone", "detectron2.modeling.backbone.vit.ViT"), ("decoder", "modeling.backbone.ViT")):
        other = load_config(tmp_path / "config.yaml")
        other.model[part]._target_ = target
        LazyConfig.save(other, str(tmp_path / "other.yaml"))
        command = ["--config-file", tmp_path / "other.yaml", "--weights", tmp_path / "weights.pth"]
        if target.startswith("detectron2."):
            module = target.rpartition(".")[0]
            assert f"--trust-module {module} lets it run" in refused_export(capsys, tmp_path, *command)
            command += ["--trust-module", module]
        assert re.search(
            rf"the config's {part} is .*: a model folder can hold", refused_export(capsys, tmp_path, *command)
        )
    command = ["--config-file", DEMO, "--weights", tmp_path / "weights.pth"]
    assert "weights.pth does not fit the model" in refused_export(capsys, tmp_path, *command)
    assert "no checkpoint 'absent.pth'" in refused_export(
        capsys, tmp_path, "--config-file", DEMO, "--weights", "absent.pth"
    )


WAYS = "give either --config-file and --weights, or --from-vitmatte, or --model"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], WAYS),
        (["--weights", "w"], WAYS),
        (["--config-file", "c"], WAYS),
        (["--from-vitmatte", "p", "--weights", "w"], WAYS),
        (["--model", "m", "--from-vitmatte", "p"], WAYS),
        (["--model", "m"], "--model is a model folder already: copy it, upload it by --push, or give"),
        (["--model", "m", "--format", "onnx"], "does not fit --format onnx: ONNX files end in"),
        (["--from-vitmatte", "p", "--output", "m.onnx"], "--output m.onnx does not fit --format folder"),
        (["--from-vitmatte", "p", "--format", "onnx", "--precision", "float16"], "is for model folders"),
        (["--from-vitmatte", "p", "--signature", "pixel_values"], "--signature and --size are for --format onnx"),
        (["--model", "m", "--format", "onnx", "--size", "64"], "--size is for --signature pixel_values"),
        (["--model", "m", "--push", "me/net"], "--push uploads the folder of --model: leave --output out"),
        (["--from-vitmatte", "p", "--push", "net"], "--push needs OWNER/NAME"),
        (["--model", "m", "--format", "onnx", "--output", "m.onnx", "--push", "me/net"], "uploads folders alone"),
    ],
)
def test_wrong_usage_is_status_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        run_export("--output", "m.pt", *arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_what_is_written_needs_an_output(capsys):
    for arguments in (["--from-vitmatte", "p", "--push", "me/net"], ["--model", "m", "--format", "transformers"]):
        with pytest.raises(SystemExit) as stop:
            run_export(*arguments)
        assert stop.value.code == 2 and "give --output" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_export("--model", "m", "--push", "me/net", "--precision", "float16")
    assert "for model folders that are written" in capsys.readouterr().err


@pytest.fixture
def graphs(monkeypatch):
    """The arguments of `write_onnx`, which tests/test_inference_formats_onnx.py tests and which writes 7 bytes here."""
    calls = []

    def write(model, path, source, licence, signature, size_px):
        calls.append((model, source, licence, signature, size_px))
        path.write_bytes(b"a graph")
        return 2e-7

    monkeypatch.setattr(export, "write_onnx", write)
    return calls


@pytest.fixture
def demo(tmp_path):
    """Command of the demo's config with random weights."""
    cfg = load_config(DEMO)
    apply_overrides(cfg, overrides(tmp_path, tmp_path))
    save_checkpoint(cfg, tmp_path)
    return ["--config-file", tmp_path / "config.yaml", "--weights", tmp_path / "weights.pth"]


def test_onnx_is_written_of_a_config_and_of_a_model_folder(tmp_path, capsys, graphs, demo):
    assert run_export(*demo, "--output", tmp_path / "model") == 0
    expected = Predictor.load(tmp_path / "model").predict(*random_image_and_trimap())
    assert run_export(*demo, "--format", "onnx", "--output", tmp_path / "a.onnx") == 0
    assert run_export("--model", tmp_path / "model", "--format", "onnx", "--output", tmp_path / "b.onnx") == 0
    shown = capsys.readouterr().out
    assert f"wrote {tmp_path / 'a.onnx'}: opset 18, 0.0 MB; run by onnxruntime at 97 x 250 px, its alpha is" in shown
    assert shown.count("within 2.0e-07") == shown.count("The licence note is in the file") == 2
    assert len(graphs) == 2
    for model, source, licence, *interface in graphs:
        np.testing.assert_array_equal(Predictor(TorchNetwork(model)).predict(*random_image_and_trimap()), expected)
        assert source == "weights.pth with config.yaml"
        assert licence == (tmp_path / "model" / "LICENSE.txt").read_text()
        assert interface == ["image_trimap", None]


def test_the_signature_reaches_the_file(tmp_path, graphs, demo):
    command = ["--format", "onnx", "--signature", "pixel_values", "--output", tmp_path / "a.onnx", "--size", "64"]
    assert run_export(*demo, *command) == 0
    assert graphs[0][3:] == ("pixel_values", 64)


def test_a_model_folder_without_a_licence_note_is_exported_without_one(tmp_path, capsys, graphs, demo):
    assert run_export(*demo, "--output", tmp_path / "model") == 0
    (tmp_path / "model" / "LICENSE.txt").unlink()
    capsys.readouterr()
    assert run_export("--model", tmp_path / "model", "--format", "onnx", "--output", tmp_path / "MODEL.ONNX") == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(f"wrote {tmp_path / 'MODEL.ONNX'}: ") and shown.out.count("\n") == 1
    assert [call[2] for call in graphs] == [""] and shown.err == ""


def test_half_precision_halves_the_folder_and_hardly_moves_alpha(tmp_path, capsys, demo):
    """The folder is read by a predictor, by a run as its initial weights, and by tools/evaluate.py."""
    assert run_export(*demo, "--output", tmp_path / "full") == 0
    capsys.readouterr()
    assert run_export(*demo, "--precision", "float16", "--output", tmp_path / "half") == 0
    shown = capsys.readouterr().out
    moved, name = re.search(r"moved a weight by (\S+) at most, in (\S+)\n", shown).groups()
    full, half = (load_file(tmp_path / folder / "model.safetensors") for folder in ("full", "half"))
    assert float(moved) == pytest.approx(
        max(float((half[key].float() - full[key]).abs().max()) for key in full), rel=0.1
    )
    assert half[name].dtype == torch.float16
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    assert config["source"] == "weights.pth with config.yaml, weights in half precision"
    sizes = [(tmp_path / folder / "model.safetensors").stat().st_size for folder in ("full", "half")]
    assert sizes[1] < 0.53 * sizes[0], "names and vectors are a larger part of this tiny network than of a ViT-S"

    alphas = [Predictor.load(tmp_path / folder).predict(*random_image_and_trimap()) for folder in ("full", "half")]
    assert 0 < np.abs(alphas[1] - alphas[0]).max() < 2 / 255
    model = instantiate(load_config(demo[1]).model)
    load_initial(model, str(tmp_path / "half"))
    assert all(torch.equal(tensor, half[key].to(tensor.dtype)) for key, tensor in model.state_dict().items())

    image, trimap = random_image_and_trimap()
    for folder, pixels in {"image": image, "trimap": trimap, "alpha": trimap}.items():
        (tmp_path / "set" / folder).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "set" / folder / "a.png")
    command = ["--dataset", tmp_path / "set", "--model", tmp_path / "half", "--pred-dir", tmp_path / "pred"]
    assert evaluate.main([*map(str, command), "--workers", "1"]) == 0
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "pred/a.png")), np.round(255 * alphas[1]))


def test_an_interruption_is_one_line_and_130(tmp_path, capsys, monkeypatch, demo):
    monkeypatch.setattr(export, "write_model_folder", Mock(side_effect=KeyboardInterrupt))
    assert run_export(*demo, "--output", tmp_path / "model") == 130
    error = capsys.readouterr().err
    assert error.startswith("export.py: interrupted; ") and error.count("\n") == 1


def test_what_becomes_no_onnx_is_one_line(tmp_path, capsys, monkeypatch, demo):
    command = ["--format", "onnx", "--output", tmp_path / "model.onnx"]
    assert run_export("--model", tmp_path / "absent", *command) == 1
    assert "absent: no such model folder" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert run_export(*demo, *command) == 1
    error = capsys.readouterr().err
    assert (
        error.startswith("export.py: ONNX export needs the optional package onnx: pip install")
        and error.count("\n") == 1
    )
    assert not (tmp_path / "model.onnx").exists()
    (tmp_path / "model.onnx").touch()
    monkeypatch.undo()
    assert run_export(*demo, *command) == 1
    assert "model.onnx exists: name a new file" in capsys.readouterr().err


@pytest.mark.slow
def test_the_onnx_file_of_a_config_gives_its_alpha(tmp_path, demo):
    assert run_export(*demo, "--format", "onnx", "--output", tmp_path / "model.onnx") == 0
    expected = Predictor.load(demo[1], demo[3]).predict(*random_image_and_trimap())
    np.testing.assert_allclose(
        Predictor.load(tmp_path / "model.onnx").predict(*random_image_and_trimap()), expected, rtol=0, atol=1e-5
    )
