"""Pack foregrounds and their alphas for fast reading: uncompressed, at four sizes.

    python tools/dataset/pack_dataset.py --foreground-dir Composition-1k/train/fg \\
        --alpha-dir Composition-1k/train/alpha --output packs/adobe

Then train with the override that it prints. Without --alpha-dir the foregrounds are RGBA cut-outs. In 8 bit a pack
takes 5.3 bytes a pixel, about eleven times as much as JPEG files. An interrupted command continues. Any number of
workers gives the same bytes. A finished pack never changes. --verify reads it back and compares checksums; without
--foreground-dir it does only this.

Exit status: 0 done, 1 something is wrong with the files, 2 wrong usage, 130 interrupted.
"""

import _root  # noqa: F401

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from data.image_io.images import DataError
from data.sources.discovery import find_foregrounds, place_or_none
from data.sources.foregrounds import ForegroundFile
from data.sources.packs.reader import PackedForeground, find_packed
from data.sources.packs.writer import make_pack
from engine.config.overrides import quote_override
from runtime.command_line import integer_from
from runtime.errors import UserError
from runtime.worker_pool import default_workers, map_in_workers


def pack(
    foreground_dirs: Sequence[str], alpha_dirs: Sequence[str | None] | None, output: Path, num_workers: int
) -> None:
    """Pack the foregrounds of some folders with a progress bar, and print how to train with them.

    Raises:
        DataError: as `make_pack` and `find_foregrounds`, or a folder is a pack already.
        OSError: a file cannot be read or written, or a worker was killed.
    """
    found = find_foregrounds(foreground_dirs, alpha_dirs)
    foregrounds = [foreground for foreground in found if isinstance(foreground, ForegroundFile)]
    if len(foregrounds) < len(found):
        raise DataError(f"expected folders of images, got {', '.join(foreground_dirs)}, where there is a pack already")
    with tqdm(total=len(foregrounds), unit="foreground") as bar:
        make_pack(foregrounds, output, num_workers, bar.update)
    num_bytes = sum(foreground.num_bytes for foreground in find_packed(output))
    size = f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
    print(f"packed {len(foregrounds)} foregrounds, {size}, in {output}; train with")
    settings = {"foreground_dirs": [str(output)], "alpha_dirs": None}
    print(" ", *(quote_override(f"dataloader.train.dataset.{key}", value) for key, value in settings.items()))


def verify(folder: Path, num_workers: int) -> None:
    """Compare the checksums of a pack with a progress bar.

    Raises:
        DataError: the pack is unfinished or damaged; all damaged foregrounds are listed.
        OSError: a file cannot be read, or a worker was killed.
    """
    foregrounds = find_packed(folder)
    damage = map_in_workers(PackedForeground.describe_damage, foregrounds, num_workers)
    if problems := [problem for problem in tqdm(damage, total=len(foregrounds), unit="foreground") if problem]:
        raise DataError("\n".join([f"{len(problems)} of {len(foregrounds)} foregrounds are damaged:", *problems]))
    print(f"all {len(foregrounds)} foregrounds of {folder} are intact")


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line (`sys.argv` by default), pack and verify.

    Returns: the exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--foreground-dir", nargs="+", help="RGBA cut-outs, or colours with --alpha-dir")
    parser.add_argument(
        "--alpha-dir", nargs="+", type=place_or_none, help="alphas, a folder (or null) for each --foreground-dir"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the pack")
    parser.add_argument(
        "--num-workers", type=integer_from(1), default=default_workers(), help="processes (default: %(default)s)"
    )
    parser.add_argument("--verify", action="store_true", help="read the pack back and compare its checksums")
    options = parser.parse_args(arguments)
    if options.foreground_dir is None and (options.alpha_dir or not options.verify):
        parser.error("expected --foreground-dir, or --verify alone for a pack that is there")
    try:
        if options.foreground_dir is not None:
            pack(options.foreground_dir, options.alpha_dir, options.output, options.num_workers)
        if options.verify:
            verify(options.output, options.num_workers)
    except (OSError, UserError) as error:
        print(f"pack_dataset.py: {error}", file=sys.stderr)
        for note in getattr(error, "__notes__", ()):
            print(note, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("pack_dataset.py: stopped; the same command continues from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
