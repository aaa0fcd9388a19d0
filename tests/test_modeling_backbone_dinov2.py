"""The DINOv2 backbone: positions, windows, patches that are read, activation checkpointing, wrong arguments."""

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modeling import DetailCapture, ViTMatte
from modeling.backbone import DINOv2, ViT
from runtime.errors import ConfigError
from tests.helpers.networks import LargestTensor, randomise

TINY: dict[str, Any] = dict(
    embed_dim=32,
    depth=4,
    num_heads=2,
    patch_size=4,
    num_register_tokens=3,
    position_grid_size=6,
    window_size=3,
    global_block_indexes=(1, 3),
    conv_residual_block_indexes=(1, 3),
)


def tiny(**changes: Any) -> DINOv2:
    return randomise(DINOv2(**(TINY | changes))).eval()


def image(height: int = 20, width: int = 28, batch: int = 2) -> Tensor:
    return torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(1))


def test_windows_over_the_whole_grid_equal_global_blocks() -> None:
    windowed = tiny(window_size=7, global_block_indexes=()).double()
    everywhere = tiny(global_block_indexes=range(4)).double()
    x = image().double()
    torch.testing.assert_close(windowed(x), everywhere(x), rtol=0, atol=1e-10)
    smaller = tiny(global_block_indexes=()).double()
    assert (smaller(x) - everywhere(x)).abs().max() > 1e-3


def test_map_shows_the_patch_tokens_in_row_order() -> None:
    vit = tiny()
    tokens, grid = vit.forward_tokens(image())
    assert grid == (5, 7) and tokens.shape == (2, 4 + 35, 32)
    assert torch.equal(vit(image()), tokens[:, 4:].unflatten(1, (5, 7)).permute(0, 3, 1, 2))


@pytest.mark.parametrize("interpolation", ["bicubic", "bicubic_antialias"])
@pytest.mark.parametrize("grid", [(6, 6), (5, 7), (3, 2), (9, 12)], ids=str)
def test_patches_get_the_positions_of_their_grid(interpolation: str, grid: tuple[int, int]) -> None:
    """Without blocks and without an image, the tokens are the normed positions, those of cls and registers apart."""
    vit = tiny(position_interpolation=interpolation)
    vit.patch_embed.proj.weight.data.zero_()
    vit.patch_embed.proj.bias.data.zero_()
    for block in vit.blocks:
        block.forward = lambda x, *args: x
    tokens, _ = vit.forward_tokens(image(4 * grid[0], 4 * grid[1], batch=1))
    stored = vit.pos_embed[:, 1:].unflatten(1, (6, 6)).permute(0, 3, 1, 2)
    smooth = interpolation == "bicubic_antialias"
    expected = stored if grid == (6, 6) else F.interpolate(stored, size=grid, mode="bicubic", antialias=smooth)
    prefix = (vit.cls_token + vit.pos_embed[:, :1], vit.register_tokens)
    assert torch.equal(tokens, vit.norm(torch.cat((*prefix, expected.flatten(2).mT), dim=1)))


def test_smoothing_changes_the_positions_of_smaller_grids() -> None:
    sharp, smooth = (tiny(position_interpolation=name)(image(12, 16)) for name in ("bicubic", "bicubic_antialias"))
    assert (sharp - smooth).abs().max() > 1e-3


@pytest.mark.parametrize("has_neck", [False, True])
@torch.no_grad()
def test_patches_that_are_read_are_those_of_the_whole(has_neck: bool) -> None:
    vit = tiny(conv_residual_block_indexes=(3,) if has_neck else ()).double()
    query_mask = torch.zeros(5, 7, dtype=torch.bool)
    query_mask[1, 2:4] = query_mask[4, 6] = True
    x = image().double()
    part, whole = vit(x, query_mask), vit(x)
    torch.testing.assert_close(part[..., query_mask], whole[..., query_mask], rtol=0, atol=1e-10)
    assert not torch.allclose(part, whole)


def test_memory_is_linear_in_tokens() -> None:
    elements = []
    for side in (48, 96):
        with LargestTensor() as largest:
            tiny()(image(side, side, batch=1)).square().sum().backward()
        elements.append(largest.elements)
    assert elements[1] <= 4 * elements[0]


def test_activation_checkpointing_changes_neither_map_nor_gradients() -> None:
    results = []
    for is_checkpointed in (False, True):
        vit = tiny(use_activation_checkpointing=is_checkpointed, drop_path_rate=0.5).train()
        torch.manual_seed(3)
        stored: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, sizes=stored: (sizes.append(tensor.numel()), tensor)[1], lambda tensor: tensor
        ):
            out = vit(image(batch=4))
        out.square().mean().backward()
        results.append((out, {name: parameter.grad for name, parameter in vit.named_parameters()}, sum(stored)))
    (plain, gradients, stored_plain), (checkpointed, again, stored_checkpointed) = results
    assert torch.equal(plain, checkpointed) and stored_checkpointed < stored_plain / 4
    for name, gradient in gradients.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("ffn_layer", ["mlp", "swiglu"])
def test_every_parameter_gets_a_gradient(ffn_layer: str) -> None:
    vit = tiny(ffn_layer=ffn_layer).train()
    (vit(image()) * torch.randn(2, 32, 5, 7)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in vit.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_is_near(dtype: torch.dtype) -> None:
    vit, x = tiny(), image()
    expected = vit(x)
    found = vit.to(dtype)(x.to(dtype))
    assert found.dtype == dtype and (found.float() - expected).norm() / expected.norm() < 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(global_block_indexes=(1, 4)), "global_block_indexes: [4] lie outside the 4 blocks (0 to 3)"),
        (dict(window_size=0), "window_size must be at least 1 patch, got 0"),
        (dict(num_heads=3), "width 32 is not divisible by 3 heads"),
        (dict(ffn_layer="glu"), "ffn_layer must be"),
        (
            dict(position_interpolation="nearest"),
            "position_interpolation must be bicubic or bicubic_antialias, got 'nearest'",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        tiny(**changes)


@pytest.mark.parametrize("backbone", [ViT, DINOv2])
def test_patches_that_the_decoder_does_not_enlarge_are_refused(backbone: type) -> None:
    decoder = DetailCapture(32)
    blocks = dict(embed_dim=32, depth=1, num_heads=2, global_block_indexes=(), conv_residual_block_indexes=())
    ViTMatte(backbone(**blocks), decoder)
    with pytest.raises(ConfigError, match="enlarges 16 times, so patch_size must be 16, got 14: preprocess.py"):
        ViTMatte(backbone(patch_size=14, **blocks), decoder)
