"""Activation checkpointing: run a module again in the backward pass instead of storing its activations."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def maybe_checkpoint(is_recomputed: bool, block: nn.Module, *inputs: Any) -> Tensor:
    """Run a block, and if asked for, run it again in the backward pass instead of storing its activations.

    The second run draws the same random numbers. Its updates of buffers are discarded, so BatchNorm's statistics are
    updated once.
    """
    if not is_recomputed:
        return block(*inputs)
    if torch.compiler.is_compiling():  # the compiled graph has its own second run, without the updates
        return checkpoint(block, *inputs, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), spare_buffers(block)

    return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def spare_buffers(module: nn.Module) -> Iterator[None]:
    """Replace a module's buffers by copies inside a `with` block.

    Telling BatchNorm not to update its statistics would not work. It would also stop storing them for the backward
    pass, and the second run has to store the same tensors as the first.
    """
    own = [(part, name, buffer) for part in module.modules() for name, buffer in part.named_buffers(recurse=False)]
    try:
        for part, name, buffer in own:
            setattr(part, name, buffer.clone())
        yield
    finally:
        for part, name, buffer in own:
            setattr(part, name, buffer)
