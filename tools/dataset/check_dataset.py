"""Check the files of a config, or of folders, before training.

    python tools/dataset/check_dataset.py --config-file configs/ViTMatte_S_10ep.py
    python tools/dataset/check_dataset.py --config-file CONFIG --report FILE.csv \\
        'dataloader.train.dataset.foreground_dirs=[fg]'
    python tools/dataset/check_dataset.py --foreground-dir fg --alpha-dir alpha --background-dir photos \\
        --test-image-dir test/image --test-trimap-dir test/trimap --test-alpha-dir test/alpha

Every file is read once, in several processes. Nothing is changed. A folder may be a pattern or the name of a known set,
as in a config. docs/check_data.md lists the faults. Only the given sets are checked; what training and test share is
checked if both are given. With a config, the data sets and one sample of each are built too, as at the start of a run.

Exit status: 0 training may start, 1 it may not, 2 wrong usage, for example a misspelt key, 130 interrupted.
"""

import _root  # noqa: F401

import argparse
import csv
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

# Worker processes import this file too. So modules that load torch are imported where a config is read.
from data.checks.dataset import Report, check_sets
from data.checks.faults import FAULTS, Finding
from data.checks.sets import FolderSet, read_config_sets
from data.image_io.images import DataError
from data.sources.discovery import place_or_none
from runtime.command_line import add_trust_option, integer_from
from runtime.errors import UserError
from runtime.worker_pool import default_workers

if TYPE_CHECKING:
    from omegaconf import DictConfig

