"""The complete network: normalise, pad, run backbone and decoder, then return losses or the cropped alpha."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.errors import ConfigError, UserError

UNKNOWN = 0.5
"""Value of the unknown region in a trimap tensor; 0 is background, 1 foreground."""

MAX_SIZE_DIVISIBILITY = 1024
"""In pixels; more would pad a small image to what no memory holds."""

PADDINGS = ("edge", "zero", "zero_hustvl")
"""How an image is extended at its right and lower border until its sides are multiples of `size_divisibility`.

- edge: the border pixels are repeated. The recipes of this project.
- zero: zeros follow the normalised image, as in transformers' `VitMatteImageProcessor`.
- zero_hustvl: the same zeros, as in hustvl's ViTMatte. If one side is ragged, an aligned side grows by a full multiple.
"""


class ViTMatte(nn.Module):
    """Predict alpha from image and trimap with a plain vision transformer (arXiv:2305.15272).

    Args:
        backbone: (B, 4, H, W) -> (B, D, H / 16, W / 16).
        decoder: that map and the (B, 4, H, W) input -> alpha (B, 1, H, W).
        criterion: (pred_alpha, alpha, trimap) -> losses by name; needed for training only.
        pixel_mean: per RGB channel, in [0, 1].
        pixel_std: per RGB channel. The trimap channel is not normalised.
        size_divisibility: sides are padded up to the next multiple of this many pixels, 1 to 1024.
        padding: one of `PADDINGS`; use the one that the weights were trained with.
        num_frozen_blocks: see `freeze`, as for `freeze_patch_embed`.
        backbone_scale_range: least and largest size of the copy that the backbone sees, above 0 to 1; the decoder
            always sees all pixels. In training, each batch draws its size uniformly by torch's generator. The trainer
            seeds this generator for each batch, so that a resume draws the same sizes. Two equal numbers draw nothing,
            and 1 is the plain network. Evaluation takes the largest size. See `reduced_features`.

    Raises:
        ConfigError: a size_divisibility out of range, an unknown padding, a pixel_std that is not above 0, more frozen
            blocks than blocks, patches of another size than the decoder takes, a scale out of range.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        decoder: nn.Module,
        criterion: nn.Module | None = None,
        pixel_mean: Sequence[float] = (0.485, 0.456, 0.406),
        pixel_std: Sequence[float] = (0.229, 0.224, 0.225),
        size_divisibility: int = 32,
        padding: str = "edge",
        num_frozen_blocks: int = 0,
        freeze_patch_embed: bool = False,
        backbone_scale_range: Sequence[float] = (1.0, 1.0),
    ) -> None:
        super().__init__()
        if not 1 <= size_divisibility <= MAX_SIZE_DIVISIBILITY:
            raise ConfigError(f"size_divisibility must be 1 to {MAX_SIZE_DIVISIBILITY} px, got {size_divisibility}")
        if padding not in PADDINGS:
            raise ConfigError(f"padding must be {', '.join(PADDINGS[:-1])} or {PADDINGS[-1]}, got {padding!r}")
        if len(pixel_mean) != 3 or len(pixel_std) != 3:
            raise ConfigError(f"pixel_mean and pixel_std need 3 values, got {list(pixel_mean)} and {list(pixel_std)}")
        if not all(value > 0 for value in pixel_std):
            raise ConfigError(f"pixel_std must be above 0, got {list(pixel_std)}")
        check_scale_range(backbone_scale_range)
        check_stride(backbone, decoder)
        freeze(backbone, num_frozen_blocks, freeze_patch_embed)
        self.backbone = backbone
        self.decoder = decoder
        self.criterion = criterion
        self.size_divisibility = size_divisibility
        self.padding = padding
        self.backbone_scale_range = tuple(backbone_scale_range)
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(list(values)).view(3, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(
        self, batch: Mapping[str, Tensor], compute: Callable[["ViTMatte", Tensor], Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Compute losses in training mode, alpha in evaluation mode.

        Args:
            batch: "image" (B, 3, H, W) RGB in [0, 1], not normalised; "trimap" (B, 1, H, W) of {0, 0.5, 1}; for
                training also "alpha" (B, 1, H, W) in [0, 1]. On any device; nothing in it is changed.
            compute: runs backbone and decoder in another way, on tiles for example. It takes this network and the
                output of `network_input`, and returns alpha (B, 1, H', W'). None runs them on the whole image.

        Returns: in training the criterion's losses by name; else {"pred_alpha": (B, 1, H, W) float32 in [0, 1]}, with 0
            and 1 where the trimap knows them.

        Raises:
            ValueError: for shapes other than these.
        """
        image, trimap = (batch[name].to(self.device, non_blocking=True) for name in ("image", "trimap"))
        if image.dim() != 4 or image.shape[1] != 3 or trimap.shape != (len(image), 1, *image.shape[-2:]):
            raise ValueError(
                "expected image (B, 3, H, W) and trimap (B, 1, H, W) of one size, got "
                f"{tuple(image.shape)} and {tuple(trimap.shape)}"
            )
        height, width = image.shape[-2:]
        network_input = self.network_input(image, trimap)
        if compute is None:
            pred_alpha = self.decoder(self.features(network_input), network_input)
        else:
            pred_alpha = compute(self, network_input)
        pred_alpha = pred_alpha[..., :height, :width]
        if not self.training:
            return {"pred_alpha": paste_known(pred_alpha, trimap)}
        if self.criterion is None:
            raise UserError("this model was built without a criterion, so it can only be evaluated: call .eval()")
        return self.criterion(pred_alpha, batch["alpha"].to(self.device, non_blocking=True), trimap)

    def features(
        self, network_input: Tensor, query_mask: Tensor | None = None, backbone_scale: float | None = None
    ) -> Tensor:
        """Run the backbone, on a reduced copy if the scale is below 1.

        Args:
            network_input: (B, 4, H, W), see `network_input`.
            query_mask: of the backbone, if it has one; a reduced copy computes all features.
            backbone_scale: size of the copy. None follows `backbone_scale_range`, which also bounds it.

        Returns: (B, D, H / stride, W / stride).
        """
        least, scale = self.backbone_scale_range
        if self.training and least < scale:
            scale = least + (scale - least) * float(torch.rand(()))
        if backbone_scale is not None:
            scale = min(scale, backbone_scale)
        if scale < 1:
            decoder: Any = self.decoder
            return reduced_features(self.backbone, network_input, scale, decoder.stride)
        return self.backbone(network_input, *(() if query_mask is None else (query_mask,)))

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width in pixels that `network_input` pads an image to.

        It does not branch on the sides, so the ONNX exporter can trace it for every size.
        """
        side = self.size_divisibility
        if self.padding != "zero_hustvl":
            return (height + side - 1) // side * side, (width + side - 1) // side * side
        is_ragged = (height % side + width % side + 2 * side - 1) // (2 * side)  # 0 or 1
        return (height // side + is_ragged) * side, (width // side + is_ragged) * side

    def network_input(self, image: Tensor, trimap: Tensor) -> Tensor:
        """Normalise and pad image and trimap for backbone and decoder.

        Args:
            image: (B, 3, H, W) RGB in [0, 1], on the model's device.
            trimap: (B, 1, H, W) of {0, 0.5, 1}, on the model's device.

        Returns: (B, 4, H', W'), padded at the right and lower border to `padded_size`. The image is padded by
            `padding`, the trimap with 0.
        """
        height, width = self.padded_size(*image.shape[-2:])
        margins = (0, width - image.shape[-1], 0, height - image.shape[-2])
        image = (image - self.pixel_mean) / self.pixel_std
        image = F.pad(image, margins, mode="replicate" if self.padding == "edge" else "constant")
        trimap = F.pad(trimap, margins)
        x = torch.cat((image, trimap.to(image.dtype)), dim=1)
        return x.contiguous(memory_format=torch.channels_last)


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


def check_scale_range(scale_range: Any) -> None:
    """Raise a ConfigError unless a `backbone_scale_range` is two ascending numbers above 0 and up to 1."""
    is_pair = isinstance(scale_range, Sequence) and len(scale_range) == 2
    is_pair = is_pair and all(isinstance(scale, int | float) for scale in scale_range)
    if not (is_pair and 0 < scale_range[0] <= scale_range[1] <= 1):
        raise ConfigError(f"backbone_scale_range must be two ascending sizes above 0 and up to 1, got {scale_range!r}")


def check_stride(backbone: nn.Module, decoder: nn.Module) -> None:
    """Raise a ConfigError if a backbone's patch size, where it has one, is not the factor of the decoder."""
    patch_px = getattr(getattr(backbone, "patch_embed", None), "patch_size", None)
    stride = getattr(decoder, "stride", patch_px)
    if patch_px not in (None, stride):
        raise ConfigError(
            f"the decoder enlarges {stride} times, so patch_size must be {stride}, got {patch_px}: preprocess.py "
            "resamples DINOv2's patches of 14 px to 16"
        )


def paste_known(alpha: Tensor, trimap: Tensor) -> Tensor:
    """Set alpha (B, 1, H, W) to 0 and 1 on the known pixels of a trimap of that shape, on any device."""
    trimap = trimap.to(alpha)
    return torch.where(trimap == UNKNOWN, alpha, trimap)


def freeze(backbone: nn.Module, num_blocks: int = 0, patch_embed: bool = False) -> None:
    """Exclude parts of a backbone from training: no gradients, no optimiser state, no all-reduce.

    If the patch embedding and the first blocks are frozen, they store nothing for the backward pass.

    Args:
        backbone: with `patch_embed`, `blocks` and, as its own parameters, tokens and positions.
        num_blocks: number of first blocks to freeze, with the necks at their ends. A fresh neck stays the identity.
        patch_embed: freeze the patch embedding, tokens and absolute positions. The embedding of a published DINOv3
            network has zeros for the trimap. If it is frozen, only the decoder sees the trimap.

    Raises:
        ConfigError: for fewer blocks than 0 or more than there are.
    """
    vit: Any = backbone
    blocks = getattr(vit, "blocks", ())
    if not 0 <= num_blocks <= len(blocks):
        raise ConfigError(f"num_frozen_blocks must be 0 to {len(blocks)}, the backbone's depth, got {num_blocks}")
    for block in blocks[:num_blocks]:
        block.requires_grad_(False)
    if patch_embed:
        for parameter in (*vit.patch_embed.parameters(), *vit.parameters(recurse=False)):
            parameter.requires_grad_(False)
