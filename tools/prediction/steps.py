"""Where trimaps come from, what gives alpha and what is written, as the command line of tools/predict.py says."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor

# What loads torch, or takes an optional package, is imported where it is asked for.
from data.image_io.images import DataError, read_image, write_alpha, write_image, write_rgba
from data.image_io.metadata import read_metadata
from data.sources.layouts import check_same_size, find_by_stem, find_partner
from data.trimap import WIDTH_PERCENT, band_width_px, ramp_alpha, read_trimap, trimap_of_mask, trivial_alpha
from inference.closed_form import closed_form_alpha
from inference.jobs import Job
from runtime.processes import Ranks
from tools.prediction.messages import say

Matte = Callable[[NDArray, NDArray], NDArray]
FindTrimap = Callable[[Path, NDArray], NDArray]

BASELINES: dict[str, Matte] = {
    "closed-form": closed_form_alpha,
    "trivial": lambda image, trimap: trivial_alpha(trimap),
    "ramp": lambda image, trimap: ramp_alpha(trimap),
}


def trimap_source(options: argparse.Namespace, num_images: int) -> tuple[FindTrimap, list[Path]]:
    """Choose where trimaps come from.

    Returns: a function that gives the trimap of an image's path and colours, and the files that it may read.

    Raises:
        FileNotFoundError: no such file or folder, or no picture in it.
        DataError: one file for several images, a folder for --trimap, a file for --trimap-dir.
    """
    if options.auto:
        from inference.auto.subject import trimap_of_subject

        width = {"width_percent": options.width_percent} if options.width_percent else {}
        return lambda path, image: trimap_of_subject(image, name=path, **width), []
    place: Path = options.trimap or options.trimap_dir or options.mask
    partners: dict[str, list[Path]] = {}
    if place.is_dir() and not options.trimap:
        partners = find_by_stem(place)
    elif not place.is_file() or options.trimap_dir:
        if options.trimap and place.is_dir():
            raise DataError(f"--trimap {place} is a folder: give it by --trimap-dir")
        if options.trimap_dir and place.is_file():
            raise DataError(f"--trimap-dir {place} is a file: give it by --trimap")
        option = "--trimap-dir" if options.trimap_dir else "--trimap" if options.trimap else "--mask"
        raise FileNotFoundError(f"{option} {place}: no such file or folder")
    elif num_images > 1:
        raise DataError(f"{place} is one file for {num_images} images: give a folder of trimaps or masks")

    def band_px(longer_px: int) -> int:
        return options.width_px or band_width_px(options.width_percent or WIDTH_PERCENT, longer_px)

    def find(path: Path, image: NDArray) -> NDArray:
        found = find_partner(path, partners, place) if partners else place
        if options.mask:
            return trimap_of_mask(found, band_px, options.threshold, image.shape[1::-1])
        trimap = read_trimap(found)
        check_same_size(image, path, trimap, found)
        return trimap

    return find, [path for paths in partners.values() for path in paths] or [place]


def network_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Those arguments of `Predictor.load` that were given."""
    given = {
        "device": options.device, "precision": options.precision, "max_memory_gb": options.max_memory,
        "is_compiled": options.compile, "tile_px": options.tile_px,
    }  # fmt: skip
    if options.tta is not None:
        from modeling.test_time_augmentation import AverageViews

        given["views"] = AverageViews.parse(options.tta)
    return {name: value for name, value in given.items() if value is not None}


def load_matte(options: argparse.Namespace, ranks: Ranks) -> Matte:
    """Choose what gives alpha, and say so where the command line does not.

    Raises:
        OSError, UserError: the network cannot be used.
    """
    source = options.model or options.config_file
    if source is None:
        if options.baseline is None and ranks.is_first:
            say("no network given: closed-form matting")
        return BASELINES[options.baseline or "closed-form"]
    from inference.predictor import Predictor

    settings = network_settings(options)
    if not ranks.is_alone:
        settings["device"] = ranks.device(options.device or "auto")
    return Predictor.load(source, options.weights, **settings, trusted_modules=options.trust_module).predict


def result_writer(options: argparse.Namespace) -> Callable[[Job, NDArray, NDArray], None]:
    """Choose what is written.

    Returns: a function of a job, its image and its alpha.

    Raises:
        OSError, UserError: a background that is neither a colour nor a picture.
    """
    background = read_background(options.background) if options.background else None

    def write(job: Job, image: NDArray, alpha: NDArray) -> None:
        job.output.parent.mkdir(parents=True, exist_ok=True)
        metadata = read_metadata(job.image)
        if options.kind == "alpha":
            return write_alpha(job.output, alpha, options.bits, metadata)
        from inference.foreground import cut_out, estimate_foreground, over

        foreground = estimate_foreground(image, alpha)
        if background is None:
            rgba = cut_out(foreground, alpha, options.premultiplied)
            return write_rgba(job.output, rgba, options.bits, options.premultiplied, metadata)
        return write_image(job.output, over(foreground, alpha, background), options.bits, metadata)

    return write


def read_background(name: str) -> NDArray[np.float32]:
    """Read a colour (3,), by a name or code that Pillow knows, or a picture (H, W, 3), in [0, 1].

    Raises:
        DataError: neither, or a colour with transparency.
    """
    try:
        colour = ImageColor.getrgb(name)
    except ValueError as error:
        if Path(name).is_file():
            read_metadata(Path(name))  # for its warning: a result carries the photograph's profile alone
            return read_image(name)
        raise DataError(f"--background {name}: no such file, and no colour such as teal or '#20a040'") from error
    if len(colour) != 3:
        raise DataError(f"--background {name}: expected an opaque colour")
    return np.divide(colour, 255, dtype=np.float32)
