"""Where the pictures of public test sets lie below $DETECTRON2_DATASETS, one entry of `LAYOUTS` each.

A layout of one's own is one more entry:

    LAYOUTS["mine"] = Layout("photos", "mattes", None, 10, root="my_set", num_images=40, source="we made it")
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from numpy.typing import NDArray

from data.images import DataError, find_images


@dataclass(frozen=True)
class Layout:
    """Folders of one test set, whose files belong together by name without suffix, in any picture format.

    Args:
        image_dir: folder of images below `root`, "/" between the parts, as for all folders.
        alpha_dir: folder of true alphas.
        trimap_dir: folder of the official trimaps, of 0, 128 and 255; None where there are none.
        trimap_radius_px: r of the rule `data.trimap.trimap_from_alpha(alpha, r, r)` that makes the trimaps of a set
            without official ones, else None.
        root: the set's folder below $DETECTRON2_DATASETS.
        num_images: how many images the whole set has; None where any number will do.
        source: where the knowledge of these names comes from.

    Raises:
        ValueError: both a trimap folder and a radius, or neither.
    """

    image_dir: str
    alpha_dir: str
    trimap_dir: str | None
    trimap_radius_px: int | None
    root: str
    num_images: int | None
    source: str

    def __post_init__(self) -> None:
        if (self.trimap_dir is None) == (self.trimap_radius_px is None):
            raise ValueError(
                f"the layout of {self.root} needs either trimap_dir or trimap_radius_px, "
                f"got {self.trimap_dir!r} and {self.trimap_radius_px!r}"
            )

    def describe(self) -> str:
        """Draw the folders for an error, with the origin of the trimaps."""
        kinds = {self.image_dir: "images", self.alpha_dir: "true alphas"}
        if self.trimap_dir is not None:
            kinds[self.trimap_dir] = "trimaps of 0, 128, 255"
        paths = {"/".join(filter(None, [self.root, folder, "NAME.*"])): kind for folder, kind in kinds.items()}
        width = max(map(len, paths))
        lines = ["Expected layout, any picture format, one name for what belongs together:"]
        if self.root:
            lines.append(f"  {'$DETECTRON2_DATASETS/':{width + 2}}  default: datasets/")
        lines += [f"    {path:{width}}  {kind}" for path, kind in paths.items()]
        if self.trimap_dir is None:
            lines.append(
                f"  Trimaps are made: trimap_from_alpha(alpha, {self.trimap_radius_px}, {self.trimap_radius_px})"
            )
        if self.root:
            lines.append("Set DETECTRON2_DATASETS to the folder that holds these, or name other folders.")
        return "\n".join(lines)


COMPOSITION_1K = Layout(
    "merged",
    "alpha_copy",
    "trimaps",
    None,
    root="Composition-1k/test",
    num_images=1000,
    source="this project: what tools/make_composition1k.py writes and configs/common/dataloader.py reads",
)
PLAIN_FOLDER = Layout(
    "image", "alpha", "trimap", None, root="", num_images=None, source="this project: any folder given by its path"
)
ALPHAMATTING_SOURCE = (
    "an arrangement of this project, not of the download: from the training set of alphamatting.com, the photographs "
    "go to image/, the true alphas to alpha/, the two sets of trimaps to trimap1/ and trimap2/"
)
LAYOUTS = {
    "Composition-1k": COMPOSITION_1K,
    **{
        f"alphamatting-{trimap_dir}": Layout(
            "image", "alpha", trimap_dir, None, root="alphamatting", num_images=None, source=ALPHAMATTING_SOURCE
        )
        for trimap_dir in ("trimap1", "trimap2")
    },
}


@dataclass(frozen=True)
class TestSet:
    """A test set that was found: its folders, and the trimap rule's radius where trimaps are made.

    Both `trimap_dir` and `trimap_radius_px` are None where `find_test_set` could do without trimaps, and did.
    """

    name: str
    image_dir: Path
    alpha_dir: Path
    trimap_dir: Path | None
    trimap_radius_px: int | None
    num_images: int


def find_test_set(name_or_folder: str, needs_trimaps: bool = True) -> TestSet:
    """Find a set of `LAYOUTS` below $DETECTRON2_DATASETS, or take a folder's own image/, alpha/ and trimap/.

    Args:
        name_or_folder: a name of `LAYOUTS`, or else the path of a folder.
        needs_trimaps: whether the folder of trimaps must be there; else it is left out where it is not.

    Raises:
        FileNotFoundError: folders are missing, all of them named, or the truths are.
        DataError: no such name or folder; not as many truths as the set has images.
    """
    if name_or_folder in LAYOUTS:
        layout = LAYOUTS[name_or_folder]
        root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"), layout.root)
    elif Path(name_or_folder).is_dir():
        layout, root = PLAIN_FOLDER, Path(name_or_folder)
    else:
        raise DataError(
            f"no data set and no folder is called {name_or_folder!r}: expected one of {', '.join(LAYOUTS)}, "
            "or the path of a folder that holds image/, alpha/ and trimap/"
        )
    image_dir, alpha_dir = root / layout.image_dir, root / layout.alpha_dir
    trimap_dir = None if layout.trimap_dir is None else root / layout.trimap_dir
    if trimap_dir is not None and not (needs_trimaps or trimap_dir.is_dir()):
        trimap_dir = None
    check_folders([folder for folder in (image_dir, alpha_dir, trimap_dir) if folder is not None], layout.describe())
    num_images = len(find_images(alpha_dir))
    if layout.num_images not in (None, num_images):
        raise DataError(
            f"{alpha_dir} holds {num_images} pictures, but {name_or_folder} has {layout.num_images}: "
            "complete it, or remove what does not belong to it"
        )
    return TestSet(name_or_folder, image_dir, alpha_dir, trimap_dir, layout.trimap_radius_px, num_images)


def check_folders(folders: Iterable[Path], layout: str) -> None:
    """Raise one FileNotFoundError that names every missing folder and shows the layout."""
    missing = [folder for folder in folders if not folder.is_dir()]
    if missing:
        names = "\n".join(f"  {folder}" for folder in missing)
        raise FileNotFoundError(f"The data set is not there. Missing folders:\n{names}\n{layout}")


def match_by_name(folders: Sequence[Path], layout: str) -> list[tuple[Path, ...]]:
    """Match the pictures of several folders by their names without suffix.

    Returns: one path of each folder per name, sorted by name.

    Raises:
        FileNotFoundError: names that a folder lacks, all of them listed.
        DataError: a name that a folder holds twice.
    """
    tables = []
    for folder in folders:
        found = find_by_stem(folder)
        twice = [name for name, paths in found.items() if len(paths) > 1]
        if twice:
            raise DataError(f"{folder} holds more than one picture called {', '.join(twice)}: keep one of each")
        tables.append({name: paths[0] for name, paths in found.items()})
    names = set().union(*tables)
    missing = [
        f"  {folder}/{name}.*" for folder, table in zip(folders, tables, strict=True) for name in names - table.keys()
    ]
    if missing:
        listed = "\n".join(sorted(missing))
        raise FileNotFoundError(f"{len(missing)} files lack their partners. Missing:\n{listed}\n{layout}")
    return [tuple(table[name] for table in tables) for name in sorted(names)]


def find_by_stem(folder: Path) -> dict[str, list[Path]]:
    """Group the pictures of a folder by name without suffix, in the order of `find_images`, whose errors these are."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in find_images(folder):
        groups[path.stem].append(path)
    return dict(groups)


def check_same_size(first: NDArray, first_path: Path, second: NDArray, second_path: Path) -> None:
    """Raise a DataError that names both files where height or width differ."""
    if first.shape[:2] != second.shape[:2]:
        raise DataError(
            f"{first_path} is {first.shape[1]} x {first.shape[0]} px but {second_path} is "
            f"{second.shape[1]} x {second.shape[0]} px: they must be of one size"
        )
