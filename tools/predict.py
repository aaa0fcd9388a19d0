"""Matte images: alphas, cut-outs, or composites over another background.

    python tools/predict.py photo.jpg --auto
    python tools/predict.py photo.jpg --trimap trimap.png --model models/s --output alpha.png
    python tools/predict.py frames --trimap-dir trimaps --model models/s --output alphas --resume
    python tools/predict.py "photos/*.jpg" --mask masks --width-percent 2 --background '#20a040'

IMAGES are files, folders and quoted patterns. In folders, trimaps and masks belong to images by name without suffix.
Without --output, what is made of a file lies beside it as NAME_alpha.png, NAME_cutout.png or NAME_composite.png, and
what is made of a folder, or of a pattern in a folder, lies beside that one as FOLDER_alpha/NAME.png and so on.
Alpha comes from a model folder or an .onnx file of tools/export.py, or from a config with its checkpoint; without a
network by closed-form matting. The baseline "trivial" is 0.5 wherever unknown, "ramp" follows the distances alone.
A bad file stops no other and is listed at the end. --resume makes only what is not there; what is there is complete.
Exit status: 0 all matted, 1 something is wrong with files, 2 wrong usage, 130 interrupted.
"""

import _root  # noqa: F401

import argparse
import logging
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor
from tqdm import tqdm

# What loads torch, or takes an optional package, is imported where it is asked for.
from data.images import DataError, read_image, write_alpha, write_image, write_rgba
from data.layouts import check_same_size, find_by_stem
from data.trimap import band_width_px, ramp_alpha, read_trimap, trimap_of_mask, trivial_alpha
from inference.batch import matte_all
from inference.classical import closed_form_alpha
from inference.extras import MissingExtraError
from inference.jobs import KINDS, Job, check_outputs, find_jobs

Matte = Callable[[NDArray, NDArray], NDArray]
FindTrimap = Callable[[Path, NDArray], NDArray]

