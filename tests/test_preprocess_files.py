"""preprocess.py as a command: kinds of files, what it writes, and what cannot be read in one line."""

import dataclasses
import json
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from modeling.backbone import ViT
from modeling.conversion.stated import find_normalisation
from preprocess import convert, main
from tests.helpers.preprocess import State, tiny_state


def write_shards(folder: Path, state: State) -> None:
    names = sorted(state)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for shard, members in shards.items():
        save_file({name: state[name] for name in members}, folder / shard)
    weight_map = {name: shard for shard, members in shards.items() for name in members}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def write_as(kind: str, folder: Path) -> Path:
    """The tiny network in a file or folder -> what the command line is given."""
    state = tiny_state()
    if kind == "pth":
        torch.save({"teacher": state}, folder / "tiny.pth")
        return folder / "tiny.pth"
    if kind == "safetensors":
        save_file(state, folder / "tiny.safetensors")
        return folder / "tiny.safetensors"
    if kind == "folder":
        save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text("{}")
    else:
        write_shards(folder, state)
    return folder


@pytest.mark.parametrize("kind", ["pth", "safetensors", "folder", "shards"])
@pytest.mark.parametrize("options", [[], ["--keep-prefix"]], ids=["report", "all"])
def test_command_line_writes_what_loads(kind: str, options: list[str], tmp_path: Path, capsys) -> None:
    """The unlisted size included: its periods tell the number of heads."""
    output = tmp_path / "new" / "initial.pth"
    (tmp_path / "in").mkdir()
    assert main(["--checkpoint", str(write_as(kind, tmp_path / "in")), "--output", str(output), *options]) == 0
    written = torch.load(output, weights_only=True)
    assert written.keys() == {"model"}
    expected = convert(tiny_state(), keep_prefix=bool(options))
    assert written["model"].keys() == expected.model.keys()
    assert all(torch.equal(tensor, expected.model[name]) for name, tensor in written["model"].items())
    vit = ViT(embed_dim=96, depth=2, num_heads=3, keep_prefix_tokens=bool(options), global_block_indexes=(0, 1),
              conv_residual_block_indexes=())  # fmt: skip
    vit.load_state_dict({name.removeprefix("backbone."): tensor for name, tensor in written["model"].items()})
    printed = capsys.readouterr().out
    assert printed.startswith("official layout, size unlisted: ")
    assert "mask_token: dropped: used in pre-training only" in printed
    assert ("storage_tokens: dropped" in printed) is not bool(options)


