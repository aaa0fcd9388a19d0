"""Files of strangers are data: at every door, what would run code is refused, and nothing is run."""

import importlib
import json
import os
import pickle
import shutil
import sys

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import main
from data.image_io.images import DataError
from data.sources.packs.reader import find_packed
from engine.checkpoint.file import CheckpointError, read_checkpoint
from engine.checkpoint.pretrained import describe_model, read_initial
from engine.config.config import apply_overrides, build_section, describe_differences, load_config, save_config
from engine.config.targets import MODULES, TARGETS
from evaluation.output.summary import read_summary
from inference.formats.model_folder import ModelFolderError, read_model_folder
from inference.formats.onnx_network import OnnxNetwork
from modeling.conversion import checkpoint_files
from runtime.errors import ConfigError, UserError
from runtime.yaml_files import Reference, dump_yaml, load_yaml, parse_yaml
from tests.helpers.paths import DEMO, REPOSITORY
from tests.helpers.training import overrides
from tools import export, predict
from tools.dataset import check_dataset, visualize_data
from tools.runs import gather_checkpoint, plot_metrics

pytestmark = pytest.mark.usefixtures("no_log_handlers_left")


RAN = "RAN_CODE_OF_A_STRANGER"
TAGS = [
    f"!!python/object/apply:os.system ['touch {RAN}']",
    f"!!python/object/new:os.system ['touch {RAN}']",
    f"!!python/object/apply:subprocess.Popen [[touch, {RAN}]]",
    f'!!python/object/apply:builtins.eval [\'open("{RAN}", "w")\']',
    f"!!python/object/new:str {{state: !!python/object/apply:os.system ['touch {RAN}']}}",
    "!!python/module:antigravity ''",
]
NAMES = [
    "os.system",
    "modeling.os.system",
    "engine.config.config.os.system",
    "engine.checkpoint.sharded.shutil.rmtree",
    "runtime.distributed_checkpoint.pickle.loads",
    "engine.checkpoint.file.torch.load",
    "engine.config.targets.pydoc.locate",
    "engine.config.targets.importlib.import_module",
    "detectron2.config.instantiate",
    "builtins.eval",
    "torch.hub.load",
    "antigravity.webbrowser.open",
    "modeling.ViTMatte.forward",
    "modeling",
    "..os.system",
    "",
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder, in which nothing may appear."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    assert not (folder / RAN).exists()
    assert "antigravity" not in sys.modules, "a module that a file names is imported"


@pytest.fixture(scope="module")
def config_text(tmp_path_factory):
    """The config.yaml of a tiny run."""
    folder = tmp_path_factory.mktemp("run")
    cfg = load_config(DEMO)
    apply_overrides(cfg, overrides(folder, folder))
    save_config(cfg, folder / "config.yaml")
    return (folder / "config.yaml").read_text()


def hostile_configs(text, folder):
    """Write a run's config.yaml in which each hostile tag or name stands in a place of its own."""
    criterion = "_target_: modeling.MattingCriterion"
    assert criterion in text
    lines = [f"note: {tag}\n{text}" for tag in TAGS]
    lines += [text.replace(criterion, f"_target_: '{name}'") for name in NAMES]
    lines += [text.replace(criterion, f"{criterion}\n    extra: !!python/name:os.system ''")]
    lines += [text.replace(criterion, f"_target_: {{_target_: os.system, command: touch {RAN}}}")]
    lines += [text.replace(criterion, "_target_: [modeling.ViTMatte]"), text.replace(criterion, "_target_: 3")]
    for line in lines:
        (folder / "config.yaml").write_text(line)
        yield folder / "config.yaml"


def status_of(command, arguments, capsys):
    """Run a command in this process; give its exit status and what it says on stderr, without a traceback."""
    capsys.readouterr()
    try:
        status = command([str(argument) for argument in arguments])
    except SystemExit as ended:
        status = ended.code
    told = capsys.readouterr().err
    assert "Traceback" not in told
    return status, told


def test_the_case_beside_a_downloaded_checkpoint(cases, here, capsys):
    shutil.copy(cases / "c18_config_yaml_with_code" / "config.yaml", here)
    torch.save({"model": {}}, here / "model_final.pth")
    finetune = ["--config-file", REPOSITORY / "configs" / "finetune.py", "train.init_checkpoint=model_final.pth"]
    status, told = status_of(main.main, finetune, capsys)
    assert status == 1 and "the tag !!python/object/apply:os.system is refused" in told and "line 1" in told


def test_no_config_yaml_runs_anything_at_any_door(here, config_text, capsys):
    torch.save({"model": {}}, here / "model_final.pth")
    source = ["--config-file", "config.yaml", "--weights", "model_final.pth"]
    for name in ("photo.png", "trimap.png"):
        cv2.imwrite(name, np.zeros((8, 8), np.uint8))
    doors = {
        "train": (main.main, ["--config-file", "config.yaml"]),
        "export": (export.main, [*source, "--output", "out"]),
        "predict": (predict.main, ["photo.png", "--trimap", "trimap.png", *source, "--output", "o.png"]),
    }
    for count, path in enumerate(hostile_configs(config_text, here)):
        with pytest.raises(ConfigError) as refused:
            load_config(path)
        assert "\n" not in str(refused.value)
        with pytest.raises(CheckpointError):
            describe_model(here / "model_final.pth")
        if count in (0, len(TAGS) + 2):
            for name, (command, arguments) in doors.items():
                status, told = status_of(command, arguments, capsys)
                assert status in (1, 2) and "config.yaml" in told, name


def test_a_saved_config_is_only_compared_on_a_resume(here, config_text):
    """So that a `.py` config of the user's own classes goes on, and a stranger's folder runs nothing."""
    cfg = load_config(DEMO)
    for path in hostile_configs(config_text, here):
        try:
            assert describe_differences(path, cfg)
        except ConfigError as error:
            assert "is refused" in str(error)


def test_sections_that_are_not_asked_for_need_no_trust(here, config_text):
    text = config_text.replace("_target_: data.datasets.composition.CompositionDataset", "_target_: mypkg.Dataset")
    (here / "config.yaml").write_text(text)
    assert issubclass(load_config("config.yaml", ("train", "model")).model._target_, nn.Module)
    with pytest.raises(ConfigError, match="mypkg.Dataset.* --trust-module mypkg lets it run"):
        load_config("config.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_an_interpolation_cannot_bring_in_a_name(here, config_text, name, monkeypatch):
    monkeypatch.setenv("HOSTILE", f"{{_target_: '{name}', command: touch {RAN}}}")
    mean = "${oc.create:${oc.env:HOSTILE}}"
    settings = parse_yaml(config_text)
    settings["model"]["criterion"]["weights"] = mean
    (here / "config.yaml").write_text(dump_yaml(settings))
    with pytest.raises(ConfigError, match="_target_"):
        build_section(load_config("config.yaml").model, "model")


def test_an_override_names_what_a_file_may_name(here):
    cfg = load_config(DEMO)
    apply_overrides(cfg, ["model.criterion._target_=engine.config.config.os.system"])
    with pytest.raises(ConfigError, match="^model.criterion._target_ is 'engine.config.config.os.system'"):
        build_section(cfg.model, "model")


def test_looking_up_a_name_imports_nothing_else(here, monkeypatch):
    (here / "mypkg.py").write_text(f"open({RAN!r}, 'w')")
    monkeypatch.syspath_prepend(here)
    (here / "config.yaml").write_text("model: {_target_: mypkg.Net}")
    with pytest.raises(ConfigError, match="--trust-module mypkg"):
        load_config("config.yaml")
    assert "mypkg" not in sys.modules


def test_a_trusted_module_is_exact_and_lends_no_trust_to_what_it_imports(here, monkeypatch):
    (here / "mypkg").mkdir()
    (here / "mypkg" / "__init__.py").write_text("import os\nfrom .nets import Net\ndef build(): pass\n")
    (here / "mypkg" / "nets.py").write_text("class Net:\n    @classmethod\n    def tiny(cls): pass\ndef wipe(): pass\n")
    monkeypatch.syspath_prepend(here)

    def load(name, *trusted):
        (here / "config.yaml").write_text(f"model: {{_target_: {name}}}")
        return load_config("config.yaml", (), trusted).model._target_

    assert load("mypkg.nets.Net", "mypkg.nets").__name__ == load("mypkg.Net", "mypkg").__name__ == "Net"
    assert load("mypkg.nets.Net.tiny", "mypkg.nets").__name__ == "tiny"
    for name in ("mypkg.os.system", "mypkg.nets.wipe", "mypkg.absent", "os.system", "otherpkg.Net", "mypkg2.Net"):
        with pytest.raises(ConfigError, match="_target_ is"):
            load(name, "mypkg")
    with pytest.raises(ConfigError, match="there is no module nowhere: is its folder in PYTHONPATH"):
        load("nowhere.Net", "nowhere")
    with pytest.raises(ConfigError, match="--trust-module must be the name of a module"):
        load("mypkg.Net", "../mypkg")


def test_the_table_holds_full_names_of_what_is_there():
    for name in TARGETS:
        module, _, attribute = name.rpartition(".")
        thing = getattr(importlib.import_module(module), attribute)
        assert f"{thing.__module__}.{thing.__qualname__}" == name and module in MODULES


class Run:
    def __reduce__(self):
        return os.system, (f"touch {RAN}",)


class Load:
    def __init__(self, name):
        self.name = name

    def __reduce__(self):
        function = {"torch.load": torch.load, "torch.hub.load": torch.hub.load, "rmtree": shutil.rmtree}[self.name]
        return function, ("victim",)


def pickles(folder):
    """Write checkpoints that run code when they are unpickled, in torch's formats and as a plain pickle."""
    path = folder / "model_final.pth"
    for hostile in (Run(), Load("torch.load"), Load("torch.hub.load"), Load("rmtree")):
        torch.save({"model": hostile}, path)
        yield path
        torch.save({"model": {"weight": hostile}}, path, _use_new_zipfile_serialization=False)
        yield path
        path.write_bytes(pickle.dumps({"model": hostile}))
        yield path
    torch.jit.save(torch.jit.trace(nn.Linear(1, 1), torch.ones(1)), str(path))
    yield path


def test_no_checkpoint_runs_anything(here, capsys):
    (here / "victim").mkdir()
    for path in pickles(here):
        for read in (read_checkpoint, read_initial):
            with pytest.raises(CheckpointError, match="model_final.pth is no checkpoint"):
                read(path)
        with pytest.raises(UserError, match="cannot be read"):
            checkpoint_files.read_checkpoint(path)
        status, told = status_of(export.main, ["--from-vitmatte", path, "--output", "out"], capsys)
        assert status == 1 and "model_final.pth" in told
    assert (here / "victim").is_dir()


def test_no_sharded_checkpoint_runs_anything(here, capsys):
    (here / "victim").mkdir()
    for path in pickles(here):
        folder = here / "model_0000001"
        folder.mkdir(exist_ok=True)
        path.replace(folder / "whole.pth")
        (folder / ".metadata").write_bytes(pickle.dumps(Run()))
        status, told = status_of(gather_checkpoint.main, ["--folder", folder, "--output", "o.pth"], capsys)
        assert status == 1 and "whole.pth" in told
    assert (here / "victim").is_dir()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["type", "_target_"])
def test_no_model_folder_builds_anything_else(here, name, key):
    (here / "model.safetensors").write_bytes(b"")
    for part in ("backbone", "decoder"):
        model = {"type": "ViTMatte", part: {key: name, "command": f"touch {RAN}", "path": "victim"}}
        (here / "config.json").write_text(json.dumps({"format": 1, "model": model}))
        with pytest.raises(CheckpointError, match="config.json"):
            describe_model(here)
        with pytest.raises(ModelFolderError):
            read_model_folder(here)


def test_safetensors_hold_no_pickle(here):
    for content in (pickle.dumps(Run()), b"\x08\0\0\0\0\0\0\0" + pickle.dumps(Run())[:8]):
        (here / "model.safetensors").write_bytes(content)
        for read in (read_initial, checkpoint_files.read_checkpoint):
            with pytest.raises(UserError):
                read(here / "model.safetensors")


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "link.bin"])
def test_an_onnx_file_reads_no_data_outside_its_folder(here, location):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")

    folder = here / "model"
    folder.mkdir()
    (here / "secret.bin").write_bytes(bytes(16))
    (folder / "link.bin").symlink_to(here / "secret.bin")
    weight = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": "0", "length": "16"}.items():
        weight.external_data.add(key=key, value=value)
    values = [onnx.helper.make_tensor_value_info(name, 1, [4]) for name in "xy"]
    node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="model.onnx is damaged or no ONNX file .*[Ee]xternal data"):
        OnnxNetwork(folder / "model.onnx", "cpu")


