"""Measure this project beside another implementation, in one run.

    python tools/benchmark.py train-step
    python tools/benchmark.py train-step --sides ours --precision bf16 --device cuda
    python tools/benchmark.py metrics

train-step: a step is forward, losses, backward and AdamW at 512 px, batch 2, our ViTMatte-S against transformers'
VitMatte-S, a ViT with relative positions, under the same losses and optimiser. Each side runs in a process of its own,
in turn, so that its peak memory is its own; "memory" is the peak above what the process holds when model and batch are
loaded.

metrics: all five on a usual and on a hard picture, on one core, ours against the definitions written down with scipy
and scikit-image; then `tools/evaluate.py` on a folder of pictures, as whole processes with one worker and with two.

Quote the ratio: times of a shared machine drift.
"""

import _root  # noqa: F401

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data.images import to_uint8, write_alpha
from data.trimap import trimap_from_alpha, unknown_mask, write_trimap
from evaluation.metrics import METRICS, measure
from modeling import DetailCapture, MattingCriterion, ViTMatte
from modeling.backbone import ViT

NUM_DRAWN = 8  # different mattes of the folder that the command measures; the others are copies
RUN_AND_PRINT_PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
"""Prints the peak of the largest process below, in KiB. A small process starts it: a child begins with its size."""
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


class TransformersViTMatte(nn.Module):
    """Transformers' VitMatte-S under our losses."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import VitDetConfig, VitMatteConfig, VitMatteForImageMatting

        backbone = VitDetConfig(
            hidden_size=384,
            num_hidden_layers=12,
            num_attention_heads=6,
            num_channels=4,
            image_size=512,
            pretrain_image_size=224,
            patch_size=16,
            window_size=14,
            window_block_indices=[0, 1, 3, 4, 6, 7, 9, 10],
            residual_block_indices=[2, 5, 8, 11],
            use_relative_position_embeddings=True,
            out_features=["stage12"],  # type: ignore[call-arg]  # an argument of every backbone's config
        )
        config = VitMatteConfig(
            backbone_config=backbone,
            hidden_size=384,
            convstream_hidden_sizes=[48, 96, 192],
            fusion_hidden_sizes=[256, 128, 64, 32],
        )
        self.network = VitMatteForImageMatting(config)
        self.criterion = MattingCriterion()

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        pixels = torch.cat(((batch["image"] - 0.5) / 0.5, batch["trimap"]), dim=1)
        return self.criterion(self.network(pixel_values=pixels).alphas, batch["alpha"], batch["trimap"])


def build(side: str) -> nn.Module:
    """Build a side with random weights."""
    if side == "transformers":
        return TransformersViTMatte()
    return ViTMatte(ViT(), DetailCapture(384), MattingCriterion())


def measure_train_step(
    side: str, size_px: int, batch_size: int, num_steps: int, precision: str, device: str
) -> dict[str, float]:
    """Time steps after one that warms up.

    Returns: "seconds", the median of a step, and "peak_gb" above the loaded process.
    """
    torch.manual_seed(0)
    model = build(side).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)
    batch = {
        "image": torch.rand(batch_size, 3, size_px, size_px, device=device),
        "trimap": torch.randint(0, 3, (batch_size, 1, size_px, size_px), device=device) / 2,
        "alpha": torch.rand(batch_size, 1, size_px, size_px, device=device),
    }
    is_cuda = device.startswith("cuda")
    loaded = torch.cuda.memory_allocated() if is_cuda else _peak_bytes()
    seconds = []
    for _ in range(num_steps + 1):
        start = time.perf_counter()
        with torch.autocast(torch.device(device).type, DTYPES[precision], enabled=precision != "float32"):
            losses = model(batch)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        if is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if is_cuda else _peak_bytes()
    return {"seconds": statistics.median(seconds[1:]), "peak_gb": (peak - loaded) / 1e9}


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def compare_train_step(options: argparse.Namespace) -> None:
    """Run the sides in turn, each round in new processes, and print medians and the ratio of each round."""
    rounds: list[dict[str, dict[str, float]]] = []
    for number in range(options.rounds):
        rounds.append({})
        for side in options.sides:
            command = [sys.executable, __file__, "train-step", "--only", side]
            for name in ("size_px", "batch_size", "num_steps", "precision", "device"):
                command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            result = json.loads(output.splitlines()[-1])
            rounds[-1][side] = result
            print(f"round {number + 1} {side:12s} {result['seconds']:7.3f} s  {result['peak_gb']:6.3f} GB", flush=True)
    for name, unit in (("seconds", "s"), ("peak_gb", "GB")):
        medians = [statistics.median(r[side][name] for r in rounds) for side in options.sides]
        line = "  ".join(f"{side} {m:.3f} {unit}" for side, m in zip(options.sides, medians, strict=True))
        if len(options.sides) == 2:
            first, second = options.sides
            ratios = [r[first][name] / r[second][name] for r in rounds]
            line += f"  ratio {with_range(ratios, 3)}"
        print(f"median {name}: {line}")


def draw_matte(width: int, height: int, seed: int) -> tuple[NDArray, NDArray, NDArray]:
    """Draw a subject with a soft, ragged border and strands, a noisy prediction of it, and its trimap.

    Returns: (H, W) prediction, truth and trimap, floats; about a quarter of the pixels is unknown.
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
    command = [sys.executable, "-c", RUN_AND_PRINT_PEAK, sys.executable, str(Path(__file__).with_name("evaluate.py"))]
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


def with_range(ratios: Sequence[float], digits: int) -> str:
    """Show the median with the lowest and the highest."""
    return f"{statistics.median(ratios):.{digits}f} ({min(ratios):.{digits}f} to {max(ratios):.{digits}f})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line (`sys.argv` by default) and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    step = commands.add_parser("train-step", help="forward, losses, backward, AdamW")
    step.add_argument("--sides", nargs="+", choices=("ours", "transformers"), default=["ours", "transformers"])
    step.add_argument("--size-px", type=int, default=512)
    step.add_argument("--batch-size", type=int, default=2)
    step.add_argument("--num-steps", type=int, default=3, help="timed steps in a process, after one that is not")
    step.add_argument("--rounds", type=int, default=3)
    step.add_argument("--precision", choices=DTYPES, default="float32")
    step.add_argument("--device", default="cpu")
    step.add_argument("--only", choices=("ours", "transformers"), help=argparse.SUPPRESS)
    metrics = commands.add_parser("metrics", help="SAD, MSE, MAD, Grad and Conn")
    metrics.add_argument("--width", type=int, default=1920)
    metrics.add_argument("--height", type=int, default=1280)
    metrics.add_argument("--num-images", type=int, default=160, help="of the folder")
    metrics.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    if options.command == "metrics":
        compare_metrics(options)
    elif options.only is None:
        compare_train_step(options)
    else:
        names = ("size_px", "batch_size", "num_steps", "precision", "device")
        print(json.dumps(measure_train_step(options.only, **{name: getattr(options, name) for name in names})))


if __name__ == "__main__":
    main()
