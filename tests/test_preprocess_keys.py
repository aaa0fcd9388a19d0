"""preprocess.convert on names and shapes: every key accounted for, every size told, every defect named."""

from typing import Any

import pytest
import timm
import torch
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from modeling.backbone import DINOV3_SIZES, ViT
from modeling.conversion import ConversionError, convert
from modeling.conversion.dinov3 import detect_size, plain
from tests.helpers.preprocess import State, official_state, tiny_state, without

TIMM_NAMES = {"vits16": "vit_small_patch16_dinov3", "vits16plus": "vit_small_plus_patch16_dinov3"}


def zeros_like_model(model: torch.nn.Module) -> State:
    """Names and shapes of a model made on `meta`: accounting needs no values."""
    return {name: torch.zeros(tensor.shape) for name, tensor in model.state_dict().items()}


def published_state(layout: str, size: str) -> State:
    with torch.device("meta"):
        if layout == "transformers":
            gated = size == "vits16plus"
            config = DINOv3ViTConfig(hidden_size=384, num_attention_heads=6, num_hidden_layers=12,
                                     intermediate_size=1536, num_register_tokens=4, use_gated_mlp=gated)  # fmt: skip
            model = DINOv3ViTModel(config)
        else:
            model = timm.create_model(TIMM_NAMES[size] + "_qkvb", num_classes=0)
    state = zeros_like_model(model)
    if layout == "official":
        model = torch.nn.Module()
        model.state_dict = lambda: state  # official_state asks for nothing else
        return official_state(model)
    return {name.removeprefix("model."): tensor for name, tensor in state.items()}


def fates(account: dict[str, str]) -> dict[str, int]:
    kinds = [fate.split(":")[0] for fate in account.values()]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


@pytest.mark.parametrize(
    ("layout", "size", "num_keys", "dropped", "added"),
    [
        ("official", "vits16", 188, ["mask_token"], []),
        ("official", "vits16plus", 212, ["mask_token"], []),
        ("timm", "vits16", 186, [], ["rope_embed.periods"]),
        ("timm", "vits16plus", 210, [], ["rope_embed.periods"]),
        ("transformers", "vits16", 211, ["embeddings.mask_token"], ["rope_embed.periods"]),
        ("transformers", "vits16plus", 235, ["embeddings.mask_token"], ["rope_embed.periods"]),
    ],
)
def test_every_key_is_accounted_for(
    layout: str, size: str, num_keys: int, dropped: list[str], added: list[str]
) -> None:
    state = published_state(layout, size)
    result = convert(state, keep_prefix=True)
    assert (result.layout, result.size, len(state)) == (layout, size, num_keys)
    assert result.account.keys() == state.keys() | set(added)
    assert [key for key, fate in result.account.items() if fate.startswith("dropped")] == dropped
    assert [key for key, fate in result.account.items() if fate.startswith("added")] == added
    assert fates(result.account)["inflated"] == 1
    with torch.device("meta"):
        vit = ViT(**DINOV3_SIZES[size], global_block_indexes=range(12), conv_residual_block_indexes=())
    assert result.model.keys() == {f"backbone.{name}" for name in vit.state_dict()}


def test_timm_without_biases_gets_zero_ones() -> None:
    with torch.device("meta"):
        model = timm.create_model(TIMM_NAMES["vits16"], num_classes=0)
    state = zeros_like_model(model)
    result = convert(state)
    added = [key for key, fate in result.account.items() if fate.startswith("added: zeros")]
    assert added == [f"blocks.{index}.attn.qkv.bias" for index in range(12)]
    assert not any(result.model[f"backbone.{name}"].any() for name in added)


@pytest.mark.parametrize("size", DINOV3_SIZES)
def test_each_published_size_is_told_by_its_shapes(size: str) -> None:
    with torch.device("meta"):
        state = ViT(**plain(DINOV3_SIZES[size])).state_dict()
    assert detect_size(state) == (size, DINOV3_SIZES[size])


