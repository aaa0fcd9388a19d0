"""Make the test images of Composition-1k by the published rule: which images are combined, and how.

Source: the compositing script that comes with Deep Image Matting (Xu et al. 2017); mmagic 1.2.0,
`tools/dataset_converters/comp1k/preprocess_comp1k_dataset.py`, states the same rule on arrays.
"""

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.image_io.formats import READABLE, decoder_errors
from data.image_io.images import DataError
from data.sources.layouts import find_by_stem
from data.trimap import read_strict_trimap
from runtime.errors import UserError

NUM_FOREGROUNDS, NUM_BACKGROUNDS = 50, 20  # 50 test foregrounds, each over 20 backgrounds of its own
RULE = (
    "images read by PIL, EXIF rotation not applied; a background smaller than the foreground enlarged (bicubic), "
    "both sides to ceil(side * max(w / bw, h / bh)); cropped from the top-left; first channel of alpha; "
    "int(a / 255 * F + (1 - a / 255) * B) in float64; the next backgrounds of the list for each foreground of the list"
)
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")  # of 8 bit or less; Pillow would clip others


class Composite(NamedTuple):
    """An image to make, and its sources; `name` has no suffix."""

    name: str
    foreground: Path
    alpha: Path
    background: Path
    trimap: Path | None


def plan_composites(
    foreground_dir: Path,
    alpha_dir: Path,
    background_dir: Path,
    foreground_list: Path,
    background_list: Path,
    trimap_dir: Path | None = None,
    num_foregrounds: int = NUM_FOREGROUNDS,
    num_backgrounds: int = NUM_BACKGROUNDS,
) -> list[Composite]:
    """Plan all composites, after checking that all files exist and match.

    Foreground i of its list is combined with lines i n to i n + n - 1 of the background list. NAME.png gives composites
    NAME_0 to NAME_19. Trimaps are read completely, of the other images only the headers.

    Args:
        foreground_dir: colours; an image is found by its listed name, or by that name with another suffix.
        alpha_dir: an alpha of the same name for each foreground.
        background_dir: backgrounds.
        foreground_list: text file, a name a line.
        background_list: text file, a name a line; a name may come again.
        trimap_dir: official trimaps NAME_0 ... NAME_19 of each foreground, of only 0, 128 and 255; None without them.
        num_foregrounds: lines that the foreground list must have.
        num_backgrounds: n, backgrounds of each foreground; the background list must have one line for each composite.

    Raises:
        DataError: one error that lists all missing, repeated and unreadable files, wrong sizes and wrong values.
    """
    problems: list[str] = []
    num_images = num_foregrounds * num_backgrounds
    foregrounds = read_names(foreground_list, num_foregrounds, problems)
    backgrounds = read_names(background_list, num_images, problems)
    counts = Counter(map(drop_suffix, foregrounds))
    problems += [f"{foreground_list} lists {stem} {count} times" for stem, count in counts.items() if count > 1]
    colours = find_listed(foreground_dir, foregrounds, problems)
    alphas = find_listed(alpha_dir, foregrounds, problems)
    photographs = find_listed(background_dir, backgrounds, problems)
    owners = {f"{drop_suffix(name)}_{i}": name for name in foregrounds for i in range(num_backgrounds)}
    trimaps = find_listed(trimap_dir, owners, problems) if trimap_dir else {}
    sizes = read_sizes([path for table in (colours, alphas, photographs) for path in table.values()], problems)
    sizes |= check_trimaps(trimaps.values(), problems)
    pairs = [(alpha, colours.get(name)) for name, alpha in alphas.items()]
    pairs += [(trimap, colours.get(owners[name])) for name, trimap in trimaps.items()]
    for path, colour in pairs:
        if path in sizes and colour in sizes and sizes[path] != sizes[colour]:
            (width, height), (colour_width, colour_height) = sizes[path], sizes[colour]
            problems.append(f"{path} is {width} x {height} px, but {colour} is {colour_width} x {colour_height} px")
    if problems:
        raise DataError("\n".join([f"{len(problems)} problem{'s' * (len(problems) > 1)}, nothing made:", *problems]))
    return [
        Composite(name, colours[owner], alphas[owner], photographs[background], trimaps.get(name))
        for (name, owner), background in zip(owners.items(), backgrounds, strict=True)
    ]


