"""Build a training set and a test set from drawn foregrounds and openly licensed images in packages.

    python tools/make_open_dataset.py --output datasets/open --download

writes `train/rgba`, `train/backgrounds`, the held-out `test/image`, `test/trimap` and `test/alpha`, and their sources:
`LICENCES.md`, `licences/` and `manifest.json` (origin, licence, author and SHA-256 of each image). Then it prints a
command that trains on them. Without --download it uses the packages in --packages, or installed ones; the procedural
generator needs none. The same seed and packages give the same bytes. An interrupted command continues where it was.
`--sheet FILE` only draws the eight procedural kinds.

Exit status: 0 written, 1 something is wrong with the files, 2 wrong usage, 130 interrupted.
"""

import _root  # noqa: F401

import argparse
import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from data.image_io.images import DataError
from data.sources.layouts import TEST_FOLDERS
from engine.config.overrides import quote_override
from runtime.command_line import integer_from
from runtime.errors import UserError, few
from runtime.threads import num_cores
from runtime.worker_pool import map_in_workers
from tools.dataset.open_data.composites import write_test_set
from tools.dataset.open_data.licences import IMAGE_FOLDERS, find_faults, licence_page, terms_of
from tools.dataset.open_data.pictures import (
    choose_texture,
    drawn_name,
    is_held_out,
    write_cutout,
    write_defocused,
    write_drawn,
    write_photograph,
    write_surface,
)
from tools.dataset.open_data.sheet import write_sheet
from tools.dataset.open_data.sources import (
    SOURCES,
    Source,
    archive_pattern,
    contents,
    download,
    find_archive,
    installed_root,
    matches,
)

TRAIN, TEST = 0, 1  # streams of random numbers
FEW_PHOTOGRAPHS = {"train": 20, "test": 3}  # with fewer, drawn surfaces join them
NUM_SURFACES = {"train": 64, "test": 8}
LEAST_SIZE_PX = 64  # that of cut-outs, and a crop for the test composites


def gather(source: Source, archive: Path | None, root: Path | None, output: Path, manifest: dict[str, Any]) -> None:
    """Write the images of one package, and record each in the manifest with its terms.

    Args:
        source: the package.
        archive: its archive, or None.
        root: folder of the installed package, where there is no archive.
        output: folder of the set.
        manifest: its "pictures" and "left_out" are extended.

    Raises:
        DataError: the archive is damaged or too large, or does not state its terms.
    """
    found = list(contents(source, archive, root))
    texts = {name: content.decode("utf-8", "replace") for name, content in found if matches(name, source.terms)}
    short = re.sub(r"\W+", "_", source.package).strip("_")
    for name, content in found:
        if name in texts:
            path = output / "licences" / short / name.rpartition("/")[2]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(texts[name], encoding="utf-8")
            continue
        terms = terms_of(source, name, texts)
        is_cutout = matches(name, source.cutouts)
        inside = re.sub(r"^(usr/share|package)/", "", name).rpartition(".")[0]
        stem = f"{short}_{re.sub(r'[^A-Za-z0-9]+', '_', inside)}"
        part = "test" if is_held_out(stem) else "train"
        picture = f"{part}/rgba/{stem}.png" if is_cutout else f"{part}/backgrounds/{stem}.jpg"
        reason = terms.fault()
        if reason is None and not (output / picture).is_file():
            reason = (write_cutout if is_cutout else write_photograph)(content, output / picture)
        if reason is None:
            manifest["pictures"][picture] = {
                "package": source.package, "file": name, "file_sha256": sha256(content).hexdigest(),
                "licence": terms.licence, "author": terms.author,
            }  # fmt: skip
        else:
            manifest["left_out"][f"{source.package}: {name}"] = reason


