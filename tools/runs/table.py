"""Compare runs at one evaluation each: means over seeds with intervals, and differences paired by seed."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from data.image_io.images import DataError
from evaluation.metrics import METRICS
from evaluation.statistics.t_interval import MeanInterval, mean_interval
from tools.runs.reading import Curve, Run, check_metrics, is_evaluation

Cells = dict[str, str | float]

MAX_LISTED = 8
"""Seeds or iterations that a cell lists."""


class Line(NamedTuple):
    """A group: the seeds of its runs, the iterations that count (each once), and its metrics in natural units.

    A metric that one of the runs lacks is None.
    """

    group: str
    seeds: list[int]
    iterations: list[int]
    values: dict[str, MeanInterval | None]


def smoothed(curve: Curve, window: int) -> Curve:
    """Replace each value by the mean of the last `window` ones up to it, fewer at the start."""
    values = list(curve.values())
    parts = (values[max(0, last + 1 - window) : last + 1] for last in range(len(values)))
    return dict(zip(curve, (sum(part) / len(part) for part in parts), strict=True))


def curve_of(run: Run, metric: str, window: int) -> Curve:
    """Return a metric's curve, smoothed unless it is an evaluation or a learning rate; empty if the run has none."""
    curve = run.curves.get(metric, {})
    is_plain = is_evaluation(metric) or metric == "lr" or metric.startswith("lr/")
    return curve if is_plain else smoothed(curve, window)


def values_at(run: Run, metrics: Sequence[str], window: int, best: str | None) -> tuple[int | None, dict[str, float]]:
    """Return the iteration of a run that counts, see `tabulate`, and the last value of each metric up to it.

    If there is no such iteration, it is None and there are no values.
    """
    curves = {metric: curve_of(run, metric, window) for metric in metrics}
    if best is None:
        iteration = max(chain(*curves.values()), default=None)
    else:
        finite = {at: value for at, value in curve_of(run, best, window).items() if math.isfinite(value)}
        iteration = min(finite, key=finite.__getitem__, default=None)
    if iteration is None:
        return None, {}
    reached = {metric: [value for at, value in curve.items() if at <= iteration] for metric, curve in curves.items()}
    return iteration, {metric: values[-1] for metric, values in reached.items() if values}


def tabulate(
    groups: Mapping[str, Sequence[Run]],
    metrics: Sequence[str],
    window: int = 1,
    best: str | None = None,
    baseline: str | None = None,
) -> list[Line]:
    """Average each group.

    Args:
        groups: of `group_by_seed`.
        metrics: names of curves.
        window: lines over which training metrics are averaged.
        best: metric whose best value decides which iteration of a run counts; None for the last iteration.
        baseline: a group. The other groups' lines then hold their differences from it, run by run of the same seed:
            what a seed does to both drops out. Runs whose seed the baseline lacks are left out.

    Raises:
        DataError: no run has a metric, or there is no such baseline.
    """
    if baseline is not None and baseline not in groups:
        raise DataError(f"--baseline must be one of {', '.join(groups)}, got {baseline!r}")
    check_metrics([*metrics, *([best] if best else [])], chain(*groups.values()))
    found = {
        name: [(run.seed, *values_at(run, metrics, window, best)) for run in runs] for name, runs in groups.items()
    }
    if baseline is not None:
        base = {seed: values for seed, _, values in found.pop(baseline) if seed is not None}
        for name, rows in found.items():
            found[name] = [(seed, at, _less(values, base[seed])) for seed, at, values in rows if seed in base]
    return [
        Line(
            name,
            [seed for seed, _, _ in rows if seed is not None],
            sorted({at for _, at, _ in rows if at is not None}),
            {metric: _mean([values.get(metric) for _, _, values in rows]) for metric in metrics},
        )
        for name, rows in found.items()
    ]


def unequal_ends(groups: Mapping[str, Sequence[Run]], metrics: Sequence[str]) -> list[str]:
    """Describe each group whose runs end at different iterations, by the first metric that shows it.

    Args:
        groups: of `group_by_seed`.
        metrics: names of curves; a run that lacks one is left out.
    """
    described: dict[str, str] = {}
    for name, runs in groups.items():
        for metric in metrics:
            ends = {run.name: max(run.curves[metric]) for run in runs if metric in run.curves}
            last = max(ends.values(), default=None)
            if early := [f"{run} ends at {end}" for run, end in ends.items() if end != last]:
                line = f"{name} averages {metric} of unequal iterations: {', '.join(early)}, the others at {last}"
                described.setdefault(name, line)
    return list(described.values())


def shown_rows(lines: Iterable[Line]) -> list[Cells]:
    """Format for print: each metric in the unit of reports, mean ± half the width of the interval."""
    return [_first_cells(line) | dict(_shown(metric, value) for metric, value in line.values.items()) for line in lines]


def plain_rows(lines: Iterable[Line]) -> list[Cells]:
    """Format for a CSV file: natural units, full precision, mean and half width in separate columns."""
    rows = []
    for line in lines:
        row = _first_cells(line)
        for metric, value in line.values.items():
            mean, half_width = value or (None, None)
            for column, number in ((metric, mean), (f"{metric} half width", half_width)):
                row[column] = "" if number is None else number
        rows.append(row)
    return rows


def default_metrics(runs: Iterable[Run]) -> list[str]:
    """List the metrics of evaluations in the order of reports; ["total_loss"] if there are none."""
    names = {metric for run in runs for metric in run.curves if is_evaluation(metric)}
    order = list(METRICS)

    def key(name: str) -> tuple[str, int, str]:
        prefix, _, leaf = name.rpartition("/")
        return prefix, order.index(leaf) if leaf in order else len(order), name

    return sorted(names, key=key) or ["total_loss"]


def _less(values: dict[str, float], base: dict[str, float]) -> dict[str, float]:
    return {metric: value - base[metric] for metric, value in values.items() if metric in base}


def _mean(values: Sequence[float | None]) -> MeanInterval | None:
    there = [value for value in values if value is not None]
    if not there or len(there) < len(values):
        return None
    return mean_interval(there) if all(map(math.isfinite, there)) else MeanInterval(math.nan, None)


def _first_cells(line: Line) -> Cells:
    return {"run": line.group, "seeds": _listed(line.seeds), "iteration": _listed(line.iterations)}


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join([*map(str, numbers[:MAX_LISTED]), *(["..."] if len(numbers) > MAX_LISTED else [])]) or "-"


def _shown(metric: str, value: MeanInterval | None) -> tuple[str, str]:
    """Return the column's name, with the unit, and the cell."""
    prefix, _, leaf = metric.rpartition("/")
    head, factor = metric, 1.0
    if prefix and leaf in METRICS:
        head, factor = f"{prefix}/{METRICS[leaf].label}", METRICS[leaf].shown_factor
    if value is None:
        return head, "-"
    mean, half_width = value.mean * factor, (value.half_width or 0) * factor
    # Two digits of what is uncertain, else four in all.
    scale = half_width / 10 if half_width > 1e-6 * abs(mean) else abs(mean) / 1000
    decimals = min(max(0, -math.floor(math.log10(scale))), 9) if scale > 0 else 0
    return head, f"{mean:.{decimals}f}" + ("" if value.half_width is None else f" ± {half_width:.{decimals}f}")
