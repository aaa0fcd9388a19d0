"""The endless, seeded order of samples, and how ranks share it."""

from collections.abc import Iterator
from functools import lru_cache
from itertools import count

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from runtime.errors import ConfigError

Key = tuple[int, int]
"""(epoch, index) of a sample, 0 <= index < samples in an epoch."""


class InfiniteSampler(Sampler[Key]):
    """Yield keys (epoch, index) without end: every index once an epoch, in an order shuffled by (seed, epoch).

    All ranks share one sample order. Iteration i takes the positions from start + i B W on, and rank r the r-th slice
    of B of them. Position p is the same sample for any number of ranks, batch size and workers.

    `start` is the first position, the number of samples already drawn by all ranks: 0, and to be set before iterating.

    Args:
        size: samples in an epoch.
        batch_size: B, samples of one rank and iteration.
        seed: of the order.
        rank: r, this process among all.
        world_size: W, number of processes.
    """

    def __init__(self, size: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if size < 1 or batch_size < 1 or not 0 <= rank < world_size:
            raise ConfigError(f"cannot sample with {size=}, {batch_size=}, {rank=}, {world_size=}: counts start at 1")
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start = 0

    def __iter__(self) -> Iterator[Key]:
        for first in count(self.start + self.rank * self.batch_size, self.batch_size * self.world_size):
            for position in range(first, first + self.batch_size):
                yield key_at(position, self.size, self.seed)


def key_at(position: int, size: int, seed: int) -> Key:
    """Return the key at a position of the sample order, in epochs of `size` samples."""
    epoch, place = divmod(position, size)
    return epoch, int(epoch_order(size, seed, epoch)[place])


def key_after(key: Key, size: int, seed: int) -> Key:
    """Return the key that follows another in the sample order."""
    epoch, index = key
    place = int(np.flatnonzero(epoch_order(size, seed, epoch) == index)[0])
    return key_at(epoch * size + place + 1, size, seed)


@lru_cache(maxsize=2)  # a batch may straddle two epochs
def epoch_order(size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Shuffle 0 to size - 1 for one epoch."""
    return np.random.default_rng([seed, epoch]).permutation(size)
