"""Compare a prediction with transformers' VitMatte-S: see tools/benchmark.py."""

import argparse
import json
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data.trimap import UNKNOWN, encode_trimap
from evaluation.output.report import format_table
from inference.network import DTYPES
from runtime.errors import ConfigError
from tools.benchmarks.fresh import PeakMemory, busy_processes, run_fresh, with_range
from tools.benchmarks.networks import INEXACT, SQUASHED, WEIGHTS, load, write_networks
from tools.benchmarks.scene import TRIMAPS, draw_image

WARM_UP_PX = 64
IMAGE_FILE, TRIMAP_FILE = "image.npy", "trimap.npy"
SIZES = [(512, 512), (1024, 1024)]
SIDES = WEIGHTS | INEXACT

Record = dict[str, Any]
"""One measurement: image, side, figures of `measure_prediction`, difference of alpha."""


def measure_prediction(
    side: str, precision: str, folder: Path, options: argparse.Namespace
) -> tuple[dict[str, float], NDArray[np.float32]]:
    """Time the first prediction of this size in this process, after a small one that starts threads and kernels.

    If the network is compiled, a prediction of the same size goes before: compiling is not timed. rembg's way has no
    small size: its first prediction is measured.

    Args:
        side: key of `SIDES`.
        precision: key of `DTYPES`.
        folder: with networks, image and trimap, as `run` writes them.
        options: of the command line.

    Returns: "seconds", "above_gb" (the peak above the loaded process) and "whole_gb" (the peak of its life), see
        `PeakMemory`; and alpha (H, W).
    """
    image, trimap = np.load(folder / IMAGE_FILE), np.load(folder / TRIMAP_FILE)
    prepare = load(side, folder, options.device, precision, options.compile, options.max_memory)
    predict = prepare(image, trimap)
    if options.compile:
        predict()
    elif side != SQUASHED:
        prepare(np.zeros((WARM_UP_PX, WARM_UP_PX, 3), np.uint8), np.full((WARM_UP_PX, WARM_UP_PX), 128, np.uint8))()
    memory = PeakMemory(options.device)
    start = time.perf_counter()
    alpha = predict()  # in the main memory, so that a CUDA device has finished
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "above_gb": memory.above_gb(), "whole_gb": memory.whole_gb()}, alpha


def compare_scene(
    folder: Path, size: tuple[int, int], trimap_kind: str, options: argparse.Namespace
) -> dict[str, list[Record]]:
    """Measure all sides on one image, alternately, each in a new process.

    Args:
        folder: with the networks; image and trimap are written there.
        size: width and height.
        trimap_kind: key of `TRIMAPS`.
        options: of the command line.

    Returns: side and precision -> a record for each round.
    """
    width, height = size
    trimap = TRIMAPS[trimap_kind](width, height)
    np.save(folder / IMAGE_FILE, draw_image(width, height))
    np.save(folder / TRIMAP_FILE, encode_trimap(trimap))
    records: dict[str, list[Record]] = {}
    for number in range(options.rounds):
        expected: dict[str, tuple[str, NDArray]] = {}  # network -> the first side with its weights, and alpha
        for side, precision in ((side, precision) for precision in options.precisions for side in options.sides):
            with busy_processes(options.busy):
                figures, alpha = run_fresh(measure_prediction, side, precision, folder, options)
            label, alpha = f"{side}, {precision}", alpha[trimap == UNKNOWN]
            same, same_alpha = expected.setdefault(SIDES[side], (label, alpha))
            off = np.abs(alpha - same_alpha)
            differences = {"largest_difference": float(off.max()), "mean_difference": float(off.mean())}
            scene = {"width": width, "height": height, "trimap": trimap_kind, "side": label, "same_weights": same}
            records.setdefault(label, []).append(scene | figures | differences)
            print(
                f"{width} x {height}, {trimap_kind}, round {number + 1}: {label:24s} {figures['seconds']:8.2f} s  "
                f"{figures['above_gb']:7.3f} GB above loading  {figures['whole_gb']:7.3f} GB in all",
                flush=True,
            )
    return records


