"""Axial rotary position embedding of DINOv3: the position of a patch gives the angles that rotate its query and key."""

import math

import torch
from torch import Tensor, nn

from runtime.errors import ConfigError


class RopePositionEmbedding(nn.Module):
    """Compute the sines and cosines for a patch grid (DINOv3, arXiv:2508.10104; RoPE, arXiv:2104.09864).

    Patch centres (i + 0.5) / n are scaled to [-1, 1] on each axis by the length of that axis. A head of width d has
    d / 4 periods `base ** (2 i / (d / 2))` per axis, and an angle is `2 pi coordinate / period`. The periods are a
    buffer of the checkpoint. Published files hold values rounded to bfloat16, with which the network was trained.

    With windows, each position is counted and scaled within its window, a ragged window by its own sides. All windows
    are then alike, and the meaning of one step does not depend on the size of the image.

    Three augmentations move the coordinates, in training mode only, drawn once per forward pass. `shift` adds uniform
    [-shift, shift] per axis. `jitter` multiplies each axis, and `rescale` both axes together, by a factor that is
    log-uniform in [1 / value, value]. None switches one off.
    """

    periods: Tensor

    def __init__(
        self,
        head_dim: int,
        base: float = 100.0,
        shift: float | None = None,
        jitter: float | None = None,
        rescale: float | None = None,
    ) -> None:
        super().__init__()
        if head_dim % 4:
            raise ConfigError(f"RoPE needs a head width divisible by 4 (two axes, two halves), got {head_dim}")
        for name, value, lowest in (("shift", shift, 0.0), ("jitter", jitter, 1.0), ("rescale", rescale, 1.0)):
            if value is not None and value < lowest:
                raise ConfigError(f"rope_{name} must be at least {lowest:g} or None, got {value}")
        self.shift, self.jitter, self.rescale = shift, jitter, rescale
        exponents = 2.0 * torch.arange(head_dim // 4, dtype=torch.float32) / (head_dim // 2)
        self.register_buffer("periods", base**exponents)

    def forward(self, height: int, width: int, window_size: int = 0) -> tuple[Tensor, Tensor]:
        """Compute sines and cosines for a grid of height x width patches, in row order.

        Args:
            height: of the grid in patches.
            width: of the grid in patches.
            window_size: side in patches of windows with coordinates of their own; 0 uses those of the whole grid.

        Returns: two tensors (height * width, head_dim), in float32 at least.
        """
        periods = self.periods.to(torch.promote_types(self.periods.dtype, torch.float32))
        axes = [_centres(length, window_size, periods.device) for length in (height, width)]
        coordinates = 2.0 * torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 2) - 1.0  # (hw, 2)
        if self.training:
            coordinates = self._augment(coordinates)
        # The product stays in float32 before a wider type of the periods, as in the official code.
        angles = (2.0 * math.pi * coordinates)[:, :, None] / periods  # (hw, 2, head_dim / 4)
        angles = angles.flatten(1).tile(2)  # (hw, head_dim): the two halves of a head are paired
        return angles.sin(), angles.cos()

    def _augment(self, coordinates: Tensor) -> Tensor:
        if self.shift is not None:
            coordinates = coordinates + coordinates.new_empty(2).uniform_(-self.shift, self.shift)
        for factor, size in ((self.jitter, 2), (self.rescale, 1)):
            if factor is not None:
                log = math.log(factor)
                coordinates = coordinates * coordinates.new_empty(size).uniform_(-log, log).exp()
        return coordinates


def _centres(length: int, window_size: int, device: torch.device) -> Tensor:
    """Return patch centres on one axis as fractions of its length, or of the length of their window: (length,)."""
    # float32 also where the network runs in float64: the published networks were built so.
    places = torch.arange(length, device=device, dtype=torch.float32)
    if not window_size:
        return (places + 0.5) / length
    within = places % window_size
    return (within + 0.5) / (length - (places - within)).clamp(max=window_size)


def rotate(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    """Rotate queries or keys by the table of `RopePositionEmbedding`, in float32 or wider, and cast back.

    Args:
        x: (B, N, K, d) patch tokens.
        sin: (N, d).
        cos: (N, d).

    Returns: (B, N, K, d) in x's type.
    """
    wide = x.to(sin.dtype)
    first, second = wide.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (wide * cos[:, None] + turned * sin[:, None]).to(x.dtype)
