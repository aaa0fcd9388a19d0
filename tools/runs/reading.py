"""Trainings as their folders tell of them: curves of metrics.json, and the settings of config.yaml."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.image_io.images import DataError
from runtime.errors import UserError
from runtime.yaml_files import load_yaml

METRICS, CONFIG = "metrics.json", "config.yaml"

SEED_IN_NAME = re.compile(r"(.+?)[_-](?:seed|s)[_-]?([0-9]+)")

GROUPING = (
    "a folder's name without a _seedN or -sN at its end, as far as the configs differ in train.seed and "
    "train.output_dir alone"
)

Curve = dict[int, float]
"""Iteration -> value, ascending."""


class Run(NamedTuple):
    """One training.

    Args:
        name: of its folder.
        stem: the name without the seed at its end.
        seed: of its config, else of its name, else None.
        settings: its config without seed and folder; None where there is none.
        curves: metric -> curve.
        num_spoilt: lines of metrics.json that could not be read, the last one left out.
    """

    name: str
    stem: str
    seed: int | None
    settings: dict[str, Any] | None
    curves: dict[str, Curve]
    num_spoilt: int


class NoRunError(DataError):
    """A file or folder that is no run, or has nothing to show yet."""


def read_runs(paths: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Read each training run among some paths, such as those of `output/*`.

    Args:
        paths: output folders, or files as their metrics.json, and others.

    Returns: the runs, and a line for each path that is none.

    Raises:
        DataError: naming every run that cannot be read, and every path that does not exist, one per line; none of the
            paths is a run; or one is given twice.
    """
    runs, taken, skipped, faults = [], [], [], []
    for path in paths:
        try:
            runs.append(read_run(path))
            taken.append(path)
        except NoRunError as error:
            skipped.append(str(error))
        except (DataError, OSError) as error:
            faults.append(str(error))
    if faults or not runs:
        raise DataError("\n".join(faults or skipped))
    places = [path.resolve() for path in taken]
    if twice := [str(path) for path, place in zip(taken, places, strict=True) if places.count(place) > 1]:
        raise DataError(f"{twice[0]} is given twice: name each run once")
    return runs, skipped


def read_run(path: Path) -> Run:
    """Read one training; see `read_runs`."""
    file = path / METRICS if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        raise NoRunError(f"{path} holds no {METRICS}: expected the output folder of a training run")
    if not file.is_file():
        raise DataError(f"{path} does not exist: expected the output folder of a training run, or a {METRICS}")
    try:
        curves, num_spoilt = read_curves(file)
    except DataError as error:
        if file.name == METRICS:
            raise
        raise NoRunError(str(error)) from error  # a picture or table beside the runs
    folder = file.resolve().parent
    name = folder.name if file.name == METRICS else file.stem
    settings = read_settings(folder / CONFIG) if (folder / CONFIG).is_file() and file.name == METRICS else None
    match = SEED_IN_NAME.fullmatch(name)
    seed = int(match[2]) if match else None
    if settings is not None:
        train = settings.get("train", {})
        seed = train.pop("seed", seed)
        train.pop("output_dir", None)
    return Run(name, match[1] if match else name, seed, settings, curves, num_spoilt)


def read_curves(file: Path) -> tuple[dict[str, Curve], int]:
    """Read a metrics.json, whose lines ascend; where one is below the line before it, a resume began.

    What it does again, or counts anew for another batch size, replaces all that was from its first iteration on.

    Returns: metric -> curve, and the number of lines, but for a last one that was cut off, which are of no use.

    Raises:
        NoRunError: it is empty, as that of a run that has just begun.
        DataError: no line is of use.
    """
    try:
        lines = [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no text: expected a JSON object per line, as a run writes them") from error
    rows: dict[int, dict[str, float]] = {}  # ascending
    spoilt = []
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            iteration = int(values.pop("iteration"))
            numbers = {metric: float(value) for metric, value in values.items()}
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            spoilt.append((number, error))
            continue
        if rows and iteration < next(reversed(rows)):
            rows = {earlier: row for earlier, row in rows.items() if earlier < iteration}
        rows.setdefault(iteration, {}).update(numbers)
    curves: dict[str, Curve] = {}
    for iteration, row in rows.items():
        for metric, value in row.items():
            curves.setdefault(metric, {})[iteration] = value
    if not curves:
        if not spoilt:
            raise NoRunError(f"{file} is empty: the run has written no line yet")
        reason = f"line {spoilt[0][0]}: {type(spoilt[0][1]).__name__}: {spoilt[0][1]}"
        raise DataError(f'{file} has no line of use ({reason}): expected {{"iteration": 19, "total_loss": 0.5, ...}}')
    return curves, sum(number < len(lines) for number, _ in spoilt)


def read_settings(file: Path) -> dict[str, Any]:
    """Read a config as saved, its interpolations kept.

    Raises:
        DataError: it is no config.
    """
    try:
        settings = load_yaml(file)
    except UserError as error:
        raise DataError(str(error)) from error
    if not isinstance(settings, dict) or not isinstance(settings.get("train", {}), dict):
        raise DataError(f"{file}: expected sections with their settings, as a run saves them")
    return settings


def check_metrics(metrics: Iterable[str], runs: Iterable[Run]) -> None:
    """See that each metric is in some run.

    Raises:
        DataError: naming those that are in none, and what there is.
    """
    known = {metric for run in runs for metric in run.curves}
    if unknown := [metric for metric in metrics if metric not in known]:
        raise DataError(f"no run has {', '.join(unknown)}; there are {', '.join(sorted(known))}")


def is_evaluation(metric: str) -> bool:
    """Tell what evaluations give ("matting/SAD") from what each step does ("total_loss", "lr/decoder")."""
    return "/" in metric and not metric.startswith("lr/")


def group_by_seed(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Put runs together that differ by their seed alone: see `GROUPING`.

    Returns: name of the group -> its runs, by seed. Where configs of one stem differ otherwise, each run is a group of
        its own name; so is one that no other belongs to.

    Raises:
        DataError: two runs of a group have the same seed, or one name stands for two groups.
    """
    stems: dict[str, list[Run]] = {}
    for run in runs:
        stems.setdefault(run.stem, []).append(run)
    groups: dict[str, list[Run]] = {}
    for stem, members in stems.items():
        is_one = all(run.settings == members[0].settings for run in members)
        for name, run in ((stem if is_one and len(members) > 1 else run.name, run) for run in members):
            groups.setdefault(name, []).append(run)
    for name, members in groups.items():
        seeds = [run.seed for run in members]
        if len({*seeds}) < len(seeds):
            shown = ", ".join(f"{run.name} (seed {run.seed})" for run in members)
            raise DataError(f"the runs of {name} must differ in their seed, got {shown}: leave one out or rename it")
        members.sort(key=lambda run: run.seed or 0)
    return groups


def differing_settings(runs: Sequence[Run]) -> list[str]:
    """Name the settings, as dotted keys, in which the configs of runs differ; none where one has no config."""
    flat = [dict(_leaves(run.settings)) for run in runs if run.settings is not None]
    if len(flat) < len(runs):
        return []
    keys = dict.fromkeys(key for settings in flat for key in settings)
    return [key for key in keys if any(settings.get(key) != flat[0].get(key) for settings in flat)]


def _leaves(node: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    if not isinstance(node, dict):
        return [(prefix, node)]
    return [leaf for key, value in node.items() for leaf in _leaves(value, f"{prefix}.{key}" if prefix else str(key))]
