"""Model folders: the same network comes back, bit-exact; a stranger's is checked, never run."""

import copy
import io
import json
import os
import pickle
import re
import stat
import time
from inspect import signature

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from inference.formats.model_folder import (
    CONSTRUCTORS,
    ModelFolderError,
    build,
    read_model_folder,
    round_to_half,
    write_model_folder,
)
from modeling.vitmatte import PADDINGS
from tests.helpers.networks import BACKBONES, network_description, random_network

REMOVED = object()
BIAS = "backbone.norm.bias"


@pytest.fixture
def folder(tmp_path):
    """A model folder as the program writes it."""
    write_model_folder(
        tmp_path / "model", network_description(), random_network().state_dict(), "a test", "No terms.\n"
    )
    return tmp_path / "model"


def test_a_folder_keeps_the_padding_and_one_from_before_there_was_any_repeats_the_edge(folder, tmp_path):
    assert "padding" not in network_description() and read_model_folder(folder).padding == "edge"
    for padding in PADDINGS:
        described = network_description() | {"padding": padding}
        write_model_folder(tmp_path / padding, described, random_network().state_dict(), "a test", "No terms.\n")
        assert read_model_folder(tmp_path / padding).padding == padding


@pytest.mark.parametrize("kind", BACKBONES)
def test_the_network_comes_back_to_the_bit(tmp_path, kind):
    model = random_network(kind)
    folder = tmp_path / "new" / "model"
    write_model_folder(folder, network_description(kind), model.state_dict(), "a test", "No terms.\n")
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "LICENSE.txt"}
    assert (folder / "LICENSE.txt").read_text() == "No terms.\n"
    again = read_model_folder(folder)
    expected, found = model.state_dict(), again.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not any(module.training for module in again.modules())
    image = torch.rand(1, 3, 70, 43, generator=torch.Generator().manual_seed(1))
    batch = {"image": image, "trimap": torch.full((1, 1, 70, 43), 0.5)}
    with torch.inference_mode():
        alphas = [net(batch)["pred_alpha"] for net in (model, again)]
    assert alphas[0].std() > 0.001
    assert torch.equal(*alphas)
    batch["image"] = batch["image"].flip(1)
    with torch.inference_mode():  # so the three values of mean and std are the channels' own
        assert not torch.equal(again(batch)["pred_alpha"], alphas[0])


def test_half_precision_rounds_matrices_and_leaves_vectors(tmp_path, caplog):
    """Statistics of BatchNorm beyond 65504, and a LayerScale that float16 would round to 0, come back as they were."""
    tensors = random_network().state_dict()
    variance = next(name for name in tensors if name.endswith("running_var"))
    tensors[variance] += 1e6
    tensors["backbone.blocks.0.ls1.gamma"] += 1e-9
    write_model_folder(tmp_path / "model", network_description(), round_to_half(tensors), "a test", "No terms.\n")
    with caplog.at_level("INFO"):
        found = read_model_folder(tmp_path / "model").state_dict()
    assert "model.safetensors: weights of half precision, used as float32" in caplog.text
    expected = {name: tensor.half().float() if tensor.dim() > 1 else tensor for name, tensor in tensors.items()}
    assert found.keys() == expected.keys()
    assert all(found[name].dtype == tensors[name].dtype for name in tensors)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    kernel = next(name for name in tensors if name.endswith("conv.weight"))
    with pytest.raises(ModelFolderError, match=rf"weights of {kernel} are above 65504.*store them as float32$"):
        round_to_half(tensors | {kernel: tensors[kernel] + 7e4})


