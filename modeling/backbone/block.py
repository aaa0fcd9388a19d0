"""One transformer block: attention and feed-forward network on scaled residual branches, then the convolution neck."""

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from modeling.backbone.attention import Attention
from modeling.backbone.layers import ConvResidual, LayerScale, build_ffn, chunked


class Block(nn.Module):
    """Apply a pre-norm block of DINOv2 and DINOv3; if asked for, ViTMatte's convolution neck follows the MLP.

    Args:
        qkv_bias, key_bias: as for `Attention`.
        window_size: side of the attention windows in patches; 0 is global attention.
        has_conv_residual: whether the patch tokens pass a `ConvResidual` at the end; prefix tokens never do.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        ffn_layer: str,
        ffn_align: int,
        qkv_bias: bool,
        layer_scale_init: float,
        norm_eps: float,
        drop_path: float,
        window_size: int,
        has_conv_residual: bool,
        key_bias: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads, qkv_bias, key_bias, window_size)
        self.ls1 = LayerScale(dim, layer_scale_init)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = build_ffn(ffn_layer, dim, mlp_ratio, ffn_align)
        self.ls2 = LayerScale(dim, layer_scale_init)
        self.drop_path = DropPath(drop_path)
        self.residual = ConvResidual(dim) if has_conv_residual else None

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor] | None, grid: tuple[int, int], queries: Tensor | None = None
    ) -> Tensor:
        """Apply the block.

        Args:
            x: (B, P + h * w, D).
            rope: as for `Attention`.
            grid: (h, w).
            queries: (n,) indexes of the tokens whose output is needed; None is all. The other tokens pass unchanged up
                to the neck, whose convolution also reads each token's eight neighbours.

        Returns: (B, P + h * w, D).
        """
        attended = self.attn(self.norm1(x), rope, grid, queries)
        if queries is None:
            x = chunked(self._add, x, attended)
        else:
            x = x.index_copy(1, queries, chunked(self._add, x[:, queries], attended))
        if self.residual is None:
            return x
        B, N, D = x.shape
        num_prefix = N - grid[0] * grid[1]
        patches = self.residual(x[:, num_prefix:].reshape(B, *grid, D).permute(0, 3, 1, 2))
        patches = patches.permute(0, 2, 3, 1).reshape(B, -1, D)
        return torch.cat((x[:, :num_prefix], patches), dim=1) if num_prefix else patches

    def _add(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add both residual branches, token by token: (B, N, D) -> (B, N, D)."""
        x = x + self.drop_path(self.ls1(attended))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))
