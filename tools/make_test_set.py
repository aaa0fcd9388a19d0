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

from data.augment.transforms import JitterColour, MakeTrimap
from data.datasets.composition import CompositionDataset
from data.image_io.images import DataError, write_alpha, write_image
from data.sources.layouts import TEST_FOLDERS
from data.trimap import write_trimap
from runtime.command_line import integer_from
from runtime.errors import UserError


def write_test_set(dataset: CompositionDataset, output: Path) -> None:
    """Write each sample of a data set's first epoch as FOREGROUND_0.png, FOREGROUND_1.png ... in three folders.

    FOREGROUND is a number. Evaluations read these names as composites of one foreground, and give their intervals over
    foregrounds.

    Raises:
        DataError: one of the folders holds something already, which would become part of the set.
    """
    folders = images, trimaps, alphas = [output / name for name in TEST_FOLDERS]
    for folder in folders:
        if folder.is_dir() and any(folder.iterdir()):
            raise DataError(f"{folder} holds files already: remove them, or name another --output")
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for index in range(len(dataset)):
        sample = {key: value.numpy().transpose(1, 2, 0).squeeze() for key, value in dataset[0, index].items()}
        round_number, foreground = divmod(index, len(dataset.foregrounds))
        name = f"{foreground:04d}_{round_number}.png"
        write_image(images / name, sample["image"])
        write_trimap(trimaps / name, sample["trimap"])
        write_alpha(alphas / name, sample["alpha"])


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
        dataset = CompositionDataset(
            options.foreground_dir,
            options.background_dir,
            options.alpha_dir,
            samples_per_epoch=options.num,
            crop_px=options.crop_px,
            seed=options.seed,
            merge_probability=0.0,
            trimap=MakeTrimap(options.trimap_radius_px),
            colour=JitterColour(0.0, 0.0),
        )
        write_test_set(dataset, options.output)
    except (OSError, UserError) as error:
        print(f"make_test_set.py: {error}", file=sys.stderr)
        return 1
    print(f"wrote {options.num} composites to {options.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
