"""Optimiser groups: layer-wise learning-rate decay by parameter name, which parameters decay, and which start late."""

import re
from typing import Any

from torch import nn

from runtime.errors import ConfigError

TOKENS = ("cls_token", "storage_tokens", "register_tokens", "pos_embed")
"""Tokens and positions that are added to the patches or stand beside them, by the last part of the name."""


def get_vit_lr_decay_rate(name: str, lr_decay_rate: float, num_layers: int) -> float:
    """Return the factor of a parameter's learning rate, as in BEiT (arXiv:2106.08254) and ViTDet.

    Block i of n has rate ** (n - i), patch embedding, tokens and absolute positions rate ** (n + 1); the convolution
    necks, the final norm and everything outside the backbone have 1.

    Args:
        name: parameter name in the whole model, "backbone.blocks.3.attn.qkv.weight" for example.
        lr_decay_rate: in (0, 1]; 1 is no decay.
        num_layers: number n of blocks.

    Raises:
        ConfigError: for a block outside the n blocks, whose rate would grow instead.
    """
    if not name.startswith("backbone."):
        return 1.0
    if name.startswith(("backbone.patch_embed.", *(f"backbone.{token}" for token in TOKENS))):
        return lr_decay_rate ** (num_layers + 1)
    block = re.match(r"backbone\.blocks\.(\d+)\.(?!residual\.)", name)
    if block is None:
        return 1.0
    index = int(block.group(1))
    if index >= num_layers:
        raise ConfigError(f"{name} lies outside the {num_layers} blocks: set num_layers to the backbone's depth")
    return lr_decay_rate ** (num_layers - index)


def is_pretrained(name: str) -> bool:
    """Tell whether a parameter comes with a backbone's weights; decoder and convolution necks are new."""
    return name.startswith("backbone.") and ".residual." not in name


def get_optimizer_params(
    model: nn.Module,
    base_lr: float,
    weight_decay: float,
    lr_decay_rate: float = 1.0,
    num_layers: int = 12,
    decoder_lr_factor: float = 1.0,
    pretrained_start: float = 0.0,
) -> list[dict[str, Any]]:
    """List the parameter groups for a torch optimiser, one per learning rate and weight decay.

    Matrices, convolution kernels and, as in ViTDet's recipe, its relative positions decay. Norms, biases, LayerScale's
    gammas, tokens and absolute positions do not.

    Args:
        model: a `ViTMatte`, bare or wrapped for several processes.
        base_lr: learning rate before all factors, that of the backbone's final norm and necks.
        weight_decay: for the parameters that decay.
        lr_decay_rate: see `get_vit_lr_decay_rate`.
        num_layers: number of blocks of the backbone.
        decoder_lr_factor: the decoder's learning rate over base_lr.
        pretrained_start: fraction of the run, in [0, 1), during which only decoder and necks are trained. They are new,
            so their first gradients would only disturb the pretrained weights. A neck starts as the identity.

    Returns: groups with "params", "lr", "weight_decay", "start" (see `engine.lr_scheduler`) and "name", which lists the
        parts of the network with this rate. Every trainable parameter is in exactly one group.

    Raises:
        ConfigError: a start outside the run, or as `get_vit_lr_decay_rate`.
    """
    if not 0.0 <= pretrained_start < 1.0:
        raise ConfigError(f"pretrained_start must be a fraction of the training, 0 to below 1, got {pretrained_start}")
    groups: dict[tuple[float, float, float], dict[str, Any]] = {}
    parts: dict[tuple[float, float], dict[str, None]] = {}  # of each rate, in the network's order
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        name = name.removeprefix("module.")
        factor = get_vit_lr_decay_rate(name, lr_decay_rate, num_layers)
        lr = base_lr * factor * (decoder_lr_factor if name.startswith("decoder.") else 1.0)
        decay = 0.0 if parameter.dim() < 2 or name.endswith(TOKENS) else weight_decay
        start = pretrained_start if is_pretrained(name) else 0.0
        group = {"params": [], "lr": lr, "weight_decay": decay, "start": start}
        groups.setdefault((lr, decay, start), group)["params"].append(parameter)
        parts.setdefault((lr, start), {})[part_name(name)] = None
    for (lr, _, start), group in groups.items():
        names = [*parts[lr, start]]
        group["name"] = "+".join(names) if len(names) < 4 else f"{names[0]}..{names[-1]}"
    return list(groups.values())


def part_name(name: str) -> str:
    """Name the part of the network that a parameter belongs to: decoder, necks, one block, norm, patch_embed ..."""
    block = re.match(r"backbone\.(blocks\.\d+)\.(residual\.)?", name)
    if block is not None:
        return "necks" if block.group(2) else block.group(1)
    return name.removeprefix("backbone.").partition(".")[0]
