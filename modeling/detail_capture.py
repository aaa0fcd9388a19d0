"""The decoder of ViTMatte: a light convolution stream adds fine detail to the backbone's map."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling.activation_checkpointing import maybe_checkpoint
from runtime.errors import ConfigError, check_minimum


class ConvBlock(nn.Module):
    """3x3 convolution without bias, BatchNorm, ReLU."""

    def __init__(self, in_chans: int, out_chans: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, out_chans, 3, stride=stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(out_chans)

    def forward(self, x: Tensor) -> Tensor:
        return self.normalise(self.conv(x))

    def normalise(self, x: Tensor) -> Tensor:
        """Apply BatchNorm and ReLU to the output of the convolution."""
        return F.relu(self.bn(x), inplace=True)


class ConvStream(nn.Module):
    """Apply convolutions of stride 2 to the network's input, each through `maybe_checkpoint`."""

    def __init__(self, in_chans: int, out_chans: Sequence[int]) -> None:
        super().__init__()
        chans = [in_chans, *out_chans]
        self.convs = nn.ModuleList(ConvBlock(a, b, stride=2) for a, b in zip(chans[:-1], chans[1:], strict=True))

    def forward(self, x: Tensor, is_recomputed: bool = False) -> list[Tensor]:
        """Compute the maps at strides 1 (the input itself), 2, 4 ... of an input (B, C, H, W)."""
        maps = [x]
        for conv in self.convs:
            maps.append(maybe_checkpoint(is_recomputed, conv, maps[-1]))
        return maps


class FusionBlock(nn.Module):
    """Enlarge the coarser map twofold (bilinear), append it to the finer one and convolve both.

    Each map is convolved with its part of the weight, and the two results are added. Up to rounding this equals one
    convolution of the joined map. The joined map, the largest of the network at full resolution, is never in memory.
    """

    def __init__(self, in_chans: int, out_chans: int) -> None:
        super().__init__()
        self.conv = ConvBlock(in_chans, out_chans, stride=1)

    def forward(self, features: Tensor, detail: Tensor) -> Tensor:
        """Fuse maps (B, C, h, w) and (B, C', 2h, 2w) into (B, out_chans, 2h, 2w)."""
        enlarged = F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
        conv = self.conv.conv
        fine, coarse = conv.weight.split((detail.shape[1], features.shape[1]), dim=1)
        convolved = F.conv2d(enlarged, coarse, conv.bias, padding=1)  # the bias: BatchNorm, fused for inference
        convolved += F.conv2d(detail, fine, padding=1)
        return self.conv.normalise(convolved)


class MattingHead(nn.Module):
    """Map the finest features to the logit of alpha by two convolutions."""

    def __init__(self, in_chans: int, mid_chans: int = 16) -> None:
        super().__init__()
        self.matting_convs = nn.Sequential(
            nn.Conv2d(in_chans, mid_chans, 3, padding=1),
            nn.BatchNorm2d(mid_chans),
            nn.ReLU(inplace=True),
            nn.Conv2d(mid_chans, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.matting_convs(x)


class DetailCapture(nn.Module):
    """Predict alpha from the backbone's map and the input, as ViTMatte's decoder does (arXiv:2305.15272).

    Parameter names are those of the published checkpoints.

    Args:
        in_chans: channels of the backbone's map.
        image_chans: channels of the network's input, which the last fusion takes unchanged.
        convstream_chans: channels at strides 2, 4, 8 ...
        fusion_chans: outputs of the fusions, coarse to fine: one more than the stream has convolutions.
        use_activation_checkpointing: recompute each convolution of the stream, each fusion and the head in the backward
            pass instead of storing their activations.
    """

    def __init__(
        self,
        in_chans: int,
        image_chans: int = 4,
        convstream_chans: Sequence[int] = (48, 96, 192),
        fusion_chans: Sequence[int] = (256, 128, 64, 32),
        use_activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if len(fusion_chans) != len(convstream_chans) + 1:
            raise ConfigError(
                f"fusion_chans needs one entry more than convstream_chans, got {len(fusion_chans)} and "
                f"{len(convstream_chans)}"
            )
        check_minimum(1, in_chans=in_chans, image_chans=image_chans)
        check_minimum(1, convstream_chans=convstream_chans, fusion_chans=fusion_chans)
        self.stride = 2 ** len(fusion_chans)
        self.use_activation_checkpointing = use_activation_checkpointing
        self.convstream = ConvStream(image_chans, convstream_chans)
        detail_chans = [*reversed(convstream_chans), image_chans]
        coarse_chans = [in_chans, *fusion_chans[:-1]]
        self.fusion_blks = nn.ModuleList(
            FusionBlock(coarse + detail, out)
            for coarse, detail, out in zip(coarse_chans, detail_chans, fusion_chans, strict=True)
        )
        self.matting_head = MattingHead(fusion_chans[-1])

    def forward(self, features: Tensor, image: Tensor) -> Tensor:
        """Predict alpha from features and the network's input.

        Args:
            features: (B, in_chans, H / stride, W / stride) from the backbone.
            image: (B, image_chans, H, W), the network's input.

        Returns: (B, 1, H, W) float32 in [0, 1]; float64 from such weights.
        """
        is_recomputed = self.use_activation_checkpointing and self.training
        details = self.convstream(image, is_recomputed)
        for fusion, detail in zip(self.fusion_blks, reversed(details), strict=True):
            features = maybe_checkpoint(is_recomputed, fusion, features, detail)
        logits = maybe_checkpoint(is_recomputed, self.matting_head, features)
        return torch.sigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32)))
