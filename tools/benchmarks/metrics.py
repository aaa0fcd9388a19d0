"""Compare the metrics with their plain definitions: see tools/benchmark.py."""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.image_io.images import to_uint8, write_alpha
from data.trimap import unknown_mask, write_trimap
from evaluation.metrics import METRICS, measure
from tools.benchmarks.fresh import one_core, with_range
from tools.benchmarks.scene import draw_fragments, draw_matte

NUM_DRAWN = 8  # different mattes of the folder that the command measures; the others are copies
EVALUATE = Path(__file__).resolve().parents[1] / "evaluate.py"
RUN_AND_PRINT_PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
"""Prints the peak of the largest process below, in KiB. A small process starts it: a child begins with its size."""

Mask = NDArray[np.bool_]


def measure_plainly(pred_alpha: NDArray, alpha: NDArray, region: Mask) -> dict[str, float]:
    """Compute the metrics of uint8 alphas as the definitions say, with scipy and scikit-image."""
    differences = (pred_alpha[region].astype(float) - alpha[region]) / 255
    return {
        "SAD": float(np.abs(differences).sum() / 1000),
        "MSE": float((differences**2).mean()),
        "MAD": float(np.abs(differences).mean()),
        "Grad": plain_grad(pred_alpha, alpha, region),
        "Conn": plain_conn(pred_alpha, alpha, region),
    }


def scale_to_range(values: NDArray) -> NDArray:
    """Scale an alpha so that its minimum is 0 and its maximum 1."""
    return (values.astype(float) - values.min()) / max(values.max() - float(values.min()), 1)


def plain_grad(
    pred_alpha: NDArray,
    alpha: NDArray,
    region: Mask,
    scale: Callable[[NDArray], NDArray] = scale_to_range,
    half_size_px: int = 4,
) -> float:
    """Compute Grad: the difference of the gradients' lengths, by derivatives of a Gaussian."""
    from scipy import ndimage

    offsets = np.arange(-half_size_px, half_size_px + 1)
    gauss = np.exp(-(offsets**2) / (2 * 1.4**2))
    kernel = np.outer(gauss, -offsets * gauss)
    kernel /= np.sqrt((kernel**2).sum())

    def gradient_length(values: NDArray) -> NDArray:
        along_x, along_y = (ndimage.convolve(scale(values), k, mode="nearest") for k in (kernel, kernel.T))
        return np.sqrt(along_x**2 + along_y**2)

    return float(((gradient_length(pred_alpha) - gradient_length(alpha))[region] ** 2).sum() / 1000)


def reaches(values: NDArray, tenths: int) -> Mask:
    """Tell, without rounding, where alpha reaches a number of tenths."""
    return 10 * values.astype(int) >= 255 * tenths


def plain_conn(
    pred_alpha: NDArray,
    alpha: NDArray,
    region: Mask,
    reaches: Callable[[NDArray, int], Mask] = reaches,
    has_background: bool = False,
) -> float:
    """Compute Conn: how far pixels are above the level at which they join the largest component.

    Args:
        pred_alpha: (H, W) uint8.
        alpha: (H, W) uint8.
        region: (H, W), pixels that count.
        reaches: compares an alpha with a number of tenths.
        has_background: the pixels outside all components count as a component too.
    """
    from skimage.measure import label, regionprops

    level = np.full(alpha.shape, -1.0)
    for tenths in range(1, 11):
        both = reaches(pred_alpha, tenths) & reaches(alpha, tenths)
        labels = label(both.T, connectivity=1).T  # numbered in column order
        areas = {0: (labels == 0).sum()} if has_background else {}
        areas |= {component.label: component.area for component in regionprops(labels)}
        largest = max(areas, key=areas.__getitem__, default=-1)
        level[(level == -1) & (labels != largest)] = (tenths - 1) / 10
    level[level == -1] = 1

    def connectedness(values: NDArray) -> NDArray:
        distance = values / 255 - level
        return 1 - distance * (distance >= 0.15)

    return float(np.abs(connectedness(pred_alpha) - connectedness(alpha))[region].sum() / 1000)


def compare_sides(draw: Callable[..., tuple[NDArray, NDArray, NDArray]], options: argparse.Namespace) -> None:
    """Time both ways to the metrics of a drawn image alternately, and print how far their values differ."""
    pred_alpha, alpha, trimap = draw(options.width, options.height, seed=0)
    case = to_uint8(pred_alpha), to_uint8(alpha), np.asarray(unknown_mask(trimap), np.bool_)
    kind = draw.__name__.removeprefix("draw_")
    ratios = []
    for number in range(options.rounds):
        seconds, results = [], []
        for side in (measure, measure_plainly):
            start = time.perf_counter()
            results.append(side(*case))
            seconds.append(time.perf_counter() - start)
        ratios.append(seconds[1] / seconds[0])
        line = f"ours {seconds[0]:.3f} s  plainly {seconds[1]:.3f} s  ratio {ratios[-1]:.1f}"
        print(f"{kind}, round {number + 1}: {line}", flush=True)
    off = max(abs(results[0][name] / results[1][name] - 1) for name in METRICS)
    share = f"{case[2].mean():.0%} of {options.width} x {options.height} px unknown"
    print(f"{kind}, median ratio {with_range(ratios, 1)}, values differ by {off:.0e} at most; {share}")


def compare_workers(folder: Path, options: argparse.Namespace) -> None:
    """Time `tools/evaluate.py` with one worker and with two, alternately."""
    dirs = [folder / name for name in ("pred", "label", "trimap")]
    for path in dirs:
        path.mkdir()
    for number in range(options.num_images):
        if number < NUM_DRAWN:
            matte = draw_matte(options.width, options.height, seed=number)
            for path, values in zip(dirs, matte, strict=True):
                (write_trimap if path.name == "trimap" else write_alpha)(path / f"{number}.png", values)
        else:
            for path in dirs:
                shutil.copy(path / f"{number % NUM_DRAWN}.png", path / f"{number}.png")
    command = [sys.executable, "-c", RUN_AND_PRINT_PEAK, sys.executable, str(EVALUATE)]
    command += [part for path in dirs for part in (f"--{path.name}-dir", str(path))]
    ratios, peaks_kib = [], []
    for number in range(options.rounds):
        seconds = []
        for num_workers in (1, 2):
            start = time.perf_counter()
            done = subprocess.run([*command, "--workers", str(num_workers)], check=True, stdout=subprocess.PIPE)
            seconds.append(time.perf_counter() - start)
            peaks_kib.append(int(done.stdout))
        ratios.append(seconds[0] / seconds[1])
        line = f"one worker {seconds[0]:.2f} s  two {seconds[1]:.2f} s  ratio {ratios[-1]:.2f}"
        print(f"round {number + 1}: {line}", flush=True)
    print(f"median ratio {with_range(ratios, 2)}, no process above {max(peaks_kib) / 1024:.0f} MiB")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("--width", type=int, default=1920)
    parser.add_argument("--height", type=int, default=1280)
    parser.add_argument("--num-images", type=int, default=160, help="images in the folder")
    parser.add_argument("--rounds", type=int, default=3)


def run(options: argparse.Namespace) -> None:
    """Compare the metrics on one core, then time the command on a folder."""
    with one_core():
        for draw in (draw_matte, draw_fragments):
            compare_sides(draw, options)
    with tempfile.TemporaryDirectory() as folder:
        compare_workers(Path(folder), options)
