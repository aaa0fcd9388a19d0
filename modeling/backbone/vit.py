"""The DINOv3 vision transformer as a matting backbone: four channels in, windowed and global blocks, one map out."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from modeling.backbone.attention import Attention
from modeling.backbone.block import Block
from modeling.backbone.layers import PatchEmbed, build_blocks, init_weights
from modeling.backbone.rope_position_encoding import RopePositionEmbedding
from modeling.backbone.token_vit import TokenViT, join_prefix
from runtime.errors import check_minimum


class ViT(TokenViT):
    """Vision transformer of DINOv3 (arXiv:2508.10104) with the hybrid attention of ViTMatte (arXiv:2305.15272).

    Parameter names are those of the official checkpoints, which therefore load without renaming.

    Args:
        patch_size: side of a patch in pixels.
        in_chans: input channels: RGB and trimap.
        embed_dim: width D.
        depth: number of blocks.
        num_heads: K.
        mlp_ratio: see `build_ffn`.
        ffn_layer: "mlp" or "swiglu".
        ffn_align: SwiGLU's hidden width is a multiple of this.
        qkv_bias: whether query and value have biases (all sizes but 7B).
        layer_scale_init: start of LayerScale's gammas.
        norm_eps: epsilon of the LayerNorms.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
        num_storage_tokens: learnt tokens beside cls, elsewhere called registers.
        keep_prefix_tokens: False leaves cls and storage tokens out, as the report does.
        window_size: side in patches of the windows of the blocks that are not global.
        global_block_indexes: blocks with global attention.
        conv_residual_block_indexes: blocks that end with a convolution neck.
        rope_base, rope_shift, rope_jitter, rope_rescale: see `RopePositionEmbedding`.
        rope_per_window: whether a windowed block uses each patch's position in its window, as other implementations
            do, instead of its position in the image, as DINOv3 was trained; an ablation.
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
        ffn_align: int = 8,
        qkv_bias: bool = True,
        layer_scale_init: float = 1e-5,
        norm_eps: float = 1e-5,
        drop_path_rate: float = 0.0,
        num_storage_tokens: int = 4,
        keep_prefix_tokens: bool = True,
        window_size: int = 14,
        global_block_indexes: Iterable[int] = (2, 5, 8, 11),
        conv_residual_block_indexes: Iterable[int] = (2, 5, 8, 11),
        rope_base: float = 100.0,
        rope_shift: float | None = None,
        rope_jitter: float | None = None,
        rope_rescale: float | None = None,
        rope_per_window: bool = False,
        use_activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_minimum(0, num_storage_tokens=num_storage_tokens)
        self.embed_dim = embed_dim
        self.use_activation_checkpointing = use_activation_checkpointing
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim)) if keep_prefix_tokens else None
        self.storage_tokens = (
            nn.Parameter(torch.empty(1, num_storage_tokens, embed_dim))
            if keep_prefix_tokens and num_storage_tokens
            else None
        )
        self.blocks = build_blocks(
            *(Block, depth, drop_path_rate, window_size, global_block_indexes, conv_residual_block_indexes),
            dim=embed_dim,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            ffn_layer=ffn_layer,
            ffn_align=ffn_align,
            qkv_bias=qkv_bias,
            layer_scale_init=layer_scale_init,
            norm_eps=norm_eps,
        )
        windows = [module.window_size for module in self.modules() if isinstance(module, Attention)]
        self.rope_windows = windows if rope_per_window else [0] * depth
        self.rope_embed = RopePositionEmbedding(
            embed_dim // num_heads, rope_base, rope_shift, rope_jitter, rope_rescale
        )
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        init_weights(self, (self.cls_token, self.storage_tokens))

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        x = self.patch_embed(x)
        _, h, w, _ = x.shape
        return join_prefix((self.cls_token, self.storage_tokens), x), (h, w)

    def ropes(self, h: int, w: int) -> list[tuple[Tensor, Tensor]]:
        tables = {window: self.rope_embed(h, w, window) for window in sorted(set(self.rope_windows))}
        return [tables[window] for window in self.rope_windows]
