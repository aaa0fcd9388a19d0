"""The base of training data sets: samples by (epoch, index), each with its own random numbers."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from data.augment.transforms import Sample
from data.loader.sampler import Key
from data.validation import check_number

TONES_STREAM = 1
DEGRADATION_STREAM = 2
"""Fourth part of the seed of separate random generators: switching one on moves no other draw. Not 0, which NumPy
treats as if it were absent."""


class TrainingSet(Dataset):
    """Base of the training data sets: a sample depends only on (seed, epoch, index), not on its worker.

    Items: `dataset[epoch, index]` with 0 <= index < `samples_per_epoch` is a dict of float32 tensors in [0, 1]:
        "image" (3, S, S) RGB, "trimap" (1, S, S) in {0, 0.5, 1} and "alpha" (1, S, S).

    Args:
        samples_per_epoch: length of an epoch, at least 1.
        crop_px: side S of a sample, at least 1.
        seed: of everything random.

    Raises:
        ConfigError: a value out of its range.
    """

    def __init__(self, samples_per_epoch: int, crop_px: int, seed: int) -> None:
        check_number("samples_per_epoch", samples_per_epoch, 1, is_whole=True)
        check_number("crop_px", crop_px, 1, is_whole=True)
        check_number("seed", seed, 0, is_whole=True)
        self.samples_per_epoch = samples_per_epoch
        self.crop_px = crop_px
        self.seed = seed

    def __len__(self) -> int:
        return self.samples_per_epoch

    def generator(self, key: Key, *stream: int) -> np.random.Generator:
        """Make the random generator of a sample, or one of its separate ones."""
        return np.random.default_rng([self.seed, *key, *stream])

    def turn(self, key: Key, count: int) -> int:
        """Return which of `count` files a sample takes: they take turns through the epochs."""
        epoch, index = key
        return (epoch * self.samples_per_epoch + index) % count


def as_item(sample: Sample) -> dict[str, Tensor]:
    """Turn the arrays (H, W, C) that a run needs into tensors."""
    return {name: as_tensor(sample[name]) for name in ("image", "trimap", "alpha")}


def as_tensor(image: NDArray) -> Tensor:
    """View (H, W) or (H, W, C) as a tensor (C, H, W), channels last in memory; the collation copies it in order."""
    return torch.from_numpy(np.ascontiguousarray(np.atleast_3d(image))).permute(2, 0, 1)
