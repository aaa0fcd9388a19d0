"""Folders of torch.distributed.checkpoint are data: what is read of them runs nothing."""

import io
import pickle
import struct
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from runtime.errors import UserError
from runtime.network_files import INDEX, read_tensors

TENSORS = {
    "model": {"a": torch.arange(12.0).reshape(3, 4), "half": torch.ones(2, dtype=torch.bfloat16)},
    "blocks": [torch.rand(1, 3, 4, 4).contiguous(memory_format=torch.channels_last)],
    "empty": torch.zeros(0),
    "scalar": torch.tensor(3),
}


@pytest.fixture
def folder(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({**TENSORS, "iteration": 7}, checkpoint_id=tmp_path / "saved")
    return tmp_path / "saved"


def call(module, name, argument):
    """A pickle that calls a function with one text."""
    return (
        b"\x80\x02c"
        + f"{module}\n{name}\n".encode()
        + b"X"
        + struct.pack("<I", len(argument))
        + argument.encode()
        + b"\x85R."
    )


def test_every_tensor_is_read_and_what_is_none_left_out(folder):
    expected = {
        "model.a": TENSORS["model"]["a"],
        "model.half": TENSORS["model"]["half"],
        "blocks.0": TENSORS["blocks"][0],
        "empty": TENSORS["empty"],
        "scalar": TENSORS["scalar"],
    }
    torch.testing.assert_close(read_tensors(folder), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("torch", "hub.load"),
        ("torch.serialization", "load"),
        ("runtime.network_files", "pickle.loads"),
        ("torch.distributed.checkpoint.metadata", "os.system"),
        ("torch.distributed.checkpoint.filesystem", "os.system"),
        ("pathlib", "os.system"),
    ],
)
@pytest.mark.parametrize("protocol", [b"\x80\x02", b"\x80\x04"])
def test_an_index_that_calls_a_function_is_refused(folder, module, name, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = call(module, name, "touch RAN_CODE")
    (folder / INDEX).write_bytes(protocol + text[2:])
    with pytest.raises(UserError, match=f"asks for {module}.{name}") as refused:
        read_tensors(folder)
    assert "\n" not in str(refused.value) and not (tmp_path / "RAN_CODE").exists()


def change_index(folder, change):
    """Write the index anew, changed."""
    index = pickle.loads((folder / INDEX).read_bytes())
    change(index)
    (folder / INDEX).write_bytes(pickle.dumps(index))


class Touch:
    def __reduce__(self):
        return print, ("RAN_CODE",)


def test_a_tensor_that_the_index_calls_a_pickle_is_not_unpickled(folder, capsys):
    payload = io.BytesIO()
    torch.save(Touch(), payload)

    def put_pickle(index):
        index.state_dict_metadata["model.a"] = BytesStorageMetadata()
        place = next(key for key in index.storage_data if key.fqn == "model.a")
        info = index.storage_data.pop(place)
        index.storage_data[type(place)("model.a")] = type(info)("evil.distcp", 0, len(payload.getvalue()))

    change_index(folder, put_pickle)
    (folder / "evil.distcp").write_bytes(payload.getvalue())
    with warnings.catch_warnings():  # that torch's own reader would run it
        warnings.simplefilter("ignore")
        dcp.load({"model": {"a": torch.zeros(3, 4)}}, checkpoint_id=folder)
    assert "RAN_CODE" in capsys.readouterr().out
    assert "model.a" not in read_tensors(folder)
    assert "RAN_CODE" not in capsys.readouterr().out


def test_a_shard_with_a_pickle_in_it_is_refused(folder, capsys):
    payload = io.BytesIO()
    torch.save(Touch(), payload)

    def put_pickle(index):
        for info in index.storage_data.values():
            info.relative_path, info.offset, info.length = "evil.distcp", 0, len(payload.getvalue())

    change_index(folder, put_pickle)
    (folder / "evil.distcp").write_bytes(payload.getvalue())
    with pytest.raises(UserError, match="cannot be read"):
        read_tensors(folder)
    assert "RAN_CODE" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["../outside.distcp", "/etc/passwd", "..", "a/b", "..\\outside"])
def test_an_index_that_names_files_outside_its_folder_is_refused(folder, name):
    def point(index):
        next(iter(index.storage_data.values())).relative_path = name

    change_index(folder, point)
    with pytest.raises(UserError, match="no file of its folder"):
        read_tensors(folder)


def test_an_index_cut_off_anywhere_is_one_line(folder):
    content = (folder / INDEX).read_bytes()
    for length in range(0, len(content), 7):
        (folder / INDEX).write_bytes(content[:length])
        with pytest.raises(UserError, match="damaged") as refused:
            read_tensors(folder)
        assert "\n" not in str(refused.value)


def test_a_folder_without_index_or_shard_is_named(folder):
    for path in folder.glob("*.distcp"):
        path.unlink()
    with pytest.raises(UserError, match="saved cannot be read: .*No such file"):
        read_tensors(folder)
    (folder / INDEX).unlink()
    with pytest.raises(UserError, match=r"\.metadata cannot be read: No such file"):
        read_tensors(folder)
