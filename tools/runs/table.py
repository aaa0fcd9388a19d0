"""Runs side by side at one evaluation each: means over seeds with their intervals, and differences paired by seed."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice
from typing import NamedTuple

from data.image_io.images import DataError
from evaluation.metrics import METRICS
from evaluation.output.report import Row
from evaluation.statistics.t_interval import MeanInterval, mean_interval
from tools.runs.reading import Curve, Run, check_metrics, is_evaluation


class Choice(NamedTuple):
    """Which evaluation of a run counts: that of the best `metric`, or the last one where that is None."""

    metric: str | None = None
    is_max: bool = False


LAST = Choice()


class Line(NamedTuple):
    """A group, the seeds of its runs, the iterations that count (each once) and its metrics in natural units."""

    group: str
    seeds: list[int | None]
    iterations: list[int]
    values: dict[str, MeanInterval]


def smoothed(curve: Curve, window: int) -> Curve:
    """Replace each value by the mean of the last `window` ones up to it, fewer at the start."""
    values = list(curve.values())
    parts = (values[max(0, last + 1 - window) : last + 1] for last in range(len(values)))
    return dict(zip(curve, (sum(part) / len(part) for part in parts), strict=True))


def curve_of(run: Run, metric: str, window: int) -> Curve:
    """Give a metric's curve, smoothed unless it is an evaluation's or a learning rate; empty where there is none."""
    curve = run.curves.get(metric, {})
    is_plain = is_evaluation(metric) or metric == "lr" or metric.startswith("lr/")
    return curve if is_plain else smoothed(curve, window)


def values_at(run: Run, metrics: Sequence[str], choice: Choice, window: int) -> tuple[int, dict[str, float]]:
    """Give the iteration of a run that counts and its metrics then: each one's last value up to there.

    Raises:
        DataError: a metric is missing, or not finite there.
    """
    curves = {metric: curve_of(run, metric, window) for metric in metrics}
    if missing := [metric for metric, curve in curves.items() if not curve]:
        raise DataError(f"{run.name} has no {', '.join(missing)}; it has {', '.join(sorted(run.curves))}")
    if choice.metric is None:
        iteration = max(max(curve) for curve in curves.values())
    else:
        known = {at: value for at, value in curve_of(run, choice.metric, window).items() if math.isfinite(value)}
        if not known:
            raise DataError(f"{run.name} has no finite {choice.metric} to choose the best of")
        iteration = (max if choice.is_max else min)(known, key=known.__getitem__)
    found = {}
    for metric, curve in curves.items():
        reached = [at for at in curve if at <= iteration]
        if not reached or not math.isfinite(curve[reached[-1]]):
            what = "no value" if not reached else f"the value {curve[reached[-1]]}"
            raise DataError(
                f"{run.name} has {what} of {metric} at iteration {iteration}: "
                "leave this run out, or name other --metrics"
            )
        found[metric] = curve[reached[-1]]
    return iteration, found


def tabulate(
    groups: Mapping[str, Sequence[Run]],
    metrics: Sequence[str],
    choice: Choice = LAST,
    window: int = 1,
    baseline: str | None = None,
) -> list[Line]:
    """Average each group.

    Args:
        groups: as `group_by_seed` gives them.
        metrics: names of curves; a group none of whose runs has one goes without it.
        choice: which evaluation counts.
        window: lines over which training metrics are averaged.
        baseline: a group: the lines of the others hold their differences to it, run by run of the same seed, which
            what a seed draws alike for both drops out of; runs whose seed the baseline lacks are left out.

    Raises:
        DataError: a metric, that of the choice included, is missing in all groups or in some runs of one, a group has
            none of them, there is no such baseline, or no run of a group has a seed of the baseline's.
    """
    if baseline is not None and baseline not in groups:
        raise DataError(f"--baseline must be one of {', '.join(groups)}, got {baseline!r}")
    check_metrics(metrics if choice.metric is None else [*metrics, choice.metric], chain(*groups.values()))
    found = {}
    for name, runs in groups.items():
        own = [metric for metric in metrics if any(metric in run.curves for run in runs)]
        if not own:
            raise DataError(f"{name} has none of {', '.join(metrics)}: leave it out, or name other --metrics")
        found[name] = [values_at(run, own, choice, window) for run in runs]
    lines = []
    for name, runs in groups.items():
        pairs = [(run.seed, at, values) for run, (at, values) in zip(runs, found[name], strict=True)]
        if baseline is not None:
            if name == baseline:
                continue
            of_seed = dict(zip((run.seed for run in groups[baseline]), (v for _, v in found[baseline]), strict=True))
            pairs = [
                (
                    seed,
                    at,
                    {metric: v - of_seed[seed][metric] for metric, v in values.items() if metric in of_seed[seed]},
                )
                for seed, at, values in pairs
                if seed is not None and seed in of_seed
            ]
            if not pairs:
                raise DataError(f"no run of {name} has a seed of {baseline}'s: there is nothing to pair")
        means = {metric: mean_interval([values[metric] for _, _, values in pairs]) for metric in pairs[0][2]}
        lines.append(Line(name, [seed for seed, _, _ in pairs], sorted({at for _, at, _ in pairs}), means))
    return lines


def unequal_ends(groups: Mapping[str, Sequence[Run]], metrics: Sequence[str]) -> list[str]:
    """Name, for each group whose runs do not end at one iteration, those that end early, by the first such metric.

    Args:
        groups: as `group_by_seed` gives them.
        metrics: names of curves; a run that lacks one is left out.
    """
    told = []
    for name, runs in groups.items():
        for metric in metrics:
            ends = [(run.name, max(run.curves[metric])) for run in runs if metric in run.curves]
            last = max((end for _, end in ends), default=None)
            if early := [f"{run} ends at {end}" for run, end in ends if end != last]:
                told.append(f"{name} averages {metric} of unequal iterations: {', '.join(early)}, the others at {last}")
                break
    return told


def shown_rows(lines: Iterable[Line]) -> list[Row]:
    """Lay out for print: each metric in the unit of reports, mean ± half the width of the interval."""
    return [
        {
            "run": line.group,
            "seeds": _listed(line.seeds),
            "iteration": _listed(line.iterations),
            **{_head(metric): _shown(metric, value) for metric, value in line.values.items()},
        }
        for line in lines
    ]


def plain_rows(lines: Iterable[Line]) -> list[Row]:
    """Lay out for a CSV file: natural units, full precision, mean and half width in columns of their own."""
    return [
        {
            "run": line.group,
            "seeds": _listed(line.seeds),
            "iteration": _listed(line.iterations),
            **{
                f"{metric}{suffix}": "" if number is None else number
                for metric, value in line.values.items()
                for suffix, number in (("", value.mean), (" half width", value.half_width))
            },
        }
        for line in lines
    ]


def default_metrics(runs: Iterable[Run]) -> list[str]:
    """Name what evaluations gave, in the order of reports; "total_loss" where there was none."""
    names = dict.fromkeys(metric for run in runs for metric in run.curves if is_evaluation(metric))
    order = list(METRICS)
    ranks = {name: order.index(leaf) if (leaf := name.rpartition("/")[2]) in METRICS else len(order) for name in names}
    return sorted(names, key=lambda name: (name.rpartition("/")[0], ranks[name], name)) or ["total_loss"]


def _listed(items: Sequence[int | None]) -> str:
    shown = [str(item) for item in items if item is not None]
    return ", ".join([*islice(shown, 8), *(["..."] if len(shown) > 8 else [])]) or "-"


def _head(metric: str) -> str:
    prefix, _, leaf = metric.rpartition("/")
    return f"{prefix}/{METRICS[leaf].label}" if prefix and leaf in METRICS else metric


def _shown(metric: str, value: MeanInterval) -> str:
    leaf = metric.rpartition("/")[2]
    factor = METRICS[leaf].shown_factor if "/" in metric and leaf in METRICS else 1
    mean, half_width = value.mean * factor, (value.half_width or 0) * factor
    # Two digits of what is uncertain, else four in all.
    scale = half_width / 10 if half_width > 1e-6 * abs(mean) else abs(mean) / 1000
    decimals = min(max(0, -math.floor(math.log10(scale))), 9) if scale > 0 else 0
    return f"{mean:.{decimals}f}" + ("" if value.half_width is None else f" ± {half_width:.{decimals}f}")