@pytest.mark.parametrize(("part", "kind"), [(part, kind) for part, kinds in CONSTRUCTORS.items() for kind in kinds])
def test_every_argument_of_a_constructor_can_be_stated(part, kind):
    """Each default, written down as JSON, is accepted: no argument has a type that config.json cannot hold."""
    parts = {name: network_description()[name] for name in CONSTRUCTORS if name != "model"}
    stated = {"type": kind} | (parts if part == "model" else {"in_chans": 32} if part == "decoder" else {})
    for parameter in signature(CONSTRUCTORS[part][kind]).parameters.values():
        if parameter.default is not parameter.empty and parameter.name != "criterion":
            stated[parameter.name] = parameter.default
    with torch.device("meta"):
        build(part, json.loads(json.dumps(stated)))


@pytest.mark.parametrize(
    ("where", "change", "words"),
    [
        ("model", {"type": "os.system"}, "expected the model to have the \"type\" ViTMatte, got 'os.system'"),
        ("", {"model": "ViTMatte"}, 'expected the model to have the "type" ViTMatte, got None; nothing else is built'),
        (
            "backbone",
            {"type": "Linear"},
            "expected the backbone to have the \"type\" ViT or ViTDet or DINOv2, got 'Linear'",
        ),
        (
            "backbone",
            {"type": "DetailCapture"},
            'expected the backbone to have the "type" ViT or ViTDet or DINOv2, got',
        ),
        ("decoder", {"type": "ViT"}, "expected the decoder to have the \"type\" DetailCapture, got 'ViT'"),
        ("model", {"backbone": 7}, 'expected the backbone to have the "type" ViT or ViTDet or DINOv2, got None'),
        ("backbone", {"_target_": "os.system"}, "ViT has no argument '_target_'"),
        ("backbone", {"image_size": 64}, "ViT has no argument 'image_size': remove it, or export the folder again"),
        ("backbone", {"return": None}, "ViT has no argument 'return'"),
        ("model", {"criterion": None}, "ViTMatte has no argument 'criterion'"),
        ("decoder", {"backbone": {"type": "ViT"}}, "DetailCapture has no argument 'backbone'"),
        ("model", {"decoder": REMOVED}, "ViTMatte lacks its decoder: export the folder again"),
        ("decoder", {"in_chans": REMOVED}, "DetailCapture lacks its in_chans"),
        ("backbone", {"depth": "2"}, "depth of ViT must be an integer of at most 8192, got '2'"),
        ("backbone", {"depth": True}, "depth of ViT must be an integer of at most 8192, got True"),
        ("backbone", {"depth": 10**9}, "depth of ViT must be an integer of at most 8192, got 1000000000"),
        ("backbone", {"qkv_bias": 1}, "qkv_bias of ViT must be true or false, got 1"),
        ("backbone", {"ffn_layer": 1}, "ffn_layer of ViT must be text, got 1"),
        ("backbone", {"norm_eps": "x" * 99}, "norm_eps of ViT must be a number, got 'xxxxxxxx"),
        ("backbone", {"norm_eps": float("nan")}, "norm_eps of ViT must be a number, got nan"),
        ("backbone", {"norm_eps": 10**400}, "norm_eps of ViT must be a number, got 1000"),
        ("backbone", {"rope_shift": "a"}, "rope_shift of ViT must be a number or null, got 'a'"),
        (
            "backbone",
            {"global_block_indexes": [0.5]},
            "must be a list of which each is an integer of at most 8192, got [0.5]",
        ),
        ("model", {"pixel_std": [1, 1, float("inf")]}, "must be a list of which each is a number, got [1, 1, inf]"),
        ("model", {"pixel_mean": [0, 0]}, "no ViTMatte can be built with these arguments: pixel_mean and pixel_std"),
        ("model", {"padding": "mirror"}, "padding must be edge, zero or zero_hustvl, got 'mirror'"),
        ("backbone", {"num_heads": 0}, "no ViT can be built with these arguments: num_heads must be at least 1, got 0"),
        ("backbone", {"depth": 0}, "depth must be at least 1, got 0"),
        ("backbone", {"embed_dim": -8}, "embed_dim must be at least 1, got -8"),
        ("backbone", {"mlp_ratio": 1e30}, "mlp_ratio must be above 0 and at most 100, got 1e+30"),
        ("backbone", {"num_storage_tokens": -1}, "num_storage_tokens must be at least 0, got -1"),
        ("decoder", {"convstream_chans": [8, -8, 8]}, "convstream_chans must be at least 1, got [8, -8, 8]"),
        ("backbone", {"global_block_indexes": [9]}, "global_block_indexes: [9] lie outside the 2 blocks"),
        ("backbone", {"ffn_layer": "eval"}, 'ffn_layer must be "mlp" or "swiglu", got \'eval\''),
        ("decoder", {"fusion_chans": []}, "no DetailCapture can be built with these arguments: fusion_chans needs"),
        (
            "model",
            {"size_divisibility": 24},
            "size_divisibility of ViTMatte must be a multiple of the backbone's patch_size 16, got 24",
        ),
        ("backbone", {"depth": 3}, "missing (backbone.blocks.2.norm1.weight, "),
        ("backbone", {"embed_dim": 24}, "of another shape (backbone.blocks.0.attn."),
        ("backbone", {"embed_dim": 2**13}, "of another shape (backbone.blocks.0.attn."),  # 7 GB, never allocated
        ("backbone", {"keep_prefix_tokens": False}, "2 unexpected (backbone.cls_token, backbone.storage_tokens)"),
        ("", {"format": 2}, 'expected "format": 1 and a "model", got format 2'),
        ("", {"model": REMOVED}, 'expected "format": 1 and a "model", got format 1'),
    ],
)
def test_a_config_that_cannot_be_used_is_one_line(folder, where, change, words):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    model = config["model"]
    part = {"": config, "model": model, "backbone": model["backbone"], "decoder": model["decoder"]}[where]
    part.update(change)
    for name in [name for name, value in change.items() if value is REMOVED]:
        del part[name]
    path.write_text(json.dumps(config))
    start = time.monotonic()
    with pytest.raises(ModelFolderError, match=re.escape(words)) as error:
        read_model_folder(folder)
    message = str(error.value)
    assert message.startswith(str(folder)) and len(message.splitlines()) == 1 and len(message) < 600
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("name", ["patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio"])
def test_no_size_below_one_is_taken_for_a_bug(kind, name):
    description = network_description(kind)
    for value in (0, -8):
        with pytest.raises(ModelFolderError, match=f"{name} must be "), torch.device("meta"):
            build("backbone", description["backbone"] | {name: value})


