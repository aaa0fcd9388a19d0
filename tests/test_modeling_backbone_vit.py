"""The backbones of tokens, ViT and DINOv2: prefix, windows, one RoPE table, memory, checkpointing, sizes and errors."""

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import nn

from modeling.backbone import DINOV3_SIZES, ViT, attention, layers
from runtime.errors import ConfigError, UserError
from tests.helpers.networks import LargestTensor, tiny_dinov2, tiny_vit, vit_input


def tiny_vit_without_prefix(**changes: Any) -> ViT:
    return tiny_vit(keep_prefix_tokens=False, **changes)


each_kind = pytest.mark.parametrize("tiny", [tiny_vit, tiny_vit_without_prefix, tiny_dinov2])


@each_kind
def test_windows_over_the_whole_grid_equal_global_blocks(tiny: Callable[..., nn.Module]) -> None:
    windowed = tiny(window_size=7, global_block_indexes=()).double()
    everywhere = tiny(global_block_indexes=range(4)).double()
    x = vit_input().double()
    torch.testing.assert_close(windowed(x), everywhere(x), rtol=0, atol=1e-10)
    smaller = tiny(global_block_indexes=()).double()
    assert (smaller(x) - everywhere(x)).abs().max() > 1e-3


def test_global_block_indexes_choose_the_global_blocks() -> None:
    vit = tiny_vit(global_block_indexes=(0, 2), conv_residual_block_indexes=(3,))
    assert [block.attn.window_size for block in vit.blocks] == [0, 3, 0, 3]
    assert [block.residual is not None for block in vit.blocks] == [False, False, False, True]


@pytest.mark.parametrize(
    ("vit", "num_prefix"),
    [(tiny_vit(), 5), (tiny_vit(num_storage_tokens=0), 1), (tiny_vit_without_prefix(), 0), (tiny_dinov2(), 4)],
)
def test_map_shows_the_patch_tokens_in_row_order(vit: nn.Module, num_prefix: int) -> None:
    features = vit(vit_input())
    tokens, grid = vit.forward_tokens(vit_input())
    assert grid == (5, 7) and tokens.shape == (2, num_prefix + 35, 32) and features.shape == (2, 32, 5, 7)
    for row in range(5):
        for column in range(7):
            assert torch.equal(features[:, :, row, column], tokens[:, num_prefix + 7 * row + column])


def test_dropped_prefix_tokens_leave_no_parameter() -> None:
    kept, dropped = (dict(tiny_vit(keep_prefix_tokens=keep).named_parameters()) for keep in (True, False))
    assert kept.keys() - dropped.keys() == {"cls_token", "storage_tokens"}
    assert dropped.keys() <= kept.keys()


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_rope_table_is_computed_once_per_forward(is_checkpointed: bool) -> None:
    """Also where blocks are recomputed, and the augmentation's draw is the same in all blocks."""
    vit = tiny_vit(use_activation_checkpointing=is_checkpointed, rope_rescale=2.0).train()
    tables, seen = [], []
    vit.rope_embed.register_forward_hook(lambda module, args, out: tables.append(out))
    for block in vit.blocks:
        block.attn.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    vit(vit_input()).sum().backward()
    assert len(tables) == 1
    assert len(seen) == (8 if is_checkpointed else 4)
    assert all(sin is tables[0][0] and cos is tables[0][1] for sin, cos in seen)


@each_kind
def test_memory_is_linear_in_tokens(tiny: Callable[..., nn.Module]) -> None:
    """Four times the tokens: no tensor of forward or backward grows more than fourfold, none is N x N."""
    vit = tiny()
    elements = []
    for side in (48, 96):
        with LargestTensor() as largest:
            vit(vit_input(side, side, batch=1)).square().sum().backward()
        elements.append(largest.elements)
    num_tokens = (96 // 4) ** 2
    assert elements[1] <= 4 * elements[0]
    assert elements[1] <= num_tokens * 4 * 32 * 1.1 < num_tokens**2  # the hidden layer of the MLP is the largest


@each_kind
def test_activation_checkpointing_stores_less_and_changes_no_gradient(tiny: Callable[..., nn.Module]) -> None:
    """Drop path and RoPE's augmentation included: recomputation draws what the first pass drew."""
    augmentation = {} if tiny is tiny_dinov2 else dict(rope_shift=0.2)
    results = []
    for is_checkpointed in (False, True):
        vit = tiny(use_activation_checkpointing=is_checkpointed, drop_path_rate=0.5, **augmentation).train()
        torch.manual_seed(3)
        stored: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, sizes=stored: (sizes.append(tensor.numel()), tensor)[1], lambda tensor: tensor
        ):
            out = vit(vit_input(batch=4))
        out.square().mean().backward()
        results.append((out, {name: parameter.grad for name, parameter in vit.named_parameters()}, sum(stored)))
    (plain, gradients, stored_plain), (checkpointed, again, stored_checkpointed) = results
    assert torch.equal(plain, checkpointed) and stored_checkpointed < stored_plain / 4
    for name, gradient in gradients.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-7, msg=name)


@each_kind
@pytest.mark.parametrize("ffn_layer", ["mlp", "swiglu"])
def test_every_parameter_gets_a_gradient(tiny: Callable[..., nn.Module], ffn_layer: str) -> None:
    vit = tiny(ffn_layer=ffn_layer).train()
    (vit(vit_input()) * torch.randn(2, 32, 5, 7)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in vit.parameters())


