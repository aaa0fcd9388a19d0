"""Draw the training samples of a config as the network sees them: image, trimap and alpha of each.

    python tools/dataset/visualize_data.py --config-file configs/ViTMatte_S_100ep.py --num 64 --output sheet.png \
        dataloader.train.dataset.degradation.jpeg_probability=1.0

Samples come from the config's own loader, from position --start of epoch --epoch on. Overrides are as for main.py. The
sheet shows exactly what a run gets, rounded to 8 bit, and resized if --cell-px is not the crop's size. Captions give
epoch and index. The replacement of a bad sample is marked `replaced`, and the reason is printed.

Exit status: 0 drawn, 1 something is wrong with the files, 2 wrong usage or config, 130 interrupted.
"""

import _root  # noqa: F401

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from data.image_io.images import DataError, write_image
from engine.config.config import TRAINING_SECTIONS, apply_overrides, build_section, load_config
from evaluation.output.report import fit_image, join_cells, label_line
from runtime.command_line import OutputExistsError, add_trust_option, integer_from, refuse_existing
from runtime.errors import UserError

KINDS = ("image", "trimap", "alpha")
CELL_PX, NUM_COLUMNS = 160, 4


class Drawn(NamedTuple):
    """A sample: its caption, "image" (S, S, 3), "trimap" and "alpha" (S, S) in [0, 1], and faults of replaced ones."""

    caption: str
    images: dict[str, NDArray[np.float32]]
    faults: list[str]


def draw_samples(cfg: DictConfig, epoch: int, start: int) -> Iterator[Drawn]:
    """Draw the training samples of a config.

    They are drawn singly and in this process. Samples do not depend on the batch size and the number of workers, and a
    bug shows its traceback.

    Args:
        cfg: of a run; its batch size and number of workers are changed.
        epoch: at least 0.
        start: position in the epoch's order, at least 0; after its end the next epoch follows.

    Raises:
        DataError: a sample cannot be made.
        OSError: files are missing.
        ConfigError: a setting that cannot be used.
    """
    cfg.dataloader.train.batch_size, cfg.dataloader.train.num_workers = 1, 0
    loader = build_section(cfg.dataloader.train, "dataloader.train")
    loader.sampler.start = epoch * len(loader.dataset) + start
    for (epoch, index), batch in zip(loader.sampler, loader, strict=False):
        faults = batch.get("faults", [])
        if not set(KINDS) <= batch.keys():
            raise DataError(f"no sample for epoch {epoch}, index {index}: {faults[-1]}")
        images = {kind: batch[kind][0].permute(1, 2, 0).squeeze(2).numpy() for kind in KINDS[1:]}
        image = batch["image"][0].permute(1, 2, 0).numpy()
        caption = f"epoch {epoch}, index {index}{' replaced' if faults else ''}"
        yield Drawn(caption, {"image": image, **images}, faults)


def write_sheet(samples: Sequence[Drawn], path: Path, cell_px: int, num_columns: int) -> None:
    """Write samples side by side, each below its caption; see `draw_samples`.

    Args:
        samples: all of one size.
        path: of the sheet.
        cell_px: side of an image.
        num_columns: samples beside each other.
    """
    lines = []
    blank = np.ones((cell_px, cell_px), np.float32)
    for first in range(0, len(samples), num_columns):
        row = [*samples[first : first + num_columns]]
        row += [Drawn("", dict.fromkeys(KINDS, blank), [])] * (num_columns - len(row))
        cells = [join_cells([fit_image(image, cell_px) for image in drawn.images.values()]) for drawn in row]
        lines += [label_line([drawn.caption for drawn in row], cells[0].shape[1]), join_cells(cells)]
    write_image(path, np.concatenate(lines))


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line (`sys.argv` by default) and draw.

    Returns: the exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help=".py config, or config.yaml of a run")
    add_trust_option(parser)
    parser.add_argument("--output", type=Path, default=Path("sheet.png"), help="image to write; .jpg is smaller")
    parser.add_argument("--num", type=integer_from(1), default=64, help="samples")
    parser.add_argument("--epoch", type=integer_from(0), default=0, help="first epoch, from 0")
    parser.add_argument("--start", type=integer_from(0), default=0, help="first position in the epoch's order, from 0")
    parser.add_argument(
        "--cell-px", type=integer_from(1), default=CELL_PX, help="side of a cell; the crop's own side shows every pixel"
    )
    parser.add_argument("--num-columns", type=integer_from(1), default=NUM_COLUMNS, help="samples in a row")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    parser.add_argument("overrides", nargs="*", help="key=value, as for main.py")
    options = parser.parse_intermixed_args(arguments)
    try:
        if not options.overwrite:
            refuse_existing([options.output])
        cfg = load_config(options.config_file, TRAINING_SECTIONS, options.trust_module)
        apply_overrides(cfg, options.overrides)
        samples = list(islice(draw_samples(cfg, options.epoch, options.start), options.num))
        write_sheet(samples, options.output, options.cell_px, options.num_columns)
    except (OSError, UserError) as error:
        print(f"visualize_data.py: {error}", file=sys.stderr)
        return 1 if isinstance(error, OSError | DataError | OutputExistsError) else 2
    except KeyboardInterrupt:
        print("visualize_data.py: interrupted", file=sys.stderr)
        return 130
    for fault in dict.fromkeys(fault for drawn in samples for fault in drawn.faults):
        print(f"visualize_data.py: replaced: {fault}", file=sys.stderr)
    print(f"drew {len(samples)} samples to {options.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
