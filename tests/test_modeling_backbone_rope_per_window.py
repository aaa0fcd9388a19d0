"""RoPE per window: against tables built window by window, and against windows that are images of their own."""

import pytest
import torch
from torch import Tensor

from modeling.backbone.attention import Attention
from modeling.backbone.rope_position_encoding import RopePositionEmbedding
from tests.helpers.networks import random_float64, randomise_float64, tiny_vit, vit_input

GRIDS = [((4, 6), 2), ((5, 7), 3), ((3, 9), 4), ((5, 5), 4), ((4, 4), 1), ((1, 5), 2)]


def spans(length: int, window: int) -> list[tuple[int, int]]:
    return [(start, min(start + window, length)) for start in range(0, length, window)]


def naive_table(rope: RopePositionEmbedding, grid: tuple[int, int], window: int) -> tuple[Tensor, Tensor]:
    """(h * w, d) of sines and cosines: each window's table is that of a whole grid of the window's size."""
    tables = torch.full((2, *grid, 2 * 2 * len(rope.periods)), torch.nan)
    for top, bottom in spans(grid[0], window):
        for left, right in spans(grid[1], window):
            for table, values in zip(tables, rope(bottom - top, right - left), strict=True):
                table[top:bottom, left:right] = values.unflatten(0, (bottom - top, right - left))
    return tables[0].flatten(0, 1), tables[1].flatten(0, 1)


@pytest.mark.parametrize(("grid", "window"), GRIDS)
def test_table_equals_the_windows_own_tables(grid: tuple[int, int], window: int) -> None:
    rope = RopePositionEmbedding(16).eval()
    for ours, expected in zip(rope(*grid, window), naive_table(rope, grid, window), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    assert window == 1 or not torch.allclose(rope(*grid, window)[0], rope(*grid)[0], atol=1e-2)


@pytest.mark.parametrize("window", [7, 9])
def test_a_window_over_the_whole_grid_has_the_grids_table(window: int) -> None:
    rope = RopePositionEmbedding(16).eval()
    assert all(torch.equal(a, b) for a, b in zip(rope(5, 7, window), rope(5, 7), strict=True))


@pytest.mark.parametrize(("grid", "window"), GRIDS)
def test_each_window_attends_as_an_image_of_its_own(grid: tuple[int, int], window: int) -> None:
    """Global attention over one window's patches, with the table of a grid of that size, knows no windows at all."""
    rope = RopePositionEmbedding(8).double()
    windowed, everywhere = (randomise_float64(Attention(16, 2, window_size=size)) for size in (window, 0))
    x = random_float64(2, *grid, 16)
    out = windowed(x.flatten(1, 2), rope(*grid, window), grid).unflatten(1, grid)
    for top, bottom in spans(grid[0], window):
        for left, right in spans(grid[1], window):
            size = (bottom - top, right - left)
            alone = everywhere(x[:, top:bottom, left:right].flatten(1, 2), rope(*size), size)
            torch.testing.assert_close(out[:, top:bottom, left:right].flatten(1, 2), alone, rtol=0, atol=1e-10)


def test_windowed_blocks_alone_turn_by_the_window() -> None:
    vit = tiny_vit(rope_per_window=True).eval()  # a 5 x 7 grid, window 3, blocks 1 and 3 global
    seen: list[tuple[Tensor, Tensor]] = []
    for block in vit.blocks:
        block.attn.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    vit(vit_input())
    expected = [naive_table(vit.rope_embed, (5, 7), 3), vit.rope_embed(5, 7)] * 2
    for tables, expected_tables in zip(seen, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(tables, expected_tables, strict=True))


@pytest.mark.parametrize("keep_prefix_tokens", [True, False])
def test_backbone_equals_the_global_table_only_where_the_window_covers_the_grid(keep_prefix_tokens: bool) -> None:
    def features(window_size: int, rope_per_window: bool) -> Tensor:
        changes = dict(window_size=window_size, keep_prefix_tokens=keep_prefix_tokens)
        return tiny_vit(**changes, rope_per_window=rope_per_window).eval()(vit_input())

    assert torch.equal(features(7, True), features(7, False))
    assert (features(3, True) - features(3, False)).abs().max() > 1e-2
