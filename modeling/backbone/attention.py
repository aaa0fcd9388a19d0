"""Self-attention over prefix and patch tokens, global or within windows, in memory linear in the number of tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling.backbone.layers import QKVLinear, check_heads, chunked
from modeling.backbone.rope_position_encoding import rotate
from modeling.backbone.sdpa import attend
from modeling.backbone.windows import map_windows


class Attention(nn.Module):
    """Apply multi-head attention, with RoPE on the patch tokens' queries and keys if it is given.

    With a window size, each window attends to the prefix tokens and its own patches. Prefix queries attend to all
    tokens. With a window as large as the grid this equals global attention. Queries and keys are rotated before the
    grid is cut, so every window uses its own part of the grid's table.

    Args:
        dim: width D.
        num_heads: K, must divide D.
        qkv_bias: whether query and value have a bias.
        key_bias: whether the key has a bias as well.
        window_size: side of a window in patches; 0 is global attention.
    """

    def __init__(
        self, dim: int, num_heads: int, qkv_bias: bool = True, key_bias: bool = False, window_size: int = 0
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.window_size = window_size
        self.qkv = nn.Linear(dim, 3 * dim) if key_bias else QKVLinear(dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor] | None, grid: tuple[int, int], queries: Tensor | None = None
    ) -> Tensor:
        """Compute the output of the attention.

        Args:
            x: (B, P + h * w, D), P prefix tokens first, then the patches in row order.
            rope: sines and cosines (h * w, D / K) of the whole grid; None rotates nothing.
            grid: (h, w).
            queries: (n,) indexes of the tokens that attend; None is all.

        Returns: (B, P + h * w, D), or (B, n, D) for these queries alone.
        """
        num_prefix = x.shape[1] - grid[0] * grid[1]
        tables = () if rope is None else tuple(table[None] for table in with_prefix(*rope, num_prefix))
        q, k, v = chunked(self._project, x, *tables).unbind(2)  # each (B, N, K, d)
        if self.window_size and self.window_size < max(grid):
            out = self._attend_windows(q, k, v, num_prefix, grid)
            out = out if queries is None else out[:, queries]
        else:
            out = _attend(q if queries is None else q[:, queries], k, v)
        return chunked(self.proj, out.flatten(2))

    def _project(self, x: Tensor, *tables: Tensor) -> Tensor:
        """Project (B, N, D) to queries, keys and values (B, N, 3, K, d); two tables (1, N, d) rotate q and k."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        if not tables:
            return qkv
        sin, cos = (table[0] for table in tables)
        q, k, v = qkv.unbind(2)
        return torch.stack((rotate(q, sin, cos), rotate(k, sin, cos), v), dim=2)

    def _attend_windows(self, q: Tensor, k: Tensor, v: Tensor, num_prefix: int, grid: tuple[int, int]) -> Tensor:
        """Attend within windows: (B, N, K, d) queries, keys and values -> (B, N, K, d)."""
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


def with_prefix(sin: Tensor, cos: Tensor, num_prefix: int) -> tuple[Tensor, Tensor]:
    """Prepend table rows for the prefix tokens, which are not rotated."""
    return F.pad(sin, (0, 0, num_prefix, 0)), F.pad(cos, (0, 0, num_prefix, 0), value=1.0)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend with (B, Nq, K, d) queries to (B, Nk, K, d) keys and values -> (B, Nq, K, d)."""
    return attend(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)
