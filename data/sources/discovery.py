"""Find the foregrounds, photographs and backgrounds of a training run by the name of a layout or by folder.

Every folder setting accepts a name of `data.sources.layouts.TRAINING_LAYOUTS`, which has its own alphas, or a path: a
folder, all folders below one (`FOLDER/**`), or a pattern of files (`FOLDER/*_rgb.png`, `FOLDER/**/*_rgb`); see
`find_named`. Foregrounds may also be a pack (`data.sources.packs.reader`), which contains its alphas.
"""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from data.image_io.formats import READABLE, find_images
from data.image_io.images import DataError
from data.sources.foregrounds import Foreground, ForegroundFile
from data.sources.layouts import TRAINING_LAYOUTS, Kind, check_folders, check_no_files, find_by_stem, match_found
from data.sources.packs.reader import find_packed, is_pack

DEFAULT_SETS = ("Composition-1k-train", "COCO-train2017")
COMPOSITION_LAYOUT = f"""Expected layout, any image format, one name for what belongs together:
  $DETECTRON2_DATASETS/                    default: datasets/
    Composition-1k/train/fg/NAME.jpg       foreground colours  | or one folder of RGBA cut-outs,
    Composition-1k/train/alpha/NAME.jpg    their alphas        | and no alpha folder
    train2017/*.jpg                        backgrounds, COCO for instance
RGBA cut-outs need no alphas: set alpha_dirs=null.
Set DETECTRON2_DATASETS to the folder that holds these, or name other folders in the config, or sets by their names:
{", ".join(TRAINING_LAYOUTS)}."""

OTHER_PLACES = f"""Name folders that are there, or sets below $DETECTRON2_DATASETS by their names:
{", ".join(TRAINING_LAYOUTS)}."""
PARTNERS = "An alpha has the name of its image, suffixes aside."

Folders = str | Path | Sequence[str | Path]
AlphaFolders = str | Path | Sequence[str | Path | None] | None


def find_foregrounds(foreground_dirs: Folders, alpha_dirs: AlphaFolders = None) -> list[Foreground]:
    """List the foregrounds of some places, in the order of their names.

    Args:
        foreground_dirs: place or places of foregrounds.
        alpha_dirs: one place for each of `foreground_dirs`, with an alpha of the same name for each foreground; None
            for RGBA cut-outs, a pack and the name of a layout. A single None stands for all places.

    Raises:
        FileNotFoundError: a place is neither a layout's name nor an existing folder, or holds no image, or
            foregrounds and alphas lack their partners.
        DataError: no place at all; a file instead of a folder; two files of one name; another number of alpha places;
            the name of a layout of another kind; alphas for a name or a pack, which have their own; an invalid
            pattern; a damaged pack, or one below `FOLDER/**` or as alphas.
    """
    found: list[Foreground] = []
    for images, alphas in find_folders("foregrounds", foreground_dirs, alpha_dirs):
        if is_pack(images):
            found += find_packed(images)
        else:
            found += [ForegroundFile(*paths) for paths in find_pairs(images, alphas)]
    return found


def find_real_images(image_dirs: Folders, alpha_dirs: AlphaFolders = None) -> list[tuple[Path, ...]]:
    """List photographs, each with its own alpha; arguments and errors as for `find_foregrounds`, without packs.

    Raises:
        DataError: also where a place has no alphas, or is a pack.
    """
    pairs = find_folders("images", image_dirs, alpha_dirs)
    bare = [str(images) for images, alphas in pairs if alphas is None]
    if bare:
        raise DataError(f"no alphas are named for the images of {', '.join(bare)}: name a folder of alphas for each")
    return [paths for images, alphas in pairs for paths in find_pairs(images, alphas)]


def find_backgrounds(background_dirs: Folders) -> list[Path]:
    """List the images of a place or places, in the order of their names; errors as `find_foregrounds`."""
    folders = find_folders("backgrounds", background_dirs, None)
    return [path for images, _ in folders for (path,) in find_pairs(images, None)]


def find_folders(kind: Kind, image_dirs: Folders, alpha_dirs: AlphaFolders) -> list[tuple[Path, Path | None]]:
    """Resolve names of layouts, and check that all folders are there.

    Returns: paths or patterns of images, each with that of its alphas or None.

    Raises: as `find_foregrounds`.
    """
    places = [] if image_dirs is None else as_list(image_dirs)
    if not places or not all(places):
        raise DataError(f"expected a folder of {kind} or several, got {image_dirs}: name at least one")
    named = [str(place) for place in places]
    alphas = [None] * len(named) if alpha_dirs is None else as_list(alpha_dirs)
    check_no_files(Path(place) for place in [*named, *alphas] if place is not None)
    if len(alphas) != len(named):
        raise DataError(f"{len(named)} {kind[:-1]} folders and {len(alphas)} alpha folders: give one for each")
    found: list[tuple[Path, Path | None]] = []
    for place, alpha in zip(named, alphas, strict=True):
        layout = TRAINING_LAYOUTS.get(place)
        if layout is None:
            found.append((Path(place), None if alpha is None else Path(alpha)))
            continue
        if layout.kind != kind and (layout.kind, kind) != ("images", "foregrounds"):
            raise DataError(f"{place} is a set of {layout.kind}, asked for as {kind}: name it where these go")
        if alpha is not None:
            raise DataError(f"{place} is a data set's name and brings its own alphas, got {alpha} too: give null there")
        found += layout.find()
    paths = [path for pair in found for path in pair if path is not None]
    folders = dict.fromkeys(split_pattern(path)[0] for path in paths)
    default = [path for name in DEFAULT_SETS for pair in TRAINING_LAYOUTS[name].find() for path in pair]
    is_default = any(folder in default and not folder.is_dir() for folder in folders)
    check_folders(folders, COMPOSITION_LAYOUT if is_default else OTHER_PLACES)
    for images, alpha in found:
        if kind == "foregrounds" and alpha is not None and is_pack(images):
            raise DataError(f"{images} is a pack and holds its alphas, got {alpha} too: give null for it")
        for path in [alpha] if kind == "foregrounds" else [images, alpha]:
            if path is not None:
                check_no_pack(path)
    return found


