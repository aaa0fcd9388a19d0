"""The steps of tools/predict.py: list the trimaps; read, predict and write an image as the command line says."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor

# What loads torch, or takes an optional package, is imported where it is asked for.
from data.image_io import exr
from data.image_io.colour import convert
from data.image_io.exr import SceneLinear
from data.image_io.formats import MATTED
from data.image_io.images import (
    Colours,
    DataError,
    is_exr,
    read_colours,
    read_image,
    read_light,
    write_alpha,
    write_image,
    write_rgba,
)
from data.image_io.metadata import Metadata, read_metadata
from data.sources.layouts import check_same_size, find_by_stem, find_partner
from data.trimap import (
    WIDTH_PERCENT,
    band_width_px,
    ramp_alpha,
    read_trimap,
    trimap_for_matting,
    trimap_of_mask,
    trivial_alpha,
)
from inference.auto.clicks import trimap_of_clicks
from inference.auto.labels import read_scribbles
from inference.closed_form import closed_form_alpha
from inference.jobs import Job
from tools.prediction.light import composite_in_light, write_light

Predict = Callable[[NDArray, NDArray], NDArray]
"""Image (H, W, 3) in [0, 1] and trimap (H, W) of {0, 0.5, 1} -> alpha (H, W) in [0, 1]."""

Trimaps = Mapping[str, Sequence[Path]]
"""Name without suffix -> files of a folder."""

BASELINES: dict[str, Predict] = {
    "closed-form": closed_form_alpha,
    "trivial": lambda image, trimap: trivial_alpha(trimap),
    "ramp": lambda image, trimap: ramp_alpha(trimap),
}


def list_trimaps(options: argparse.Namespace, num_images: int) -> Trimaps:
    """List the trimaps or masks of a folder by name without suffix; {} for a single file and without files.

    Raises:
        FileNotFoundError: no such file or folder, or no image in it.
        DataError: one file for several images, a folder for --trimap, a file for --trimap-dir.
    """
    place: Path | None = options.trimap or options.trimap_dir or options.mask or options.scribbles
    check_points(options, num_images)
    if place is None:
        return {}
    if options.scribbles and place.is_dir():
        raise DataError(f"--scribbles {place} is a folder: give one image and the file of its scribbles")
    if place.is_dir() and not options.trimap:
        return find_by_stem(place, MATTED)
    if options.trimap and place.is_dir():
        raise DataError(f"--trimap {place} is a folder: give it by --trimap-dir")
    if options.trimap_dir and place.is_file():
        raise DataError(f"--trimap-dir {place} is a file: give it by --trimap")
    if not place.is_file():
        names = {"trimap": "--trimap", "trimap_dir": "--trimap-dir", "mask": "--mask", "scribbles": "--scribbles"}
        option = next(option for name, option in names.items() if getattr(options, name))
        raise FileNotFoundError(f"{option} {place}: no such file or folder")
    if num_images > 1:
        advice = "give one image" if options.scribbles else "give a folder of trimaps or masks"
        raise DataError(f"{place} is one file for {num_images} images: {advice}")
    return {}


def check_points(options: argparse.Namespace, num_images: int) -> None:
    """Refuse --points for several images.

    Raises:
        DataError: several images.
    """
    if options.points and num_images > 1:
        raise DataError(f"--points are those of one image, and here are {num_images}: give one image")


def read_pair(
    options: argparse.Namespace, trimaps: Trimaps, job: Job
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Read an image, and read or make its trimap.

    Args:
        options: of the command line.
        trimaps: see `list_trimaps`.
        job: whose image is read.

    Returns: (H, W, 3) sRGB in [0, 1], and (H, W) of {0, 0.5, 1}. Outside the data window of an EXR, all is background.
    """
    if not is_exr(job.image):
        image = read_image(job.image)
        return image, _trimap(options, trimaps, job, image)
    light = read_light(job.image)
    image = light.shown(options.exposure)
    trimap = np.zeros(image.shape[:2], np.float32)
    trimap[light.inside] = _trimap(options, trimaps, job, image)[light.inside]
    return image, trimap


