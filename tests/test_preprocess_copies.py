"""What training runs write around a DINOv3 network: wrappers, prefixes, copies, heads, norms that are not tied."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from modeling.conversion import ConversionError, convert, read_checkpoint
from tests.helpers.preprocess import State, tiny_state, without

PLAIN = tiny_state()


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def other(value: float = 9.0) -> State:
    """Another copy: the same names, other values."""
    return {name: torch.full_like(tensor, value) for name, tensor in PLAIN.items()}


def wrapped(wrapper: str) -> State:
    """Names as modules wrapped by torch have them: the wrapper's part at the top, in blocks and in layers."""
    return {
        f"{wrapper}.{name}".replace("blocks.0.", f"blocks.0.{wrapper}.").replace("mlp.", f"mlp.{wrapper}."): tensor
        for name, tensor in PLAIN.items()
    }


INPUTS: dict[str, dict[str, Any]] = {
    "teacher beside student": under("teacher.backbone.", PLAIN) | under("student.backbone.", other()),
    "flat teacher": under("teacher.", PLAIN),
    "flat student": under("student.", PLAIN),
    "flat EMA": under("model_ema.", PLAIN),
    "DINOv3's own training": under("student.backbone.", other(1))
    | under("model_ema.backbone.", other(2))
    | under("gram_teacher.backbone.", other(3))
    | under("teacher.backbone.", PLAIN)
    | {"teacher.dino_head.last_layer.weight": torch.zeros(3), "dino_loss.center": torch.zeros(3)},
    "backbones of two": under("student_backbone.", other()) | under("teacher_backbone.", PLAIN),
    "EMA beside student": under("student.", other()) | under("model_ema.", PLAIN),
    "plain beside EMA": {"state_dict": PLAIN, "state_dict_ema": other(), "epoch": 3},
    "DDP": wrapped("module"),
    "compiled": wrapped("_orig_mod"),
    "recomputed": wrapped("_checkpoint_wrapped_module"),
    "FSDP": wrapped("_fsdp_wrapped_module"),
    "all of them": {"model": under("module._orig_mod.teacher.backbone._fsdp_wrapped_module.", wrapped("_orig_mod"))},
    "encoder": under("encoder.", PLAIN),
    "any prefix": under("net.tower.0.", PLAIN) | {"net.neck.weight": torch.zeros(3), "logit_scale": torch.ones(())},
    "Lightning": {"state_dict": under("model.backbone.", PLAIN) | {"model.head.bias": torch.zeros(5)}, "epoch": 1},
    "averaged": under("module.", PLAIN) | {"n_averaged": torch.tensor(7)},
    "head": PLAIN | {"head.weight": torch.zeros(5, 96), "head.bias": torch.zeros(5)},
    "classifier": PLAIN | {"classifier.weight": torch.zeros(5, 96), "classifier.bias": torch.zeros(5)},
    "linear head": PLAIN | {"linear_head.weight": torch.zeros(5, 192), "fc_norm.weight": torch.zeros(96)},
    "untied norms": PLAIN
    | {f"{name}.{part}": torch.ones(96) for name in ("cls_norm", "local_cls_norm") for part in ("weight", "bias")},
    "two ways to one": {"model": PLAIN, "state_dict": PLAIN},
}  # fmt: skip
EXPECTED = convert(PLAIN)


@pytest.mark.parametrize("name", INPUTS)
def test_the_network_is_found_and_every_other_key_has_a_reason(name: str) -> None:
    state = INPUTS[name]
    result = convert(state)
    assert result.model.keys() == EXPECTED.model.keys()
    assert all(torch.equal(t, EXPECTED.model[n]) for n, t in result.model.items())
    assert EXPECTED.account.items() <= result.account.items()
    flat = sum(len(value) if isinstance(value, dict) else 1 for value in state.values())
    others = {key: fate for key, fate in result.account.items() if key not in EXPECTED.account}
    assert all(fate.startswith("dropped: ") for fate in others.values())
    num_shared = len(PLAIN) - 1 if name == "two ways to one" else 0  # the second way is one key without reason
    assert len(result.account) == flat - num_shared


