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


def describe_growth(points: dict[float, float]) -> str:
    """Say with which power of the pixels memory grows, and how much a megapixel takes, by least squares."""
    if len(points) < 2:
        return ""
    megapixels, peaks = np.array(list(points)), np.array(list(points.values()))
    power = np.polyfit(np.log(megapixels), np.log(peaks), 1)[0]
    return f": power {power:.2f}, {np.polyfit(megapixels, peaks, 1)[0]:.2f} GB a megapixel"


def draw_memory(records: Iterable[dict[str, Any]], path: Path) -> None:
    """Draw a line for each side and trimap, both axes logarithmic, so that a slope is a power of the pixels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for index, (line, points) in enumerate(memory_points(records).items()):
        axes.loglog(
            list(points),
            list(points.values()),
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            label=line + describe_growth(points),
        )
    axes.set_xlabel("megapixels")
    axes.set_ylabel("peak memory above the loaded process, GB")
    axes.grid(which="both", alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=100)
