"""Thousands of samples through workers that live long or end at random: no sample differs, and no process grows.

    make soak-data

prints the memory of the processes along the way, and ends with status 1 where a sample differs from what this process
makes by itself, or where a process has grown by more than 50 MB since its warm-up. Linux only: memory is of /proc.
"""

import argparse
import hashlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import cv2
import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from data.augment.random_crop import DrawView
from data.datasets.composition import CompositionDataset
from data.loader import build
from data.loader.sampler import key_at

MAX_GROWTH_MB = 50
WARM_UP_SAMPLES = 200  # of a life: libraries and buffers come into memory where they are first used
SEED = 5


class Life(NamedTuple):
    """How long workers live, and how they end."""

    start: int
    stop: int
    num_ranks: int
    batch_size: int
    num_workers: int
    is_killed: bool


def make_dataset(folder: Path, samples_per_epoch: int) -> CompositionDataset:
    """Draw discs with soft edges and backgrounds, so small that thousands of samples take minutes."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:150, :120]
    for name in ("fg", "alpha", "bg"):
        (folder / name).mkdir()
    for number in range(17):
        noise = rng.integers(0, 256, (2, 150, 120, 3)).astype(np.uint8)
        alpha = 255 * np.clip(30 + number - np.hypot(y - 75, x - 60), 0, 12) / 12
        cv2.imwrite(str(folder / f"fg/{number}.jpg"), cv2.blur(noise[0], (9, 9)))
        cv2.imwrite(str(folder / f"bg/{number}.jpg"), cv2.blur(noise[1], (9, 9)))
        cv2.imwrite(str(folder / f"alpha/{number}.png"), alpha.astype(np.uint8))
    settings: dict[str, Any] = {
        "samples_per_epoch": samples_per_epoch,
        "crop_px": 64,
        "crop": DrawView(rotation_min_px=0),
    }
    return CompositionDataset(folder / "fg", folder / "bg", folder / "alpha", seed=SEED, **settings)


def digest(sample: dict[str, Tensor]) -> str:
    """Tell samples apart by every bit."""
    return hashlib.sha256(b"".join(sample[name].contiguous().numpy().tobytes() for name in sorted(sample))).hexdigest()


def resident_mb(process_id: int | str) -> float:
    """Measure a process's memory, that which it shares with others included."""
    lines = Path(f"/proc/{process_id}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def live(dataset: Dataset, life: Life) -> Iterator[tuple[str, list[float]]]:
    """Draw the positions of a life from the loaders of all its ranks, and end their workers.

    Yields: digest of the next sample, and the MB of each worker.
    """
    iterators: list[Any] = []
    for rank in range(life.num_ranks):
        with mock.patch.object(build, "rank_and_world_size", return_value=(rank, life.num_ranks)):
            loader = build.build_train_loader(dataset, life.batch_size, life.num_workers, SEED)
        loader.sampler.start = life.start  # type: ignore[attr-defined]  # of a Sampler
        iterators.append(iter(loader))
    process_ids = [worker.pid for iterator in iterators for worker in iterator._workers]
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise where workers are killed
    position = life.start
    while position < life.stop:
        for iterator in iterators:
            batch = next(iterator)
            memory_mb = [resident_mb(process_id) for process_id in process_ids]
            for number in range(min(life.batch_size, life.stop - position)):
                yield digest({name: tensors[number] for name, tensors in batch.items()}), memory_mb
                position += 1
    if life.is_killed:  # while they make more
        for process_id in process_ids:
            os.kill(process_id, signal.SIGKILL)


def lives_at_random(num_samples: int, mean_samples: float, rng: np.random.Generator) -> Iterator[Life]:
    """Divide positions among lives of up to 3 ranks of up to 3 workers, half of which end by force."""
    start = 0
    while start < num_samples:
        stop = min(num_samples, start + 1 + int(rng.exponential(mean_samples)))
        num_ranks, num_workers = (int(number) for number in rng.integers(1, 4, size=2))
        yield Life(start, stop, num_ranks, int(rng.integers(1, 9)), num_workers, bool(rng.random() < 0.5))
        start = stop


def soak(dataset: Dataset, num_samples: int, mean_samples: float, seed: int) -> list[str]:
    """Draw the first samples of a stream by one long life, and again by many lives at random; print what they take.

    Args:
        dataset: items keyed by (epoch, index), dicts of tensors, with a length.
        num_samples: drawn each time.
        mean_samples: length of a life.
        seed: of the lives.

    Returns: what was wrong.
    """
    wrong = []
    size = len(dataset)  # type: ignore[arg-type]  # Dataset itself promises no length
    alone = [digest(dataset[key_at(position, size, SEED)]) for position in range(num_samples)]
    before_mb = resident_mb("self")
    print("samples        ranks  batch  workers  end     MB of the largest worker on the way        growth MB")
    lives = lives_at_random(num_samples, mean_samples, np.random.default_rng(seed))
    for life in (Life(0, num_samples, 1, 4, 2, False), *lives):
        digests, memory = zip(*live(dataset, life), strict=True)
        different = [life.start + i for i, one in enumerate(digests) if one != alone[life.start + i]]
        if different:
            wrong.append(f"{len(different)} samples of {life} differ, the first at {different[0]}")
        memory_mb = np.array(memory)
        after_mb = memory_mb[min(WARM_UP_SAMPLES, len(memory_mb) - 1) :]
        growth_mb = (after_mb.max(0) - after_mb[0]).max()
        if growth_mb > MAX_GROWTH_MB:
            wrong.append(f"a worker of {life} has grown by {growth_mb:.0f} MB")
        curve = memory_mb.max(1)[np.linspace(0, len(memory_mb) - 1, 7).astype(int)]
        end = "killed" if life.is_killed else "asked "
        print(
            f"{life.start:5} - {life.stop:5}  {life.num_ranks:5}  {life.batch_size:5}  {life.num_workers:7}  {end}  "
            f"{' '.join(f'{mb:6.1f}' for mb in curve)}  {growth_mb:9.1f}"
        )
    grown_mb = resident_mb("self") - before_mb
    print(f"{num_samples} samples twice, {len(set(alone))} of them unlike; this process has grown by {grown_mb:.1f} MB")
    return wrong + ([f"this process has grown by {grown_mb:.0f} MB"] if grown_mb > MAX_GROWTH_MB else [])


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--mean-samples", type=float, default=400, help="of the lives at random")
    parser.add_argument("--seed", type=int, default=0, help="of the lives at random")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(Path(folder), args.samples // 3 + 1)  # the stream goes through some epochs
        wrong = soak(dataset, args.samples, args.mean_samples, args.seed)
    print("\n".join(wrong) or "no sample differs, no process grows")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
