"""Build the 1000 test images of Composition-1k from its 50 foregrounds and alphas and the VOC backgrounds.

    python tools/dataset/make_composition1k.py --foreground-dir "Test_set/Adobe-licensed images/fg" \\
        --alpha-dir "Test_set/Adobe-licensed images/alpha" --trimap-dir "Test_set/Adobe-licensed images/trimaps" \\
        --foreground-list Test_set/test_fg_names.txt --background-list Test_set/test_bg_names.txt \\
        --background-dir VOCdevkit/VOC2012/JPEGImages --output datasets/Composition-1k/test

writes merged/, alpha_copy/, trimaps/ (copies of the official ones, if given) and manifest.json: the rule, versions, and
the SHA-256 of every input and output. All inputs are checked first. An interrupted command continues: it keeps the
files in the manifest. Any number of workers gives the same bytes.

Exit status: 0 built, 1 something is wrong with the files, 2 wrong usage.
"""

import _root  # noqa: F401

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image
from tqdm import tqdm

from data.image_io.formats import READABLE
from data.image_io.images import DataError
from data.sources.composition1k import (
    NUM_BACKGROUNDS,
    NUM_FOREGROUNDS,
    RULE,
    Composite,
    make_composite,
    plan_composites,
)
from data.sources.layouts import COMPOSITION_1K
from runtime.atomic_write import atomic_write
from runtime.command_line import integer_from
from runtime.errors import UserError
from runtime.worker_pool import default_workers, map_in_workers

IMAGES, ALPHAS, TRIMAPS = COMPOSITION_1K.image_dir, COMPOSITION_1K.alpha_dir, str(COMPOSITION_1K.trimap_dir)
MANIFEST = "manifest.json"

Digests = dict[str, str]


def describe(composites: Sequence[Composite]) -> dict[str, Any]:
    """Describe all that decides the merged images and alphas. A run continues only a set of the same description."""
    return {
        "rule": RULE,
        "versions": {"numpy": np.__version__, "pillow": PIL.__version__},
        "inputs": {
            kind: {path.name: sha256(path) for path in dict.fromkeys(getattr(c, kind) for c in composites)}
            for kind in ("foreground", "alpha", "background")
        },
        "composites": {c.name: {"foreground": c.foreground.name, "background": c.background.name} for c in composites},
    }


