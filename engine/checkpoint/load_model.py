"""Build a trained network from its config and checkpoint."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from engine.checkpoint.file import load_weights, read_checkpoint
from engine.config.config import build_section, load_config


def load_model(config_file: str | Path, weights: str | Path, trusted: Sequence[str] = ()) -> nn.Module:
    """Build the network of a config with trained weights.

    Args:
        config_file: `.py` config or the `config.yaml` of a run.
        weights: checkpoint of a run.
        trusted: modules whose classes a `config.yaml` may name; see `load_config`.

    Returns: the bare model on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ConfigError: a config that cannot be used.
        CheckpointError: a checkpoint that cannot be read or does not fit the config.
    """
    cfg = load_config(config_file, ("model",), trusted)
    model = build_section(cfg.model, "model")
    load_weights(model, read_checkpoint(weights)["model"], str(weights))
    return model.eval()