@pytest.mark.parametrize("error", [ValueError, TypeError, KeyError, RuntimeError])
@pytest.mark.parametrize("module", ["modeling.backbone.vit.Block", "modeling.detail_capture.MattingHead"])
def test_a_bug_in_a_constructor_keeps_its_traceback_and_names_the_file(folder, monkeypatch, error, module):
    def broken(*_, **__):
        raise error("a bug")

    monkeypatch.setattr(module, broken)
    with pytest.raises(error, match="a bug") as raised:
        read_model_folder(folder)
    assert any(str(folder / "config.json") in note for note in raised.value.__notes__)
    assert raised.traceback[-1].name == "broken"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"format": 1', b"\xff\xfe\x00", b"[" * 100_000, b"[1, 2]", b"import os", b"9" * 5000, b"null"],
    ids=range(9),
)
def test_a_config_that_is_no_json_object_is_one_line(folder, content):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ModelFolderError, match=re.escape(str(folder / "config.json"))) as error:
        read_model_folder(folder)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("missing", [["config.json"], ["model.safetensors"], ["config.json", "model.safetensors"]])
def test_a_missing_file_is_named_with_what_makes_it(folder, missing):
    for name in missing:
        (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"it lacks {' and '.join(missing)}\. tools/export.py makes"):
        read_model_folder(folder)


