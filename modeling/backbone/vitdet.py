"""ViTDet's vision transformer, the backbone of the published ViTMatte weights, with memory linear in the tokens."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modeling.activation_checkpointing import maybe_checkpoint
from modeling.backbone.layers import (
    ConvResidual,
    PatchEmbed,
    build_blocks,
    build_ffn,
    check_heads,
    chunked,
    join,
    read_indexes,
)
from modeling.backbone.sdpa import attend
from modeling.backbone.windows import partition, unpartition
from runtime.errors import check_minimum

MAX_BIAS_NUMEL = 2**22
"""Entries of the attention bias in memory at once: 16 MiB in float32, which caches mostly hold. With 64 MiB, 16384
tokens take 1.5 times as long."""


class ViTDet(nn.Module):
    """Plain vision transformer with absolute and decomposed relative positions (ViTDet, arXiv:2203.16527).

    Parameter names are those of detectron2's ViT, which ViTMatte's published checkpoints use. Ragged windows are padded
    with zeros that are attended to, as these weights were trained. In `ViT`, ragged windows are narrower instead.

    Args:
        patch_size: side of a patch in pixels.
        in_chans: input channels: RGB and trimap.
        embed_dim: width D.
        depth: number of blocks.
        num_heads: K.
        mlp_ratio: hidden width of the MLP over D.
        norm_eps: epsilon of the LayerNorms.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
        image_size: side in pixels of the grid whose relative positions global blocks store; other sizes interpolate.
        pretrain_image_size: side in pixels of the grid whose absolute positions are stored; other sizes interpolate.
        window_size: side in patches of the windows of the blocks that are not global.
        global_block_indexes: blocks with global attention.
        conv_residual_block_indexes: blocks that end with a convolution neck.
        use_activation_checkpointing: recompute each block in the backward pass instead of storing its activations.

    Raises:
        ConfigError: for sizes that do not divide and block indexes outside the depth.
    """

    def __init__(
        self,
        patch_size: int = 16,
        in_chans: int = 4,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-6,
        drop_path_rate: float = 0.0,
        image_size: int = 512,
        pretrain_image_size: int = 224,
        window_size: int = 14,
        global_block_indexes: Iterable[int] = (2, 5, 8, 11),
        conv_residual_block_indexes: Iterable[int] = (2, 5, 8, 11),
        use_activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.use_activation_checkpointing = use_activation_checkpointing
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        check_minimum(patch_size, image_size=image_size, pretrain_image_size=pretrain_image_size)
        # The first position belongs to a cls token. These checkpoints store it, and nothing reads it.
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (pretrain_image_size // patch_size) ** 2, embed_dim))
        self.blocks = build_blocks(
            *(RelativeBlock, depth, drop_path_rate, window_size, global_block_indexes, conv_residual_block_indexes),
            dim=embed_dim,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            norm_eps=norm_eps,
            grid_size=image_size // patch_size,
        )
        for parameter in (self.pos_embed, *(m.weight for m in self.modules() if isinstance(m, nn.Linear))):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, x: Tensor, query_mask: Tensor | None = None) -> Tensor:
        """Compute the feature map.

        Args:
            x: (B, in_chans, H, W), sides multiples of the patch size.
            query_mask: (h, w) bool, the patches whose features are needed; None is all. The last block skips the
                others, whose features are then undefined.

        Returns: (B, D, H / patch_size, W / patch_size).
        """
        x = self.patch_embed(x)
        x = x + self._positions(x.shape[1], x.shape[2])
        is_recomputed = self.use_activation_checkpointing and self.training
        for block in self.blocks[:-1]:
            x = maybe_checkpoint(is_recomputed, block, x)
        last = self.blocks[-1]
        queries = None if query_mask is None else read_indexes(query_mask, last.residual is not None)
        return maybe_checkpoint(is_recomputed, last, x, queries).permute(0, 3, 1, 2)

    def _positions(self, h: int, w: int) -> Tensor:
        """Return the absolute positions of a grid, (1, h, w, D), interpolated if it is not the stored one."""
        stored = self.pos_embed[:, 1:]
        side = round(stored.shape[1] ** 0.5)
        grid = stored.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        if (h, w) != (side, side):
            grid = F.interpolate(grid, size=(h, w), mode="bicubic", align_corners=False)
        return grid.permute(0, 2, 3, 1)


class RelativeBlock(nn.Module):
    """Apply a pre-norm block: attention with relative positions, MLP, then the convolution neck if asked for.

    Args:
        mlp_ratio: see `build_ffn`.
        grid_size: side of the grid whose relative positions a global block stores; the others store the window's.
        window_size: side of the attention windows in patches; 0 is global attention.
        has_conv_residual: whether a `ConvResidual` ends the block.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        norm_eps: float,
        drop_path: float,
        grid_size: int,
        window_size: int,
        has_conv_residual: bool,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = RelativeAttention(dim, num_heads, window_size or grid_size)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = build_ffn("mlp", dim, mlp_ratio)
        self.drop_path = DropPath(drop_path)
        self.residual = ConvResidual(dim) if has_conv_residual else None

    def forward(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Apply the block.

        Args:
            x: (B, h, w, D).
            queries: (n,) indexes of the patches whose output is needed; None is all. In a global block, the others pass
                unchanged up to the neck, whose convolution also reads each patch's eight neighbours.

        Returns: (B, h, w, D).
        """
        _, h, w, _ = x.shape
        normed = self.norm1(x)
        x = x.flatten(1, 2)
        if self.window_size:
            x = chunked(self._add, x, self._attend_windows(normed).flatten(1, 2))
        elif queries is None:
            x = chunked(self._add, x, self.attn(normed))
        else:
            x = x.index_copy(1, queries, chunked(self._add, x[:, queries], self.attn(normed, queries)))
        x = x.unflatten(1, (h, w))
        return x if self.residual is None else self.residual(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def _add(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add both residual branches, token by token: (B, N, D) -> (B, N, D)."""
        x = x + self.drop_path(attended)
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def _attend_windows(self, x: Tensor) -> Tensor:
        """Attend within windows; those at the lower and right edge are padded with zeros first."""
        _, h, w, _ = x.shape
        side = self.window_size
        padded_h, padded_w = h + (-h) % side, w + (-w) % side
        windows = partition(F.pad(x, (0, 0, 0, padded_w - w, 0, padded_h - h)), side, side)
        out = self.attn(windows.unflatten(1, (side, side)))
        return unpartition(out, side, side, padded_h, padded_w)[:, :h, :w]


class RelativeAttention(nn.Module):
    """Apply attention over a grid with decomposed relative positions (MViTv2, arXiv:2112.01526, equation 4).

    The logit of query i and key j is q_i k_j / sqrt(d) + q_i r_h(i, j) + q_i r_w(i, j), with one learnt vector for each
    vertical and each horizontal distance. It is computed in chunks of `MAX_BIAS_NUMEL` logits, so memory is linear in
    the tokens. In training each chunk is computed again for the backward pass.

    Args:
        dim: width D.
        num_heads: K.
        position_size: side of the grid whose distances, -(size - 1) to size - 1, are stored; others interpolate.
    """

    def __init__(self, dim: int, num_heads: int, position_size: int) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * position_size - 1, dim // num_heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * position_size - 1, dim // num_heads))

    def forward(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """Compute the output of the attention.

        Args:
            x: (B, h, w, D).
            queries: (n,) indexes of the patches that attend, in row order; None is all.

        Returns: (B, h * w, D), or (B, n, D) for these queries alone.
        """
        B, h, w, _ = x.shape
        qkv = chunked(self.qkv, x.flatten(1, 2)).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, K, N, d)
        if queries is None:
            queries = torch.arange(h * w, device=x.device)
        else:
            q = q[:, :, queries]
        vectors_h, vectors_w = _distance_vectors(self.rel_pos_h, h), _distance_vectors(self.rel_pos_w, w)
        # As many images at once as the limit allows, or else as many queries of one image, with their distances.
        at_once = max(MAX_BIAS_NUMEL // (self.num_heads * h * w), 1)
        images_at_once = min(max(at_once // len(queries), 1), B)
        queries_at_once = max(min(at_once, MAX_BIAS_NUMEL // ((h + w) * q.shape[-1])), 1)

        def attend_images(images: slice) -> Tensor:
            starts = range(0, len(queries), queries_at_once)
            pieces = (slice(start, start + queries_at_once) for start in starts)
            return join(
                (
                    self._attend(q[images, :, piece], k[images], v[images], vectors_h, vectors_w, queries[piece])
                    for piece in pieces
                ),
                dim=2,
                size=len(queries),
            )

        starts = range(0, B, images_at_once)
        attended = join((attend_images(slice(start, start + images_at_once)) for start in starts), dim=0, size=B)
        return chunked(self.proj, attended.transpose(1, 2).flatten(2))

    def _attend(self, *piece: Tensor) -> Tensor:
        """Attend with some queries by `_attend_piece`, checkpointed if gradients are recorded."""
        if torch.is_grad_enabled() and any(part.requires_grad for part in piece):
            return checkpoint(_attend_piece, *piece, use_reentrant=False)
        return _attend_piece(*piece)


def _attend_piece(q: Tensor, k: Tensor, v: Tensor, vectors_h: Tensor, vectors_w: Tensor, queries: Tensor) -> Tensor:
    """Attend with some queries, whose complete bias is in memory.

    Args:
        q: (B, K, n, d).
        k: (B, K, h * w, d), as `v`.
        vectors_h: (2 h - 1, d), of the vertical distances.
        vectors_w: (2 w - 1, d), of the horizontal ones.
        queries: (n,) indexes of the queries' patches.

    Returns: (B, K, n, d).
    """
    w = (len(vectors_w) + 1) // 2
    bias_h = torch.einsum("bknd,nhd->bknh", q, _from_places(vectors_h, queries // w))
    bias_w = torch.einsum("bknd,nwd->bknw", q, _from_places(vectors_w, queries % w))
    bias = (bias_h.unsqueeze(-1) + bias_w.unsqueeze(-2)).flatten(3)  # (B, K, n, h * w)
    return attend(q, k, v, bias)


def _distance_vectors(stored: Tensor, size: int) -> Tensor:
    """Return the vector of each distance on an axis of a size: (2 n - 1, d) stored -> (2 size - 1, d)."""
    if len(stored) == 2 * size - 1:
        return stored
    return F.interpolate(stored.T[None], size=2 * size - 1, mode="linear")[0].T


def _from_places(vectors: Tensor, places: Tensor) -> Tensor:
    """Look up the vectors of the distances from positions (n,) on an axis to all: (2 size - 1, d) -> (n, size, d)."""
    size = (len(vectors) + 1) // 2
    return vectors[places[:, None] - torch.arange(size, device=places.device) + size - 1]
