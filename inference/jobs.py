"""List the images that a run reads and the files that it makes of them, before anything is written."""

import glob
import os
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple

from data.image_io import exr
from data.image_io.encoding import FORMATS, RGBA_SUFFIXES, SUFFIXES_16_BIT
from data.image_io.formats import READABLE, find_images, select_images
from data.image_io.images import IMAGE_SUFFIXES, LOSSLESS_SUFFIXES, DataError


class Kind(NamedTuple):
    """A kind of result.

    Attributes:
        ending: what the name of a result gets before its suffix, if no name is given.
        suffixes: allowed suffixes of the file.
        why_no_other: reason for the error message.
    """

    ending: str
    suffixes: Collection[str]
    why_no_other: str


KINDS = {
    "alpha": Kind("_alpha", (*LOSSLESS_SUFFIXES, exr.SUFFIX), "An alpha is stored without loss, so not as JPEG"),
    "rgba": Kind(
        "_cutout",
        (*RGBA_SUFFIXES, exr.SUFFIX),
        "JPEG and others hold no transparency: make a composite over a colour instead",
    ),
    "composite": Kind("_composite", (*IMAGE_SUFFIXES, exr.SUFFIX), "No other format is written"),
}


class Job(NamedTuple):
    """An image and its result file."""

    image: Path
    output: Path


def find_jobs(
    images: Sequence[str], output: Path | None, kind: Kind, suffix: str, taken: Collection[str] = READABLE
) -> list[Job]:
    """List what to make of files, folders and patterns, each image once.

    Args:
        images: paths or glob patterns; the images of a folder or pattern are sorted by name.
        output: file for a single image given by its path, else a folder, where NAME becomes NAME + `suffix`. If None,
            a file's result is written beside the file. Results of a folder, or of a pattern's folder, are written to a
            folder beside that one. Either gets the kind's ending.
        kind: of the results.
        suffix: of files that `output` does not name.
        taken: suffixes of the images of folders and patterns.

    Raises:
        FileNotFoundError: a file or folder is missing, a folder or pattern holds no image.
        DataError: `output` is a file, but there are several images, a folder or a pattern; or `output` is a folder
            that images are read from, so that results would be images of the next run.
    """
    if output and output.suffix and not output.is_dir() and len(images) == 1 and Path(images[0]).is_file():
        return [Job(Path(images[0]), output)]
    jobs: dict[str, Job] = {}  # a link to another frame is a frame of its own
    searched: set[str] = set()
    for name in images:
        given = Path(name)
        if given.is_file():
            folder = output or given.parent
            found = [(given, folder / f"{given.stem}{'' if output else kind.ending}{suffix}")]
        else:
            if jobs and not given.exists() and not glob.has_magic(name):
                raise FileNotFoundError(f"{name}: no such file or folder. To name the result, give it as the output")
            pictures, origin = (find_images(given, taken), given) if given.is_dir() else find_matches(name, taken)
            searched.update(os.path.realpath(picture.parent) for picture in pictures)
            folder = output or Path(f"{os.path.abspath(origin)}{kind.ending}")
            found = [(picture, folder / f"{picture.stem}{suffix}") for picture in pictures]
        for image, path in found:
            jobs.setdefault(os.path.abspath(image), Job(image, path))
    if output and not output.is_dir() and (output.is_file() or output.suffix.lower() in (*IMAGE_SUFFIXES, exr.SUFFIX)):
        raise DataError(
            f"{output}: expected a folder, got the name of a file, which is for one image given by its path"
        )
    if output and os.path.realpath(output) in searched:
        raise DataError(f"{output}: images are looked for there too; name a folder of its own")
    made_of: dict[str, Path] = {}  # not by Path.resolve, which raises for a circle of links
    for image, path in jobs.values():
        other = made_of.setdefault(os.path.realpath(path), image)
        if other != image:
            raise DataError(
                f"{other} and {image} would both be written to {path}: run one of them by itself, with another output"
            )
    return list(jobs.values())


def find_matches(pattern: str, taken: Collection[str] = READABLE) -> tuple[list[Path], Path]:
    """Find the images that a pattern matches, sorted by name, and their common folder.

    Raises:
        FileNotFoundError: there are none.
    """
    if not glob.has_magic(pattern):
        raise FileNotFoundError(f"{pattern}: no such file or folder")
    paths = map(Path, glob.glob(pattern, recursive=True))
    images = select_images(paths, pattern, f"{pattern}: no image matches this pattern", taken)
    return images, Path(os.path.commonpath([path.parent for path in images]))


def check_outputs(jobs: Sequence[Job], inputs: Iterable[Path], kind: Kind, bits: int | None) -> None:
    """Raise an error if a result would replace an input, or if no result can be written.

    Args:
        jobs: what to make.
        inputs: files that are read beside the images.
        kind: of the results.
        bits: per value, 8, 16 or, in EXR, 32; None is what the format has by default.

    Raises:
        DataError: a file would replace an input, or its format cannot hold the kind or the bits.
        OSError: a folder cannot be made or written.
    """
    read = {os.path.realpath(path) for path in (*inputs, *(job.image for job in jobs))}
    for suffix, path in {job.output.suffix.lower(): job.output for job in jobs}.items():
        if suffix not in kind.suffixes:
            listed = ", ".join(sorted(kind.suffixes))
            raise DataError(f"{path}: expected the name of an image ending in {listed}. {kind.why_no_other}")
        if suffix == exr.SUFFIX and bits == 8:
            raise DataError(f"{path}: EXR holds no 8 bit: take 16 (half) or 32 (float)")
        if suffix != exr.SUFFIX and bits == 32:
            raise DataError(f"{path}: {FORMATS[suffix]} holds no 32 bit: take {exr.SUFFIX}, or fewer")
        if bits == 16 and suffix not in (*SUFFIXES_16_BIT, exr.SUFFIX):
            listed = ", ".join(SUFFIXES_16_BIT)
            raise DataError(f"{path}: {FORMATS[suffix]} holds no 16 bit: take one of {listed}, or 8 bit")
    for job in jobs:
        if os.path.realpath(job.output) in read:
            raise DataError(f"{job.output} is an input and would be overwritten; name another place")
    for folder in {job.output.parent for job in jobs}:
        check_folder(folder)


def check_folder(folder: Path) -> None:
    """Make and write a folder as a trial, and remove it again; its permissions alone do not tell if this works.

    Raises:
        OSError: the folder cannot be made or written.
    """
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    there = next(place for place in (folder, *folder.parents) if place not in new)
    if not there.is_dir():
        raise NotADirectoryError(f"{there} is no folder: name another place")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"cannot write into {folder}: {error.strerror}; name another place") from error
    finally:
        for place in new:
            with suppress(OSError):  # it was not made, or another command writes to it meanwhile
                place.rmdir()
