"""A prediction beside transformers' VitMatte-S: see tools/benchmark.py."""

import argparse
import json
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from data.trimap import UNKNOWN, encode_trimap
from inference.network import DTYPES
from tools.benchmarks.fresh import PeakMemory, run_fresh, with_range
from tools.benchmarks.memory_plot import draw_memory
from tools.benchmarks.networks import WEIGHTS, load, write_networks
from tools.benchmarks.scene import TRIMAPS, draw_image

WARM_UP_PX = 64
IMAGE_FILE, TRIMAP_FILE = "image.npy", "trimap.npy"
SIZES = [(512, 512), (1024, 1024)]
FIGURES = ("seconds", "above_gb", "whole_gb")
HEADER = (
    "| image, px | trimap | side | seconds | above loading, GB | whole process, GB | "
    "times as fast as the first | part of its memory | alpha differs at most, on average |"
)


class Case(NamedTuple):
    """What one process measures.

    Attributes:
        side: key of `WEIGHTS`.
        precision: key of `DTYPES`.
    """

    side: str
    precision: str

    @property
    def label(self) -> str:
        return f"{self.side}, {self.precision}"

    @property
    def alpha_file(self) -> str:
        return f"alpha_{self.side}_{self.precision}.npy"


def measure_prediction(
    case: Case, folder: Path, device: str, is_compiled: bool, max_memory_gb: float | None
) -> dict[str, float]:
    """Time the first prediction of this size in this process, after a small one that starts threads and kernels.

    A compiled network has predicted this very size instead: compiling is not timed.

    Args:
        case: whose alpha is written into the folder.
        folder: with networks, image and trimap, as `compare_scene` writes them.
        device, is_compiled, max_memory_gb: see `load`.

    Returns: "seconds"; "above_gb", the peak above the loaded process; "whole_gb", that of its life. See `PeakMemory`.
    """
    image, trimap = np.load(folder / IMAGE_FILE), np.load(folder / TRIMAP_FILE)
    prepare = load(case.side, folder, device, case.precision, is_compiled, max_memory_gb)
    predict = prepare(image, trimap)
    if is_compiled:
        predict()
    else:
        prepare(np.zeros((WARM_UP_PX, WARM_UP_PX, 3), np.uint8), np.full((WARM_UP_PX, WARM_UP_PX), 128, np.uint8))()
    memory = PeakMemory(device)
    start = time.perf_counter()
    alpha = predict()  # in the main memory, so that a CUDA device has finished
    seconds = time.perf_counter() - start
    result = {"seconds": seconds, "above_gb": memory.above_gb(), "whole_gb": memory.whole_gb()}
    np.save(folder / case.alpha_file, alpha)
    return result