def digest(path: Path) -> str:
    """Compute the SHA-256 of a file."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def draw_missing(output: Path, manifest: dict[str, Any], options: argparse.Namespace) -> None:
    """Draw foregrounds, and copies of the photographs that are out of focus; existing files are kept.

    If there are few photographs, drawn surfaces join them.
    """
    tasks: list[tuple[Callable[[Path], None], str]] = []
    entries: dict[str, dict[str, Any]] = manifest["pictures"]
    for stream, part, count in ((TRAIN, "train", options.num_drawn), (TEST, "test", options.num_drawn_test)):
        seeds = {"seed": options.seed, "size_px": options.size_px}
        photographs = sorted(picture for picture in entries if picture.startswith(f"{part}/backgrounds/"))
        for photograph in photographs:
            name = f"{photograph.removesuffix('.jpg')}_defocused.jpg"
            tasks.append((partial(write_defocused, photograph=output / photograph, seed=options.seed), name))
            entries[name] = entries[photograph] | {"photograph": photograph}
        for index in range(count):
            name = f"{part}/rgba/{drawn_name(index)}"
            texture = choose_texture(photographs, options.seed, stream, index)
            path = None if texture is None else output / texture
            tasks.append((partial(write_drawn, stream=stream, index=index, photograph=path, **seeds), name))
            entries[name] = {"drawn": True}
            if texture is not None:
                entries[name] |= entries[texture] | {"photograph": texture}
        for index in range(NUM_SURFACES[part] if len(photographs) < FEW_PHOTOGRAPHS[part] else 0):
            name = f"{part}/backgrounds/drawn_surface_{index:05d}.png"
            tasks.append((partial(write_surface, stream=stream + 2, index=index, **seeds), name))
            entries[name] = {"drawn": True}
    missing = [(write, output / name) for write, name in tasks if not (output / name).is_file()]
    num_workers = min(options.num_workers, len(missing))
    for number, _ in enumerate(map_in_workers(draw, missing, num_workers), start=1):
        if number % 200 == 0:
            print(f"drew {number} of {len(missing)} images", flush=True)


def draw(task: tuple[Callable[[Path], None], Path]) -> None:
    """Do one task of a worker."""
    write, path = task
    write(path)


def make_test_composites(output: Path, num: int, crop_px: int, seed: int) -> None:
    """Composite the held-out images, unless an earlier run did it; what it left unfinished is removed."""
    folders = [output / "test" / name for name in TEST_FOLDERS]
    if all(folder.is_dir() and len(list(folder.iterdir())) == num for folder in folders):
        return
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    test = output / "test"
    write_test_set(test / "rgba", test / "backgrounds", test, num=num, crop_px=crop_px, seed=seed)


def training_command(output: Path) -> str:
    """Make a command that trains a small network from random weights. docs/open_data.md has one for a large network."""
    train, test = "dataloader.train.dataset", "dataloader.test.dataset"
    values: dict[str, Any] = {
        "train.output_dir": "output/open",
        "train.init_checkpoint": "",
        "train.samples_per_epoch": 16000,
        f"{train}.foreground_dirs": [str(output / "train/rgba")],
        f"{train}.alpha_dirs": None,
        f"{train}.background_dirs": [str(output / "train/backgrounds")],
        f"{train}.crop.rotation_min_px": 0,
        f"{test}.image_dir": str(output / "test/image"),
        f"{test}.trimap_dir": str(output / "test/trimap"),
        f"{test}.alpha_dir": str(output / "test/alpha"),
    }
    overrides = [quote_override(key, value) for key, value in values.items()]
    return " \\\n    ".join(["python main.py --config-file configs/demo.py", *overrides])


def start_manifest(output: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Start the manifest of a set; a set of an earlier run must have the same settings.

    Raises:
        DataError: the folder holds a set of other settings, or something else.
    """
    path = output / "manifest.json"
    if path.is_file():
        earlier = json.loads(path.read_text(encoding="utf-8"))["settings"]
        if earlier != settings:
            changed = ", ".join(key for key in settings if earlier.get(key) != settings[key])
            raise DataError(f"{output} holds a set of other settings ({changed}): remove it, or name another --output")
    elif output.is_dir() and any(entry.name != "packages" for entry in output.iterdir()):
        raise DataError(f"{output} holds files but no manifest.json: name another --output")
    for folder in IMAGE_FOLDERS:
        (output / folder).mkdir(parents=True, exist_ok=True)
    manifest = {"settings": settings, "packages": {}, "pictures": {}, "left_out": {}}
    path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def make_open_dataset(options: argparse.Namespace) -> None:
    """Make the set with the options of the command line; see the module's docstring."""
    output = options.output
    if output.exists() and not output.is_dir():
        raise DataError(f"--output {output} is a file: name a folder")
    packages = options.packages or output / "packages"
    if options.packages is not None and not options.packages.is_dir() and not options.download:
        raise DataError(f"--packages {packages} is no folder: make it and put packages into it, or give --download")
    places: dict[str, tuple[Source, Path | None, Path | None]] = {}
    read: dict[str, dict[str, str]] = {}
    for source in SOURCES:
        archive = find_archive(source, packages)
        if archive is None and options.download:
            print(f"fetching {source.package} by {source.client}", flush=True)
            problem = download(source, packages)
            if problem is not None:
                print(f"make_open_dataset.py: {problem}", file=sys.stderr)
            archive = find_archive(source, packages)
        root = None if archive is not None else installed_root(source)
        places[source.package] = source, archive, root
        if archive is not None:
            read[source.package] = {"read": archive.name, "sha256": digest(archive)}
        elif root is not None:
            read[source.package] = {"read": "the installed package", "sha256": ""}
        else:
            print(f"without {source.package}: --download fetches it, or put {archive_pattern(source)} into {packages}")
    numbers = {key: getattr(options, key) for key in ("seed", "size_px", "num_drawn", "num_drawn_test", "num_test")}
    manifest = start_manifest(output, numbers | {"packages": read})
    manifest["packages"] = read
    for name in read:
        print(f"reading {name}", flush=True)
        gather(*places[name], output, manifest)
    draw_missing(output, manifest, options)
    make_test_composites(output, options.num_test, min(512, options.size_px), options.seed)
    if faults := find_faults(manifest, output):
        raise DataError(f"{output}: {few(faults, 3)}")
    for picture, entry in manifest["pictures"].items():
        entry["sha256"] = digest(output / picture)
    (output / "LICENCES.md").write_text(licence_page(manifest), encoding="utf-8")
    (output / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    counts = Counter(picture.rpartition("/")[0] for picture in manifest["pictures"])
    print(", ".join(f"{count} in {folder}" for folder, count in sorted(counts.items())), end="; ")
    print(f"{options.num_test} test composites; {len(manifest['left_out'])} images left out, see manifest.json")
    print(f"wrote {output}; what may be done with it: {output / 'LICENCES.md'}\ntrain on it:\n")
    print(training_command(output))


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line (`sys.argv` by default) and write the set.

    Returns: the exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="folder to write")
    parser.add_argument("--download", action="store_true", help="fetch missing packages by apt-get, npm and pip")
    parser.add_argument("--packages", type=Path, help="folder of packages (default: packages/ in the output)")
    parser.add_argument("--seed", type=integer_from(0), default=0)
    parser.add_argument("--size-px", type=integer_from(LEAST_SIZE_PX), default=640, help="side of a drawn foreground")
    parser.add_argument(
        "--num-drawn",
        type=integer_from(1),
        default=800,
        help="drawn training foregrounds, alternately of the eight kinds",
    )
    parser.add_argument("--num-drawn-test", type=integer_from(1), default=40, help="drawn test foregrounds")
    parser.add_argument("--num-test", type=integer_from(1), default=96, help="test composites")
    parser.add_argument("--num-workers", type=integer_from(1), default=num_cores(), help="processes")
    parser.add_argument("--sheet", type=Path, help="only draw the eight kinds into this file")
    options = parser.parse_args(arguments)
    if (options.output is None) == (options.sheet is None):
        parser.error("give --output FOLDER, or --sheet FILE")
    try:
        if options.sheet is not None:
            write_sheet(options.sheet, options.seed)
        else:
            make_open_dataset(options)
    except (OSError, UserError) as error:
        print(f"make_open_dataset.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("make_open_dataset.py: stopped; the same command continues from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
