"""The small layers against formulas written out, timm's widths and detectron2's neck."""

import re

import pytest
import torch
from detectron2.modeling.backbone.vit import ResBottleneckBlock
from torch import Tensor

from modeling.backbone import layers
from modeling.backbone.layers import (
    ConvResidual,
    LayerScale,
    PatchEmbed,
    QKVLinear,
    build_ffn,
    chunked,
)
from runtime.errors import UserError
from tests.helpers.networks import random_float64, randomise_float64


def test_patch_embedding_equals_a_loop_over_patches() -> None:
    embed = randomise_float64(PatchEmbed(4, 3, 5))
    image = random_float64(2, 3, 8, 12)
    out = embed(image)
    assert out.shape == (2, 2, 3, 5)
    for row in range(2):
        for column in range(3):
            patch = image[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            expected = patch.flatten(1) @ embed.proj.weight.flatten(1).T + embed.proj.bias
            torch.testing.assert_close(out[:, row, column], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("is_stored", [False, True])
def test_patches_in_bfloat16_are_near_float32(is_stored: bool) -> None:
    """A convolution of the same numbers is wrong on processors with AMX: twice as far as zeros would be."""
    torch.manual_seed(0)
    embed, x = PatchEmbed(16, 4, 24), torch.randn(2, 4, 64, 96)
    expected = embed(x)
    if is_stored:
        embed.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = embed(x)
    assert found.dtype == torch.bfloat16 and found.shape == expected.shape
    assert ((found - expected).norm() / expected.norm()).item() < 0.01
    found.float().sum().backward()
    assert embed.proj.weight.grad is not None and embed.proj.bias is not None and embed.proj.bias.grad is not None


def test_patch_embedding_names_a_wrong_input() -> None:
    embed = PatchEmbed(16, 4, 8)
    with pytest.raises(UserError, match=re.escape("takes 4 channels (RGB and trimap), got 3")):
        embed(torch.zeros(1, 3, 32, 32))
    with pytest.raises(UserError, match="multiples of the patch size 16, got 32 x 40; pad"):
        embed(torch.zeros(1, 4, 32, 40))


def test_layer_scale_multiplies_each_channel() -> None:
    scale = LayerScale(3, 1e-5)
    assert torch.equal(scale.gamma, torch.full((3,), 1e-5))
    scale.gamma.data = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(scale(torch.ones(2, 4, 3)), torch.tensor([1.0, 2.0, 3.0]).expand(2, 4, 3))


def test_no_key_bias_reaches_the_keys_nor_is_learnt() -> None:
    layer = randomise_float64(QKVLinear(4, bias=True))
    x = random_float64(2, 5, 4)
    plain = x @ layer.weight.T + layer.bias
    out = layer(x)
    torch.testing.assert_close(out[..., 4:8], x @ layer.weight[4:8].T, rtol=0, atol=1e-12)
    torch.testing.assert_close(out[..., [0, 1, 2, 3, 8, 9, 10, 11]], plain[..., [0, 1, 2, 3, 8, 9, 10, 11]])
    out.sum().backward()
    assert layer.bias.grad.tolist() == [10.0] * 4 + [0.0] * 4 + [10.0] * 4
    assert set(layer.state_dict()) == {"weight", "bias"}


def test_a_projection_without_bias_has_no_mask() -> None:
    layer = randomise_float64(QKVLinear(4, bias=False))
    x = random_float64(2, 5, 4)
    torch.testing.assert_close(layer(x), x @ layer.weight.T, rtol=0, atol=1e-12)
    assert set(layer.state_dict()) == {"weight"}


@pytest.mark.parametrize(
    ("kind", "dim", "ratio", "align", "hidden"),
    [
        ("mlp", 384, 4.0, 8, 1536),
        ("mlp", 100, 29 / 100, 8, 29),  # in floats 28.999...
        ("swiglu", 384, 6.0, 8, 1536),
        ("swiglu", 1280, 6.0, 8, 5120),
        ("swiglu", 4096, 3.0, 64, 8192),
        ("swiglu", 100, 4.0, 8, 272),  # 2/3 of 400 is 266.7
        ("swiglu", 100, 4.0, 64, 320),
    ],
)
def test_hidden_widths(kind: str, dim: int, ratio: float, align: int, hidden: int) -> None:
    with torch.device("meta"):
        ffn = build_ffn(kind, dim, ratio, align)
    first, last = (ffn.fc1, ffn.fc2) if kind == "mlp" else (ffn.w1, ffn.w3)
    assert first.weight.shape == (hidden, dim) and last.weight.shape == (dim, hidden)


def test_a_fresh_neck_passes_its_input_on() -> None:
    x = random_float64(2, 8, 5, 6).float()
    assert torch.equal(ConvResidual(8)(x), x)


def test_neck_equals_detectron2s() -> None:
    """Same names, same output, every tensor random."""
    neck = randomise_float64(ConvResidual(12))
    theirs = ResBottleneckBlock(12, 12, 6).double()
    theirs.load_state_dict(neck.state_dict())
    x = random_float64(2, 12, 7, 5)
    torch.testing.assert_close(neck(x), theirs(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("num_tokens", [1, 7, 8, 9, 31])
def test_pieces_of_tokens_equal_the_whole(num_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "PIECE_TOKENS", 8)
    seen: list[int] = []

    def function(x: Tensor, y: Tensor) -> Tensor:
        seen.append(x.shape[1])
        return (x * y).unsqueeze(-1).expand(-1, -1, -1, 2)

    x, y = random_float64(2, num_tokens, 3), random_float64(1, num_tokens, 3)
    with torch.no_grad():
        assert torch.equal(chunked(function, x, y), function(x, y))
    assert seen == [8] * (num_tokens // 8) + [num_tokens % 8] * (num_tokens % 8 > 0) + [num_tokens]


def test_a_graph_is_recorded_of_the_whole_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "PIECE_TOKENS", 2)
    seen: list[int] = []
    chunked(lambda x: (seen.append(x.shape[1]), x)[1], random_float64(1, 9, 3))
    assert seen == [9]
