"""Peak memory against pixels, drawn."""

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito, for all kinds of eyes
MARKERS = "osD^vP"


def memory_points(records: Iterable[dict[str, Any]]) -> dict[str, dict[float, float]]:
    """Collect what is drawn.

    Args:
        records: of `tools.benchmarks.infer.compare_scene`.

    Returns: side and trimap -> megapixels, ascending -> median of the peaks above the loaded process, in GB.
    """
    peaks: dict[str, dict[float, list[float]]] = {}
    for record in records:
        megapixels = record["width"] * record["height"] / 1e6
        points = peaks.setdefault(f"{record['side']}, {record['trimap']}", {})
        points.setdefault(megapixels, []).append(record["above_gb"])
    return {
        line: {megapixels: statistics.median(values) for megapixels, values in sorted(points.items())}
        for line, points in peaks.items()
    }


def describe_line(points: dict[float, float]) -> str:
    """Give the straight line through points, by least squares, and how far they are from it, in parts of the highest.

    Two points or one are on a line anyway: nothing is said.
    """
    if len(points) < 3:
        return ""
    megapixels, peaks = np.array(list(points)), np.array(list(points.values()))
    slope, start = np.polyfit(megapixels, peaks, 1)
    off = np.abs(slope * megapixels + start - peaks).max() / peaks.max()
    return f": {slope:.2f} GB a megapixel {start:+.2f} GB, off by {off:.1%}"


def draw_memory(records: Iterable[dict[str, Any]], path: Path) -> None:
    """Draw peak memory against pixels, for each side and trimap, and say how straight that is."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for index, (line, points) in enumerate(memory_points(records).items()):
        axes.plot(
            list(points),
            list(points.values()),
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            label=line + describe_line(points),
        )
    axes.set(xlabel="megapixels", ylabel="peak memory above the loaded process, GB", xlim=0, ylim=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=90)
