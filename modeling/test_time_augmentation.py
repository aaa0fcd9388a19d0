"""Test-time augmentation: average alpha over mirrored, rotated and resized copies of an image."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling.vitmatte import UNKNOWN, paste_known
from runtime.errors import ConfigError

MAX_SCALE = 8.0

ROUNDING = 1e-5
"""A value of a resized trimap that is this close to 0 or 1 counts as known."""

Predict = Callable[[Tensor, Tensor], Tensor]
"""Image (B, 3, H, W) and trimap (B, 1, H, W) of {0, 0.5, 1} -> alpha (B, 1, H, W) in [0, 1]."""


class AverageViews:
    """Average a network's predictions over transformed copies of an image; `len` is the number of forward passes.

    Args:
        flips: add the mirror image of each copy.
        rotations: by 0, 90, 180 and 270 degrees; with flips these are the eight symmetries of a square.
        scales: factors of both sides, above 0 and up to `MAX_SCALE`; each copy is predicted at each scale.

    Raises:
        ConfigError: no scale, or one out of range.
    """

    def __init__(self, flips: bool = False, rotations: bool = False, scales: Sequence[float] = (1.0,)) -> None:
        self.scales = [float(scale) for scale in scales]
        if not self.scales or not all(0 < scale <= MAX_SCALE for scale in self.scales):
            raise ConfigError(f"scales of views must be above 0 and at most {MAX_SCALE:g}, got {self.scales}")
        self.turns = list(itertools.product(range(4 if rotations else 1), (False, True) if flips else (False,)))

    @classmethod
    def parse(cls, text: str) -> "AverageViews":
        """Read "flips", "rotations" and scales from comma-separated text, such as "flips,rotations,0.75,1".

        Raises:
            ConfigError: another word, or scales as above.
        """
        words = [word.strip() for word in text.split(",")]
        names = {"flips", "rotations"}
        try:
            scales = [float(word) for word in words if word not in names]
        except ValueError as error:
            raise ConfigError(f"expected flips, rotations and scales with commas between them, got {text!r}") from error
        return cls("flips" in words, "rotations" in words, scales or (1.0,))

    def __len__(self) -> int:
        return len(self.turns) * len(self.scales)

    @property
    def is_image_alone(self) -> bool:
        """Tell whether there is nothing to average."""
        return len(self) == 1 and self.scales == [1.0]

    def __call__(self, predict: Predict, image: Tensor, trimap: Tensor) -> Tensor:
        """Predict the average alpha.

        Args:
            predict: a network.
            image: (B, 3, H, W) in [0, 1].
            trimap: (B, 1, H, W) of {0, 0.5, 1}.

        Returns: (B, 1, H, W) in [0, 1], on the network's device, with 0 and 1 where the trimap knows them.
        """
        if self.is_image_alone:
            return paste_known(predict(image, trimap), trimap)  # without the copies that averaging takes
        size = image.shape[-2:]
        total: Tensor | None = None
        for scale in self.scales:
            image_scaled, trimap_scaled = image, trimap
            if scale != 1.0:
                scaled = [max(1, math.floor(side * scale + 0.5)) for side in size]
                image_scaled, trimap_scaled = resize(image, scaled), resize_trimap(trimap, scaled)
            for turns, is_flipped in self.turns:
                alpha = predict(*(turn(x, turns, is_flipped) for x in (image_scaled, trimap_scaled)))
                alpha = turn_back(alpha, turns, is_flipped)
                alpha = alpha if scale == 1.0 else resize(alpha, size)
                total = alpha if total is None else total + alpha
        assert total is not None
        return paste_known((total / len(self)).clamp(0, 1), trimap)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return a model that predicts the average in evaluation mode, or the model itself for a single pass."""
        return model if self.is_image_alone else _Averaged(model, self)


class _Averaged(nn.Module):
    """Run a `ViTMatte` through `AverageViews`."""

    def __init__(self, model: nn.Module, views: AverageViews) -> None:
        super().__init__()
        self.model, self.views = model, views

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predict as `ViTMatte` does in evaluation mode."""

        def predict(image: Tensor, trimap: Tensor) -> Tensor:
            return self.model({"image": image, "trimap": trimap})["pred_alpha"]

        return {"pred_alpha": self.views(predict, batch["image"], batch["trimap"])}


def turn(x: Tensor, turns: int, is_flipped: bool) -> Tensor:
    """Rotate (..., H, W) by a number of quarter turns, then mirror it left to right."""
    x = x.rot90(turns, (-2, -1)) if turns else x
    return x.flip(-1) if is_flipped else x


def turn_back(x: Tensor, turns: int, is_flipped: bool) -> Tensor:
    """Undo `turn`."""
    return (x.flip(-1) if is_flipped else x).rot90(-turns, (-2, -1))


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (B, C, H, W) to another (H, W), bilinear and antialiased."""
    return F.interpolate(x, size=list(size), mode="bilinear", antialias=True)


def resize_trimap(trimap: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (B, 1, H, W) of {0, 0.5, 1}; a pixel is known if all of its source pixels are known and equal.

    The network's alpha of known pixels can be anything. So none of it may reach an unknown pixel when alpha is resized
    back.
    """
    resized = resize(trimap, size)
    unknown = torch.full_like(resized, UNKNOWN)
    return torch.where(resized < ROUNDING, 0.0, torch.where(resized > 1 - ROUNDING, 1.0, unknown))