def _trimap(options: argparse.Namespace, trimaps: Trimaps, job: Job, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Read or make the trimap of an image; see `read_pair`."""
    if options.auto:
        from inference.auto.subject import trimap_of_subject

        return trimap_of_subject(image, options.width_percent or WIDTH_PERCENT, job.image)
    height, width = image.shape[:2]
    band_px = options.width_px or band_width_px(options.width_percent or WIDTH_PERCENT, max(height, width))
    if options.points or options.scribbles:
        scribbles = read_scribbles(options.scribbles) if options.scribbles else None
        if scribbles is not None:
            check_same_size(image, job.image, scribbles, options.scribbles)
        return trimap_of_clicks(image, band_px, options.points or (), scribbles, job.image)
    place: Path = options.trimap or options.trimap_dir or options.mask
    path = find_partner(job.image, trimaps, place) if trimaps else place
    if options.mask:
        trimap = trimap_of_mask(path, lambda longer_px: band_px, options.threshold, (width, height))
        return trimap_for_matting(trimap, path)
    trimap = read_trimap(path)
    check_same_size(image, job.image, trimap, path)
    return trimap


def load_predict(options: argparse.Namespace) -> Predict:
    """Load the network, or choose the baseline.

    Raises:
        OSError, UserError: the network cannot be used.
    """
    source = options.model or options.config_file
    if source is None:
        return BASELINES[options.baseline or "closed-form"]
    from inference.predictor import Predictor

    settings = {**options.settings, "trusted_modules": options.trust_module}
    return Predictor.load(source, options.weights, **settings).alpha


def write_result(
    options: argparse.Namespace,
    background: Colours | SceneLinear | None,
    job: Job,
    image: NDArray[np.float32],
    trimap: NDArray[np.float32],
    alpha: NDArray[np.float32],
) -> None:
    """Write the alpha, the cut-out, or the composite over a background.

    Args:
        options: of the command line.
        background: see `read_background`; None unless a composite is asked for.
        job: whose file is written.
        image: (H, W, 3) sRGB in [0, 1].
        trimap: (H, W) of {0, 0.5, 1}.
        alpha: (H, W) in [0, 1].
    """
    if job.output.suffix.lower() == exr.SUFFIX:
        return write_light(job.output, options, background, read_light(job.image), trimap, alpha)
    metadata = read_metadata(job.image)
    if options.colour == "srgb":
        metadata = metadata._replace(icc_profile=None)
    if metadata.icc_profile and options.kind != "alpha":  # what is written stays in the photograph's space
        image = read_colours(job.image).values
    light = read_light(job.image) if options.linear and is_exr(job.image) else None
    values = make_result(options, background, Colours(image, metadata.icc_profile), alpha, light)
    return write_values(job.output, options, values, metadata)


def make_result(
    options: argparse.Namespace,
    background: Colours | SceneLinear | None,
    colours: Colours,
    alpha: NDArray[np.float32],
    light: SceneLinear | None = None,
) -> NDArray[np.float32]:
    """Make what is stored of the alpha, the cut-out, or the composite over a background.

    Args:
        options: of the command line.
        background: see `read_background`; None unless a composite is asked for.
        colours: (H, W, 3) of the image, in the space that is written.
        alpha: (H, W) in [0, 1].
        light: of an EXR, for --linear.

    Returns: (H, W) alpha, (H, W, 4) cut-out or (H, W, 3) composite, in [0, 1].
    """
    if options.kind == "alpha":
        return alpha
    from inference.foreground import cut_out, estimate_foreground, over

    if background is not None and options.linear:
        return composite_in_light(options, background, colours, alpha, light)
    foreground = estimate_foreground(colours.values, alpha)
    if background is None:
        return cut_out(foreground, alpha, options.premultiplied)
    if isinstance(background, SceneLinear):
        background = Colours(background.shown(options.exposure))
    return over(foreground, alpha, convert(*background, colours.icc_profile))


def write_values(path: Path, options: argparse.Namespace, values: NDArray[np.float32], metadata: Metadata) -> None:
    """Write what `make_result` gives as a file of 8 or 16 bit, in a folder that is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bits = options.bits or 8
    if options.kind == "alpha":
        write_alpha(path, values, bits, metadata)
    elif options.kind == "rgba":
        write_rgba(path, values, bits, options.premultiplied, metadata)
    else:
        write_image(path, values, bits, metadata)


def read_background(name: str) -> Colours | SceneLinear:
    """Read a colour (3,), by a name or code that Pillow knows, or an image (H, W, 3), of an EXR its light.

    Raises:
        DataError: neither, or a colour with transparency.
    """
    if (colour := parse_colour(name)) is not None:
        return Colours(colour)
    if Path(name).is_file():
        return read_light(name) if is_exr(name) else read_colours(name)
    raise DataError(f"--background {name}: no such file, and no colour such as teal or '#20a040'")


def parse_colour(name: str) -> NDArray[np.float32] | None:
    """Convert a name or code that Pillow knows to sRGB (3,) in [0, 1]; None if it knows no such colour.

    Raises:
        DataError: a colour with transparency.
    """
    try:
        colour = ImageColor.getrgb(name)
    except ValueError:
        return None
    if len(colour) != 3:
        raise DataError(f"background {name}: expected an opaque colour")
    return np.divide(colour, 255, dtype=np.float32)
