"""Draw a column of a clip's alphas over time, to see flicker: a panel for each folder, from left to right.

    python tools/runs/draw_flicker.py output/alphas/keyframes/hair output/clips/alpha/hair --output flicker.png

In a panel, x is the frame and y the place in the column. All panels show the frames of the first folder. Without
--column, it is the column where alpha changes most in the last folder, which should be the ground truth.
"""

import _root  # noqa: F401

import argparse
import sys
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.image_io.formats import MATTED, find_images
from data.image_io.images import DataError, read_alpha, write_alpha
from runtime.command_line import integer_from
from runtime.errors import UserError

FRAME_PX = 8  # width of a frame's column in the picture
GAP_PX, GAP_ALPHA = 8, 0.5  # between panels


def draw(folders: Sequence[Path], column: int | None = None) -> NDArray[np.float32]:
    """Draw the panels side by side, (H, W) in [0, 1].

    Args:
        folders: of alphas (H, W). Each holds the frames of the first one, by the same names.
        column: x of the column; None is where alpha changes most in the last folder.

    Raises:
        OSError: a folder or a frame is missing.
        DataError: a frame cannot be read, or has another size, or the column lies outside.
    """
    names = [path.name for path in find_images(folders[0], MATTED)]
    shape = read_alpha(folders[0] / names[0]).shape
    if column is None:
        column = most_changing((_read(folders[-1] / name, shape) for name in names), shape[1])
    if column >= shape[1]:
        raise DataError(f"{folders[0]} has no column {column}: its frames are {shape[1]} px wide")
    gap = np.full((shape[0], GAP_PX), GAP_ALPHA, np.float32)
    panels: list[NDArray] = []
    for folder in folders:
        columns = [_read(folder / name, shape)[:, column] for name in names]
        panels += [gap] * bool(panels) + [np.repeat(np.stack(columns, 1), FRAME_PX, 1)]
    return np.concatenate(panels, 1)


def most_changing(alphas: Iterable[NDArray[np.float32]], width: int) -> int:
    """Find the column where alpha changes most from frame to frame, over all frames (H, width), two in memory."""
    changes = (np.abs(after - before).sum(0) for before, after in pairwise(alphas))
    return int(sum(changes, np.zeros(width)).argmax())


def _read(file: Path, shape: tuple[int, ...]) -> NDArray[np.float32]:
    alpha = read_alpha(file)
    if alpha.shape != shape:
        sizes = [f"{width} x {height} px" for height, width in (alpha.shape, shape)]
        raise DataError(f"{file} is {sizes[0]}, expected {sizes[1]}")
    return alpha


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line (`sys.argv` by default) and write the picture.

    Returns: the exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="of a clip's alphas")
    parser.add_argument("--output", type=Path, required=True, help="picture to write")
    parser.add_argument("--column", type=integer_from(0), help="x of the column (default: where alpha changes most)")
    options = parser.parse_args(arguments)
    try:
        write_alpha(options.output, draw(options.folders, options.column))
    except (OSError, UserError) as error:
        print(f"draw_flicker.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