BASELINES: dict[str, Matte] = {
    "closed-form": closed_form_alpha,
    "trivial": lambda image, trimap: trivial_alpha(trimap),
    "ramp": lambda image, trimap: ramp_alpha(trimap),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line (`sys.argv` by default) and matte.

    Returns: the exit status.
    """
    options = parse(arguments)
    try:
        return matte_images(options)
    except (OSError, ValueError, MissingExtraError) as error:  # DataError and the like are ValueErrors
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("interrupted; the same command with --resume goes on")
        return 130


def say(line: str) -> None:
    """Tell the person who called."""
    print(f"predict.py: {line}", file=sys.stderr)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; options that contradict each other end the process with status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="image, folder of images, or quoted pattern")
    group = parser.add_argument_group("trimap, by one of")
    group.add_argument("--trimap", type=Path, metavar="FILE", help="trimap of the only image")
    group.add_argument("--trimap-dir", type=Path, metavar="FOLDER", help="trimaps")
    group.add_argument("--mask", type=Path, help="mask of the only image, or folder of masks; needs a width")
    group.add_argument("--auto", action="store_true", help="find the subject")
    group.add_argument("--width-px", type=positive_integer, help="width of a mask's unknown band, half of it inside")
    group.add_argument("--width-percent", type=number_up_to(100), help="the same, or --auto's, of the longer side")
    group.add_argument("--threshold", type=number_up_to(1), help="cut a mask here first, for JPEG and network masks")
    group = parser.add_argument_group("alpha, by one of")
    group.add_argument("--model", type=Path, help="model folder or .onnx file of tools/export.py")
    group.add_argument("--config-file", type=Path, help="config of a network; needs --weights")
    group.add_argument("--weights", type=Path, help="trained checkpoint of the config")
    group.add_argument("--baseline", choices=BASELINES, help="no network; closed-form where none of these is given")
    group = parser.add_argument_group("how a network runs")
    group.add_argument("--device", help="cpu, cuda ... (default: the best there is)")
    group.add_argument("--precision", choices=("auto", "float32", "bf16"), help="default: auto, by the device")
    group.add_argument("--max-memory", type=number_up_to(math.inf), metavar="GB", help="that may be in use, 1e9 bytes")
    group.add_argument("--compile", action="store_true", default=None, help="by torch.compile: a slow start")
    group.add_argument("--tile-px", type=positive_integer, help="side of the tiles that the decoder takes in turn")
    group = parser.add_argument_group("what is written")
    group.add_argument("--output", type=Path, help="file for one image, else folder, where names are kept")
    group.add_argument("--as", choices=KINDS, dest="kind", help="default: alpha; with --auto rgba")
    group.add_argument("--background", help="composite over this colour (teal, '#20a040') or picture")
    group.add_argument("--premultiplied", action="store_true", help="rgba: colours multiplied by alpha")
    group.add_argument("--bits", type=int, choices=(8, 16), default=8, help="default: 8")
    group.add_argument("--format", choices=("png", "tif", "webp"), default="png", help="where --output names no file")
    group.add_argument("--resume", action="store_true", help="make only what is not there yet")
    options = parser.parse_args(arguments)
    if sum(map(bool, (options.trimap, options.trimap_dir, options.mask, options.auto))) != 1:
        parser.error("give one of --trimap, --trimap-dir, --mask and --auto")
    if options.mask and bool(options.width_px) == bool(options.width_percent):
        parser.error("--mask needs either --width-px or --width-percent")
    if not options.mask and (options.width_px or options.threshold):
        parser.error("--width-px and --threshold are for --mask")
    if options.width_percent and not (options.mask or options.auto):
        parser.error("--width-percent is for --mask and --auto")
    if sum(map(bool, (options.model, options.config_file, options.baseline))) > 1:
        parser.error("give one of --model, --config-file with --weights, and --baseline")
    if bool(options.config_file) != bool(options.weights):
        parser.error("--config-file and --weights belong together")
    if network_settings(options) and not (options.model or options.config_file):
        parser.error("--device, --precision, --max-memory, --compile, --tile-px: for --model or --config-file")
    has_background = options.background is not None
    options.kind = options.kind or ("composite" if has_background else "rgba" if options.auto else "alpha")
    if (options.kind == "composite") != has_background:
        parser.error("--as composite and --background belong together")
    if options.background == "":
        parser.error("--background needs a colour or a picture")
    if options.premultiplied and options.kind != "rgba":
        parser.error("--premultiplied is for --as rgba")
    return options


def positive_integer(text: str) -> int:
    """Read an integer of the command line."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def number_up_to(most: float) -> Callable[[str], float]:
    """Make a reader of numbers above 0."""

    def number(text: str) -> float:
        value = float(text)
        if not 0 < value <= most:
            raise argparse.ArgumentTypeError(f"must be above 0 and at most {most:g}, got {text}")
        return value

    return number


def network_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Those arguments of `Predictor.load` that were given."""
    given = {
        "device": options.device, "precision": options.precision, "max_memory_gb": options.max_memory,
        "is_compiled": options.compile, "tile_px": options.tile_px,
    }  # fmt: skip
    return {name: value for name, value in given.items() if value is not None}


def matte_images(options: argparse.Namespace) -> int:
    """Matte as the options say.

    Returns: the exit status.

    Raises:
        OSError, ValueError, MissingExtraError: nothing can be made, or nothing more; the message says why.
    """
    kind = KINDS[options.kind]
    jobs = find_jobs(options.images, options.output, kind, f".{options.format}")
    find_trimap, files = trimap_source(options, len(jobs))
    if options.background:
        files.append(Path(options.background))
    check_outputs(jobs, files, kind, options.bits)
    if options.resume:
        num_all = len(jobs)
        jobs = [job for job in jobs if not job.output.is_file()]
        say(f"{num_all - len(jobs)} of {num_all} are there already")
        if not jobs:
            return 0
    write = result_writer(options)
    matte = load_matte(options)

    def read(job: Job) -> tuple[NDArray, NDArray]:
        image = read_image(job.image)
        return image, find_trimap(job.image, image)

    failures: dict[Path, str] = {}
    try:
        with tqdm(total=len(jobs), unit="image", disable=len(jobs) == 1) as bar:
            for job, failure in matte_all(jobs, read, matte, write, overlaps=options.max_memory is None):
                bar.set_postfix_str(job.image.name, refresh=False)
                bar.update()
                if failure:
                    failures[job.image] = failure.reason
    finally:
        if failures:
            say(f"{len(failures)} of {len(jobs)} images failed:")
            for path, reason in failures.items():
                print(f"  {path}: {reason}", file=sys.stderr)
    return 1 if failures else 0


def trimap_source(options: argparse.Namespace, num_images: int) -> tuple[FindTrimap, list[Path]]:
    """Choose where trimaps come from.

    Returns: a function that gives the trimap of an image's path and colours, and the files that it may read.

    Raises:
        FileNotFoundError: no such file or folder, or no picture in it.
        DataError: one file for several images.
    """
    if options.auto:
        from inference.subject import trimap_of_subject

        width = {"width_percent": options.width_percent} if options.width_percent else {}
        return lambda path, image: trimap_of_subject(image, name=path, **width), []
    place: Path = options.trimap or options.trimap_dir or options.mask
    partners: dict[str, list[Path]] = {}
    if place.is_dir() and not options.trimap:
        partners = find_by_stem(place)
    elif not place.is_file() or options.trimap_dir:
        expected = "a folder" if options.trimap_dir else "a file" if options.trimap else "a file or a folder"
        raise FileNotFoundError(f"{place} is not there, or not {expected}, which this option takes")
    elif num_images > 1:
        raise DataError(f"{place} is one file for {num_images} images: give a folder of trimaps or masks")

    def band_px(longer_px: int) -> int:
        return options.width_px or band_width_px(options.width_percent, longer_px)

    def find(path: Path, image: NDArray) -> NDArray:
        found = partners.get(path.stem, []) if partners else [place]
        if len(found) != 1:
            raise DataError(f"{place} holds {len(found) or 'no'} pictures called {path.stem}, expected one")
        trimap = trimap_of_mask(found[0], band_px, options.threshold) if options.mask else read_trimap(found[0])
        check_same_size(image, path, trimap, found[0])
        return trimap

    return find, [path for paths in partners.values() for path in paths] or [place]


def load_matte(options: argparse.Namespace) -> Matte:
    """Choose what gives alpha, and say so where the command line does not.

    Raises:
        OSError, ValueError, MissingExtraError: the network cannot be used.
    """
    source = options.model or options.config_file
    if source is None:
        if options.baseline is None:
            say("no network given: closed-form matting")
        return BASELINES[options.baseline or "closed-form"]
    from inference.predictor import Predictor

    return Predictor.load(source, options.weights, **network_settings(options)).predict


def result_writer(options: argparse.Namespace) -> Callable[[Job, NDArray, NDArray], None]:
    """Choose what is written.

    Returns: a function of a job, its image and its alpha.

    Raises:
        OSError, ValueError: a background that is neither a colour nor a picture.
    """
    background = read_background(options.background) if options.background else None

    def write(job: Job, image: NDArray, alpha: NDArray) -> None:
        job.output.parent.mkdir(parents=True, exist_ok=True)
        if options.kind == "alpha":
            return write_alpha(job.output, alpha, options.bits)
        from inference.foreground import cut_out, estimate_foreground, over

        foreground = estimate_foreground(image, alpha)
        if background is None:
            rgba = cut_out(foreground, alpha, options.premultiplied)
            return write_rgba(job.output, rgba, options.bits, options.premultiplied)
        return write_image(job.output, over(foreground, alpha, background), options.bits)

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
            return read_image(name)
        raise DataError(f"--background {name}: neither a picture nor a colour such as teal or '#20a040'") from error
    if len(colour) != 3:
        raise DataError(f"--background {name}: expected an opaque colour")
    return np.divide(colour, 255, dtype=np.float32)


if __name__ == "__main__":
    logging.basicConfig(format="predict.py: %(message)s")
    logging.getLogger("inference").setLevel(logging.INFO)  # where a network runs, what takes its time
    raise SystemExit(main())
