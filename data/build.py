"""Loaders: an endless seeded stream of training samples, and one pass over a test set, both shared out to ranks."""

from collections.abc import Iterator
from functools import lru_cache
from itertools import count

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed
from torch.utils.data import DataLoader, Dataset, Sampler


class InfiniteSampler(Sampler[tuple[int, int]]):
    """Endless keys (epoch, index), every index once an epoch, shuffled anew by (seed, epoch).

    The stream is one for all ranks: iteration i takes its positions from start + i B W on, and rank r the r-th slice of
    B of them. Position p of the stream is the same sample for any number of ranks, batch size and workers.

    Args:
        size: samples in an epoch.
        batch_size: B, samples of one rank and iteration.
        seed: of the order.
        rank: r, this process among all.
        world_size: W, number of processes.
        start: position to begin at, samples already drawn over all ranks; may be set before iterating.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, start: int = 0
    ) -> None:
        if size < 1 or batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"cannot sample with {size=}, {batch_size=}, {rank=}, {world_size=}: counts start at 1")
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start = start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for first in count(self.start + self.rank * self.batch_size, self.batch_size * self.world_size):
            for position in range(first, first + self.batch_size):
                epoch, place = divmod(position, self.size)
                yield epoch, int(epoch_order(self.size, self.seed, epoch)[place])


@lru_cache(maxsize=2)  # a batch may straddle two epochs
def epoch_order(size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Shuffle 0 to size - 1 for one epoch."""
    return np.random.default_rng([seed, epoch]).permutation(size)


def build_train_loader(dataset: Dataset, batch_size: int, num_workers: int, seed: int) -> DataLoader:
    """Build the endless loader of training batches of this process.

    Args:
        dataset: items keyed by (epoch, index), with a length.
        batch_size: samples per process and iteration.
        num_workers: processes that make samples; 0 makes them in this one.
        seed: of the order.

    Returns: a loader without length; set `loader.sampler.start` before iterating to go on in the middle of the stream.
    """
    rank, world_size = rank_and_world_size()
    size = len(dataset)  # type: ignore[arg-type]  # Dataset itself promises no length
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=InfiniteSampler(size, batch_size, seed, rank, world_size),
        num_workers=num_workers,
        worker_init_fn=prepare_worker,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(seed),  # or the loader would draw from the global generator
    )


def build_test_loader(dataset: Dataset, num_workers: int) -> DataLoader:
    """Build a loader of single images, in order; rank r of W takes images r, r + W, ..., so none comes twice."""
    rank, world_size = rank_and_world_size()
    size = len(dataset)  # type: ignore[arg-type]  # Dataset itself promises no length
    return DataLoader(
        dataset,
        batch_size=1,
        sampler=range(rank, size, world_size),
        num_workers=num_workers,
        worker_init_fn=prepare_worker,
        generator=torch.Generator(),
    )


def prepare_worker(worker_id: int) -> None:
    """Keep OpenCV of a worker to one thread: its pool does not survive a fork, and workers share the cores already."""
    cv2.setNumThreads(0)


def rank_and_world_size() -> tuple[int, int]:
    """Ask torch.distributed; (0, 1) where it is not in use."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