def sha256(path: Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(output: Path, description: Mapping[str, Any]) -> Digests:
    """Read which files an earlier run has made in this folder: path below it -> SHA-256.

    Raises:
        DataError: that run had other inputs or versions, or the manifest is not from this tool.
    """
    path = output / MANIFEST
    if not path.exists():
        return {}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files = dict(manifest["files"])
        others = [key for key in description if manifest[key] != description[key]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a manifest of this tool: remove it, or name another --output") from error
    if others:
        raise DataError(
            f"{path} is of a set that differs in {', '.join(others)}: name another --output, or remove {output}"
        )
    return files


def write_manifest(output: Path, description: Mapping[str, Any], files: Digests) -> None:
    """Replace the manifest by one with these files."""
    text = json.dumps({**description, "files": dict(sorted(files.items()))}, indent=1) + "\n"
    write(output / MANIFEST, lambda part: part.write_text(text, encoding="utf-8"))


def write(path: Path, fill: Callable[[Path], object]) -> str:
    """Write a file that is complete or absent, by a function of the path to write to.

    Returns: its SHA-256.
    """
    with atomic_write(path) as part:
        fill(part)
        return sha256(part)


def list_files(composite: Composite) -> list[str]:
    """List the files of a composite below the output: image, alpha and, if there is one, trimap."""
    trimap = [f"{TRIMAPS}/{composite.name}{composite.trimap.suffix}"] if composite.trimap else []
    return [f"{IMAGES}/{composite.name}.png", f"{ALPHAS}/{composite.name}.png", *trimap]


def build(composite: Composite, output: Path, known: Digests) -> Digests:
    """Write the files of one composite, in a worker. Files that match their known SHA-256 stay as they are.

    Returns: path below `output` -> SHA-256.
    """
    blended, copied = list_files(composite)[:2], list_files(composite)[2:]
    files = {file: known[file] for file in blended if is_intact(output / file, known.get(file))}
    if len(files) < len(blended):
        for file, pixels in zip(blended, make_composite(composite), strict=True):
            files[file] = write(output / file, partial(Image.fromarray(pixels).save, format="PNG"))
    for file in copied:
        assert composite.trimap is not None, "only trimaps are copied"
        files[file] = sha256(composite.trimap)
        if not is_intact(output / file, files[file]):
            write(output / file, partial(shutil.copyfile, composite.trimap))
    return files


def is_intact(path: Path, digest: str | None) -> bool:
    """Tell whether a file exists and has this SHA-256."""
    return digest is not None and path.is_file() and sha256(path) == digest


def check_output(composites: Sequence[Composite], output: Path) -> None:
    """Refuse folders with images that are not of the set, because an evaluation would count them too."""
    files = {file for composite in composites for file in list_files(composite)}
    folders = [output / folder for folder in sorted({file.split("/")[0] for file in files})]
    paths = [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())]
    images = [path for path in paths if path.suffix.lower() in READABLE]
    if others := [str(path) for path in images if path.relative_to(output).as_posix() not in files]:
        raise DataError("\n".join([f"{len(others)} images are not part of this set, move them away:", *others]))


def make_test_set(composites: Sequence[Composite], output: Path, num_workers: int) -> None:
    """Write the set, with a progress bar. The manifest is updated after every foreground and at the end.

    Raises:
        DataError: the folder holds another set, or an image is broken.
        OSError: a file cannot be written, or a worker was killed.
    """
    check_output(composites, output)
    description = describe(composites)
    files = read_manifest(output, description)
    for folder in {file.split("/")[0] for file in list_files(composites[0])}:
        (output / folder).mkdir(parents=True, exist_ok=True)
    work = partial(build, output=output, known=dict(files))
    results = tqdm(map_in_workers(work, composites, num_workers), total=len(composites), unit="image")
    try:
        for composite, made in zip(composites, results, strict=True):
            files.update(made)
            if composite.name.endswith("_0"):
                write_manifest(output, description, files)
    finally:
        write_manifest(output, description, files)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line (`sys.argv` by default) and build the set.

    Returns: the exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--foreground-dir", type=Path, required=True, help="the test foregrounds")
    parser.add_argument("--alpha-dir", type=Path, required=True, help="their alphas, with the same names")
    parser.add_argument("--background-dir", type=Path, required=True, help="the VOC photographs")
    parser.add_argument("--foreground-list", type=Path, required=True, help="names of the foregrounds, one a line")
    parser.add_argument("--background-list", type=Path, required=True, help="names of the backgrounds, one a line")
    parser.add_argument("--trimap-dir", type=Path, help="official trimaps NAME_0 ... NAME_19, of 0, 128, 255")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--num-foregrounds",
        type=integer_from(1),
        default=NUM_FOREGROUNDS,
        help="expected number of foregrounds, 50 for the complete set",
    )
    parser.add_argument(
        "--num-backgrounds", type=integer_from(1), default=NUM_BACKGROUNDS, help="backgrounds of each foreground"
    )
    parser.add_argument(
        "--workers", type=integer_from(1), default=default_workers(), help="processes (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    inputs = {key: value for key, value in vars(options).items() if key not in ("output", "workers")}
    try:
        composites = plan_composites(**inputs)
        make_test_set(composites, options.output, min(options.workers, len(composites)))
    except (OSError, UserError) as error:
        print(f"make_composition1k.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("make_composition1k.py: stopped; the same command continues from here", file=sys.stderr)
        return 130
    print(f"built {len(composites)} images in {options.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
