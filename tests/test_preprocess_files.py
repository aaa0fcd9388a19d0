"""preprocess.py as a command: kinds of files, what it writes, and what cannot be read in one line."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_preprocess_keys import State, tiny_state

from modeling.backbone import ViT
from preprocess import convert, main


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
@pytest.mark.parametrize("options", [[], ["--keep-prefix", "--trimap-init", "mean"]], ids=["report", "all"])
def test_command_line_writes_what_loads(kind: str, options: list[str], tmp_path: Path, capsys) -> None:
    """The unlisted size included: its periods tell the number of heads."""
    output = tmp_path / "new" / "initial.pth"
    (tmp_path / "in").mkdir()
    assert main(["--checkpoint", str(write_as(kind, tmp_path / "in")), "--output", str(output), *options]) == 0
    written = torch.load(output, weights_only=True)
    assert written.keys() == {"model"}
    expected = convert(tiny_state(), keep_prefix=bool(options), trimap_init="mean" if options else "zero")
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
    elif kind in ("hello", "\x8a"):  # opcodes of a pickle: look up what is not there, read a length that is not there
        path.write_text(kind, encoding="latin-1")
    elif kind == "empty file":
        path.touch()
    elif kind == "code":
        torch.save({"model": Code()}, path)
    elif kind == "plain pickle":
        path.write_bytes(pickle.dumps({"model": Code()}, protocol=2))
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
    elif kind == "index without map":
        (folder / "model.safetensors.index.json").write_text("{}")
    elif kind == "two files":
        save_file(tiny_state(), folder / "a.safetensors")
        save_file(tiny_state(), folder / "b.safetensors")
    return path if path.exists() or kind == "absent" else folder


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", "tiny.pth cannot be read as a checkpoint"),
        ("hello", "tiny.pth cannot be read as a checkpoint of tensors: KeyError"),
        ("\x8a", "tiny.pth cannot be read as a checkpoint"),
        ("empty file", "tiny.pth cannot be read as a checkpoint"),
        ("code", "tiny.pth cannot be read as a checkpoint"),
        ("plain pickle", "tiny.pth cannot be read as a checkpoint"),
        ("list", "tiny.pth holds a list, expected a dict of tensors"),
        ("truncated", "tiny.pth cannot be read as a checkpoint"),
        ("safetensors", "tiny.safetensors cannot be read as a checkpoint"),
        ("absent", "tiny.pth does not exist"),
        ("empty folder", "expected one checkpoint in the folder, found none"),
        ("two files", "expected one checkpoint in the folder, found ['a.safetensors', 'b.safetensors']"),
        ("shard missing", "model-2.safetensors does not exist"),
        ("index", "model.safetensors.index.json"),
        ("index without map", "model.safetensors.index.json"),
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


@pytest.mark.parametrize("output", ["in", "in/tiny.pth/new/out.pth", "full"], ids=["folder", "below a file", "late"])
def test_an_output_that_cannot_be_written_is_one_line(
    output: str, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the file system tells is told before the conversion, what only writing tells after it."""
    (tmp_path / "in").mkdir()
    checkpoint, late = write_as("pth", tmp_path / "in"), output == "full"

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("preprocess.torch.save" if late else "preprocess.convert", full)
    assert main(["--checkpoint", str(checkpoint), "--output", str(tmp_path / output)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"preprocess.py: --output {tmp_path / output}") and error.count("\n") == 1
    assert ("No space left" in error) is late
