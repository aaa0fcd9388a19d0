"""Make one plain file from the checkpoint folder of a sharded run (train.sharded_blocks).

    python tools/runs/gather_checkpoint.py --folder output/7b/model_0134699 --output 7b.pth

writes only the weights, for --eval-only, tools/predict.py, tools/export.py and train.init_checkpoint; with --ema those
of the EMA. --all keeps the optimiser too: a run without train.sharded_blocks continues from the file if it lies in the
run's folder and is named in last_checkpoint. It runs in one process on the CPU. No code in a folder runs.

Exit status: 0 written, 1 the folder is no such checkpoint or damaged, or the file cannot be written, 2 wrong usage.
"""

import _root  # noqa: F401

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from engine.checkpoint.file import EMA, CheckpointError, read_checkpoint
from engine.checkpoint.sharded import WHOLE_PART, find_damage, read_folder
from engine.interrupts import OutputError, output_file
from runtime.atomic_write import SUFFIX
from runtime.command_line import refuse_existing
from runtime.errors import UserError


def gather(folder: Path, kept: str) -> dict[str, Any]:
    """Read a checkpoint folder after a check of its checksums.

    Args:
        folder: of a `ShardedCheckpointer`.
        kept: "model", "ema" or "all".

    Returns: what a plain checkpoint holds: "model" and "iteration", with "all" everything.

    Raises:
        CheckpointError: the folder is none, is damaged, or has no average.
    """
    if report := describe_other(folder) or find_damage(folder):
        raise CheckpointError(report)
    if kept == EMA and EMA not in read_checkpoint(folder / WHOLE_PART, is_mapped=True):
        raise CheckpointError(f"{folder} has no moving average (train.ema_decay was null): leave out --ema")
    content = read_folder(folder, only=[] if kept == "all" else [kept, "iteration"])
    if kept == EMA:
        average = content.pop(EMA)
        prefix = "module."
        content["model"] = {name.removeprefix(prefix): average[name] for name in average if name.startswith(prefix)}
    return content


def describe_other(folder: Path) -> str:
    """Describe why a path is no checkpoint of a sharded network, and what to give instead; "" if it may be one."""
    if (folder / WHOLE_PART).is_file():
        return ""
    if not folder.exists():
        return f"there is no folder {folder}"
    if not folder.is_dir():
        return f"{folder} is a file: give the folder of a checkpoint of a sharded network"
    inside = (path.parent for path in folder.glob(f"*/{WHOLE_PART}"))
    names = ", ".join(str(path) for path in sorted(inside) if path.suffix != SUFFIX)
    advice = f": give one of {names}" if names else ""
    return f"{folder} is no checkpoint of a sharded network, it has no {WHOLE_PART}{advice}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line (`sys.argv` by default) and write the file.

    Returns: the exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="checkpoint folder of a sharded run")
    parser.add_argument("--output", type=Path, required=True, help=".pth file to write")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--ema", dest="kept", action="store_const", const="ema", help="write the EMA weights")
    what.add_argument("--all", dest="kept", action="store_const", const="all", help="write everything for a resume")
    parser.set_defaults(kept="model")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    options = parser.parse_args(arguments)
    if options.output.suffix != ".pth":
        parser.error(f"--output {options.output}: expected the name of a file ending in .pth")
    output, folder = map(os.path.realpath, (options.output, options.folder))
    if Path(output).is_relative_to(folder):
        parser.error(f"--output {options.output} is in --folder, whose files are read: name a place outside")
    try:
        if not options.overwrite:
            refuse_existing([options.output])
        content = gather(options.folder, options.kept)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        with output_file(options.output) as unfinished, unfinished.open("wb") as file:
            torch.save(content, file)
    except (OSError, UserError, OutputError) as error:
        print(f"gather_checkpoint.py: {error}", file=sys.stderr)
        return 1
    num_parameters = sum(tensor.numel() for tensor in content["model"].values())
    print(f"wrote {options.output}: {len(content['model'])} tensors, {num_parameters / 1e6:.1f} million numbers")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