def read_names(path: Path, count: int, problems: list[str]) -> list[str]:
    """Read the lines of a list, except blank ones; another count than expected is a problem."""
    try:
        text = unicodedata.normalize("NFC", path.read_text(encoding="utf-8-sig"))
        names = [line.strip() for line in text.splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"cannot read the list {path}: {error}")
        return []
    if len(names) != count:
        problems.append(f"{path} lists {len(names)} names, expected {count}")
    return names


def drop_suffix(name: str) -> str:
    """Remove an image's suffix from a listed name; other text after a dot, as in "c.v1", belongs to the name."""
    suffix = Path(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in READABLE else name


def find_listed(folder: Path, names: Iterable[str], problems: list[str]) -> dict[str, Path]:
    """Find images by listed name, or by that name with another suffix; a missing or ambiguous one is a problem."""
    try:
        by_stem = find_by_stem(folder)
    except FileNotFoundError as error:
        problems.append(str(error))
        return {}
    found = {}
    for name in dict.fromkeys(names):
        fitting = by_stem.get(drop_suffix(name), [])
        fitting = [path for path in fitting if unicodedata.normalize("NFC", path.name) == name] or fitting
        if len(fitting) == 1:
            found[name] = fitting[0]
        elif fitting:
            problems.append(f"{folder}/{name} is one of {', '.join(path.name for path in fitting)}: keep one of them")
        else:
            problems.append(f"{folder}/{name} is missing")
    return found


def read_sizes(paths: Iterable[Path], problems: list[str]) -> dict[Path, tuple[int, int]]:
    """Read width and height of images from their headers; a file that is no 8-bit image is a problem."""
    sizes = {}
    for path in dict.fromkeys(paths):
        try:
            with path.open("rb") as file:
                with decoder_errors():
                    image = Image.open(file)
                sizes[path] = image.size
                if image.mode not in MODES:
                    problems.append(f"{path} has pixel format {image.mode}: expected 8 bit")
        except (OSError, UserError) as error:
            problems.append(f"cannot read {path}: {error}")
    return sizes


def check_trimaps(paths: Iterable[Path], problems: list[str]) -> dict[Path, tuple[int, int]]:
    """Read width and height of trimaps; one that a test set must not store is a problem."""
    sizes = {}
    for path in paths:
        try:
            height, width = read_strict_trimap(path).shape
            sizes[path] = (width, height)
        except (OSError, UserError) as error:
            problems.append(str(error))
    return sizes


def make_composite(composite: Composite) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read the three images and blend them.

    Returns: image (H, W, 3) RGB and alpha (H, W).

    Raises:
        DataError: an image is damaged.
    """
    foreground = np.asarray(_read(composite.foreground))
    alpha = np.asarray(_read(composite.alpha).getchannel(0))
    background = np.asarray(fit_background(_read(composite.background), alpha.shape[::-1]))
    return blend(alpha, foreground, background), alpha


def _read(path: Path) -> Image.Image:
    """Decode an image to RGB as stored, without its transparency."""
    try:
        with path.open("rb") as file, decoder_errors():
            return Image.open(file).convert("RGB")
    except (OSError, UserError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def fit_background(background: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Enlarge a background if it is smaller on either side, then crop it from the top left to `size` (W, H).

    The new sides are ceil(side * ratio) in floating point, as published: 29 * (30 / 29) is above 30 and gives 31.
    """
    ratio = max(size[0] / background.width, size[1] / background.height)
    if ratio > 1:
        enlarged = (math.ceil(background.width * ratio), math.ceil(background.height * ratio))
        background = background.resize(enlarged, Image.Resampling.BICUBIC)
    return background.crop((0, 0, *size))


def blend(alpha: NDArray[np.uint8], foreground: NDArray[np.uint8], background: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Composite 8-bit images in float64 and cut off the fraction; alpha 0 and 255 copy B and F exactly.

    Args:
        alpha: (H, W).
        foreground: (H, W, 3).
        background: (H, W, 3).

    Returns: (H, W, 3).
    """
    image = np.where(alpha[:, :, None] == 255, foreground, background)
    for y, row in enumerate(alpha):  # the floats of a whole image would be many times its size
        mixed = (row > 0) & (row < 255)
        opacity = row[mixed][:, None] / 255
        image[y, mixed] = opacity * foreground[y, mixed] + (1 - opacity) * background[y, mixed]  # the cast cuts off
    return image
