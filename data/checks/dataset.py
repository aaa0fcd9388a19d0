"""Check a data set: read every file once, in worker processes, then find what training and test share."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.checks.duplicates import Fingerprint, find_duplicates, make_fingerprint
from data.checks.faults import FAULTS, Finding
from data.checks.files import StoredImage, find_ignored, read_stored_image
from data.checks.pixels import describe_alpha, describe_trimap, fits_turned, is_premultiplied
from data.checks.sets import FolderSet, Group, Part, Role, find_groups
from data.image_io.images import DataError, as_colours, as_grey
from data.sources.packs.reader import PackedForeground
from runtime.worker_pool import map_in_workers

Track = Callable[[Iterable[Any], int], Iterable[Any]]
COLOUR_ROLES: tuple[Role, ...] = ("foreground", "image", "background")
PLANE_ROLES: tuple[Role, ...] = ("alpha", "trimap")


class Outcome(NamedTuple):
    """The result of a worker for one group."""

    part: Part
    findings: list[Finding]
    fingerprint: Fingerprint | None


class Report(NamedTuple):
    """The findings in order of `FAULTS` and paths, and the number of files read."""

    findings: list[Finding]
    num_files: int


def check_sets(
    sets: Sequence[FolderSet], num_workers: int = 1, track: Track = lambda outcomes, num_groups: outcomes
) -> Report:
    """Check all files of some sets. Each worker holds one group of files in memory.

    The report is the same for any number of workers.

    Args:
        sets: folders of training and test.
        num_workers: processes; 1 checks in this process.
        track: receives the outcomes and their number and yields the outcomes again, for a progress bar.

    Raises:
        DataError: a pack is unfinished or damaged.
        FileNotFoundError: a folder is missing or holds no image.
        OSError: a folder may not be listed.
        ChildProcessError: a worker was killed.
    """
    groups: dict[Group, None] = {}
    places = dict.fromkeys(place for folders in sets for place in folders.places.values() if place.is_dir())
    findings = [finding for place in places for finding in find_ignored(place)]
    taken: dict[tuple[int, Role, Path], Path] = {}
    for folders in sets:
        grouped, unmatched = find_groups(folders)
        groups.update(dict.fromkeys(grouped))
        findings += unmatched
        if folders.part == "training":
            findings += find_taken_twice(grouped, folders, taken)
    fingerprints: dict[Part, list[Fingerprint]] = {"training": [], "test": []}
    num_processes = min(num_workers, len(groups))
    for outcome in track(map_in_workers(check_group, groups, num_processes), len(groups)):
        findings += outcome.findings
        if outcome.fingerprint is not None:
            fingerprints[outcome.part].append(outcome.fingerprint)
    findings += find_duplicates(fingerprints["training"], fingerprints["test"])
    order = {code: place for place, code in enumerate(FAULTS)}
    files = {path for group in groups for _, path in group.files}
    return Report(sorted(set(findings), key=lambda f: (order[f.code], f.path, f.detail)), len(files))


def find_taken_twice(
    groups: Iterable[Group], folders: FolderSet, taken: dict[tuple[int, Role, Path], Path]
) -> Iterator[Finding]:
    """Find files that another place of the same data set contains too.

    Args:
        groups: of `folders`.
        folders: where they are.
        taken: number of the data set, role and file -> the place that contains it; extended here.
    """
    for group in groups:
        role, path = group.files[0]
        key = folders.number, role, path
        if key in taken:
            yield Finding("taken-twice", path, f"by {taken[key]} and by {folders.places[role]}")
        taken[key] = folders.places[role]


def check_group(group: Group) -> Outcome:
    """Read and check files that belong together, in a worker."""
    images, findings = read_files(group.files) if group.packed is None else read_packed(group.packed)
    main = next((images[role] for role in COLOUR_ROLES if role in images), None)
    planes = dict(find_planes(images, main if group.is_cutout else None, findings))
    alpha, trimap = (planes.get(role) for role in PLANE_ROLES)
    if main is None:
        findings += check_planes(alpha, trimap)
        return Outcome(group.part, findings, None)
    if not group.is_cutout:
        findings += [found for plane in planes.values() for found in check_fit(main, plane, is_alpha=plane is alpha)]
    findings += check_planes(alpha, trimap)
    colours = as_colours(main.pixels[:, :, :3] if main.pixels.ndim == 3 else main.pixels)
    opacity = alpha.pixels if alpha is not None and has_size_of(alpha, main) else None
    if opacity is not None and "foreground" in images and is_premultiplied(colours, opacity):
        findings.append(Finding("premultiplied", main.path, "no fractional pixel is brighter than its alpha"))
    return Outcome(group.part, findings, make_fingerprint(main.path, colours, opacity, group.is_cutout))


def read_files(files: Iterable[tuple[Role, Path]]) -> tuple[dict[Role, StoredImage], list[Finding]]:
    """Read files, and describe those that cannot be read."""
    images: dict[Role, StoredImage] = {}
    findings: list[Finding] = []
    for role, path in files:
        image, found = read_stored_image(path)
        findings += found
        if image is not None:
            images[role] = image
    return images, findings


def read_packed(foreground: PackedForeground) -> tuple[dict[Role, StoredImage], list[Finding]]:
    """Read colours and alpha of a packed foreground, unless it is damaged."""
    path = Path(foreground.name)
    damage = foreground.describe_damage()
    if damage:
        return {}, [Finding("unreadable", path, damage)]
    colours, alpha = foreground.read((0, 0, *foreground.size), 1)
    return {"foreground": StoredImage(path, colours, 1), "alpha": StoredImage(path, alpha, 1)}, []


def find_planes(
    images: Mapping[Role, StoredImage], cutout: StoredImage | None, findings: list[Finding]
) -> Iterator[tuple[Role, StoredImage]]:
    """Yield alpha and trimap as grey. Add a finding for each that is not grey.

    Args:
        images: of a group.
        cutout: the image whose transparency is the alpha, if any.
        findings: appended to.
    """
    for role in PLANE_ROLES:
        if role in images:
            image = images[role]
            try:
                yield role, image._replace(pixels=as_grey(image.pixels, "it"))
            except DataError as error:
                findings.append(Finding("not-grey", image.path, str(error).partition(":")[0]))
    if cutout is not None:
        has_alpha = cutout.pixels.ndim == 3 and cutout.pixels.shape[2] == 4
        if has_alpha and cutout.pixels[:, :, 3].min() < np.iinfo(cutout.pixels.dtype).max:
            yield "alpha", cutout._replace(pixels=cutout.pixels[:, :, 3])
        else:
            what = "all of it is opaque" if has_alpha else "no alpha channel"
            findings.append(Finding("no-transparency", cutout.path, what))


def check_planes(alpha: StoredImage | None, trimap: StoredImage | None) -> Iterator[Finding]:
    """Check an alpha and a trimap, each by itself and against each other."""
    if alpha is not None:
        found = describe_alpha(alpha.pixels)
        if found:
            yield Finding(found[0], alpha.path, found[1])
    if trimap is not None:
        fits = alpha is not None and has_size_of(alpha, trimap)
        found = describe_trimap(trimap.pixels, alpha.pixels if alpha is not None and fits else None)
        if found:
            yield Finding(found[0], trimap.path, found[1])


def check_fit(main: StoredImage, plane: StoredImage, is_alpha: bool) -> Iterator[Finding]:
    """Check that an alpha or trimap matches its colours in size and rotation, and an alpha in bit depth."""
    turned = Finding("exif-rotation", main.path, f"orientation {main.orientation} beside {plane.orientation}")
    is_turned = main.orientation != plane.orientation
    if not has_size_of(plane, main):
        if is_turned and plane.pixels.shape[:2] == main.pixels.shape[1::-1]:
            yield turned
        else:
            yield Finding("size-mismatch", plane.path, f"{describe_size(plane)}, {main.path} is {describe_size(main)}")
    elif is_turned and is_alpha and fits_turned(main.pixels, plane.pixels, main.orientation):
        yield turned
    if is_alpha and plane.pixels.dtype != main.pixels.dtype:
        yield Finding("mixed-depth", plane.path, f"{plane.pixels.dtype} beside colours of {main.pixels.dtype}")


def has_size_of(first: StoredImage, second: StoredImage) -> bool:
    """Tell whether two images have the same height and width."""
    return first.pixels.shape[:2] == second.pixels.shape[:2]


def describe_size(image: StoredImage) -> str:
    """Describe the size of an image."""
    return f"{image.pixels.shape[1]} x {image.pixels.shape[0]} px"
