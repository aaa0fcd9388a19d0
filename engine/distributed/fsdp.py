"""Networks larger than one GPU: shard parameters, gradients and optimiser states over the ranks (FSDP2)."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.utils import comm
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from runtime.errors import ConfigError, first_line


def shard(model: nn.Module, blocks: str, device: str, source: nn.Module | None) -> None:
    """Shard a network's parameters over all ranks, in place; those of a block are gathered only while it runs.

    Parameters keep their type, and autocast sets the precision. bf16 parameters would halve the traffic, but the losses
    would differ from those under DDP. Every rank holds complete buffers.

    Args:
        model: on `meta`; its optimiser is built afterwards.
        blocks: name of a list of modules in it, whose elements are gathered one after the other.
        device: of the shards; while they are made, one parameter at a time is complete there.
        source: the same network with values, on the CPU of the main process; None in the other ranks.

    Raises:
        ConfigError: the network has no such list, or torch lacks the operations for the device.
    """
    check_backend(device)
    mesh = init_device_mesh(device, (comm.get_world_size(),))
    for module in [*listed_blocks(model, blocks), model]:
        # The model itself too: hooks and the optimiser then find shards at any time.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    model.to_empty(device=device)
    values: Iterator[Tensor | None] = itertools.repeat(None) if source is None else _tensors(source)
    with torch.no_grad():
        for tensor, value in zip(_tensors(model), values, strict=False):
            if isinstance(tensor, DTensor):
                full = torch.empty(tensor.shape, dtype=tensor.dtype) if value is None else value.detach()
                tensor.copy_(distribute_tensor(full.to(device), tensor.device_mesh, tensor.placements))
            else:
                torch.distributed.broadcast(tensor if value is None else tensor.copy_(value), src=0)


def listed_blocks(model: nn.Module, name: str) -> nn.ModuleList:
    """Find a network's list of modules by name.

    Raises:
        ConfigError: there is none of that name; the message lists those that exist.
    """
    lists = {path: module for path, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    if name not in lists:
        raise ConfigError(
            f"train.sharded_blocks must be empty or name a list of modules ({', '.join(lists) or 'none'}), got {name!r}"
        )
    return lists[name]


def check_backend(device: str) -> None:
    """Raise a ConfigError if torch cannot average gradients into shards between the ranks."""
    try:
        torch.distributed.reduce_scatter_tensor(
            torch.zeros(1, device=device), torch.zeros(comm.get_world_size(), device=device)
        )
    except RuntimeError as error:
        if "support" not in str(error):  # a lost process, for instance
            raise
        raise ConfigError(
            f"train.sharded_blocks needs reduce_scatter on {device}, which torch {torch.__version__} has not for "
            f"{torch.distributed.get_backend()}: take a newer torch, or CUDA ({first_line(error)})"
        ) from error


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Yield parameters, then buffers, including those that checkpoints leave out."""
    return itertools.chain(model.parameters(), model.buffers())


def is_sharded(model: nn.Module) -> bool:
    """Tell whether `shard` sharded a network, wrapped or not."""
    return isinstance(next(model.parameters(), None), DTensor)


def whole(tensor: Tensor) -> Tensor:
    """Gather a tensor from its shards, in every rank; one that is not sharded is returned unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered_weights(model: nn.Module) -> dict[str, Any]:
    """Return a network's tensors by name, unsharded, on the main process's CPU; an empty dict in the other ranks.

    Every rank of a sharded network has to call it.
    """
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
