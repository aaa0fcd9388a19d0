"""Read training runs from their folders: curves of metrics.json, settings of config.yaml."""

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
    """A training run.

    Args:
        name: of its folder.
        stem: the name without the seed at its end.
        seed: of its config, else of its name, else None.
        settings: its config without seed and folder; None without a config.
        curves: metric -> curve.
        num_bad_lines: lines of metrics.json that could not be read, except for the last line.
    """

    name: str
    stem: str
    seed: int | None
    settings: dict[str, Any] | None
    curves: dict[str, Curve]
    num_bad_lines: int


class NoRunError(DataError):
    """The path is no run, or a run that has written nothing yet."""


def read_runs(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Read each training run among some paths, such as those of `output/*`.

    Args:
        paths: output folders, or files like their metrics.json, and others.

    Returns: the runs, and a line for each path that is no run.

    Raises:
        DataError: it names, one per line, each run that cannot be read, each path that is missing or given twice, and
            each path if none is a run.
    """
    runs: dict[Path, Run] = {}
    skipped, faults = [], []
    for path in paths:
        try:
            run = read_run(path)
        except NoRunError as error:
            skipped.append(str(error))
        except (DataError, OSError) as error:
            faults.append(str(error))
        else:
            if runs.setdefault(path.resolve(), run) is not run:
                faults.append(f"{path} is given twice: name each run once")
    if faults or not runs:
        raise DataError("\n".join(faults or skipped))
    return list(runs.values()), skipped


def read_run(path: Path) -> Run:
    """Read one training run; see `read_runs`."""
    file = path / METRICS if path.is_dir() else path
    if not file.is_file():
        if path.is_dir():
            raise NoRunError(f"{path} holds no {METRICS}: expected the output folder of a training run")
        raise DataError(f"{path} does not exist: expected the output folder of a training run, or a {METRICS}")
    folder = file.resolve().parent
    is_folder = file.name == METRICS
    try:
        curves, num_bad_lines = read_curves(file)
    except DataError as error:
        if is_folder:
            raise
        raise NoRunError(str(error)) from error  # an image or table beside the runs
    name = folder.name if is_folder else file.stem
    match = SEED_IN_NAME.fullmatch(name)
    stem, seed = (match[1], int(match[2])) if match else (name, None)
    settings = None
    if is_folder and (folder / CONFIG).is_file():
        settings = read_settings(folder / CONFIG)
        train = settings.get("train", {})
        seed = train.pop("seed", seed)
        train.pop("output_dir", None)
    return Run(name, stem, seed, settings, curves, num_bad_lines)


def read_curves(file: Path) -> tuple[dict[str, Curve], int]:
    """Read a metrics.json. Iterations ascend; a smaller one than before is the start of a resume.

    The lines of a resume replace all earlier lines from its first iteration on.

    Returns: metric -> curve, and the number of lines that could not be read. A last line that was cut off is not
        counted.

    Raises:
        NoRunError: it is empty, as that of a run that has just begun.
        DataError: no line could be read.
    """
    try:
        lines = [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no text: expected a JSON object per line, as a run writes them") from error
    rows: dict[int, dict[str, float]] = {}  # ascending
    bad = {}
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            iteration = int(values.pop("iteration"))
            numbers = {metric: float(value) for metric, value in values.items()}
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            bad[number] = error
            continue
        if rows and iteration < next(reversed(rows)):
            rows = {earlier: row for earlier, row in rows.items() if earlier < iteration}
        rows.setdefault(iteration, {}).update(numbers)
    curves: dict[str, Curve] = {}
    for iteration, row in rows.items():
        for metric, value in row.items():
            curves.setdefault(metric, {})[iteration] = value
    if not curves and not bad:
        raise NoRunError(f"{file} is empty: the run has written no line yet")
    if not curves:
        number, reason = next(iter(bad.items()))
        raise DataError(
            f"{file} has no line of use (line {number}: {type(reason).__name__}: {reason}): "
            'expected {"iteration": 19, "total_loss": 0.5, ...}'
        )
    return curves, len(bad.keys() - {len(lines)})


def read_settings(file: Path) -> dict[str, Any]:
    """Read a saved config, without resolving its interpolations.

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
    """Check that each metric is in some run.

    Raises:
        DataError: it names the metrics that are in none, and all that exist.
    """
    known = {metric for run in runs for metric in run.curves}
    if unknown := [metric for metric in metrics if metric not in known]:
        raise DataError(f"no run has {', '.join(unknown)}; there are {', '.join(sorted(known))}")


def is_evaluation(metric: str) -> bool:
    """Tell metrics of evaluations ("matting/SAD") from those of steps ("total_loss", "lr/decoder")."""
    return "/" in metric and not metric.startswith("lr/")


def group_by_seed(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Group the runs that differ only in their seed: see `GROUPING`.

    Returns: name of the group -> its runs, by seed. A run without partners is a group under its own name. So is each
        run of a stem whose configs differ in more than the seed.

    Raises:
        DataError: two runs of a group have the same seed, or two groups the same name.
    """
    stems: dict[str, list[Run]] = {}
    for run in runs:
        stems.setdefault(run.stem, []).append(run)
    groups: dict[str, list[Run]] = {}
    for stem, members in stems.items():
        is_group = len(members) > 1 and all(run.settings == members[0].settings for run in members)
        for run in members:
            groups.setdefault(stem if is_group else run.name, []).append(run)
    for name, members in groups.items():
        if len({run.seed for run in members}) < len(members):
            shown = ", ".join(f"{run.name} (seed {run.seed})" for run in members)
            raise DataError(f"the runs of {name} must differ in their seed, got {shown}: leave one out or rename it")
        members.sort(key=lambda run: run.seed or 0)
    return groups


def differing_settings(runs: Sequence[Run]) -> list[str]:
    """List the settings, as dotted keys, that differ between configs; none if a run has no config."""
    if any(run.settings is None for run in runs):
        return []
    flat = [_flatten(run.settings) for run in runs]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    return [key for key in keys if any(settings.get(key) != flat[0].get(key) for settings in flat)]


def _flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix.removesuffix("."): node}
    return {name: leaf for key, value in node.items() for name, leaf in _flatten(value, f"{prefix}{key}.").items()}