@pytest.mark.parametrize("entry", ["text", {}, {"size": "ab"}, {"size": [-1, 5]}, {"size": [4, 4], "file": "../x"}])
def test_a_damaged_pack_index_is_one_line(here, entry):
    index = {"format": "DINOv3-ViTMatte pack", "version": 2, "foregrounds": [entry]}
    (here / "pack.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="pack.json is damaged") as refused:
        find_packed(here)
    assert "\n" not in str(refused.value)


def test_results_and_curves_are_plain_json(here, capsys):
    for text in ('{"per_image": {"__class__": "os.system"}}', TAGS[0], "null"):
        (here / "summary.json").write_text(text)
        with pytest.raises(DataError, match="summary.json is not a summary"):
            read_summary(here)
    (here / "metrics.json").write_text('{"iteration": 1, "total_loss": 0.5}\n')
    for tag in TAGS:
        (here / "config.yaml").write_text(f"train: {tag}")
        status, told = status_of(plot_metrics.main, [here, "--output", "o.png"], capsys)
        assert status == 1 and "is refused" in told


def test_tools_on_data_read_configs_as_data(here, config_text, capsys):
    (here / "config.yaml").write_text(
        config_text.replace(
            "_target_: data.datasets.composition.CompositionDataset", "_target_: engine.config.config.os.system"
        )
    )
    for command in (check_dataset.main, visualize_data.main):
        status, told = status_of(command, ["--config-file", "config.yaml"], capsys)
        assert status == 2 and "engine.config.config.os.system" in told


def test_yaml_gives_back_what_was_written_and_reads_exponents(tmp_path):
    texts = ["1e5", "5e-5", "2024-01-01", "true", "null", "~", ".5e3", "é实", "'x'", "#x", "0o7", "1_000", "1:30"]
    values = [*texts, "", "a: b", "\udce9", 5e-5, 1e22, float("inf"), 7, True, None, Reference("os.system"), [], {}]
    (tmp_path / "a.yaml").write_text(dump_yaml({"values": values}), encoding="utf-8")
    found = load_yaml(tmp_path / "a.yaml")["values"]
    assert found == values and list(map(type, found)) == list(map(type, values))
    numbers = {"5e-5": 5e-5, "1E3": 1000.0, "-1.5e3": -1500.0, ".5e-3": 5e-4, "e5": "e5"}
    assert {text: parse_yaml(text) for text in numbers} == numbers


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]",
        "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else '0'] * 10)}]\n" for i in range(9)),
        "[" * 5000,
        "a: {x: 1, x: 2}",
        "a: !!int x",
        "a: !!bool x",
        "a: !!set {b}",
        "a: !own 3",
        "? [a]\n: 1",
        "a\0b",
    ],
)
def test_yaml_that_is_not_plain_is_one_line(text, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match="a.yaml is not YAML: ") as refused:
        load_yaml(tmp_path / "a.yaml")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 700