@pytest.mark.parametrize(
    ("state", "key", "words"),
    [
        (INPUTS["DINOv3's own training"], "gram_teacher.backbone.norm.bias",
         "another copy (gram teacher); taken is teacher"),
        (INPUTS["DINOv3's own training"], "dino_loss.center", "loss of pre-training"),
        (INPUTS["plain beside EMA"], "state_dict_ema.norm.bias", "another copy (EMA); taken is plain"),
        (INPUTS["any prefix"], "net.neck.weight", "not of the network, whose names start with net.tower.0."),
        (INPUTS["head"], "head.weight", "classification head"),
        (INPUTS["classifier"], "classifier.bias", "classification head"),
        (INPUTS["untied norms"], "cls_norm.weight", "norm of cls and storage tokens"),
        (INPUTS["plain beside EMA"], "epoch", "no tensor"),
    ],
)  # fmt: skip
def test_the_reason_fits_the_key(state: State, key: str, words: str) -> None:
    assert words in convert(state).account[key]


def test_two_networks_of_one_kind_are_refused_by_their_prefixes() -> None:
    with pytest.raises(ConversionError, match='two networks.*"image." and "text."'):
        convert(under("text.", PLAIN) | under("image.", PLAIN))


def test_a_copy_that_is_not_complete_is_not_filled_from_another() -> None:
    """Teacher and student have one layout: a tensor that one lacks is missing, though the other has it."""
    teacher = without(PLAIN, "blocks.1.norm1.weight")
    with pytest.raises(ConversionError, match="missing .blocks.1.norm1.weight"):
        convert(under("teacher.", teacher) | under("student.", PLAIN))


def test_an_unlisted_width_without_qkv_bias_is_converted() -> None:
    state = tiny_state(qkv_bias=False)
    state = without(state, *(f"blocks.{index}.attn.qkv.bias_mask" for index in range(2)))
    result = convert(state)
    assert result.size == "unlisted" and result.vit_args["qkv_bias"] is False
    assert not any(name.endswith("qkv.bias") for name in result.model)
    state["blocks.1.attn.qkv.bias"] = torch.zeros(288)
    with pytest.raises(ConversionError, match="missing .blocks.0.attn.qkv.bias"):
        convert(state)


@pytest.mark.parametrize("hidden", [96, 100, 101, 256])
def test_an_unlisted_gated_width_is_told_whatever_its_alignment(hidden: int) -> None:
    args = dict(ffn_layer="swiglu", mlp_ratio=(hidden + 0.5) * 1.5 / 96, ffn_align=1)
    state = tiny_state(**args)
    assert len(state["blocks.0.mlp.w1.weight"]) == hidden
    assert convert(state).model["backbone.blocks.1.mlp.w3.weight"].shape == (96, hidden)


@pytest.mark.parametrize("count", [0, 1, 8])
def test_another_number_of_storage_tokens_is_told(count: int) -> None:
    state = tiny_state(num_storage_tokens=count)
    result = convert(state, keep_prefix=True)
    assert result.vit_args["num_storage_tokens"] == count
    assert ("backbone.storage_tokens" in result.model) == bool(count)


def test_mappings_in_a_circle_end() -> None:
    state: dict[str, Any] = {"model": PLAIN}
    state["model"] = {"self": state, **PLAIN}
    assert convert(state).model.keys() == EXPECTED.model.keys()


def test_arguments_of_a_training_are_read_as_plain_values(tmp_path: Path) -> None:
    """DINO, MAE and timm store the Namespace of their command line beside the tensors."""
    torch.save({"model": PLAIN, "args": argparse.Namespace(lr=0.1, output_dir="x")}, tmp_path / "full.pth")
    assert convert(read_checkpoint(tmp_path / "full.pth")).account["args"] == "dropped: no tensor of the network"


def test_a_distributed_checkpoint_is_put_together(tmp_path: Path) -> None:
    state = {
        "model": under("teacher.backbone._orig_mod.", PLAIN) | under("student.backbone.", other()),
        "optimizer": {"state": {"a": {"exp_avg": torch.ones(2)}}},
        "iteration": 3,
    }
    dcp.save(state, checkpoint_id=tmp_path / "ckpt", no_dist=True)
    result = convert(read_checkpoint(tmp_path / "ckpt"))
    assert all(torch.equal(t, EXPECTED.model[n]) for n, t in result.model.items())
    assert {"optimizer.state.a.exp_avg", "model.student.backbone.norm.bias"} <= result.account.keys()
