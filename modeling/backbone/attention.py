"""Self-attention over prefix and patch tokens, global or within windows, in memory linear in the number of tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling.backbone.layers import QKVLinear
from modeling.backbone.rope_position_encoding import rotate
from modeling.backbone.windows import map_windows


class Attention(nn.Module):
    """Multi-head attention with RoPE on the patch tokens' queries and keys.

    With a window size, each window attends to the prefix tokens and its own patches, and prefix queries attend to all
    tokens; with a window as large as the grid this equals global attention. Queries and keys are turned before the
    grid is cut, so every window uses its own part of the whole image's table.

    Args:
        dim: width D.
        num_heads: K, must divide D.
        qkv_bias: whether query and value have a bias (the key never has).
        window_size: side of a window in patches; 0 is global attention.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True, window_size: int = 0) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"width {dim} is not divisible by {num_heads} heads")
        self.num_heads = num_heads
        self.window_size = window_size
        self.qkv = QKVLinear(dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], grid: tuple[int, int]) -> Tensor:
        """Attend.

        Args:
            x: (B, P + h * w, D), P prefix tokens first, then the patches in row order.
            rope: sines and cosines (h * w, D / K) of the whole grid.
            grid: (h, w).

        Returns: (B, P + h * w, D).
        """
        B, N, D = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, -1).unbind(2)  # each (B, N, K, d)
        num_prefix = N - grid[0] * grid[1]
        q, k = (self._rotate_patches(t, rope, num_prefix) for t in (q, k))
        v = v.contiguous()  # or what is kept for the backward pass would keep all of qkv alive
        if not self.window_size or self.window_size >= max(grid):
            out = _attend(q, k, v)
        else:
            out = self._attend_windows(q, k, v, num_prefix, grid)
        return self.proj(out.reshape(B, N, D))

    @staticmethod
    def _rotate_patches(x: Tensor, rope: tuple[Tensor, Tensor], num_prefix: int) -> Tensor:
        patches = rotate(x[:, num_prefix:], *rope)
        return torch.cat((x[:, :num_prefix], patches), dim=1) if num_prefix else patches

    def _attend_windows(self, q: Tensor, k: Tensor, v: Tensor, num_prefix: int, grid: tuple[int, int]) -> Tensor:
        """(B, N, K, d) queries, keys and values -> (B, N, K, d)."""
        B, _, K, d = q.shape

        def attend_window(*windows: Tensor) -> Tensor:
            window_q, window_k, window_v = (x.unflatten(2, (K, d)) for x in windows)  # (B * windows, tokens, K, d)
            if num_prefix:
                count = len(window_q) // B
                shared_k, shared_v = (x[:, :num_prefix].repeat_interleave(count, dim=0) for x in (k, v))
                window_k, window_v = torch.cat((shared_k, window_k), dim=1), torch.cat((shared_v, window_v), dim=1)
            return _attend(window_q, window_k, window_v).flatten(2)

        patches = [x[:, num_prefix:].reshape(B, *grid, K * d) for x in (q, k, v)]
        out = map_windows(attend_window, patches, self.window_size).reshape(B, -1, K, d)
        return torch.cat((_attend(q[:, :num_prefix], k, v), out), dim=1) if num_prefix else out


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of (B, Nq, K, d) queries over (B, Nk, K, d) keys and values -> (B, Nq, K, d)."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
