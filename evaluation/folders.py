"""Measure a folder of predictions against the folders of a test set; files match by name without suffix.

Worker processes import this module, so neither it nor what it imports loads torch.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.image_io.formats import MATTED, READABLE, find_images, image_name
from data.image_io.images import DataError, as_unit_floats, read_alpha_values, read_raw_alpha, read_raw_image
from data.trimap import trimap_from_alpha, unknown_mask
from evaluation.metrics import PROTOCOLS, Protocol, as_protocol, measure, unknown_region
from runtime.errors import ConfigError, UserError
from runtime.processes import ALONE, Ranks
from runtime.worker_pool import map_in_workers

Track = Callable[[Iterable[Any], int], Iterable[Any]]
TAKEN = {"label": MATTED, "pred": MATTED, "trimap": READABLE, "image": READABLE}
"""Suffixes of the files that a folder is read for."""
Files = dict[str, Path]  # of one image: those of "label", "pred", "trimap" and "image" that exist


class Outcome(NamedTuple):
    """Result of a worker: the metrics (None without a prediction), the ground truth's digest, the problems."""

    row: dict[str, float] | None
    digest: bytes
    problems: list[str]


class Evaluation(NamedTuple):
    """Metrics and files of a test set.

    Fields:
        rows: name -> metric -> value and "pixels", as `evaluation.metrics.measure` gives them, sorted by name.
        files: name -> its files, for every ground truth alpha, sorted by name.
        missing: names without a prediction, sorted.
        digest: SHA-256 (hexadecimal) over ground truth and counted pixels of every image in order of names. Only
            evaluations with the same digest and protocol can be compared.
    """

    rows: dict[str, dict[str, float]]
    files: dict[str, Files]
    missing: list[str]
    digest: str


