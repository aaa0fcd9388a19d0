"""The RoPE table against a naive loop, timm and transformers; its augmentations; the rotation as a complex product."""

import math

import numpy as np
import pytest
import torch
from timm.layers import RotaryEmbeddingDinoV3
from torch import Tensor
from transformers import DINOv3ViTConfig
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTRopePositionEmbedding

from modeling.backbone.rope_position_encoding import RopePositionEmbedding, rotate
from runtime.errors import ConfigError

GRIDS = [(1, 1), (4, 4), (3, 7), (10, 22)]


def naive_angles(height: int, width: int, head_dim: int, base: float = 100.0) -> Tensor:
    """(height * width, head_dim), one angle at a time: rows' periods, columns' periods, and both once more."""
    table = []
    for row in range(height):
        for column in range(width):
            angles = []
            for index, length in ((row, height), (column, width)):
                coordinate = 2 * (index + 0.5) / length - 1
                for i in range(head_dim // 4):
                    angles.append(2 * math.pi * coordinate / base ** (2 * i / (head_dim / 2)))
            table.append(angles + angles)
    return torch.tensor(table, dtype=torch.float64)


def coordinates(rope: RopePositionEmbedding, height: int, width: int) -> Tensor:
    """(height * width, 2) read back from the slow second period, which no coordinate here turns by a quarter."""
    sin, _ = rope(height, width)
    return torch.asin(sin[:, [1, 3]].double()) * rope.periods[1] / (2 * math.pi)


def slow(**augmentations: float) -> RopePositionEmbedding:
    """Periods 1 and 100."""
    return RopePositionEmbedding(8, base=1e4, **augmentations)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("head_dim", [4, 16, 64])
def test_table_equals_a_naive_loop(grid: tuple[int, int], head_dim: int) -> None:
    sin, cos = RopePositionEmbedding(head_dim).eval()(*grid)
    angles = naive_angles(*grid, head_dim)
    assert sin.dtype == cos.dtype == torch.float32
    torch.testing.assert_close(sin.double(), angles.sin(), rtol=0, atol=2e-6)
    torch.testing.assert_close(cos.double(), angles.cos(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_angle_is_multiplied_in_float32_also_where_the_network_runs_in_float64(grid: tuple[int, int]) -> None:
    """The official order: 2 pi coordinate in float32, then the division in the periods' own type."""
    rope = RopePositionEmbedding(16).double().eval()
    centres = [(np.arange(length, dtype=np.float32) + np.float32(0.5)) / np.float32(length) for length in grid]
    coordinates = np.float32(2) * np.stack(np.meshgrid(*centres, indexing="ij"), axis=-1).reshape(-1, 2) - np.float32(1)
    turns = np.float32(2 * math.pi) * coordinates
    assert turns.dtype == np.float32
    angles = turns[:, :, None].astype(np.float64) / rope.periods.numpy()
    angles = np.tile(angles.reshape(len(angles), -1), 2)
    for found, expected in zip(rope(*grid), (np.sin(angles), np.cos(angles)), strict=True):
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_table_is_that_of_timm_and_in_float64_that_of_transformers(grid: tuple[int, int]) -> None:
    """timm multiplies after a cast to float64, so it is compared in float32 alone; transformers divides otherwise."""
    rope = RopePositionEmbedding(64).eval()
    theirs = RotaryEmbeddingDinoV3(64).eval().get_embed(list(grid)).chunk(2, dim=-1)
    assert all(torch.equal(a, b) for a, b in zip(rope(*grid), theirs, strict=True))
    peer = DINOv3ViTRopePositionEmbedding(DINOv3ViTConfig(hidden_size=384, num_attention_heads=6)).eval()
    peer.inv_freq = 1 / rope.periods.double()
    cos, sin = peer(torch.zeros(1, 3, 16 * grid[0], 16 * grid[1], dtype=torch.float64))
    for found, expected in zip(rope.double()(*grid), (sin, cos), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def test_periods_are_a_buffer_that_a_checkpoint_fills() -> None:
    """A network runs with the stored values, here rounded to bfloat16, not with computed ones."""
    rope = RopePositionEmbedding(64)
    assert list(rope.state_dict()) == ["periods"]
    stored = rope.periods.bfloat16().float()
    assert not torch.equal(stored, rope.periods)
    rope.load_state_dict({"periods": stored})
    sin, _ = rope(1, 2)
    torch.testing.assert_close(sin[1, 16:32], torch.sin(2 * math.pi * 0.5 / stored), rtol=0, atol=1e-6)


def test_a_16_bit_network_still_has_a_float32_table() -> None:
    rope = RopePositionEmbedding(16).bfloat16()
    assert {t.dtype for t in rope(3, 5)} == {torch.float32}


@pytest.mark.parametrize("augmentation", [dict(shift=0.3), dict(jitter=1.5), dict(rescale=2.0)], ids=str)
def test_augmentations_happen_in_training_only(augmentation: dict[str, float]) -> None:
    rope = slow(**augmentation)
    plain = coordinates(slow(), 3, 5)
    assert torch.equal(coordinates(rope.eval(), 3, 5), plain)
    assert not torch.allclose(coordinates(rope.train(), 3, 5), plain, atol=1e-3)


def test_shift_adds_one_uniform_draw_per_axis() -> None:
    torch.manual_seed(0)
    plain = coordinates(slow(), 3, 5)
    rope = slow(shift=0.3).train()
    moves = torch.stack([coordinates(rope, 3, 5) - plain for _ in range(200)])  # (200, 15, 2)
    torch.testing.assert_close(moves, moves[:, :1].expand_as(moves), rtol=0, atol=1e-5)
    assert (moves[:, 0, 0] - moves[:, 0, 1]).abs().max() > 0.1
    assert moves.abs().max() <= 0.3 + 1e-5
    assert moves.min() < -0.28 and moves.max() > 0.28 and abs(moves.mean()) < 0.05


@pytest.mark.parametrize(("name", "is_per_axis"), [("jitter", True), ("rescale", False)])
def test_jitter_and_rescale_multiply_log_uniformly(name: str, is_per_axis: bool) -> None:
    torch.manual_seed(0)
    plain = coordinates(slow(), 4, 6)  # even sides: no coordinate is 0
    rope = slow(**{name: 2.0}).train()
    factors = torch.stack([coordinates(rope, 4, 6) / plain for _ in range(200)])  # (200, 24, 2)
    torch.testing.assert_close(factors, factors[:, :1].expand_as(factors), rtol=1e-4, atol=0)
    axes_agree = torch.allclose(factors[..., 0], factors[..., 1], rtol=1e-4)
    assert axes_agree is not is_per_axis
    logs = factors[:, 0].log2()
    assert logs.abs().max() <= 1 + 1e-4
    assert logs.min() < -0.95 and logs.max() > 0.95 and abs(logs.mean()) < 0.1


def test_rotation_is_a_complex_product() -> None:
    """Feature i and feature i + d/2 are real and imaginary part of one number, turned by angle i."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 15, 3, 8, generator=generator, dtype=torch.float64)
    angles = naive_angles(3, 5, 8)
    numbers = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones(15, 4).double(), angles[:, :4])[:, None]
    expected = torch.cat((numbers.real, numbers.imag), dim=-1)
    torch.testing.assert_close(rotate(x, angles.sin(), angles.cos()), expected, rtol=0, atol=1e-12)


def test_16_bit_inputs_are_rotated_in_float32() -> None:
    x = torch.randn(2, 15, 3, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    sin, cos = RopePositionEmbedding(8)(3, 5)
    turned = rotate(x, sin, cos)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, rotate(x.float(), sin, cos).bfloat16())
    assert not torch.equal(turned, rotate(x, sin.bfloat16(), cos.bfloat16()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(head_dim=6), "divisible by 4.*got 6"),
        (dict(head_dim=8, shift=-0.1), "rope_shift must be at least 0 .*got -0.1"),
        (dict(head_dim=8, jitter=0.5), "rope_jitter must be at least 1 .*got 0.5"),
        (dict(head_dim=8, rescale=0.9), "rope_rescale must be at least 1 .*got 0.9"),
    ],
)
def test_arguments_outside_their_range_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RopePositionEmbedding(**arguments)
