"""Find the images of public data sets below $DETECTRON2_DATASETS: test sets in `LAYOUTS`, others in `TRAINING_LAYOUTS`.

To add a layout, add an entry:

    LAYOUTS["mine"] = Layout("photos", "mattes", None, 10, root="my_set", num_images=40, source="we made it")
    TRAINING_LAYOUTS["own"] = TrainingLayout("images", "own_set", ("photos",), ("mattes",), source="we made it")
"""

import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from data.image_io.formats import READABLE, find_images, image_name
from data.image_io.images import DataError
from runtime.errors import UserError


@dataclass(frozen=True)
class Layout:
    """Folders of one test set, whose files belong together by name without suffix, in any image format.

    Args:
        image_dir: folder of images below `root`, "/" between the parts, as for all folders.
        alpha_dir: folder of true alphas.
        trimap_dir: folder of the official trimaps, of 0, 128 and 255; None without official trimaps.
        trimap_radius_px: r of the rule `data.trimap.trimap_from_alpha(alpha, r, r)` that makes the trimaps of a set
            without official ones, else None.
        root: the set's folder below $DETECTRON2_DATASETS.
        num_images: number of images of the complete set; None for any number.
        source: where these names are from.
    """

    image_dir: str
    alpha_dir: str
    trimap_dir: str | None
    trimap_radius_px: int | None
    root: str
    num_images: int | None
    source: str

    def find(self) -> list[Path]:
        """List the folders of images, alphas and official trimaps, without checking that they exist."""
        folders = [self.image_dir, self.alpha_dir, self.trimap_dir]
        return [datasets_folder() / self.root / folder for folder in folders if folder is not None]

    def describe(self) -> str:
        """Draw the folders for an error, with the origin of the trimaps."""
        kinds = {self.image_dir: "images", self.alpha_dir: "true alphas"}
        if self.trimap_dir is not None:
            kinds[self.trimap_dir] = "trimaps of 0, 128, 255"
        paths = {"/".join(filter(None, [self.root, folder, "NAME.*"])): kind for folder, kind in kinds.items()}
        width = max(map(len, paths))
        lines = ["Expected layout, any image format, one name for what belongs together:"]
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
    source="this project: what tools/dataset/make_composition1k.py writes and configs/common/dataloader.py reads",
)
TEST_FOLDERS = ("image", "trimap", "alpha")
"""Of a test set without a layout: tools/make_test_set.py writes them and `find_test_set` finds them by path."""

PLAIN_FOLDER = Layout(
    *("image", "alpha", "trimap", None), root="", num_images=None, source="this project: any folder given by its path"
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

Kind = Literal["foregrounds", "images", "backgrounds"]


@dataclass(frozen=True)
class TrainingLayout:
    """Folders of one training set.

    Args:
        kind: "foregrounds", whose colours contain nothing of a background; "images", photographs with their alphas,
            which may also be used as foregrounds (their edges then contain some of the old background, see
            `data.sources.foreground_colour`); or "backgrounds".
        root: the set's folder below $DETECTRON2_DATASETS, "/" between the parts, as for all folders.
        image_dirs: folders or patterns below `root`, see `find_named` of `data.sources.discovery`.
        alpha_dirs: alphas of each of these; none for backgrounds and for RGBA foregrounds.
        source: where these names are from.
    """

    kind: Kind
    root: str
    image_dirs: tuple[str, ...]
    alpha_dirs: tuple[str, ...] = ()
    _: KW_ONLY
    source: str

    def find(self) -> list[tuple[Path, Path | None]]:
        """List the places of images, each with that of its alphas, without checking that they exist."""
        root = datasets_folder() / self.root
        images = [root / place for place in self.image_dirs]
        return list(zip_longest(images, [root / place for place in self.alpha_dirs]))


TRAINING_LAYOUTS = {
    "Composition-1k-train": TrainingLayout(
        "foregrounds",
        "Composition-1k/train",
        ("fg",),
        ("alpha",),
        source="this project: what configs/common/dataloader.py reads, the two folders of Adobe-DIM put together",
    ),
    "Adobe-DIM": TrainingLayout(
        "foregrounds",
        "adobe_composition-1k/Training_set",
        ("Adobe-licensed images/fg", "Other/fg"),
        ("Adobe-licensed images/alpha", "Other/alpha"),
        source="the archive of Deep Image Matting (Xu et al. 2017), as mmagic 1.2.0 reads it: "
        "tools/dataset_converters/comp1k/preprocess_comp1k_dataset.py; `root` is mmagic's name for it",
    ),
    "COCO-train2017": TrainingLayout(
        "backgrounds", "train2017", (".",), source="the archive train2017.zip, unpacked in $DETECTRON2_DATASETS"
    ),
    "VOC2012": TrainingLayout(
        "backgrounds",
        "VOCdevkit/VOC2012",
        ("JPEGImages",),
        source="the archive VOCtrainval_11-May-2012.tar, as torchvision reads it (torchvision/datasets/voc.py); "
        "Composition-1k's test images have their backgrounds from it",
    ),
}


@dataclass(frozen=True)
class TestSet:
    """A test set that was found: its folders, and the radius of the trimap rule if trimaps are made.

    Both `trimap_dir` and `trimap_radius_px` are None if there are no trimaps and `find_test_set` needed none.
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
        needs_trimaps: whether the folder of trimaps must exist.

    Raises:
        FileNotFoundError: folders are missing (all are named), or the ground truth is.
        DataError: no such name or folder; another number of alphas than the set has images.
    """
    if name_or_folder in LAYOUTS:
        layout = LAYOUTS[name_or_folder]
        root = datasets_folder() / layout.root
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
            f"{alpha_dir} holds {num_images} images, but {name_or_folder} has {layout.num_images}: "
            "complete it, or remove what does not belong to it"
        )
    return TestSet(name_or_folder, image_dir, alpha_dir, trimap_dir, layout.trimap_radius_px, num_images)


