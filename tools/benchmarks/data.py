"""Compare training samples with the bare decoding of their files: see tools/benchmark.py."""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.datasets.composition import CompositionDataset
from data.image_io.images import to_uint8
from data.loader.build import build_train_loader
from data.sources.foregrounds import ForegroundFile
from data.sources.packs.writer import make_pack
from tools.benchmarks.fresh import one_core, with_range
from tools.benchmarks.scene import draw_matte

FOREGROUND_SIZE, BACKGROUND_SIZE = (2000, 1500), (640, 480)  # (width, height), usual in Composition-1k and COCO
FOREGROUND_BYTES, ALPHA_BYTES = 1_100_000, 300_000
NUM_IMAGES = 12
GRAIN, ALPHA_GRAIN = 0.04, 0.006  # like photographs, and like alphas that were JPEGs before
NUM_WARM_UP = 100
BATCH_SIZE = 4


def make_files(root: Path) -> None:
    """Write foregrounds and alphas as JPEGs of about the stated sizes, and backgrounds."""
    for name in ("fg", "alpha", "bg"):
        (root / name).mkdir()
    for number in range(NUM_IMAGES):
        _, alpha, _ = draw_matte(*FOREGROUND_SIZE, seed=number)
        alpha += (alpha > 0) * np.random.default_rng(number).normal(0, ALPHA_GRAIN, alpha.shape)
        (root / "fg" / f"{number}.jpg").write_bytes(
            encode_jpeg(draw_texture(*FOREGROUND_SIZE, seed=number), FOREGROUND_BYTES)
        )
        (root / "alpha" / f"{number}.jpg").write_bytes(encode_jpeg(alpha, ALPHA_BYTES))
        background = draw_texture(*BACKGROUND_SIZE, seed=NUM_IMAGES + number)
        Image.fromarray(to_uint8(background)).save(root / "bg" / f"{number}.jpg", quality=85)


def draw_texture(width: int, height: int, seed: int) -> NDArray:
    """Draw colours (H, W, 3) in [0, 1] with structure at all scales and some grain, like a photograph."""
    rng = np.random.default_rng(seed)
    total = rng.normal(0, GRAIN, (height, width, 3)).astype(np.float32)
    for octave in range(8):
        cells = rng.random((3 << octave, 4 << octave, 3), dtype=np.float32)
        total += cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC) / np.float32(1.6**octave)
    return (total - total.min()) / np.ptp(total)


def encode_jpeg(values: NDArray, num_bytes: int) -> bytes:
    """Encode in the quality whose size is nearest to `num_bytes`."""
    pixels = Image.fromarray(to_uint8(values))
    contents = []
    for quality in range(60, 101, 2):
        buffer = BytesIO()
        pixels.save(buffer, "JPEG", quality=quality)
        contents.append(buffer.getvalue())
    return min(contents, key=lambda content: abs(len(content) - num_bytes))


def decode_bare(dataset: CompositionDataset, index: int) -> None:
    """Decode the complete files of a sample, and do nothing with them."""
    chosen, background = dataset.choose((0, index), np.random.default_rng([dataset.seed, 0, index]))
    for foreground in chosen:
        assert isinstance(foreground, ForegroundFile) and foreground.alpha_path is not None, "as make_files wrote them"
        cv2.imdecode(np.fromfile(foreground.path, np.uint8), cv2.IMREAD_COLOR)
        cv2.imdecode(np.fromfile(foreground.alpha_path, np.uint8), cv2.IMREAD_GRAYSCALE)
    cv2.imdecode(np.fromfile(background, np.uint8), cv2.IMREAD_COLOR)


def time_samples(sides: dict[str, Callable[[int], object]], num_samples: int) -> dict[str, list[float]]:
    """Time the sides alternately, sample by sample, so that all see the same machine. Return milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for index in range(num_samples):
        for name, side in sides.items():
            start = time.perf_counter()
            side(index)
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def time_loader(dataset: CompositionDataset, num_workers: int, num_batches: int) -> float:
    """Return the samples per second of a loader, after its first batches."""
    batches = iter(build_train_loader(dataset, BATCH_SIZE, num_workers, seed=0))
    for _ in islice(batches, 2 * num_workers * 2):  # made ahead while the workers started
        pass
    start = time.perf_counter()
    for _ in islice(batches, num_batches):
        pass
    return num_batches * BATCH_SIZE / (time.perf_counter() - start)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("--crop-px", type=int, default=512)
    parser.add_argument("--num-samples", type=int, default=100, help="timed samples for each side in each round")
    parser.add_argument("--rounds", type=int, default=3)


def run(options: argparse.Namespace) -> None:
    """Time samples from files, from a pack and bare decoding on one core; then loaders with one worker and with two."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_files(root)
        settings = {"samples_per_epoch": 10**6, "crop_px": options.crop_px}
        files = CompositionDataset(root / "fg", root / "bg", root / "alpha", **settings)
        sources = [foreground for foreground in files.foregrounds if isinstance(foreground, ForegroundFile)]
        make_pack(sources, root / "pack", 1, lambda done: None)
        packed = CompositionDataset(root / "pack", root / "bg", **settings)
        sides: dict[str, Callable[[int], object]] = {
            "decoding": lambda index: decode_bare(files, index),
            "files": lambda index: files[0, index],
            "packed": lambda index: packed[0, index],
        }
        ratios: dict[str, list[float]] = {"files": [], "packed": []}
        with one_core():
            for index in range(NUM_WARM_UP):  # each JPEG is checked once, see data.sources.foregrounds
                files[1, index]
        for number in range(options.rounds):
            with one_core():
                times = time_samples(sides, options.num_samples)
            means = {side: statistics.mean(values) for side, values in times.items()}
            for side, values in ratios.items():
                values.append(means[side] / means["decoding"])
            shown = "  ".join(f"{side} {means[side]:.2f} ({statistics.median(times[side]):.2f}) ms" for side in sides)
            print(f"round {number + 1}, a sample, mean (median): {shown}", flush=True)
        for side, values in ratios.items():
            print(f"{side}: {with_range(values, 2)} times the bare decoding of the same files, whole")
        speedups = []
        for number in range(options.rounds):
            rates = [time_loader(files, num_workers, options.num_samples // BATCH_SIZE) for num_workers in (1, 2)]
            speedups.append(rates[1] / rates[0])
            print(f"round {number + 1}, samples a second: one worker {rates[0]:.1f}, two {rates[1]:.1f}", flush=True)
        print(f"two workers: {with_range(speedups, 2)} times one")
