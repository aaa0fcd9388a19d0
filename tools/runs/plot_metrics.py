"""Compare runs: draw their curves, or print a table with intervals over seeds.

    python tools/runs/plot_metrics.py output/first output/second --output curves.png
    python tools/runs/plot_metrics.py output/* --output curves.png
    python tools/runs/plot_metrics.py output/ablation/* --table --baseline base --format markdown --csv table.csv

It reads output folders, or files like their metrics.json. Folders that are no run are skipped and named on stderr. Runs
that differ only in the seed are one group: folders that end in _seedN or -sN, with equal config.yaml. A group shows its
mean and half the width of its 95 % interval (Student's t), or "-" if one of its runs lacks the metric. --baseline adds
the differences from one group, paired by seed.

Exit status: 0 done, 1 something is wrong with the files, 2 wrong usage, 130 interrupted.
"""

import _root  # noqa: F401

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from data.image_io.images import DataError
from evaluation.output.report import format_table, write_csv
from runtime.command_line import OutputExistsError, integer_from, refuse_existing
from runtime.errors import UserError
from tools.runs.drawing import draw_curves
from tools.runs.reading import GROUPING, Run, differing_settings, group_by_seed, read_runs
from tools.runs.table import default_metrics, plain_rows, shown_rows, tabulate, unequal_ends


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line. Contradicting options and missing folders end with status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="output folders, or metrics.json files")
    parser.add_argument(
        "--metrics",
        nargs="+",
        help="names as in metrics.json (default: those of evaluations; for curves also total_loss and lr)",
    )
    parser.add_argument(
        "--smooth",
        type=integer_from(1),
        default=5,
        help="average training metrics over this many lines (default: %(default)s)",
    )
    parser.add_argument("--output", type=Path, help="image to write (default: metrics.png, none with --table)")
    parser.add_argument("--table", action="store_true", help="print a table")
    parser.add_argument(
        "--best", metavar="METRIC", help="use each run's evaluation with the lowest value of this metric, not its last"
    )
    parser.add_argument("--baseline", metavar="RUN", help="show the differences of all groups from this group")
    parser.add_argument("--format", choices=("text", "markdown"), help="form of the table (default: text)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    parser.add_argument("--csv", type=Path, help="file for the table, in natural units at full precision")
    options = parser.parse_args(arguments)
    of_table = (options.best, options.baseline, options.format, options.csv)
    if not options.table and any(option is not None for option in of_table):
        parser.error("--best, --baseline, --format and --csv belong to --table")
    for path in (options.output, options.csv):
        if path is not None and not path.parent.is_dir():
            parser.error(f"{path} cannot be written: there is no folder {path.parent}; make the folder")
    if options.output is None and not options.table:
        options.output = Path("metrics.png")
    return options


def print_table(groups: Mapping[str, Sequence[Run]], metrics: Sequence[str], options: argparse.Namespace) -> None:
    """Print the table and that of differences; write them to the file of --csv.

    Raises:
        DataError: no run has a metric, or no group is the baseline.
        OSError: the file cannot be written.
    """
    is_markdown = options.format == "markdown"
    table = partial(tabulate, groups, metrics, options.smooth, options.best)
    lines = table()
    less = table(options.baseline) if options.baseline is not None else []
    if options.best is None:
        for line in unequal_ends(groups, metrics):
            print(f"plot_metrics.py: {line}", file=sys.stderr)
    print(format_table(shown_rows(lines), is_markdown))
    rows = plain_rows(lines)
    if less:
        print(f"\nless {options.baseline}, paired by seed\n{format_table(shown_rows(less), is_markdown)}")
        rows += [{**row, "run": f"{row['run']} - {options.baseline}"} for row in plain_rows(less)]
    print(f"\nmean ± half the width of the 95 % interval over seeds (Student's t); one group is {GROUPING}")
    if options.csv is not None:
        write_csv(rows, options.csv)
        print(f"wrote {options.csv}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line (`sys.argv` by default) and draw or print.

    Returns: the exit status.
    """
    options = parse(arguments)
    try:
        if not options.overwrite:
            refuse_existing(path for path in (options.output, options.csv) if path)
        runs, skipped = read_runs(options.runs)
        for line in skipped:
            print(f"plot_metrics.py: skipped: {line}", file=sys.stderr)
        for run in runs:
            if run.num_bad_lines:
                print(f"plot_metrics.py: {run.name}: {run.num_bad_lines} lines could not be read", file=sys.stderr)
        groups = group_by_seed(runs)
        for stem in {run.stem for run in runs} - groups.keys():
            siblings = [run for run in runs if run.stem == stem]
            if keys := differing_settings(siblings):
                names = ", ".join(run.name for run in siblings)
                print(f"plot_metrics.py: {names} are no group: they differ in {', '.join(keys)}", file=sys.stderr)
        evaluations = default_metrics(runs)
        if options.table:
            print_table(groups, options.metrics or evaluations, options)
        if options.output is not None:
            usual = dict.fromkeys(("total_loss", *evaluations, "lr"))
            existing = [metric for metric in usual if any(metric in run.curves for run in runs)]
            draw_curves(groups, options.metrics or existing or evaluations, options.smooth, options.output)
            print(f"drew {len(runs)} runs to {options.output}")
    except (OSError, UserError) as error:
        for line in str(error).splitlines():
            print(f"plot_metrics.py: {line}", file=sys.stderr)
        return 1 if isinstance(error, OSError | DataError | OutputExistsError) else 2
    except KeyboardInterrupt:
        print("plot_metrics.py: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
