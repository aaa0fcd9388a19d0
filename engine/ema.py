"""An exponential moving average of a network, beside the network itself."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from runtime.errors import ConfigError


class Ema(AveragedModel):
    """Moving average of all weights and buffers: average <- decay x average + (1 - decay) x network.

    The first update copies the network; update n of the next ones takes a decay of (1 + n) / (10 + n) where that is
    lower, so that the random start of a decoder is soon forgotten. Integers, BatchNorm's count of batches for instance,
    are copied.

    Args:
        model: bare, not wrapped for several processes; it is copied.
        decay: in [0, 1), per step.

    Attributes:
        module: the average, in evaluation mode.

    Raises:
        ConfigError: a decay out of range.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"train.ema_decay must be in [0, 1), got {decay}")

        @torch.no_grad()
        def update(averages: Sequence[Tensor], values: Sequence[Tensor], _: Tensor | int) -> None:
            n = int(self.n_averaged)  # on the CPU; what is handed over lies on the GPU, and would be waited for
            weight = 1 - min(decay, (1 + n) / (10 + n))
            for average, value in zip(averages, values, strict=True):
                if average.is_floating_point():
                    average.lerp_(value, weight)
                else:
                    average.copy_(value)

        super().__init__(model, multi_avg_fn=update, use_buffers=True)
        self.module.requires_grad_(False).eval()