def evaluate_folders(
    pred_dir: Path,
    label_dir: Path,
    trimap_dir: Path | None = None,
    image_dir: Path | None = None,
    *,
    trimap_radius_px: int | None = None,
    protocol: Protocol = PROTOCOLS["dim"],
    num_workers: int = 1,
    allow_missing: bool = False,
    track: Track = lambda outcomes, num_images: outcomes,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Measure every image of a test set. Each worker holds one image in memory at a time.

    The result does not depend on the number of workers and processes.

    Args:
        pred_dir: predicted alphas, 8- or 16-bit grey or EXR.
        label_dir: ground truth alphas, likewise; every other folder must have files of the same names.
        trimap_dir: trimaps of 0, 128 and 255 alone; None if they are made or every pixel counts.
        image_dir: images, which must exist and have the alpha's size; None checks none.
        trimap_radius_px: makes trimaps from the ground truth by `trimap_from_alpha(alpha, radius, radius)`.
        protocol: one of `PROTOCOLS`.
        num_workers: number of worker processes; 1 measures in this process.
        allow_missing: skip images without a prediction instead of raising an error.
        track: called with the outcomes of this process and their number, returns them, for a progress bar.
        ranks: the processes that share the images.

    Raises:
        DataError: files are missing, extra, unreadable, of another size or of wrong values, all listed in one error;
            or no pixel of the test set counts.
        ConfigError: the protocol needs trimaps and has no source of them, or two.
        ChildProcessError: a worker was killed.
        RanksError: some of several ranks met such an error.
    """
    if trimap_dir is not None and trimap_radius_px is not None:
        raise ConfigError("expected a folder of trimaps or the radius to make them by, got both")
    if trimap_dir is None and trimap_radius_px is None and not protocol.is_whole:
        raise ConfigError(f"protocol {protocol.name} counts unknown pixels: give trimaps, or take 'whole'")
    folders = {"label": label_dir, "pred": pred_dir, "trimap": trimap_dir, "image": image_dir}
    files, problems = ranks.broadcast(lambda: _match(folders, may_lack=("pred",) if allow_missing else ()))
    share = ranks.share(list(files.items()))
    work = partial(_measure, protocol=protocol, trimap_radius_px=trimap_radius_px)
    measured = map_in_workers(work, share, min(num_workers, len(share)))
    outcomes = dict(zip(files, ranks.join(track(measured, len(share))), strict=True))
    _refuse([*problems, *(problem for outcome in outcomes.values() for problem in outcome.problems)])
    rows = {name: outcome.row for name, outcome in outcomes.items() if outcome.row is not None}
    if not any(row["pixels"] for row in rows.values()):  # all errors would be 0, like a perfect score
        where = f"in {trimap_dir}" if trimap_dir else f"made from {label_dir}"
        raise DataError(f"no trimap {where} has an unknown pixel (128), so that nothing can be measured")
    missing = [name for name, paths in files.items() if "pred" not in paths]
    digest = hashlib.sha256(b"".join(outcome.digest for outcome in outcomes.values())).hexdigest()
    return Evaluation(rows, files, missing, digest)


def check_test_set(
    label_dir: Path,
    trimap_dir: Path | None,
    image_dir: Path,
    *,
    num_workers: int = 1,
    track: Track = lambda problems, num_images: problems,
    ranks: Ranks = ALONE,
) -> dict[str, Files]:
    """Read every file of a test set before a network runs for hours; arguments as for `evaluate_folders`.

    Returns: name -> its files, sorted by name.

    Raises:
        DataError, ChildProcessError, RanksError: as for `evaluate_folders`.
    """
    folders = {"label": label_dir, "trimap": trimap_dir, "image": image_dir}
    files, problems = ranks.broadcast(lambda: _match(folders, may_lack=()))
    share = ranks.share(list(files.values()))
    found = ranks.join(track(map_in_workers(_find_problems, share, min(num_workers, len(share))), len(share)))
    _refuse([*problems, *(problem for listed in found for problem in listed)])
    return files


def _refuse(problems: Sequence[str]) -> None:
    """Raise one error that lists all problems, if there are any."""
    if problems:
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        raise DataError("\n".join([f"{count}, nothing evaluated:", *problems]))


def _match(folders: dict[str, Path | None], may_lack: Sequence[str]) -> tuple[dict[str, Files], list[str]]:
    """Find the files of each ground truth alpha; the second result lists what is missing or extra."""
    problems: list[str] = []
    given = {kind: folder for kind, folder in folders.items() if folder is not None}
    tables = {kind: _files_by_name(folder, TAKEN[kind], problems) for kind, folder in given.items()}
    alphas = tables["label"]
    for kind, table in tables.items():
        if table and alphas:  # an empty or missing folder is one problem already
            if kind not in may_lack:
                problems += [f"{folders[kind]}/{name}.* is missing" for name in alphas if name not in table]
            problems += [f"{table[name]} is extra: no alpha has its name" for name in table if name not in alphas]
    return {name: {k: table[name] for k, table in tables.items() if name in table} for name in sorted(alphas)}, problems


def _files_by_name(folder: Path, taken: Collection[str], problems: list[str]) -> dict[str, Path]:
    """Index a folder by name without suffix; append what is wrong with it to `problems`."""
    table: dict[str, Path] = {}
    try:
        for path in find_images(folder, taken):
            try:
                path.name.encode()
            except UnicodeEncodeError:  # such a name cannot be written to the results
                problems.append(f"{folder}: the name {ascii(path.name)} is not UTF-8: rename the file")
                continue
            name = image_name(path)
            if name in table:
                problems.append(f"{path} and {table[name].name} have one name: keep one of them")
            table[name] = path
    except FileNotFoundError as error:
        problems.append(str(error))
    return table


def _measure(item: tuple[str, Files], protocol: Protocol, trimap_radius_px: int | None) -> Outcome:
    """Read and measure one image, in a worker."""
    name, files = item
    arrays, problems = _read_files(files)
    if problems:
        return Outcome(None, b"", problems)
    alpha = as_protocol(arrays["label"], protocol)
    if protocol.is_whole:
        unknown: NDArray = np.ones(alpha.shape, np.bool_)
    elif trimap_radius_px is not None:
        exact_alpha = as_unit_floats(arrays["label"])
        unknown = unknown_mask(trimap_from_alpha(exact_alpha, trimap_radius_px, trimap_radius_px))
    elif "trimap" in arrays:
        unknown = arrays["trimap"]
    else:
        return Outcome(None, b"", problems)  # `_match` has reported the missing trimap
    digest = hashlib.sha256(f"{name} {alpha.shape} ".encode() + alpha.tobytes() + unknown.tobytes()).digest()
    row = measure(arrays["pred"], alpha, unknown, protocol) if "pred" in arrays else None
    return Outcome(row, digest, problems)


def _read_files(files: Files) -> tuple[dict[str, NDArray], list[str]]:
    """Read the files of one image; the second result lists what is wrong with them."""
    arrays: dict[str, NDArray] = {}
    problems: list[str] = []
    for kind, path in files.items():
        try:
            arrays[kind] = READERS[kind](path)
        except (OSError, UserError) as error:
            problems.append(str(error))
    if "label" in arrays:
        sizes = {kind: f"{array.shape[1]} x {array.shape[0]} px" for kind, array in arrays.items()}
        wrong = [f"{files[kind]} is {size}" for kind, size in sizes.items() if size != sizes["label"]]
        if wrong:
            problems.append(f"{', '.join(wrong)}, but {files['label']} is {sizes['label']}")
    return arrays, problems


def _find_problems(files: Files) -> list[str]:
    """List what is wrong with the files of one image, in a worker."""
    return _read_files(files)[1]


READERS: dict[str, Callable[[Path], NDArray]] = {
    "label": read_alpha_values,
    "pred": read_alpha_values,
    "trimap": lambda path: unknown_region(read_raw_alpha(path), path),
    "image": read_raw_image,
}
