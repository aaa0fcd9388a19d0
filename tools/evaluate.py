"""Print SAD, MSE and MAD of a folder of predictions on the unknown region of a test set.

    python tools/evaluate.py --pred-dir PRED --label-dir alpha_copy --trimap-dir trimaps

Files belong together by name without suffix. A missing, extra, unreadable or misshapen file is an error, and one run
lists all of them. Exit status: 0 evaluated, 1 something is wrong with the files, 2 wrong usage.
"""

import _root  # noqa: F401

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from data.images import DataError
from evaluation.folders import evaluate_folders
from evaluation.metrics import PROTOCOLS, average
from evaluation.report import format_table


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate and print.

    Args:
        arguments: of the command line; None takes the process's own.

    Returns: the exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pred-dir", type=Path, required=True, help="predicted alphas, 8- or 16-bit grey")
    parser.add_argument("--label-dir", type=Path, required=True, help="true alphas")
    parser.add_argument("--trimap-dir", type=Path, required=True, help="trimaps of 0, 128 and 255 alone")
    parser.add_argument("--output", type=Path, help="JSON file to write: protocol, averages, metrics of each image")
    options = parser.parse_args(arguments)
    try:
        rows = evaluate_folders(options.pred_dir, options.label_dir, options.trimap_dir).rows
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    averages = average(rows.values())
    print(f"Protocol {PROTOCOLS['dim'].description}")
    print(format_table([{"images": len(rows), **averages}]))
    if options.output is not None:
        result = {"protocol": PROTOCOLS["dim"].description, "images": len(rows), "averages": averages, "per_image": rows}
        try:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            print(f"evaluate.py: cannot write --output: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
