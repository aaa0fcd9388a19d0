"""A trained network from its config and checkpoint."""

from pathlib import Path

import torch
from detectron2.config import instantiate
from torch import nn

from engine.checkpoint import load_weights, read_checkpoint
from engine.config import ConfigError, load_config


def load_model(config_file: str | Path, weights: str | Path, device: str | None = None) -> nn.Module:
    """Build the network of a config with trained weights.

    Args:
        config_file: `.py` config or the `config.yaml` of a training.
        weights: checkpoint of a training.
        device: "cpu", "cuda" ...; None takes the config's.

    Returns: the bare model on that device, in evaluation mode.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ConfigError: a config that cannot be used, or a device that is not there.
        CheckpointError: a checkpoint that cannot be read or does not fit the config.
    """
    cfg = load_config(config_file, ("train", "model"))
    device = device or cfg.train.device
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise ConfigError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    model = instantiate(cfg.model)
    load_weights(model, read_checkpoint(weights)["model"], str(weights))
    return model.to(device).eval()
