"""A trained network from its config and checkpoint."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from engine.checkpoint.file import load_weights, read_checkpoint
from engine.config.config import build_section, load_config
from runtime.errors import ConfigError, first_line


def load_model(
    config_file: str | Path, weights: str | Path, device: str | None = None, trusted: Sequence[str] = ()
) -> nn.Module:
    """Build the network of a config with trained weights.

    Args:
        config_file: `.py` config or the `config.yaml` of a training.
        weights: checkpoint of a training.
        device: "cpu", "cuda" ...; None takes the config's.
        trusted: modules whose classes a `config.yaml` may name; see `load_config`.

    Returns: the bare model on that device, in evaluation mode.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ConfigError: a config that cannot be used, or a device that is not there.
        CheckpointError: a checkpoint that cannot be read or does not fit the config.
    """
    cfg = load_config(config_file, ("train", "model"), trusted)
    device = device or cfg.train.device
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise ConfigError(f"device {device!r} cannot be used: {first_line(error)}") from error
    model = build_section(cfg.model, "model")
    load_weights(model, read_checkpoint(weights)["model"], str(weights))
    return model.to(device).eval()
