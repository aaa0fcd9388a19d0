"""The four losses of ViTMatte. Each is a mean over its region, so it does not depend on the size of the crops."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.errors import ConfigError, UserError

PYRAMID_LEVELS = 5
MIN_SIDE_PX = 4 * 2 ** (PYRAMID_LEVELS - 1)
"""Reflect padding by 2 needs a side of 3 px on the coarsest level. Sides are even there, hence 4."""

AREAS = ("image", "batch")
"""What a region's area is counted over, see `MattingCriterion`."""

LOSS_NAMES = ("loss_unknown_l1", "loss_known_l1", "loss_laplacian", "loss_gradient")


class MattingCriterion(nn.Module):
    """Compute the weighted losses of ViTMatte (arXiv:2305.15272).

    Laplacian pyramid and Sobel filters are linear, so they run once, on the difference of prediction and ground truth.

    Args:
        weights: loss name -> weight, every name of `LOSS_NAMES`; all 1 by default.
        area: "image" divides the sum over a region by the region's area in each image, then averages the images. Each
            image weighs alike, and the split of a batch into forward passes and ranks does not matter. "batch" divides
            by the area in all images of one forward pass, as the published ViTMatte does. Each pixel weighs alike, and
            the split matters: each forward pass of each rank counts its own area. The Laplacian loss covers whole
            images and is the same in both.
        pastes_known: whether known pixels of the prediction are replaced by the ground truth before all losses, since
            inference replaces them too. No training is then spent on copying the trimap; `loss_known_l1` is 0.

    Raises:
        ConfigError: other names of losses, or an unknown area.
    """

    gaussian: Tensor
    sobel: Tensor

    def __init__(
        self, weights: Mapping[str, float] | None = None, area: str = "image", pastes_known: bool = False
    ) -> None:
        super().__init__()
        if area not in AREAS:
            raise ConfigError(f"area must be {' or '.join(AREAS)}, got {area!r}")
        self.area, self.pastes_known = area, pastes_known
        self.weights = dict.fromkeys(LOSS_NAMES, 1.0) if weights is None else dict(weights)
        if set(self.weights) != set(LOSS_NAMES):
            raise ConfigError(f"weights must name exactly {sorted(LOSS_NAMES)}, got {sorted(self.weights)}")
        binomial = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16.0
        self.register_buffer("gaussian", torch.outer(binomial, binomial)[None, None], persistent=False)
        sobel_x = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
        self.register_buffer("sobel", torch.stack((sobel_x, sobel_x.T))[:, None], persistent=False)

    def forward(self, pred_alpha: Tensor, alpha: Tensor, trimap: Tensor) -> dict[str, Tensor]:
        """Compute the losses of a batch, in float32 or wider, also under autocast.

        Args:
            pred_alpha: (B, 1, H, W) in [0, 1], sides of at least `MIN_SIDE_PX`.
            alpha: (B, 1, H, W) ground truth in [0, 1].
            trimap: (B, 1, H, W) of {0, 0.5, 1}.

        Returns: loss name -> weighted scalar. A loss whose region is empty, in an image or in the batch, is 0
            there.
        """
        if not pred_alpha.shape == alpha.shape == trimap.shape:
            raise ValueError(
                f"prediction, alpha and trimap differ in shape: {tuple(pred_alpha.shape)}, {tuple(alpha.shape)}, "
                f"{tuple(trimap.shape)}"
            )
        if min(alpha.shape[-2:]) < MIN_SIDE_PX:
            raise UserError(f"the Laplacian loss needs sides of at least {MIN_SIDE_PX} px, got {alpha.shape[-2:]}")
        with torch.autocast(alpha.device.type, enabled=False):
            dtype = torch.promote_types(pred_alpha.dtype, torch.float32)
            pred_alpha, alpha = pred_alpha.to(dtype), alpha.to(dtype)
            is_unknown = trimap == 0.5
            if self.pastes_known:
                pred_alpha = torch.where(is_unknown, pred_alpha, alpha)
            difference = pred_alpha - alpha
            unknown = is_unknown.to(dtype)
            losses = {
                "loss_unknown_l1": self._region_mean(difference.abs(), unknown),
                "loss_known_l1": self._region_mean(difference.abs(), 1.0 - unknown),
                "loss_laplacian": self._laplacian(difference),
                "loss_gradient": self._gradient(difference, pred_alpha, unknown),
            }
            return {name: self.weights[name] * loss.mean() for name, loss in losses.items()}

    def _laplacian(self, difference: Tensor) -> Tensor:
        """Sum 2^level / levels times the mean absolute Laplacian over the levels -> (B,)."""
        loss = difference.new_zeros(len(difference))
        current = difference
        for level in range(PYRAMID_LEVELS):
            current = current[..., : current.shape[-2] // 2 * 2, : current.shape[-1] // 2 * 2]
            smaller = self._blur(current)[..., ::2, ::2]
            spread = torch.zeros_like(current)
            spread[..., ::2, ::2] = 4.0 * smaller  # three of four pixels are 0
            laplacian = current - self._blur(spread)
            loss = loss + 2.0**level / PYRAMID_LEVELS * laplacian.abs().mean(dim=(1, 2, 3))
            current = smaller
        return loss

    def _blur(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), self.gaussian.to(x.dtype))

    def _gradient(self, difference: Tensor, pred_alpha: Tensor, unknown: Tensor) -> Tensor:
        """Add L1 of the difference's gradient and 0.01 of the prediction's, x and y summed -> (B,) or ()."""
        sobel = self.sobel.to(difference.dtype)
        gradients = F.conv2d(difference, sobel, padding=1).abs() + 0.01 * F.conv2d(pred_alpha, sobel, padding=1).abs()
        return self._region_mean(gradients.sum(dim=1, keepdim=True), unknown)

    def _region_mean(self, values: Tensor, region: Tensor) -> Tensor:
        """Average (B, 1, H, W) values over a region of zeros and ones -> (B,) per image, () over the batch."""
        dims = (1, 2, 3) if self.area == "image" else (0, 1, 2, 3)
        return (values * region).sum(dim=dims) / region.sum(dim=dims).clamp(min=1.0)
