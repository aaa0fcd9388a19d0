"""Write a test set of composites from your own foregrounds and backgrounds, held out from training.

    python tools/make_test_set.py --foreground-dir rgba_heldout --background-dir photos_heldout --output test --num 100

The composites are samples of the training pipeline (`data.datasets.composition`), without merged foregrounds and
colour jitter. image/, trimap/ and alpha/ are read by `tools/evaluate.py --dataset FOLDER`, and by configs/finetune.py
if FOLDER is DATA/test. 0003_0.png, 0003_1.png ... are composites of foreground 3, counted from 0 in the order of names.
The same seed gives the same set.

Exit status: 0 written, 1 something is wrong with the files, 2 wrong usage.
"""

import _root  # noqa: F401

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from runtime.command_line import integer_from
from runtime.errors import UserError
from tools.dataset.open_data.composites import write_test_set


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line (`sys.argv` by default) and write the set.

    Returns: the exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--foreground-dir", nargs="+", required=True, help="RGBA cut-outs, or colours with --alpha-dir")
    parser.add_argument("--alpha-dir", nargs="+", help="alphas, a folder for each --foreground-dir")
    parser.add_argument("--background-dir", nargs="+", required=True, help="photographs")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--num", type=integer_from(1), default=100, help="composites (default: 100); foregrounds alternate"
    )
    parser.add_argument("--crop-px", type=int, default=512, help="side of a composite (default: 512)")
    parser.add_argument(
        "--trimap-radius-px", type=int, nargs=2, default=(2, 14), help="smallest and largest erosion (default: 2 14)"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        write_test_set(
            options.foreground_dir,
            options.background_dir,
            options.output,
            num=options.num,
            crop_px=options.crop_px,
            seed=options.seed,
            alpha_dirs=options.alpha_dir,
            trimap_radius_px=options.trimap_radius_px,
        )
    except (OSError, UserError) as error:
        print(f"make_test_set.py: {error}", file=sys.stderr)
        return 1
    print(f"wrote {options.num} composites to {options.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