def table_rows(records: dict[str, list[Record]]) -> list[dict[str, str]]:
    """Format the records of `compare_scene`: medians, and ratios to the first side with their range over the rounds."""
    first = next(iter(records.values()))
    rows = []
    for side, rounds in records.items():
        seconds, above, whole = (
            statistics.median(record[key] for record in rounds) for key in ("seconds", "above_gb", "whole_gb")
        )
        pairs = list(zip(first, rounds, strict=True))
        largest, mean = (max(record[f"{kind}_difference"] for record in rounds) for kind in ("largest", "mean"))
        same = rounds[0]["same_weights"]
        row = {
            "image, px": f"{rounds[0]['width']} x {rounds[0]['height']}",
            "trimap": rounds[0]["trimap"],
            "side": side,
            "seconds": f"{seconds:.2f}",
            "above loading, GB": f"{above:.3f}",
            "whole process, GB": f"{whole:.2f}",
            "times as fast as the first": with_range([a["seconds"] / b["seconds"] for a, b in pairs], 2),
            "part of its memory": with_range([b["above_gb"] / a["above_gb"] for a, b in pairs], 3),
            "alpha differs at most, on average": f"{largest:.1e}, {mean:.1e} (from {same})" if side != same else "",
        }
        if rounds is first:
            row |= {"times as fast as the first": "", "part of its memory": ""}
        rows.append(row)
    return rows


def draw_memory(records: Sequence[Record], path: Path) -> None:
    """Draw the median of the peak memory against pixels, with the straight line that fits each side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    peaks: dict[str, dict[float, list[float]]] = {}
    for record in records:
        points = peaks.setdefault(f"{record['side']}, {record['trimap']}", {})
        points.setdefault(record["width"] * record["height"] / 1e6, []).append(record["above_gb"])
    for (label, points), marker in zip(peaks.items(), "osD^vP" * len(peaks), strict=False):
        megapixels = np.array(sorted(points))
        medians = np.array([statistics.median(points[size]) for size in megapixels])
        if len(megapixels) > 2:
            slope, start = np.polyfit(megapixels, medians, 1)
            off = np.abs(slope * megapixels + start - medians).max() / medians.max()
            label += f": {slope:.2f} GB a megapixel {start:+.2f} GB, off by {off:.1%}"
        axes.plot(megapixels, medians, marker=marker, label=label)
    axes.set(xlabel="megapixels", ylabel="peak memory above the loaded process, GB", xlim=0, ylim=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=90)


def parse_size(text: str) -> tuple[int, int]:
    """Read "1920x1080" as width and height."""
    if not (found := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT such as 1920x1080, got {text!r}")
    return int(found[1]), int(found[2])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument(
        "--sides",
        nargs="+",
        choices=SIDES,
        default=list(WEIGHTS),
        help="ratios are to the first (default: transformers ours-vitmatte ours)",
    )
    parser.add_argument("--sizes", nargs="+", type=parse_size, default=SIZES, help="image sizes, such as 1920x1080")
    parser.add_argument("--trimaps", nargs="+", choices=TRIMAPS, default=list(TRIMAPS))
    parser.add_argument("--precisions", nargs="+", choices=DTYPES, default=["float32"], help="each for every side")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="compile with torch.compile; compiling is not timed")
    parser.add_argument("--max-memory", type=float, metavar="GB", help="memory limit for our sides")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="beside N processes, each busy on a core")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--records", type=Path, help="file to which every measurement is appended, as a line of JSON")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="plot memory against pixels, all of --records")


def run(options: argparse.Namespace) -> None:
    """Measure every size and trimap, print the table, write the records and the plot if asked."""
    if SQUASHED in options.sides and (
        options.device != "cpu" or {*options.precisions} != {"float32"} or options.compile
    ):
        raise ConfigError(
            "rembg's way runs on the CPU in float32, not compiled: leave out --sides rembg or these options"
        )
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    rows: list[dict[str, str]] = []
    records: list[Record] = []
    with tempfile.TemporaryDirectory() as name:
        write_networks(Path(name), options.sides)
        for size in options.sizes:
            for trimap_kind in options.trimaps:
                by_side = compare_scene(Path(name), size, trimap_kind, options)
                rows += table_rows(by_side)
                found = [record for rounds in zip(*by_side.values(), strict=True) for record in rounds]
                records += found
                if options.records is not None:
                    with options.records.open("a", encoding="utf-8") as file:
                        file.writelines(json.dumps(record) + "\n" for record in found)
    print(format_table(rows, markdown=True))
    if options.plot is not None:
        if options.records is not None:
            records = [json.loads(line) for line in options.records.read_text(encoding="utf-8").splitlines()]
        draw_memory(records, options.plot)