def check_no_pack(folder: Path) -> None:
    """Raise a DataError if a folder is a pack."""
    if is_pack(folder):
        raise DataError(f"{folder} is a pack: name it by itself, where foregrounds go; photographs are not packed")


def find_pairs(images: Path, alphas: Path | None) -> list[tuple[Path, ...]]:
    """List the images of a folder or pattern, each with its alpha of the same name if `alphas` is given.

    Raises: as `find_foregrounds`.
    """
    if alphas is None:
        return [(path,) for paths in find_named(images).values() for path in paths]
    found = find_both(images, alphas)
    return match_found([(str(images), found[0]), (str(alphas), found[1])], PARTNERS)


def find_both(images: Path, alphas: Path) -> list[dict[str, list[Path]]]:
    """Group images and alphas by their names, with or without partners; see `find_named`.

    If a file matches both patterns, as a_alpha.png matches `*.png` and `*_alpha.png`, it belongs to the longer one,
    without suffixes: to `*_a` rather than to `*.png`.
    """
    found = [find_named(images), find_named(alphas)]
    if images != alphas:
        patterns = [split_pattern(place)[1] for place in (images, alphas)]  # a folder's is *
        lengths = [(len(Path(pattern).stem), len(pattern)) for pattern in patterns]
        longer = int(lengths[1] >= lengths[0])
        taken = {path for paths in found[longer].values() for path in paths}
        rest = {name: [p for p in paths if p not in taken] for name, paths in found[1 - longer].items()}
        found[1 - longer] = {name: paths for name, paths in rest.items() if paths}
    return found


def find_named(place: Path) -> dict[str, list[Path]]:
    """Group images by the name that their partners share, in the order of names.

    - `FOLDER`: the images in it, by name without suffix.
    - `FOLDER/PATTERN`, with one `*`, which stands for the name: `*_rgb.png` finds a_rgb.png and calls it a. Without a
      suffix, as `*_rgb`, it is any image format.
    - `FOLDER/**` and `FOLDER/**/PATTERN`: also in all folders below, hidden ones and links left out; the name begins
      with the folder's, as in sub/a.

    Raises:
        FileNotFoundError: no image matches.
        DataError: another pattern.
    """
    folder, pattern, is_deep = split_pattern(place)
    if pattern == "*" and not is_deep:
        return find_by_stem(folder)
    before, after = unicodedata.normalize("NFC", pattern).split("*")
    has_suffix = Path(f"name{after}").suffix.lower() in READABLE
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in find_below(folder) if is_deep else find_images(folder):
        text = unicodedata.normalize("NFC", path.name if has_suffix else path.stem)
        if len(text) > len(before + after) and text.startswith(before) and text.endswith(after):
            name = path.relative_to(folder).with_name(text[len(before) : len(text) - len(after)]).as_posix()
            groups[unicodedata.normalize("NFC", name)].append(path)
    if not groups:
        raise FileNotFoundError(f"no image matches {place} (looked for {', '.join(sorted(READABLE))})")
    return dict(groups)


def find_below(folder: Path) -> list[Path]:
    """List the images of a folder and of all folders below it, except hidden folders and links to folders.

    Raises:
        DataError: a pack among them.
    """
    check_no_pack(folder)
    found: list[Path] = []
    with suppress(FileNotFoundError):  # a folder of folders may have no image of its own
        found += find_images(folder)
    with os.scandir(folder) as entries:
        below = [e.name for e in entries if e.is_dir(follow_symlinks=False) and not e.name.startswith(".")]
    return found + [path for name in sorted(below) for path in find_below(folder / name)]


def split_pattern(place: Path) -> tuple[Path, str, bool]:
    """Split a path with `*` into folder, pattern of file names, and whether folders below are included.

    Raises:
        DataError: `*` in another place than `find_named` describes.
    """
    if "*" not in str(place):
        return place, "*", False
    folder, pattern = (place, "*") if place.name == "**" else (place.parent, place.name)
    is_deep = folder.name == "**"
    folder = folder.parent if is_deep else folder
    if "*" in str(folder) or pattern.count("*") != 1:
        raise DataError(
            f"cannot understand {place}: expected FOLDER, FOLDER/**, FOLDER/PATTERN or FOLDER/**/PATTERN, "
            "with one * in PATTERN, for the name"
        )
    return folder, pattern, is_deep


def as_list(folders: str | Path | Sequence[str | Path | None]) -> list[str | Path | None]:
    """Make a list of one folder or several."""
    return [folders] if isinstance(folders, str | Path) else list(folders)


def place_or_none(text: str) -> str | None:
    """Read a place of alphas from a command line; `null` is None, as in an override."""
    return None if text == "null" else text