TRAINING_OPTIONS = ("foreground", "alpha", "background", "image", "image_alpha")
TEST_OPTIONS = ("image", "trimap", "alpha")
REPORT_SUFFIXES = (".csv", ".json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line (`sys.argv` by default) and check.

    Returns: the exit status.
    """
    options = parse(arguments)
    try:
        dataloader = None if options.config_file is None else read_config(options)
    except UserError as error:
        print(f"check_dataset.py: {error}", file=sys.stderr)
        return 2
    try:
        problem = None if dataloader is None else try_start(dataloader)
        report = check_sets(find_sets(options, dataloader), options.workers, show_progress)
        has_errors = any(FAULTS[finding.code].severity == "error" for finding in report.findings)
        print_report(report, options.num, may_start=not has_errors and problem is None)
        if options.report is not None:
            write_report(options.report, report)
            print(f"wrote {options.report}: {count(len(report.findings), 'finding')}")
        if not has_errors and problem is not None:
            raise problem
    except (OSError, UserError) as error:
        print(f"check_dataset.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("check_dataset.py: interrupted", file=sys.stderr)
        return 130
    return int(has_errors)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line. Contradicting options end with status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", type=Path, help="check the training and test folders of this config")
    add_trust_option(parser)
    parser.add_argument("overrides", nargs="*", help="with --config-file: key=value, as for main.py")
    training = parser.add_argument_group("training folders, instead of a config")
    training.add_argument("--foreground-dir", nargs="+", help="RGBA cut-outs, or colours with --alpha-dir")
    training.add_argument(
        "--alpha-dir", nargs="+", type=place_or_none, help="alphas, a folder (or null) for each --foreground-dir"
    )
    training.add_argument("--background-dir", nargs="+", help="photographs")
    training.add_argument("--image-dir", nargs="+", help="photographs with their own alphas")
    training.add_argument(
        "--image-alpha-dir",
        nargs="+",
        type=place_or_none,
        help="their alphas, a folder for each --image-dir except names of sets",
    )
    test = parser.add_argument_group("test folders, instead of a config")
    test.add_argument("--test-image-dir", help="images")
    test.add_argument("--test-trimap-dir", help="trimaps with only 0, 128 and 255")
    test.add_argument("--test-alpha-dir", help="ground truth alphas")
    parser.add_argument(
        "--workers", type=integer_from(1), default=default_workers(), help="processes (default: %(default)s)"
    )
    parser.add_argument(
        "--num", type=integer_from(0), default=10, help="files to print for each fault (default: %(default)s)"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write all faults to this .csv or .json file")
    options = parser.parse_intermixed_args(arguments)
    names = [f"{name}_dir" for name in TRAINING_OPTIONS] + [f"test_{name}_dir" for name in TEST_OPTIONS]
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name)]
    if bool(options.config_file) == bool(given):
        parser.error(f"give --config-file or folders, got {'both' if given else 'neither'}")
    if options.overrides and not options.config_file:
        parser.error(f"{options.overrides[0]}: overrides belong to --config-file")
    if options.alpha_dir and not options.foreground_dir or options.image_alpha_dir and not options.image_dir:
        parser.error("--alpha-dir goes with --foreground-dir, and --image-alpha-dir with --image-dir")
    if options.report and options.report.suffix.lower() not in REPORT_SUFFIXES:
        parser.error(f"--report {options.report}: expected a name that ends in {' or '.join(REPORT_SUFFIXES)}")
    if options.report and not options.report.parent.is_dir():
        parser.error(f"--report {options.report}: there is no folder {options.report.parent}")
    return options


def read_config(options: argparse.Namespace) -> "DictConfig":
    """Read the section `dataloader` of the config in the options.

    Raises:
        ConfigError: something is wrong with the file or an override; the message says what.
    """
    from engine.config.config import apply_overrides, load_config

    cfg = load_config(options.config_file, ["dataloader"], options.trust_module)
    apply_overrides(cfg, options.overrides)
    return cfg.dataloader


def try_start(dataloader: "DictConfig") -> OSError | DataError | None:
    """Build the data sets of a config, and a sample of each, as at the start of a run.

    Returns: what is wrong with files, which reading all of them may explain better.

    Raises:
        ConfigError: a setting that cannot be used.
    """
    from engine.config.build_data import build_data

    try:
        build_data(dataloader)
    except (OSError, DataError) as error:
        return error
    return None


def find_sets(options: argparse.Namespace, dataloader: "DictConfig | None") -> list[FolderSet]:
    """List the folders of the config or, without one, of the options.

    Raises:
        OSError, UserError: something is wrong with the folders; the message says what.
    """
    if dataloader is not None:
        from omegaconf import OmegaConf

        container: Any = OmegaConf.to_container(dataloader, resolve=True)
        return read_config_sets(container)
    training = {f"{name}_dirs": getattr(options, f"{name}_dir") for name in ("foreground", "alpha", "background")}
    photographs = {"image_dirs": options.image_dir, "alpha_dirs": options.image_alpha_dir}
    test = {f"{name}_dir": getattr(options, f"test_{name}_dir") for name in TEST_OPTIONS}
    return read_config_sets({"train": [training, photographs], "test": test})


def show_progress(outcomes: Iterable[Any], num_groups: int) -> Iterable[Any]:
    """Draw a progress bar if there is a terminal."""
    return tqdm(outcomes, "files", num_groups, unit="group", disable=None)


def print_report(report: Report, num: int, may_start: bool) -> None:
    """Print the findings by fault, and whether training may start.

    Args:
        report: what was found.
        num: files to print of each fault.
        may_start: the verdict.
    """
    by_code: dict[str, list[Finding]] = defaultdict(list)
    for finding in report.findings:
        by_code[finding.code].append(finding)
    counts = {"error": 0, "warning": 0}
    for code, found in by_code.items():
        fault = FAULTS[code]
        counts[fault.severity] += len(found)
        print(f"{fault.severity} {code}: {count(len(found), 'file')}: {fault.meaning}")
        for finding in found[:num]:
            line = f"    {finding.path}: {finding.detail}"
            print(line.encode(errors="backslashreplace").decode())  # a name may not be UTF-8
        if len(found) > num:
            print(f"    ... and {len(found) - num} more")
        print(f"    -> {fault.advice}")
    verdict = "training may start" if may_start else "training may not start"
    numbers = ", ".join(count(number, severity) for severity, number in counts.items())
    print(f"{count(report.num_files, 'file')} checked, {numbers}: {verdict}")


def count(number: int, noun: str) -> str:
    """Format a number with a noun, such as "2 files"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def write_report(path: Path, report: Report) -> None:
    """Write all findings as CSV or JSON; a path that is not UTF-8 is written with escapes."""
    rows = [
        {"severity": FAULTS[f.code].severity, "code": f.code, "path": str(f.path), "detail": f.detail}
        for f in report.findings
    ]
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        if path.suffix.lower() == ".json":
            json.dump({"num_files": report.num_files, "findings": rows}, file, indent=2)
        else:
            writer = csv.DictWriter(file, ["severity", "code", "path", "detail"])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    raise SystemExit(main())
