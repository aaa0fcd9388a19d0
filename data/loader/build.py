"""Build loaders: endless training samples in a seeded order, and one pass over a test set, both split over ranks."""

import signal
from functools import partial

import cv2
import torch
from torch import distributed
from torch.utils.data import DataLoader, Dataset

from data.loader.bad_samples import SkipBadSamples, collate
from data.loader.sampler import InfiniteSampler
from data.validation import check_number


def build_train_loader(
    dataset: Dataset,
    batch_size: int,
    num_workers: int,
    seed: int,
    prefetch_factor: int = 2,
    on_fault: str = "replace",
) -> DataLoader:
    """Build the endless loader of training batches of this process.

    Args:
        dataset: items keyed by (epoch, index), dicts of tensors, with a length.
        batch_size: samples per process and iteration.
        num_workers: processes that make samples, kept for the complete run; 0 makes samples in this process.
        seed: of the order.
        prefetch_factor: batches that each worker prepares. With 2, one is made while one waits, which evens out slow
            samples. More takes memory and is no faster on average.
        on_fault: "replace" bad samples by the next in the sample order, or "raise"; see `SkipBadSamples`.

    Returns: a loader without length. To continue in the middle of the sample order, set `loader.sampler.start` before
        iterating. Its `dataset` gives single samples by key, and always raises if one cannot be read.

    Raises:
        ConfigError: a count that is not a whole number or out of range, or another `on_fault`.
    """
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("num_workers", num_workers, 0),
        ("seed", seed, 0),
        ("prefetch_factor", prefetch_factor, 1),
    ):
        check_number(f"dataloader.train.{name}", value, least, is_whole=True)
    rank, world_size = rank_and_world_size()
    batches = SkipBadSamples(dataset, seed, on_fault)
    return DataLoader(
        batches,
        batch_size=batch_size,
        sampler=InfiniteSampler(len(batches), batch_size, seed, rank, world_size),
        num_workers=num_workers,
        collate_fn=collate,
        worker_init_fn=partial(prepare_worker, world_size=world_size),
        persistent_workers=num_workers > 0,
        prefetch_factor=prefetch_factor if num_workers > 0 else None,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(seed),  # or the loader would draw from the global generator
    )


def build_test_loader(dataset: Dataset, num_workers: int) -> DataLoader:
    """Build a loader of single images, in order. Rank r of W takes images r, r + W and so on: each image comes once.

    Raises:
        ConfigError: `num_workers` is not a whole number of at least 0.
    """
    check_number("dataloader.test.num_workers", num_workers, 0, is_whole=True)
    rank, world_size = rank_and_world_size()
    size = len(dataset)  # type: ignore[arg-type]  # Dataset itself promises no length
    return DataLoader(
        dataset,
        batch_size=1,
        sampler=range(rank, size, world_size),
        num_workers=num_workers,
        worker_init_fn=partial(prepare_worker, world_size=world_size),
        generator=torch.Generator(),
    )


def prepare_worker(worker_id: int, world_size: int) -> None:
    """Limit OpenCV in a worker to one thread, and choose what Ctrl-C does to it.

    OpenCV's thread pool does not survive a fork, and the workers share the cores already. Ctrl-C reaches all processes.
    A single training process handles it, and its workers end with it. With several ranks, a rank ends at once, and so
    do its workers.
    """
    cv2.setNumThreads(0)
    if world_size == 1:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    elif signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as the shell of a background job asks
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def rank_and_world_size() -> tuple[int, int]:
    """Return rank and world size of torch.distributed; (0, 1) if it is not in use."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
