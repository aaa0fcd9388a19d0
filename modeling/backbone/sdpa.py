"""Softmax attention for all backbones."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

MAX_LOGITS = 2**21
"""Logits in memory at once, if they are stored at all: 4 MiB in bfloat16, which caches hold. Other powers of 2 from 16
to 23 were slower or no faster at 4096 and 16384 tokens."""


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute softmax(q k^T / sqrt(d) + bias) v, in memory linear in the number of tokens.

    Args:
        q: (B, K, Nq, d).
        k: (B, K, Nk, d), as `v`.
        bias: (B, K, Nq, Nk).

    Returns: (B, K, Nq, d).
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        with torch.autocast("cpu", enabled=False):
            if not torch.is_grad_enabled():
                return _attend_by_products(q, k, v, bias)
            if bias is None:
                return _AttentionByProducts.apply(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def _attend_by_products(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attend by two matrix products, for some heads and queries at a time.

    On CPUs `scaled_dot_product_attention` is no faster in bfloat16 than in float32, but these products are. Logits are
    rounded to 8 bits before the softmax. If their standard deviation is 5, outputs differ by at most 0.1 of a standard
    deviation, and by 0.01 with SDPA. The mean of all keys, which the softmax ignores, is subtracted first.
    """
    B, _, num_queries, d = q.shape
    k = k - k.mean(dim=2, keepdim=True)
    q, k, v = ((q * d**-0.5).flatten(0, 1), k.mT.flatten(0, 1).contiguous(), v.flatten(0, 1).contiguous())
    bias = None if bias is None else bias.flatten(0, 1)
    out = torch.empty_like(q)
    for heads, queries in _pieces(len(q), num_queries, v.shape[1]):
        logits = q[heads, queries] @ k[heads]
        if bias is not None:
            logits += bias[heads, queries]
        out[heads, queries] = logits.softmax(dim=-1) @ v[heads]
    return out.unflatten(0, (B, -1))


class _AttentionByProducts(torch.autograd.Function):
    """Add a backward pass to `_attend_by_products`; it computes the softmax again, one piece at a time."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = _attend_by_products(q, k, v, None)
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        """Compute the gradients; with weights p: dv = p^T do, dl = p (do v^T - do o), dq = dl k, dk = dl^T q."""
        q, k, v, out = ctx.saved_tensors
        B, scale = len(q), q.shape[-1] ** -0.5
        # The softmax's gradient subtracts this sum, do o, from each row. In float32, since both are nearly equal.
        shared = (gradient.float() * out).sum(dim=-1, keepdim=True).to(q.dtype).flatten(0, 1)
        q, k, v, gradient = (x.flatten(0, 1).contiguous() for x in (q * scale, k - k.mean(2, True), v, gradient))
        dq = torch.empty_like(q)
        dk, dv = (torch.zeros_like(x, dtype=torch.float32) for x in (k, v))
        for heads, queries in _pieces(len(q), q.shape[1], k.shape[1]):
            some_q, some_gradient = q[heads, queries], gradient[heads, queries]
            weights = (some_q @ k[heads].mT).softmax(dim=-1)
            dv[heads] += weights.mT @ some_gradient
            dlogits = (some_gradient @ v[heads].mT).sub_(shared[heads, queries]).mul_(weights)
            dq[heads, queries] = dlogits @ k[heads]
            dk[heads] += dlogits.mT @ some_q
        return tuple(x.to(q.dtype).unflatten(0, (B, -1)) for x in (dq * scale, dk, dv))


def _pieces(num_heads: int, num_queries: int, num_keys: int) -> Iterator[tuple[slice, slice]]:
    """Yield slices of heads and queries whose logits are in memory at once."""
    queries = min(max(MAX_LOGITS // num_keys, 1), num_queries)
    heads = max(MAX_LOGITS // (queries * num_keys), 1)
    for first in range(0, num_heads, heads):
        for start in range(0, num_queries, queries):
            yield slice(first, first + heads), slice(start, start + queries)
