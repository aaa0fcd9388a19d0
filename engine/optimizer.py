"""Optimiser as a config builds it."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch.optim import AdamW


def build_adamw(
    params: Iterable[dict[str, Any]], lr: float, betas: Sequence[float], weight_decay: float, fused: bool = True
) -> AdamW:
    """AdamW over parameter groups.

    Args:
        params: groups, each with its own "lr" and "weight_decay" where they differ.
        lr: learning rate of groups without one.
        betas: decay rates of the two moments. A config hands in its own list type; not every torch copies it, and
            then `torch.load(weights_only=True)` refuses each checkpoint for it: hence a plain tuple here.
        weight_decay: of groups without one.
        fused: all of a step in one kernel, on the CPU, CUDA and MPS.
    """
    beta1, beta2 = (float(beta) for beta in betas)
    return AdamW(params, lr=lr, betas=(beta1, beta2), weight_decay=weight_decay, fused=fused)
