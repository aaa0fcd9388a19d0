"""The DINOv2 backbone's positions, precisions and patches; what it shares with ViT is in test_modeling_backbone_vit."""

import pytest
import torch
import torch.nn.functional as F

from modeling import DetailCapture, ViTMatte
from modeling.backbone import DINOv2, ViT
from runtime.errors import ConfigError
from tests.helpers.networks import tiny_dinov2, vit_input


@pytest.mark.parametrize("interpolation", ["bicubic", "bicubic_antialias"])
@pytest.mark.parametrize("grid", [(6, 6), (5, 7), (3, 2), (9, 12)], ids=str)
def test_patches_get_the_positions_of_their_grid(interpolation: str, grid: tuple[int, int]) -> None:
    """Without blocks and without an image, the tokens are the normed positions, those of cls and registers apart."""
    vit = tiny_dinov2(position_interpolation=interpolation)
    vit.patch_embed.proj.weight.data.zero_()
    vit.patch_embed.proj.bias.data.zero_()
    for block in vit.blocks:
        block.forward = lambda x, *args: x
    tokens, _ = vit.forward_tokens(vit_input(4 * grid[0], 4 * grid[1], batch=1))
    stored = vit.pos_embed[:, 1:].unflatten(1, (6, 6)).permute(0, 3, 1, 2)
    smooth = interpolation == "bicubic_antialias"
    expected = stored if grid == (6, 6) else F.interpolate(stored, size=grid, mode="bicubic", antialias=smooth)
    prefix = (vit.cls_token + vit.pos_embed[:, :1], vit.register_tokens)
    assert torch.equal(tokens, vit.norm(torch.cat((*prefix, expected.flatten(2).mT), dim=1)))


def test_smoothing_changes_the_positions_of_smaller_grids() -> None:
    sharp, smooth = (
        tiny_dinov2(position_interpolation=name)(vit_input(12, 16)) for name in ("bicubic", "bicubic_antialias")
    )
    assert (sharp - smooth).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_is_near(dtype: torch.dtype) -> None:
    vit, x = tiny_dinov2(), vit_input()
    expected = vit(x)
    found = vit.to(dtype)(x.to(dtype))
    assert found.dtype == dtype and (found.float() - expected).norm() / expected.norm() < 0.05


def test_an_unknown_interpolation_is_named() -> None:
    with pytest.raises(ConfigError, match="position_interpolation must be bicubic or bicubic_antialias, got 'near"):
        tiny_dinov2(position_interpolation="nearest")


@pytest.mark.parametrize("backbone", [ViT, DINOv2])
def test_patches_that_the_decoder_does_not_enlarge_are_refused(backbone: type) -> None:
    decoder = DetailCapture(32)
    blocks = dict(embed_dim=32, depth=1, num_heads=2, global_block_indexes=(), conv_residual_block_indexes=())
    ViTMatte(backbone(**blocks), decoder)
    with pytest.raises(ConfigError, match="enlarges 16 times, so patch_size must be 16, got 14: preprocess.py"):
        ViTMatte(backbone(patch_size=14, **blocks), decoder)