def datasets_folder() -> Path:
    """Return the folder of the data sets: $DETECTRON2_DATASETS, or else datasets/."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))


class MissingFoldersError(UserError, FileNotFoundError):
    """Missing folders of a data set.

    Attributes:
        folders: all of them.
        layout: text that describes the expected layout.
    """

    folders: tuple[Path, ...]
    layout: str

    @classmethod
    def of(cls, folders: Iterable[Path], layout: str) -> "MissingFoldersError":
        """Make the error. With two arguments of `__init__` an OSError would not survive pickling."""
        folders = tuple(folders)
        names = "\n".join(f"  {folder}" for folder in folders)
        error = cls(f"The data set is not there. Missing folders:\n{names}\n{layout}")
        error.folders, error.layout = folders, layout
        return error


def check_folders(folders: Iterable[Path], layout: str) -> None:
    """Check that folders exist.

    Raises:
        MissingFoldersError: it names all missing folders, then `layout`.
        DataError: as `check_no_files`.
    """
    folders = list(folders)
    check_no_files(folders)
    missing = [folder for folder in folders if not folder.is_dir()]
    if missing:
        raise MissingFoldersError.of(missing, layout)


def find_all(*finders: Callable[[], Any]) -> list[Any]:
    """Call functions that find the parts of a data set, and return their results.

    Raises:
        MissingFoldersError: some parts lack folders; it names those of all parts.
    """
    found, errors = [], []
    for find in finders:
        try:
            found.append(find())
        except MissingFoldersError as error:
            errors.append(error)
    if errors:
        folders = dict.fromkeys(folder for error in errors for folder in error.folders)
        raise MissingFoldersError.of(folders, "\n".join(dict.fromkeys(error.layout for error in errors)))
    return found


def check_no_files(folders: Iterable[Path]) -> None:
    """Raise a DataError if a file is given instead of a folder."""
    for folder in folders:
        if folder.is_file():
            raise DataError(f"{folder} is a file: expected a folder (quote patterns, or the shell expands them)")


def match_by_name(folders: Sequence[Path], layout: str) -> list[tuple[Path, ...]]:
    """Match the images of several folders by their names without suffix.

    Returns: one path of each folder per name, sorted by name.

    Raises:
        FileNotFoundError: names that a folder lacks, all of them listed.
        DataError: a name that a folder holds twice.
    """
    return match_found([(str(folder), find_by_stem(folder)) for folder in folders], layout)


def match_found(found: Sequence[tuple[str, Mapping[str, Sequence[Path]]]], layout: str) -> list[tuple[Path, ...]]:
    """Match images that were found, given as places with their paths by name; otherwise as `match_by_name`."""
    for place, paths_by_name in found:
        twice = [name for name, paths in paths_by_name.items() if len(paths) > 1]
        if twice:
            raise DataError(f"{place} holds more than one image called {', '.join(twice)}: keep one of each")
    names = set().union(*(table for _, table in found))
    missing = [
        f"  {place} with {name} for *" if "*" in place else f"  {place}/{name}.*"
        for place, table in found
        for name in names - table.keys()
    ]
    if missing:
        listed = "\n".join(sorted(missing))
        raise FileNotFoundError(f"{len(missing)} files lack their partners. Missing:\n{listed}\n{layout}")
    return [tuple(table[name][0] for _, table in found) for name in sorted(names)]


def find_by_stem(folder: Path, suffixes: Collection[str] = READABLE) -> dict[str, list[Path]]:
    """Group the images of a folder by `image_name`; arguments, order and errors as of `find_images`."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in find_images(folder, suffixes):
        groups[image_name(path)].append(path)
    return dict(groups)


def find_partner(path: Path, groups: Mapping[str, Sequence[Path]], place: Path) -> Path:
    """Find the image of a folder that belongs to a file by its name.

    Args:
        path: of the file.
        groups: the folder's images, see `find_by_stem`.
        place: the folder, for the message.

    Raises:
        DataError: there is none, or more than one.
    """
    name = image_name(path)
    found = groups.get(name, ())
    if not found:
        raise DataError(f"{place} holds no image named {name}.*: add it")
    if len(found) > 1:
        raise DataError(f"{place} holds {len(found)} images named {name}.*: keep one of them")
    return found[0]


def check_same_size(first: NDArray, first_path: Path, second: NDArray, second_path: Path) -> None:
    """Raise a DataError that names both files if height or width differ."""
    check_equal_sizes(first.shape[1::-1], first_path, second.shape[1::-1], second_path)


def check_equal_sizes(first: tuple[int, ...], first_path: Path, second: tuple[int, ...], second_path: Path) -> None:
    """Raise a DataError that names both files if (width, height) differ."""
    if first != second:
        raise DataError(
            f"{first_path} is {first[0]} x {first[1]} px but {second_path} is {second[0]} x {second[1]} px: "
            "they must be of one size"
        )