def test_what_is_no_folder_is_named(folder):
    with pytest.raises(FileNotFoundError, match="nowhere: no such model folder"):
        read_model_folder(folder.parent / "nowhere")
    with pytest.raises(ModelFolderError, match=r"model/config\.json is a file, expected a model folder"):
        read_model_folder(folder / "config.json")


class Code:
    """A pickle that would make a folder when it is read."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("kind", ["empty", "cut off", "text", "a pickle with code", "a torch checkpoint"])
def test_weights_that_are_no_safetensors_are_one_line_and_run_nothing(folder, monkeypatch, kind):
    monkeypatch.chdir(folder)
    path = folder / "model.safetensors"
    content = path.read_bytes()
    checkpoint = io.BytesIO()
    torch.save(random_network().state_dict(), checkpoint)
    made = {
        "empty": b"",
        "cut off": content[:-9],
        "text": b"weights",
        "a pickle with code": pickle.dumps(Code()),
        "a torch checkpoint": checkpoint.getvalue(),
    }
    path.write_bytes(made[kind])
    with pytest.raises(ModelFolderError, match=r"model\.safetensors is damaged or no safetensors file") as error:
        read_model_folder(folder)
    assert len(str(error.value).splitlines()) == 1
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"decoder.matting_head.matting_convs.3.bias": REMOVED},
            "1 missing (decoder.matting_head.matting_convs.3.bias)",
        ),
        ({"extra": torch.zeros(1)}, "1 unexpected (extra)"),
        ({BIAS: torch.zeros(1)}, f"1 of another shape ({BIAS} (1,), expected (32,))"),
        ({BIAS: torch.zeros(32).bfloat16()}, f"1 of another type ({BIAS} torch.bfloat16, expected torch.float32)"),
        ({BIAS: torch.full((32,), float("nan"))}, f"1 with values that are not finite ({BIAS})"),
        ({BIAS: torch.tensor([float("-inf"), *[0.0] * 31])}, f"1 with values that are not finite ({BIAS})"),
        ({BIAS: REMOVED, "extra": torch.zeros(1)}, f"1 missing ({BIAS}); 1 unexpected (extra)"),
    ],
    ids=range(7),
)
def test_tensors_that_do_not_fit_are_counted_and_named(folder, tmp_path, change, words):
    tensors = random_network().state_dict() | change
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not REMOVED}
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelFolderError, match=re.escape(words)) as error:
        read_model_folder(folder)
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(ModelFolderError, match=re.escape(words)):  # nor are such tensors written
        write_model_folder(tmp_path / "new", network_description(), tensors, "a test", "")
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten(folder, tmp_path):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    (tmp_path / "file").write_text("mine")
    for taken in (folder, tmp_path / "file"):
        with pytest.raises(ModelFolderError, match="exists and is no empty folder"):
            write_model_folder(taken, network_description(), random_network().state_dict(), "a test", "")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    write_model_folder(tmp_path / "empty", network_description(), random_network().state_dict(), "a test", "")
    read_model_folder(tmp_path / "empty")


@pytest.mark.parametrize(
    ("name", "error"),
    [("json.dumps", OSError("No space left on device")), ("save_file", SafetensorError("No space left on device"))],
)
def test_a_full_disk_is_an_os_error_and_the_folder_then_lacks_its_config(tmp_path, monkeypatch, name, error):
    def full_disk(*_, **__):
        raise error

    monkeypatch.setattr(f"inference.formats.model_folder.{name}", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_model_folder(tmp_path / "model", network_description(), random_network().state_dict(), "a test", "")
    with pytest.raises(FileNotFoundError, match="lacks config.json"):
        read_model_folder(tmp_path / "model")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_all_files_have_the_rights_that_the_umask_gives(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_model_folder(tmp_path / "model", network_description(), random_network().state_dict(), "a test", "")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "model").iterdir()} == {mode}


def test_a_description_is_left_as_it_was():
    given = network_description()
    before = copy.deepcopy(given)
    build("model", given)
    assert given == before
