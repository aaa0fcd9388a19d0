"""The DINOv2 vision transformer as a matting backbone: absolute positions, windowed and global blocks, one map out."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling.backbone.block import Block
from modeling.backbone.layers import PatchEmbed, build_blocks, init_weights
from modeling.backbone.token_vit import TokenViT, join_prefix
from runtime.errors import ConfigError, check_minimum

POSITION_INTERPOLATIONS = ("bicubic", "bicubic_antialias")


class DINOv2(TokenViT):
    """Vision transformer of DINOv2 (arXiv:2304.07193) with the hybrid attention of ViTMatte (arXiv:2305.15272).

    Parameter names are those of the official checkpoints, except that SwiGLU's `w12` is `w1` and `w2` here. The
    published networks have patches of 14 px. A matting network needs 16 px for its decoder.

    Args:
        patch_size: side of a patch in pixels.
        in_chans: input channels: RGB and trimap.
        embed_dim: width D.
        depth: number of blocks.
        num_heads: K.
        mlp_ratio: see `build_ffn`.
        ffn_layer: "mlp" or "swiglu".
        layer_scale_init: start of LayerScale's gammas.
        norm_eps: epsilon of the LayerNorms.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
        num_register_tokens: learnt tokens beside cls, without positions (arXiv:2309.16588); 0 or 4 as published.
        position_grid_size: side in patches of the square grid whose positions are stored; 37 patches of 14 px are the
            518 px of the published networks. Other grids interpolate.
        position_interpolation: "bicubic", or "bicubic_antialias", which also smooths where the grid shrinks. The
            networks with registers were published with antialiasing, those without registers without it. timm
            uses it for all.
        window_size: side in patches of the windows of the blocks that are not global.
        global_block_indexes: blocks with global attention.
        conv_residual_block_indexes: blocks that end with a convolution neck.
        use_activation_checkpointing: recompute each block in the backward pass instead of storing its activations.

    Raises:
        ConfigError: for sizes that do not divide, unknown kinds and block indexes outside the depth.
    """

    def __init__(
        self,
        patch_size: int = 16,
        in_chans: int = 4,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        ffn_layer: str = "mlp",
        layer_scale_init: float = 1.0,
        norm_eps: float = 1e-6,
        drop_path_rate: float = 0.0,
        num_register_tokens: int = 0,
        position_grid_size: int = 37,
        position_interpolation: str = "bicubic",
        window_size: int = 14,
        global_block_indexes: Iterable[int] = (2, 5, 8, 11),
        conv_residual_block_indexes: Iterable[int] = (2, 5, 8, 11),
        use_activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if position_interpolation not in POSITION_INTERPOLATIONS:
            expected = " or ".join(POSITION_INTERPOLATIONS)
            raise ConfigError(f"position_interpolation must be {expected}, got {position_interpolation!r}")
        check_minimum(0, num_register_tokens=num_register_tokens)
        check_minimum(1, position_grid_size=position_grid_size)
        self.embed_dim = embed_dim
        self.position_grid_size = position_grid_size
        self.position_interpolation = position_interpolation
        self.use_activation_checkpointing = use_activation_checkpointing
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.register_tokens = (
            nn.Parameter(torch.empty(1, num_register_tokens, embed_dim)) if num_register_tokens else None
        )
        # The first position is the cls token's.
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + position_grid_size**2, embed_dim))
        self.blocks = build_blocks(
            *(Block, depth, drop_path_rate, window_size, global_block_indexes, conv_residual_block_indexes),
            dim=embed_dim,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            ffn_layer=ffn_layer,
            ffn_align=8,
            qkv_bias=True,
            key_bias=True,
            layer_scale_init=layer_scale_init,
            norm_eps=norm_eps,
        )
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        init_weights(self, (self.cls_token, self.register_tokens, self.pos_embed))

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        x = self.patch_embed(x)
        _, h, w, _ = x.shape
        cls_token = self.cls_token + self.pos_embed[:, :1]
        return join_prefix((cls_token, self.register_tokens), x + self._positions(h, w)), (h, w)

    def _positions(self, h: int, w: int) -> Tensor:
        """Return the absolute positions of a grid, (1, h, w, D), interpolated if it is not the stored one."""
        side = self.position_grid_size
        grid = self.pos_embed[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        if (h, w) != (side, side):
            # In float32 in wider and narrower types too, as timm and transformers do.
            antialias = self.position_interpolation == "bicubic_antialias"
            grid = F.interpolate(grid.float(), size=(h, w), mode="bicubic", antialias=antialias).to(grid.dtype)
        return grid.permute(0, 2, 3, 1)
