"""Windowed attention against dense attention under a mask, and a windowed block against detectron2's."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling.backbone import vit as detectron2_vit
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from modeling.backbone.attention import Attention
from modeling.backbone.block import Block
from modeling.backbone.rope_position_encoding import RopePositionEmbedding, rotate
from modeling.backbone.windows import map_windows, partition, unpartition
from tests.helpers.networks import random_float64, randomise_float64

DIM, HEADS = 16, 2
NUM_PREFIX = [0, 3]


def rope_table(grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    return RopePositionEmbedding(DIM // HEADS).double()(*grid)


def block(window_size: int, has_conv_residual: bool = False, dim: int = DIM, num_heads: int = HEADS) -> Block:
    return randomise_float64(
        Block(
            dim,
            num_heads,
            mlp_ratio=2.0,
            ffn_layer="mlp",
            ffn_align=8,
            qkv_bias=True,
            layer_scale_init=1.0,
            norm_eps=1e-5,
            drop_path=0.0,
            window_size=window_size,
            has_conv_residual=has_conv_residual,
        )
    )


def may_attend(grid: tuple[int, int], num_prefix: int, window: int) -> Tensor:
    """(N, N) booleans by the contract: prefix queries see all, a patch the prefix and its own window's patches."""
    windows = [(row // window, column // window) for row in range(grid[0]) for column in range(grid[1])]
    places = [None] * num_prefix + windows
    return torch.tensor(
        [[query is None or key is None or query == key for key in places] for query in places], dtype=torch.bool
    )


def dense_attention(attn: Attention, x: Tensor, grid: tuple[int, int], mask: Tensor) -> Tensor:
    """One image, head and query at a time; patches turned by the whole image's table."""
    sin, cos = rope_table(grid)
    num_prefix = x.shape[1] - len(sin)
    bias = attn.qkv.bias.clone()
    bias[DIM : 2 * DIM] = 0.0
    out = torch.zeros_like(x)
    for b in range(len(x)):
        q, k, v = (x[b] @ attn.qkv.weight.T + bias).reshape(-1, 3, HEADS, DIM // HEADS).unbind(1)  # (N, K, d)
        q, k = (torch.cat((t[:num_prefix], rotate(t[None, num_prefix:], sin, cos)[0])) for t in (q, k))
        for head in range(HEADS):
            for query in range(len(q)):
                seen = mask[query]
                logits = k[seen, head] @ q[query, head] / (DIM // HEADS) ** 0.5
                weights = logits.exp() / logits.exp().sum()
                out[b, query, head * DIM // HEADS : (head + 1) * DIM // HEADS] = weights @ v[seen, head]
    return out @ attn.proj.weight.T + attn.proj.bias


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_partition_lists_the_windows_in_row_order(window_h: int, window_w: int, rows: int, columns: int) -> None:
    x = random_float64(2, rows * window_h, columns * window_w, 3)
    windows = partition(x, window_h, window_w)
    expected = [
        image[row * window_h : (row + 1) * window_h, column * window_w : (column + 1) * window_w].flatten(0, 1)
        for image in x
        for row in range(rows)
        for column in range(columns)
    ]
    assert torch.equal(windows, torch.stack(expected))
    assert torch.equal(unpartition(windows, window_h, window_w, *x.shape[1:3]), x)


def test_windows_of_several_grids_go_together() -> None:
    x, y = random_float64(2, 2, 5, 7, 3)
    mapped = map_windows(lambda a, b: a * b.mean(dim=1, keepdim=True), [x, y], 3)
    means = map_windows(lambda b: b.mean(dim=1, keepdim=True).expand_as(b), [y], 3)
    torch.testing.assert_close(mapped, x * means, rtol=0, atol=1e-12)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5))
def test_windows_of_a_ragged_grid_are_mapped_alone(height: int, width: int, window: int) -> None:
    """Each result is its own window's mean, and every patch is seen exactly once: padded ones do not exist."""
    x = random_float64(2, height, width, 3)
    num_seen = 0

    def mean(windows: Tensor) -> Tensor:
        nonlocal num_seen
        num_seen += windows.shape[:2].numel()
        return windows.mean(dim=1, keepdim=True).expand_as(windows)

    out = map_windows(mean, [x], window)
    assert num_seen == 2 * height * width
    for row in range(height):
        for column in range(width):
            top, left = row // window * window, column // window * window
            own = x[:, top : top + window, left : left + window].mean(dim=(1, 2))
            torch.testing.assert_close(out[:, row, column], own, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_prefix", NUM_PREFIX)
@pytest.mark.parametrize(
    ("grid", "window"), [((4, 6), 2), ((5, 7), 3), ((3, 9), 4), ((5, 5), 4), ((4, 4), 1), ((2, 3), 9)]
)
def test_windowed_attention_equals_dense_attention_under_a_mask(
    grid: tuple[int, int], window: int, num_prefix: int
) -> None:
    attn = randomise_float64(Attention(DIM, HEADS, window_size=window))
    x = random_float64(2, num_prefix + grid[0] * grid[1], DIM)
    expected = dense_attention(attn, x, grid, may_attend(grid, num_prefix, window))
    torch.testing.assert_close(attn(x, rope_table(grid), grid), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("num_prefix", NUM_PREFIX)
@pytest.mark.parametrize("has_conv_residual", [False, True])
@pytest.mark.parametrize("grid", [(7, 7), (5, 7), (3, 4)])
def test_a_window_over_the_whole_grid_equals_a_global_block(
    grid: tuple[int, int], has_conv_residual: bool, num_prefix: int
) -> None:
    windowed, everywhere = (block(size, has_conv_residual) for size in (7, 0))
    x = random_float64(2, num_prefix + grid[0] * grid[1], DIM)
    arguments = (x, rope_table(grid), grid)
    torch.testing.assert_close(windowed(*arguments), everywhere(*arguments), rtol=0, atol=1e-10)
    # the same through the code that cuts windows, which a window of this size skips
    qkv = random_float64(3, 2, x.shape[1], HEADS, DIM // HEADS)
    expected = F.scaled_dot_product_attention(*qkv.transpose(2, 3)).transpose(1, 2)
    torch.testing.assert_close(windowed.attn._attend_windows(*qkv, num_prefix, grid), expected, rtol=0, atol=1e-10)


@pytest.mark.filterwarnings("ignore:Importing from timm.models.layers:FutureWarning")  # detectron2's import
@pytest.mark.parametrize("window_size", [14, 0])
def test_block_with_neck_equals_detectron2s(window_size: int) -> None:
    """RoPE off (sine 0, cosine 1), gammas 1, no relative positions, no prefix, all else random."""
    ours = block(window_size, has_conv_residual=True, dim=24, num_heads=3)
    for scale in (ours.ls1, ours.ls2):
        scale.gamma.data.fill_(1.0)
    ours.attn.qkv.bias.data[24:48] = 0.0
    theirs = detectron2_vit.Block(
        24, 3, mlp_ratio=2.0, window_size=window_size, use_residual_block=True, use_rel_pos=False
    ).double()
    state = {name: value for name, value in ours.state_dict().items() if "gamma" not in name}
    theirs.load_state_dict(state, strict=True)
    x = random_float64(2, 28 * 28, 24)
    flat = (torch.zeros(28 * 28, 8, dtype=torch.float64), torch.ones(28 * 28, 8, dtype=torch.float64))
    expected = theirs(x.reshape(2, 28, 28, 24)).flatten(1, 2)
    torch.testing.assert_close(ours(x, flat, (28, 28)), expected, rtol=0, atol=1e-10)


def test_prefix_tokens_pass_the_neck_by() -> None:
    with_neck, without = block(2, has_conv_residual=True), block(2)
    without.load_state_dict(with_neck.state_dict(), strict=False)
    x, grid = random_float64(2, 3 + 20, DIM), (4, 5)
    a, b = (module(x, rope_table(grid), grid) for module in (with_neck, without))
    torch.testing.assert_close(a[:, :3], b[:, :3], rtol=0, atol=1e-12)
    neck_in = b[:, 3:].reshape(2, 4, 5, DIM).permute(0, 3, 1, 2)
    torch.testing.assert_close(a[:, 3:], with_neck.residual(neck_in).flatten(2).mT, rtol=0, atol=1e-12)
