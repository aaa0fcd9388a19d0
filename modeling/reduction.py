"""Run a backbone on a reduced copy of its input: meaning needs fewer pixels than edges do."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

UNKNOWN = 0.5
"""Value of the unknown region in a trimap tensor; 0 is background, 1 foreground."""


def reduced_features(backbone: nn.Module, network_input: Tensor, scale: float, stride: int) -> Tensor:
    """Compute a backbone's features from a reduced copy, resampled to the grid of the input.

    Args:
        backbone: (B, 4, H, W) -> (B, D, H / stride, W / stride).
        network_input: (B, 4, H, W), see `ViTMatte.network_input`; sides multiples of the stride.
        scale: size of the copy, above 0 and below 1. Its sides are rounded to multiples of the stride, at least one.
        stride: of the backbone, in pixels.

    Returns: (B, D, H / stride, W / stride), bilinear between the copy's features.
    """
    height, width = network_input.shape[-2:]
    copy_height, copy_width = (max(1, round(scale * side / stride)) * stride for side in (height, width))
    features = backbone(reduce_input(network_input, (copy_height, copy_width)))
    return F.interpolate(features, (height // stride, width // stride), mode="bilinear", align_corners=False)


def reduce_input(network_input: Tensor, sides: tuple[int, int]) -> Tensor:
    """Reduce an input (B, 4, H, W) to (B, 4, *sides): the image by area, the trimap so that unknown wins.

    A pixel of the copy is known only where all pixels that it covers are known and equal.
    """
    image, trimap = network_input.split((3, 1), dim=1)
    most, least = F.adaptive_max_pool2d(trimap, sides), -F.adaptive_max_pool2d(-trimap, sides)
    reduced_trimap = torch.where(most == least, most, UNKNOWN)
    reduced = torch.cat((F.adaptive_avg_pool2d(image, sides), reduced_trimap), dim=1)
    return reduced.contiguous(memory_format=torch.channels_last)
