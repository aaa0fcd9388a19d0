"""What the vision transformers of DINOv3 and DINOv2 share: prefix and patch tokens in, one feature map out."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from modeling.activation_checkpointing import maybe_checkpoint
from modeling.backbone.layers import read_indexes


class TokenViT(nn.Module):
    """Run blocks over prefix and patch tokens in one sequence: the base of `ViT` and `DINOv2`.

    A subclass makes `blocks`, the final `norm` and `use_activation_checkpointing`, and defines `embed`.
    """

    blocks: nn.ModuleList
    norm: nn.LayerNorm
    use_activation_checkpointing: bool

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Cut an image into tokens: (B, in_chans, H, W) -> (B, P + h * w, D), prefix tokens first, and (h, w)."""
        raise NotImplementedError

    def ropes(self, h: int, w: int) -> Sequence[tuple[Tensor, Tensor] | None]:
        """List the rotary table of each block for a grid; see `Attention`. None rotates nothing."""
        return [None] * len(self.blocks)

    def forward_tokens(self, x: Tensor, query_mask: Tensor | None = None) -> tuple[Tensor, tuple[int, int]]:
        """Compute all tokens after the final norm.

        Args:
            x: (B, in_chans, H, W), sides multiples of the patch size.
            query_mask: see `forward`; prefix tokens are not computed.

        Returns: (B, P + h * w, D), prefix tokens first; and the grid (h, w).
        """
        x, (h, w) = self.embed(x)
        ropes = self.ropes(h, w)
        is_recomputed = self.use_activation_checkpointing and self.training
        for block, rope in zip(self.blocks[:-1], ropes[:-1], strict=True):
            x = maybe_checkpoint(is_recomputed, block, x, rope, (h, w), None)
        last, num_prefix = self.blocks[-1], x.shape[1] - h * w
        queries = None if query_mask is None else num_prefix + read_indexes(query_mask, last.residual is not None)
        return self.norm(maybe_checkpoint(is_recomputed, last, x, ropes[-1], (h, w), queries)), (h, w)

    def forward(self, x: Tensor, query_mask: Tensor | None = None) -> Tensor:
        """Compute the feature map.

        Args:
            x: (B, in_chans, H, W), sides multiples of the patch size.
            query_mask: (h, w) bool, the patches whose features are needed; None is all. The last block skips the
                others, whose features are then undefined.

        Returns: (B, D, H / patch_size, W / patch_size).
        """
        tokens, (h, w) = self.forward_tokens(x, query_mask)
        return tokens[:, -h * w :].unflatten(1, (h, w)).permute(0, 3, 1, 2)


def join_prefix(tokens: Iterable[Tensor | None], patches: Tensor) -> Tensor:
    """Prepend tokens (1, n, D) to the patches of each image: (B, h, w, D) -> (B, P + h * w, D)."""
    prefix = [token.expand(patches.shape[0], -1, -1) for token in tokens if token is not None]
    return torch.cat([*prefix, patches.flatten(1, 2)], dim=1)