@pytest.mark.parametrize("layout", ["official", "timm", "transformers"])
def test_a_size_like_7b_has_no_bias_of_qkv(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the 7B: gated, hidden width aligned to 64, no query, key or value bias, a norm for local crops."""
    args = dict(embed_dim=96, depth=2, num_heads=3, ffn_layer="swiglu", mlp_ratio=3.0, ffn_align=64, qkv_bias=False)
    monkeypatch.setitem(DINOV3_SIZES, "tiny7b", args)
    if layout == "transformers":
        config = DINOv3ViTConfig(hidden_size=96, num_attention_heads=3, num_hidden_layers=2, intermediate_size=192,
                                 num_register_tokens=4, use_gated_mlp=True, query_bias=False, key_bias=False,
                                 value_bias=False)  # fmt: skip
        state = DINOv3ViTModel(config).state_dict()
    elif layout == "timm":
        name = "vit_7b_patch16_dinov3"
        state = timm.create_model(name, num_classes=0, embed_dim=96, depth=2, num_heads=3, mlp_ratio=2).state_dict()
    else:
        state = without(tiny_state(**args), *(f"blocks.{index}.attn.qkv.bias_mask" for index in range(2)))
        state |= {"local_cls_norm.weight": torch.ones(96), "local_cls_norm.bias": torch.zeros(96)}
    result = convert(state)
    assert (result.layout, result.size) == (layout, "tiny7b")
    assert not any(name.endswith("qkv.bias") for name in result.model)


def test_the_fourth_channel_starts_at_zero() -> None:
    state = tiny_state()
    result = convert(state)
    weight = result.model["backbone.patch_embed.proj.weight"]
    assert torch.equal(weight[:, :3], state["patch_embed.proj.weight"]) and not weight[:, 3].any()
    assert result.account["patch_embed.proj.weight"].endswith("fourth channel zero")


def test_prefix_tokens_are_dropped_or_kept() -> None:
    state = tiny_state()
    dropped, kept = convert(state), convert(state, keep_prefix=True)
    assert kept.model.keys() - dropped.model.keys() == {"backbone.cls_token", "backbone.storage_tokens"}
    assert torch.equal(kept.model["backbone.storage_tokens"], state["storage_tokens"])
    assert dropped.vit_args["keep_prefix_tokens"] is False and kept.vit_args["keep_prefix_tokens"] is True
    for name in ("cls_token", "storage_tokens"):
        assert dropped.account[name] == "dropped: prefix token, kept by --keep-prefix"


def test_stored_mask_is_folded_into_the_bias() -> None:
    state = tiny_state()
    bias, mask = state["blocks.0.attn.qkv.bias"], state["blocks.0.attn.qkv.bias_mask"]
    result = convert(state | {"blocks.1.attn.qkv.bias_mask": torch.zeros(288)})
    assert torch.equal(result.model["backbone.blocks.0.attn.qkv.bias"], bias * mask)
    assert not result.model["backbone.blocks.1.attn.qkv.bias"].any()  # released files hold such masks
    assert not any("bias_mask" in name for name in result.model)
    assert result.account["blocks.0.attn.qkv.bias_mask"] == "converted: folded into blocks.0.attn.qkv.bias"


def test_stored_periods_are_kept() -> None:
    stored = tiny_state()["rope_embed.periods"]
    computed = ViT(embed_dim=96, depth=1, num_heads=3, global_block_indexes=(0,), conv_residual_block_indexes=())
    assert not torch.equal(stored, computed.rope_embed.periods)
    assert torch.equal(convert(tiny_state()).model["backbone.rope_embed.periods"], stored)


def test_results_are_float32() -> None:
    result = convert({name: tensor.bfloat16() for name, tensor in tiny_state().items()})
    assert {tensor.dtype for tensor in result.model.values()} == {torch.float32}


QKV = "blocks.1.attn.qkv.bias"
DEFECTS: dict[str, tuple[dict[str, Any], str]] = {
    "missing": (without(tiny_state(), "blocks.1.norm2.bias"), "missing .blocks.1.norm2.bias"),
    "a whole block": (
        {k: v for k, v in tiny_state().items() if "blocks.0.a" not in k},
        "missing .blocks.0.attn.qkv.weight",
    ),
    "unknown": (tiny_state() | {"blocks.0.adapter.weight": torch.zeros(1)}, "unknown keys.*blocks.0.adapter.weight"),
    "shape": (tiny_state() | {"norm.bias": torch.zeros(95)}, r"norm.bias \(95,\), expected \(96,\)"),
    "key bias": (tiny_state() | {f"{QKV}_mask": torch.ones(288)}, f"{QKV}: the key third must be zero"),
    "no mask": (without(tiny_state(), f"{QKV}_mask"), f"{QKV}: the key third must be zero"),
    "NaN mask": (tiny_state() | {f"{QKV}_mask": torch.full((288,), torch.nan)}, f"{QKV}_mask holds .* not finite"),
    "mask alone": (without(tiny_state(), QKV), f"{QKV}_mask has no {QKV}"),
    "infinite": (tiny_state() | {"cls_token": torch.full((1, 1, 96), torch.inf)}, "cls_token holds .* not finite"),
    "unlisted": (without(tiny_state(), "rope_embed.periods"), "width 96, depth 2, mlp of 384 is no published.*periods"),
    "four channels": (tiny_state() | {"patch_embed.proj.weight": torch.zeros(96, 4, 16, 16)}, "3 input .*, got 4"),
    "twice": (tiny_state() | {"module.norm.bias": torch.zeros(96)}, "module.norm.bias: .*second norm.bias"),
    "ConvNeXt": ({"stages.0.0.gamma": torch.ones(96), "downsample_layers.0.0.weight": torch.ones(1)}, "ConvNeXt"),
    "stored positions": (tiny_state() | {"pos_embed": torch.zeros(1, 257, 96)}, "official layout: pos_embed"),
    "another network": ({"conv1.weight": torch.zeros(64, 3, 7, 7)}, "no vision transformer.*found 1 keys: conv1"),
    "ViTMatte": ({"decoder.convstream.convs.0.conv.weight": torch.ones(1)}, "tools/export.py converts"),
    "nothing": ({}, "no vision transformer.*found 0 keys"),
    "no tensor": (tiny_state() | {"norm.bias": 3}, "missing .norm.bias"),
    "no name": ({1: 2}, "no vision transformer.*found 1 keys: 1"),
    "quantised": (tiny_state() | {"norm.bias": torch.zeros(96, dtype=torch.int8)}, "norm.bias holds torch.int8"),
    "sparse": (tiny_state() | {"norm.bias": torch.zeros(96).to_sparse()}, "norm.bias is a sparse"),
    "flat": ({"module._flat_param": torch.zeros(9)}, "FSDP's flat ones"),
    "no layout": ({"patch_embed.proj.weight": torch.zeros(96, 3, 16, 16)}, "none that is known here"),
    "no block between": (
        {n.replace("blocks.1.", "blocks.2."): tensor for n, tensor in tiny_state().items()},
        "missing blocks.1, but there is blocks.2",
    ),
    "bias of one": (without(tiny_state(), f"{QKV}_mask") | {QKV: torch.ones(1)}, rf"{QKV} \(1,\), expected \(288,\)"),
    "periods": (tiny_state() | {"rope_embed.periods": torch.ones(25)}, "rope_embed.periods: 25 periods fit no head"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_each_defect_is_named(defect: str) -> None:
    state, message = DEFECTS[defect]
    with pytest.raises(ConversionError, match=message) as caught:
        convert(state)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in tiny_state() if "blocks.1" not in name and name != "mask_token"])
def test_a_misshapen_tensor_is_named_whichever_it_is(name: str) -> None:
    for shape in ((), (0,), (7,), (2, 3, 5, 7, 11)):
        with pytest.raises(ConversionError, match=name.removesuffix("_mask")):
            convert(tiny_state() | {name: torch.zeros(shape)}, keep_prefix=True)


def test_thirds_of_qkv_must_be_there_and_of_one_shape() -> None:
    key, state = "layer.3.attention.k_proj.weight", published_state("transformers", "vits16")
    with pytest.raises(ConversionError, match="blocks.3.attn.qkv.weight: the key part is missing"):
        convert(without(state, key))
    for shape in ((), (384,), (384, 383)):
        with pytest.raises(ConversionError, match="blocks.3.attn.qkv.weight: query, key and value must be of one"):
            convert(state | {key: torch.zeros(shape)})


@pytest.mark.parametrize("layout", ["official", "timm", "transformers"])
def test_a_file_cut_short_is_no_smaller_network(layout: str) -> None:
    state = published_state(layout, "vits16")
    cut = {name: tensor for name, tensor in state.items() if not name.startswith(("blocks.11.", "layer.11."))}
    with pytest.raises(ConversionError, match="those of vits16, which has 12 blocks, not 11"):
        convert(cut)


def test_a_block_named_twice_is_refused() -> None:
    state = published_state("transformers", "vits16") | {"model.layer.3.norm1.bias": torch.zeros(384)}
    with pytest.raises(ConversionError, match="model.layer.3.norm1.bias: a second blocks.3.norm1.bias"):
        convert(state)