def test_drop_path_grows_linearly_and_acts_in_training_only() -> None:
    vit = tiny_vit(drop_path_rate=0.6)
    assert [block.drop_path.drop_prob for block in vit.blocks] == pytest.approx([0.0, 0.2, 0.4, 0.6])
    x = vit_input()
    assert not torch.equal(vit.train()(x), vit(x))
    assert torch.equal(vit.eval()(x), tiny_vit().eval()(x))


def test_a_dropped_branch_leaves_its_sample_alone() -> None:
    """With a rate near 1 the last block, which has no neck, passes every sample on as it is."""
    vit = tiny_vit(drop_path_rate=1 - 1e-7, conv_residual_block_indexes=()).train()
    x = torch.randn(3, 5 + 35, 32)
    assert torch.equal(vit.blocks[3](x, vit.rope_embed(5, 7), (5, 7)), x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(global_block_indexes=(1, 4)), "global_block_indexes: [4] lie outside the 4 blocks (0 to 3)"),
        (dict(conv_residual_block_indexes=(-1,)), "conv_residual_block_indexes: [-1] lie outside the 4 blocks"),
        *((dict(drop_path_rate=rate), f"and below 1, got {rate}") for rate in (1.0, -0.1, float("nan"))),
        (dict(window_size=0), "window_size must be at least 1 patch, got 0"),
        (dict(num_heads=3), "width 32 is not divisible by 3 heads"),
        (dict(num_heads=16), "divisible by 4"),
        (dict(ffn_layer="glu"), "ffn_layer must be"),
    ],
)
def test_arguments_that_do_not_match_are_named(changes: dict[str, Any], message: str) -> None:
    for tiny in (tiny_vit, tiny_dinov2):
        if tiny is tiny_vit or "num_heads" not in changes:
            with pytest.raises(ConfigError, match=re.escape(message)):
                tiny(**changes)


@pytest.mark.parametrize("size", [(22, 28), (20, 30)])
def test_sides_must_be_whole_patches(size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=f"multiples of the patch size 4, got {size[0]} x {size[1]}"):
        tiny_vit()(vit_input(*size))


TIMM_NAMES = {
    "vits16": "vit_small_patch16_dinov3_qkvb",
    "vits16plus": "vit_small_plus_patch16_dinov3_qkvb",
    "vitb16": "vit_base_patch16_dinov3_qkvb",
    "vitl16": "vit_large_patch16_dinov3_qkvb",
    "vith16plus": "vit_huge_plus_patch16_dinov3_qkvb",
    "vit7b16": "vit_7b_patch16_dinov3",
}


@pytest.mark.parametrize(("size", "name"), TIMM_NAMES.items())
def test_published_sizes_have_timms_number_of_parameters(size: str, name: str) -> None:
    """Ours besides: a fourth input channel, and a key third of the bias that the mask holds at zero."""
    args = DINOV3_SIZES[size]
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=0)
        ours = ViT(**args, global_block_indexes=(), conv_residual_block_indexes=())
    besides = 16 * 16 * args["embed_dim"] + args.get("qkv_bias", True) * args["depth"] * args["embed_dim"]
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) + besides
    assert ours.blocks[0].attn.num_heads == theirs.blocks[0].attn.num_heads


def test_a_copy_gives_the_same_features() -> None:
    """EMA copies the network: no state may hide outside parameters and buffers."""
    vit = tiny_vit().eval()
    assert torch.equal(copy.deepcopy(vit)(vit_input()), vit(vit_input()))


@each_kind
@pytest.mark.parametrize("changes", [{}, dict(conv_residual_block_indexes=()), dict(global_block_indexes=())], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_features_that_are_read_equal_those_of_the_whole(
    seed: int, changes: dict[str, Any], tiny: Callable[..., nn.Module]
) -> None:
    vit = tiny(**changes).double().eval()
    x = vit_input().double()
    query_mask = torch.rand(5, 7, generator=torch.Generator().manual_seed(seed)) < (0.03, 0.1, 0.5, 1)[seed]
    query_mask[seed, 2] = True
    with torch.no_grad():
        whole, partial = vit(x), vit(x, query_mask)
    torch.testing.assert_close(partial[..., query_mask], whole[..., query_mask], rtol=0, atol=1e-10)
    assert partial.isfinite().all()


@pytest.mark.parametrize("has_neck", [False, True])
def test_the_last_block_attends_for_what_is_read_and_its_neighbours_alone(
    has_neck: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    vit = tiny_vit(global_block_indexes=range(4), conv_residual_block_indexes=(3,) if has_neck else ()).eval()
    numbers: list[int] = []
    attend = attention.attend
    monkeypatch.setattr(attention, "attend", lambda q, k, v: (numbers.append(q.shape[2]), attend(q, k, v))[1])
    query_mask = torch.zeros(5, 7, dtype=torch.bool)
    query_mask[0, 3] = query_mask[4, 6] = True
    with torch.no_grad():
        vit(vit_input(), query_mask)
    assert numbers == [40, 40, 40, 6 + 4 if has_neck else 2]


def test_pieces_change_neither_features_nor_what_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    vit = tiny_vit().double().eval()
    x = vit_input().double()
    before = x.clone()
    with torch.no_grad():
        whole = vit(x)
        monkeypatch.setattr(layers, "PIECE_TOKENS", 7)
        torch.testing.assert_close(vit(x), whole, rtol=0, atol=1e-10)
    assert torch.equal(x, before)
