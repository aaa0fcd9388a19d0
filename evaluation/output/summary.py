"""The summary of an evaluation, stored as JSON, and the comparison of two summaries."""

import json
import math
import platform
from collections import defaultdict
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data.image_io.images import DataError
from evaluation.folders import Evaluation
from evaluation.metrics import METRICS, Protocol, average
from evaluation.output.report import Row
from evaluation.statistics.bootstrap import (
    CONFIDENCE,
    NUM_RESAMPLES,
    SEED,
    bootstrap_intervals,
    describe_rule,
    group_by_foreground,
)

Summary = dict[str, Any]

SUMMARY = "summary.json"
COMPARED = ("protocol", "description", "test_set", "foreground_rule", "missing")  # read beside "per_image"


def summarise(
    evaluation: Evaluation,
    protocol: Protocol,
    test_set: Mapping[str, str | int | None],
    predictions: Mapping[str, str | None],
    *,
    pattern: str | None = None,
    is_grouped: bool = False,
) -> Summary:
    """Collect the results of an evaluation and all that they depend on.

    Args:
        evaluation: the measured test set.
        protocol: the protocol of the measurement.
        test_set: names of its folders or of the data set; its digest is added.
        predictions: "dir", their folder, and "config_file", "weights", "weights_sha256" and "torch" (version) of the
            network that wrote them in this evaluation, or None.
        pattern: regular expression of foregrounds; see `group_by_foreground`.
        is_grouped: add the averages within each foreground and over foregrounds, each counted once.

    Returns: averages over images with their intervals, counts, versions and the metrics and foreground of each image,
        all in natural units (MSE 0.0061, not 6.1).
    """
    rows = evaluation.rows
    foregrounds = group_by_foreground(evaluation.files, pattern)
    foreground_of = {image: name for name, images in foregrounds.items() for image in images}
    measured = {name: [rows[image] for image in images if image in rows] for name, images in foregrounds.items()}
    per_foreground = {name: {"images": len(group), **average(group)} for name, group in measured.items() if group}
    summary = {
        "protocol": protocol.name,
        "description": protocol.description,
        "test_set": {**test_set, "sha256": evaluation.digest},
        "predictions": dict(predictions),
        "images": len(rows),
        "foregrounds": len(per_foreground),
        "foreground_rule": describe_rule(pattern),
        "empty_regions": sum(row["pixels"] == 0 for row in rows.values()),
        "missing": evaluation.missing,
        "averages": average(rows.values()),
        "intervals": bootstrap_intervals(rows, foregrounds),
        "bootstrap": {"confidence": CONFIDENCE, "resamples": NUM_RESAMPLES, "seed": SEED, "unit": "foreground"},
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "opencv": cv2.__version__,
            "pillow": version("pillow"),
        },
        "per_image": {name: {"foreground": foreground_of[name], **row} for name, row in rows.items()},
    }
    if is_grouped:
        summary["averages_over_foregrounds"] = average(per_foreground.values())
        summary["intervals_over_foregrounds"] = bootstrap_intervals(
            per_foreground, {name: [name] for name in per_foreground}
        )
        summary["per_foreground"] = per_foreground
    return summary


def read_summary(path: str | Path) -> Summary:
    """Read the JSON file of a summary.

    Args:
        path: the file, or the folder that holds it as `SUMMARY`.

    Raises:
        DataError: the file is not a summary.
        OSError: the file cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        path /= SUMMARY
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        sums = [math.fsum(row[metric] for row in summary["per_image"].values()) for metric in METRICS]
        # read as a comparison reads them
        stored_foregrounds(summary), summary["test_set"]["sha256"], ", ".join(summary["missing"])
        is_summary = all(key in summary for key in COMPARED) and all(map(math.isfinite, sums))
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError):  # not JSON, or other JSON
        is_summary = False
    if not is_summary:
        raise DataError(f"{path} is not a summary: expected the {SUMMARY} that an evaluation writes")
    return summary


def compare(a: Summary, b: Summary) -> list[Row]:
    """Compare two methods on the same images.

    Args:
        a: a summary.
        b: another with the same protocol, test set and images.

    Returns: rows of a table with a column per metric: averages of A and B, B - A, its paired interval (foregrounds
        drawn once for both), and the numbers of images that are better, worse and equal in B.

    Raises:
        DataError: protocol, test set, images or their foregrounds differ; the message lists how.
    """
    if obstacles := _obstacles(a, b):
        raise DataError("\n".join(["these two cannot be compared:", *obstacles]))
    rows_a, rows_b = a["per_image"], b["per_image"]
    changes = {name: {metric: rows_b[name][metric] - rows_a[name][metric] for metric in METRICS} for name in rows_a}
    intervals = bootstrap_intervals(changes, stored_foregrounds(a))
    signs = {"better": -1, "worse": 1, "equal": 0}  # of B - A: all metrics are errors
    return [
        {"": "A", **average(rows_a.values())},
        {"": "B", **average(rows_b.values())},
        {"": "B - A", **average(changes.values())},
        *interval_rows(intervals),
        *(
            {"": f"images {word}", **{m: sum(np.sign(row[m]) == sign for row in changes.values()) for m in METRICS}}
            for word, sign in signs.items()
        ),
    ]


def stored_foregrounds(summary: Summary) -> dict[str, list[str]]:
    """Group the measured images by the stored foregrounds, in their order."""
    foregrounds: dict[str, list[str]] = defaultdict(list)
    for name, row in summary["per_image"].items():
        foregrounds[row["foreground"]].append(name)
    return dict(foregrounds)


def interval_rows(intervals: Mapping[str, tuple[float, float]] | None) -> list[Row]:
    """Make the two rows of a table that show intervals; None gives rows without values."""
    ends = {"from": 0, "to": 1}
    return [
        {"": f"{CONFIDENCE:.0%} {word}", **{metric: bounds[end] for metric, bounds in (intervals or {}).items()}}
        for word, end in ends.items()
    ]


def _obstacles(a: Summary, b: Summary) -> list[str]:
    """List the reasons against a comparison, one line each."""
    lines = []
    if a["protocol"] != b["protocol"]:
        lines.append(f"  protocol: A has {a['protocol']}, B has {b['protocol']}")
    for first, second, ours, others in (("A", "B", a, b), ("B", "A", b, a)):
        if names := sorted(ours["per_image"].keys() - others["per_image"].keys()):
            listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            lines.append(f"  images: {len(names)} of {first} are not in {second}: {listed}")
    both = a["per_image"].keys() & b["per_image"].keys()
    if names := sorted(n for n in both if a["per_image"][n]["foreground"] != b["per_image"][n]["foreground"]):
        lines.append(f"  foregrounds: of {len(names)} images they differ: evaluate both with one rule for foregrounds")
    if a["test_set"]["sha256"] != b["test_set"]["sha256"]:
        lines.append("  test set: the pixels of ground truth or trimaps differ")
    return lines