class Code:
    """Pickles as a call: a file that would run code when read carelessly."""

    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def write_damaged(kind: str, folder: Path) -> Path:
    path = folder / "tiny.pth"
    if kind == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    elif kind == "hello":  # an opcode of a pickle that looks up what is not there
        path.write_text(kind)
    elif kind == "empty file":
        path.touch()
    elif kind == "code":
        torch.save({"model": Code()}, path)
    elif kind == "list":
        torch.save([torch.zeros(1)], path)
    elif kind == "truncated":
        torch.save(tiny_state(), path)
        path.write_bytes(path.read_bytes()[:5000])
    elif kind == "safetensors":
        path = folder / "tiny.safetensors"
        path.write_text("no header")
    elif kind == "shard missing":
        write_shards(folder, tiny_state())
        (folder / "model-2.safetensors").unlink()
    elif kind == "index":
        (folder / "model.safetensors.index.json").write_text("{")
    elif kind == "two files":
        save_file(tiny_state(), folder / "a.safetensors")
        save_file(tiny_state(), folder / "b.safetensors")
    elif kind == "index of elsewhere":
        weight_map = {"norm.bias": "../model.safetensors"}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    elif kind == "shard without a tensor":
        save_file({"norm.weight": torch.zeros(96)}, folder / "model-1.safetensors")
        weight_map = {"norm.bias": "model-1.safetensors"}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    elif kind == "code in an index":
        (folder / ".metadata").write_bytes(pickle.dumps(Code()))
    elif kind.startswith("part"):
        dcp.save({"model": tiny_state()}, checkpoint_id=folder, no_dist=True)
        path = folder / "__0_0.distcp"
        if kind == "parts alone":
            (folder / ".metadata").unlink()
        elif kind == "part missing":
            path.unlink()
        return path if kind == "part alone" else folder
    return path if path.exists() or kind == "absent" else folder


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", "tiny.pth cannot be read as a checkpoint"),
        ("hello", "tiny.pth cannot be read as a checkpoint of tensors: KeyError"),
        ("empty file", "tiny.pth cannot be read as a checkpoint"),
        ("code", "tiny.pth cannot be read as a checkpoint"),
        ("list", "tiny.pth holds a list, expected a dict of tensors"),
        ("truncated", "tiny.pth cannot be read as a checkpoint"),
        ("safetensors", "tiny.safetensors cannot be read as a checkpoint"),
        ("absent", "tiny.pth does not exist"),
        ("empty folder", "expected one checkpoint in the folder, found none"),
        ("two files", "expected one checkpoint in the folder, found ['a.safetensors', 'b.safetensors']"),
        ("shard missing", "model-2.safetensors does not exist"),
        ("index", "model.safetensors.index.json"),
        ("index of elsewhere", "model.safetensors.index.json: expected JSON with a weight_map"),
        ("shard without a tensor", "model-1.safetensors lacks norm.bias, which model.safetensors.index.json says"),
        ("code in an index", ".metadata is no index of a distributed checkpoint"),
        ("part alone", "__0_0.distcp is a part of a distributed checkpoint: name the folder"),
        ("parts alone", "a distributed checkpoint without its .metadata"),
        ("part missing", "No such file"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(
    kind: str, message: str, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    output = tmp_path / "out.pth"
    assert main(["--checkpoint", str(write_damaged(kind, tmp_path / "in")), "--output", str(output)]) == 1
    streams = capsys.readouterr()
    assert message in streams.err and streams.err.startswith("preprocess.py: ") and streams.err.count("\n") == 1
    assert not output.exists() and not (tmp_path / "executed").exists()


@pytest.mark.parametrize("output", ["in", "in/tiny.pth/new/out.pth"], ids=["folder", "below a file"])
def test_an_output_that_cannot_be_written_is_one_line_before_the_conversion(
    output: str, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    checkpoint = write_as("pth", tmp_path / "in")
    monkeypatch.setattr("preprocess.convert", None)
    assert convert_to(tmp_path / output, checkpoint) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"preprocess.py: --output {tmp_path / output}") and error.count("\n") == 1


def convert_to(output: Path, checkpoint: Path, *options: str) -> int:
    return main(["--checkpoint", str(checkpoint), "--output", str(output), *options])


OTHERS = ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin", "trainer_state.json")


@pytest.mark.parametrize(
    ("model", "left"),
    [
        ("model.safetensors", ["pytorch_model.bin", "other.safetensors"]),
        ("pytorch_model.bin", ["teacher.pth"]),
        ("dinov3.safetensors", ["dinov3.pth", "dinov3.bin"]),
        ("dinov3.pth", []),
    ],
)
def test_a_folder_gives_its_model_and_names_what_is_left(model: str, left: list[str], tmp_path: Path, capsys) -> None:
    """A trainer's other files never count, and of several models the one that transformers takes does."""
    (tmp_path / "in").mkdir()
    for name in (*OTHERS, *left):
        (tmp_path / "in" / name).write_text("not to be read")
    path = tmp_path / "in" / model
    save_file(tiny_state(), path) if path.suffix == ".safetensors" else torch.save(tiny_state(), path)
    assert convert_to(tmp_path / "out.pth", tmp_path / "in") == 0
    named = capsys.readouterr().out.splitlines()[0]
    expected = sorted([*left, *(name for name in OTHERS if not name.endswith(".json"))])
    assert named == f"read {model} and left aside {', '.join(expected)}"


@pytest.mark.parametrize(
    "way",
    ["same", "symbolic link", "hard link", "link to the folder", "file of the folder", "unfinished", "shard"],
)
def test_the_input_is_never_overwritten(way: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "in").mkdir()
    checkpoint = output = write_as("pth", tmp_path / "in")
    content = checkpoint.read_bytes()
    if way == "symbolic link":
        output = tmp_path / "link.pth"
        output.symlink_to(checkpoint)
    elif way == "hard link":
        output = tmp_path / "link.pth"
        output.hardlink_to(checkpoint)
    elif way == "link to the folder":
        (tmp_path / "other").symlink_to(tmp_path / "in")
        output = tmp_path / "other" / checkpoint.name
    elif way == "unfinished":  # the name under which the output is written first
        checkpoint = checkpoint.rename(checkpoint.with_name("out.pth.unfinished"))
        output = checkpoint.with_name("out.pth")
    elif way == "shard":
        checkpoint = output = checkpoint.rename(checkpoint.with_name("model-1.bin"))
        index = checkpoint.with_name("pytorch_model.bin.index.json")
        index.write_text(json.dumps({"weight_map": dict.fromkeys(tiny_state(), "model-1.bin")}))
    given = {"file of the folder": tmp_path / "in", "shard": checkpoint.with_name("pytorch_model.bin.index.json")}
    given = given.get(way, checkpoint)
    assert convert_to(output, given) == 1
    error = capsys.readouterr().err
    assert "is the input, which is never overwritten" in error and error.count("\n") == 1
    assert checkpoint.read_bytes() == content


def test_a_failed_write_is_one_line_and_leaves_the_old_file_and_no_other(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, output = write_as("pth", tmp_path), tmp_path / "out" / "initial.pth"
    output.parent.mkdir()
    output.write_text("old")

    def cut_off(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("preprocess.torch.save", cut_off)
        assert convert_to(output, checkpoint) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"preprocess.py: --output {output}") and "No space left" in error
    assert output.read_text() == "old" and list(output.parent.iterdir()) == [output]
    assert convert_to(output, checkpoint) == 0
    assert torch.load(output, weights_only=True).keys() == {"model"}


def test_a_link_that_is_not_the_input_is_written_through(tmp_path: Path) -> None:
    checkpoint = write_as("pth", tmp_path)
    (tmp_path / "link.pth").symlink_to(tmp_path / "disk.pth")
    assert convert_to(tmp_path / "link.pth", checkpoint) == 0
    assert (tmp_path / "link.pth").is_symlink() and (tmp_path / "disk.pth").is_file()


def test_names_that_no_file_system_takes_are_one_line(tmp_path: Path, capsys) -> None:
    checkpoint = write_as("pth", tmp_path)
    for given, output in ((checkpoint, tmp_path / ("x" * 300)), (tmp_path / ("x" * 300), tmp_path / "out.pth")):
        assert convert_to(output, given) == 1
        error = capsys.readouterr().err
        assert "File name too long" in error and error.count("\n") == 1


def test_the_result_is_not_named_as_what_it_is_not(tmp_path: Path, capsys) -> None:
    assert convert_to(tmp_path / "out.safetensors", write_as("pth", tmp_path)) == 1
    assert "the result is a .pth file" in capsys.readouterr().err


SATELLITE = '"model.pixel_mean=[0.43,0.411,0.296]" "model.pixel_std=[0.213,0.156,0.143]"'


@pytest.mark.parametrize(
    ("place", "stated", "expected"),
    [
        ("dinov3_vits16_pretrain_lvd1689m.pth", None, None),
        ("dinov3_vitl16_pretrain_sat493m-eadcf0ff.pth", None, SATELLITE),
        ("models--facebook--dinov3-vitl16-pretrain-sat493m/snapshots/0/", None, SATELLITE),
        ("vit_large_patch16_dinov3.sat493m/", None, SATELLITE),
        ("renamed/", {"image_mean": [0.43, 0.411, 0.296], "image_std": [0.213, 0.156, 0.143]}, SATELLITE),
        ("sat493m/", {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}, None),
        ("renamed/", {"pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 1]}}, "pixel_mean=[0.1,0.2,0.3]"),
        ("renamed/", {"image_mean": 0.5, "image_std": None}, None),
    ],
)
def test_weights_of_other_images_print_their_mean_and_deviation(place, stated, expected, tmp_path, capsys) -> None:
    path = tmp_path / place
    folder = path if place.endswith("/") else path.parent
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tiny_state(), folder / "model.pth" if place.endswith("/") else path)
    if stated:
        name = "config.json" if "pretrained_cfg" in stated else "preprocessor_config.json"
        (folder / name).write_text(json.dumps(stated))
    assert convert_to(tmp_path / "out.pth", path) == 0
    printed = capsys.readouterr().out
    assert ("these weights expect images of mean" in printed) == (expected is not None)
    assert (expected or "") in printed


def test_the_satellite_l_is_told_by_its_norm_for_local_crops() -> None:
    result = convert(tiny_state() | {f"local_cls_norm.{part}": torch.ones(96) for part in ("weight", "bias")})
    large = dataclasses.replace(result, size="vitl16")
    assert find_normalisation(Path("renamed.pth"), large) == ([0.430, 0.411, 0.296], [0.213, 0.156, 0.143])
    assert find_normalisation(Path("renamed.pth"), result) is None


def test_many_keys_of_one_fate_are_one_line(tmp_path: Path, capsys) -> None:
    state = tiny_state()
    torch.save({"teacher": state, "student": state | {"x": torch.zeros(1)}}, tmp_path / "in.pth")
    assert convert_to(tmp_path / "out.pth", tmp_path / "in.pth") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "student" in line]
    assert len(lines) == 1 and f"({len(state) + 1} keys): dropped: of another copy (student)" in lines[0]


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("rope_theta", 10000.0, "rope_theta is 10000.0, the network here has 100.0 alone"),
        ("num_attention_heads", 6, "num_attention_heads is 6, the network here has 3 alone"),
        ("layer_norm_eps", 1e-6, "layer_norm_eps is 1e-06"),
        ("hidden_act", "relu", "hidden_act is 'relu'"),
        ("num_attention_heads", 3, ""),
        ("model_type", "other", ""),
    ],
)
@pytest.mark.parametrize("is_file", [False, True])
def test_settings_beside_weights_that_change_no_shape_are_refused(is_file, setting, value, words, tmp_path, capsys):
    save_file(tiny_state(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov3_vit", setting: value}))
    given = tmp_path / "model.safetensors" if is_file else tmp_path
    assert convert_to(tmp_path / "out.pth", given) == (1 if words else 0)
    assert words in capsys.readouterr().err