def compare_scene(
    folder: Path, size: tuple[int, int], trimap_kind: str, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Measure all sides on one image, in turn, each round in new processes.

    Args:
        folder: with the networks; image, trimap and alphas are written there.
        size: width and height.
        trimap_kind: key of `TRIMAPS`.
        options: of the command line.

    Returns: a record for each round and case.
    """
    width, height = size
    trimap = TRIMAPS[trimap_kind](width, height)
    np.save(folder / IMAGE_FILE, draw_image(width, height))
    np.save(folder / TRIMAP_FILE, encode_trimap(trimap))
    arguments = ["--folder", str(folder), "--device", options.device, *["--compile"] * options.compile]
    if options.max_memory is not None:
        arguments += ["--max-memory", str(options.max_memory)]
    cases = [Case(side, precision) for precision in options.precisions for side in options.sides]
    records = []
    for number in range(options.rounds):
        for case in cases:
            result = run_fresh("infer", "--only", case.side, "--precisions", case.precision, *arguments)
            same = next(other for other in cases if WEIGHTS[other.side] == WEIGHTS[case.side])
            scene = {"width": width, "height": height, "trimap": trimap_kind, "side": case.label}
            records.append(scene | result | compare_alphas(folder, case, same, trimap == UNKNOWN))
            print(
                f"{width} x {height}, {trimap_kind}, round {number + 1}: {case.label:24s} {result['seconds']:8.2f} s  "
                f"{result['above_gb']:7.3f} GB above loading  {result['whole_gb']:7.3f} GB in all",
                flush=True,
            )
    return records


def compare_alphas(folder: Path, case: Case, same: Case, unknown: NDArray[np.bool_]) -> dict[str, Any]:
    """Compare on the unknown pixels what a case predicted with what another of the same weights did."""
    alpha, expected = (np.load(folder / which.alpha_file)[unknown] for which in (case, same))
    differences = np.abs(alpha - expected)
    return {
        "same_weights": same.label,
        "largest_difference": float(differences.max()),
        "mean_difference": float(differences.mean()),
    }


def table_rows(records: Sequence[dict[str, Any]]) -> list[str]:
    """Sum up what `compare_scene` found: medians, and ratios to the first case, with their range over the rounds."""
    by_side: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_side.setdefault(record["side"], []).append(record)
    first = next(iter(by_side.values()))
    rows = []
    for side, rounds in by_side.items():
        medians = {key: statistics.median(record[key] for record in rounds) for key in FIGURES}
        speeds = [theirs["seconds"] / ours["seconds"] for theirs, ours in zip(first, rounds, strict=True)]
        memories = [ours["above_gb"] / theirs["above_gb"] for theirs, ours in zip(first, rounds, strict=True)]
        largest = max(record["largest_difference"] for record in rounds)
        mean = max(record["mean_difference"] for record in rounds)
        same = rounds[0]["same_weights"]
        cells = [
            f"{rounds[0]['width']} x {rounds[0]['height']}",
            rounds[0]["trimap"],
            side,
            f"{medians['seconds']:.2f}",
            f"{medians['above_gb']:.3f}",
            f"{medians['whole_gb']:.2f}",
            "" if rounds is first else with_range(speeds, 2),
            "" if rounds is first else with_range(memories, 3),
            "" if side == same else f"{largest:.1e}, {mean:.1e} (from {same})",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def compare_predictions(options: argparse.Namespace) -> None:
    """Measure every size and trimap, print the table, keep the records and draw them where asked for."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    rows, records = [], []
    with tempfile.TemporaryDirectory() as name:
        write_networks(Path(name), options.sides)
        for size in options.sizes:
            for trimap_kind in options.trimaps:
                found = compare_scene(Path(name), size, trimap_kind, options)
                if options.records is not None:
                    with options.records.open("a", encoding="utf-8") as file:
                        file.writelines(json.dumps(record) + "\n" for record in found)
                rows += table_rows(found)
                records += found
    print("\n".join([HEADER, re.sub(r"[^|]+", "---", HEADER), *rows]))
    if options.plot is not None:
        draw_memory(records if options.records is None else read_records(options.records), options.plot)


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read what runs with `--records` wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def parse_size(text: str) -> tuple[int, int]:
    """Read "1920x1080" as width and height."""
    if not (found := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT such as 1920x1080, got {text!r}")
    return int(found[1]), int(found[2])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("--sides", nargs="+", choices=WEIGHTS, default=list(WEIGHTS), help="ratios are to the first")
    parser.add_argument("--sizes", nargs="+", type=parse_size, default=SIZES, help="image sizes, such as 1920x1080")
    parser.add_argument("--trimaps", nargs="+", choices=TRIMAPS, default=list(TRIMAPS))
    parser.add_argument("--precisions", nargs="+", choices=DTYPES, default=["float32"], help="each for every side")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="compile with torch.compile; compiling is not timed")
    parser.add_argument("--max-memory", type=float, metavar="GB", help="memory limit for our sides")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--records", type=Path, help="file to which every measurement is appended, as a line of JSON")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="plot memory against pixels, all of --records")
    parser.add_argument("--only", choices=WEIGHTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> None:
    """Compare the sides, or be the process of one."""
    if options.only is None:
        compare_predictions(options)
    else:
        case = Case(options.only, options.precisions[0])
        print(json.dumps(measure_prediction(case, options.folder, options.device, options.compile, options.max_memory)))
