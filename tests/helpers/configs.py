"""The experiments of configs/, for tests of all of them."""

import pytest
import torch

from engine.config.targets import instantiate
from tests.helpers.paths import REPOSITORY

CONFIGS = REPOSITORY / "configs"
EXPERIMENTS = sorted(CONFIGS.glob("*.py"))
assert len(EXPERIMENTS) == 16

every_experiment = pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)


def instantiate_on_meta(cfg):
    """Build the network of a config without memory for its tensors."""
    with torch.device("meta"):
        return instantiate(cfg.model)
