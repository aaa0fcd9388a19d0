"""The metrics beside their definitions written down plainly: see tools/benchmark.py."""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from data.image_io.images import to_uint8, write_alpha
from data.trimap import trimap_from_alpha, unknown_mask, write_trimap
from evaluation.metrics import METRICS, measure
from tools.benchmarks.fresh import BENCHMARK, with_range

NUM_DRAWN = 8  # different mattes of the folder that the command measures; the others are copies
RUN_AND_PRINT_PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
"""Prints the peak of the largest process below, in KiB. A small process starts it: a child begins with its size."""


def draw_matte(width: int, height: int, seed: int) -> tuple[NDArray, NDArray, NDArray]:
    """Draw a subject with a soft, ragged border and strands, a noisy prediction of it, and its trimap.

    Returns: (H, W) prediction, ground truth and trimap, floats; about a quarter of the pixels is unknown.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    noise = cv2.GaussianBlur(rng.standard_normal((height, width), np.float32), (0, 0), 12)
    distance = np.hypot((x - width / 2) / (0.32 * width), (y - height / 2) / (0.38 * height)) - 1
    edge = distance + 0.08 * noise / noise.std()
    strands = 0.5 + 0.5 * np.sin(40 * np.arctan2(y - height / 2, x - width / 2) + noise)
    alpha = np.clip(0.5 - 12 * edge, 0, 1) + np.clip(1 - np.abs(edge) / 0.2, 0, 1) * strands**8
    alpha = np.clip(alpha, 0, 1)
    trimap = trimap_from_alpha(alpha, 8, 8)
    pred_alpha = np.clip(alpha + 0.08 * rng.standard_normal(alpha.shape, np.float32), 0, 1)
    return np.where(unknown_mask(trimap), pred_alpha, alpha), alpha, trimap


def draw_fragments(width: int, height: int, seed: int) -> tuple[NDArray, NDArray, NDArray]:
    """Draw a matte of a thousand soft blobs and a noisy prediction, all unknown: the hardest case for Conn.

    Returns: as `draw_matte`.
    """
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.standard_normal((height, width), np.float32), (0, 0), 6)
    alpha = np.clip(noise / noise.std() - 0.3, 0, 1)
    pred_alpha = np.clip(alpha + 0.05 * rng.standard_normal(alpha.shape, np.float32), 0, 1)
    return pred_alpha, alpha, np.full_like(alpha, 0.5)


def measure_plainly(pred_alpha: NDArray, alpha: NDArray, region: NDArray[np.bool_]) -> dict[str, float]:
    """Compute the metrics of uint8 alphas with scipy and scikit-image as one would write their definitions down."""
    from scipy import ndimage
    from skimage.measure import label, regionprops

    differences = (pred_alpha[region].astype(float) - alpha[region]) / 255
    offsets = np.arange(-4, 5)
    gauss = np.exp(-(offsets**2) / (2 * 1.4**2)) / (np.sqrt(2 * np.pi) * 1.4)
    kernel = np.outer(gauss, -offsets * gauss / 1.4**2)
    kernel /= np.sqrt((kernel**2).sum())

    def gradient_length(values: NDArray) -> NDArray:
        scaled = (values.astype(float) - values.min()) / (values.max() - float(values.min()))
        along_x = ndimage.convolve(scaled, kernel, mode="nearest")
        along_y = ndimage.convolve(scaled, kernel.T, mode="nearest")
        return np.sqrt(along_x**2 + along_y**2)

    level = np.full(alpha.shape, -1.0)
    for tenths in range(1, 11):
        both = (10 * pred_alpha.astype(int) >= 255 * tenths) & (10 * alpha.astype(int) >= 255 * tenths)
        labels = label(both.T, connectivity=1).T  # numbered in column order
        components = regionprops(labels)
        largest = max(components, key=lambda component: component.area).label if components else -1
        level[(level == -1) & (labels != largest)] = (tenths - 1) / 10
    level[level == -1] = 1

    def connectedness(values: NDArray) -> NDArray:
        distance = values / 255 - level
        return 1 - distance * (distance >= 0.15)

    return {
        "SAD": float(np.abs(differences).sum() / 1000),
        "MSE": float((differences**2).mean()),
        "MAD": float(np.abs(differences).mean()),
        "Grad": float(((gradient_length(pred_alpha) - gradient_length(alpha))[region] ** 2).sum() / 1000),
        "Conn": float(np.abs(connectedness(pred_alpha) - connectedness(alpha))[region].sum() / 1000),
    }


def compare_metrics(options: argparse.Namespace) -> None:
    """Time both ways to the metrics on one core, check that they agree, then time the command."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    cv2.setNumThreads(1)
    for draw in (draw_matte, draw_fragments):
        pred_alpha, alpha, trimap = draw(options.width, options.height, seed=0)
        pred_alpha, alpha, region = to_uint8(pred_alpha), to_uint8(alpha), np.asarray(unknown_mask(trimap), np.bool_)
        kind = draw.__name__.removeprefix("draw_")
        ratios = []
        for number in range(options.rounds):
            seconds, results = [], []
            for side in (measure, measure_plainly):
                start = time.perf_counter()
                results.append(side(pred_alpha, alpha, region))
                seconds.append(time.perf_counter() - start)
            ratios.append(seconds[1] / seconds[0])
            line = f"ours {seconds[0]:.3f} s  plainly {seconds[1]:.3f} s  ratio {ratios[-1]:.1f}"
            print(f"{kind}, round {number + 1}: {line}", flush=True)
        off = max(abs(results[0][name] / results[1][name] - 1) for name in METRICS)
        share = f"{region.mean():.0%} of {options.width} x {options.height} px unknown"
        print(f"{kind}, median ratio {with_range(ratios, 1)}, values differ by {off:.0e} at most; {share}")
    os.sched_setaffinity(0, cores)
    with tempfile.TemporaryDirectory() as folder:
        compare_workers(Path(folder), options)


def compare_workers(folder: Path, options: argparse.Namespace) -> None:
    """Time `tools/evaluate.py` with one worker and with two, each round in turn."""
    dirs = [folder / name for name in ("pred", "label", "trimap")]
    for path in dirs:
        path.mkdir()
    for number in range(options.num_images):
        if number < NUM_DRAWN:
            pred_alpha, alpha, trimap = draw_matte(options.width, options.height, seed=number)
            write_alpha(dirs[0] / f"{number}.png", pred_alpha)
            write_alpha(dirs[1] / f"{number}.png", alpha)
            write_trimap(dirs[2] / f"{number}.png", trimap)
        else:
            for path in dirs:
                shutil.copy(path / f"{number % NUM_DRAWN}.png", path / f"{number}.png")
    command = [sys.executable, "-c", RUN_AND_PRINT_PEAK, sys.executable, str(BENCHMARK.with_name("evaluate.py"))]
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
    """Compare as `compare_metrics` says."""
    compare_metrics(options)
