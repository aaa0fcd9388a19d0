"""Make trimaps from masks, from clicks, or from the subjects of photographs.

    python tools/make_trimap.py --mask mask.png --width-px 20 --output trimap.png --image photo.jpg --overlay look.jpg
    python tools/make_trimap.py --mask masks --width-percent 2 --output trimaps --image photos --overlay looks
    python tools/make_trimap.py --auto --image photo.jpg --output trimap.png --overlay look.jpg
    python tools/make_trimap.py --points '[[420,300,1],[30,40,0]]' --image photo.jpg --output trimap.png

The unknown band has this width around the mask's boundary, half of it inside. All fractional pixels of a soft mask are
unknown too. Percent are of the longer side of the image. A mask is 8- or 16-bit grey (0 background, full scale
foreground; with maximum 1: classes 0 and 1), an image whose transparency is the mask, or one colour on black. An empty
mask is background everywhere. A mask of another size than its --image is resized.

In folders, and with a pattern such as "masks/*.png", files are matched by name without suffix, and NAME.png is written.
A bad file does not stop the command and is listed at the end. Existing files are an error, unless --overwrite replaces
or --resume skips them. An overlay shows foreground in blue, background in orange, and the band unchanged between its
drawn borders. --auto finds the subject with an optional package (requirements-extra.txt). Its band is wider where it is
uncertain. --points are clicks on the subject (1) and the background (0), as of predict.py.

Exit status: 0 made, 1 something is wrong with the files, 2 wrong usage.
"""

import _root  # noqa: F401

import argparse
import logging
from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from data.image_io.formats import MATTED
from data.image_io.images import IMAGE_SUFFIXES, LOSSLESS_SUFFIXES, DataError, read_image, write_image
from data.sources.layouts import find_by_stem, find_partner
from data.trimap import (
    BACKGROUND,
    FOREGROUND,
    UNKNOWN,
    WIDTH_PERCENT,
    band_width_px,
    trimap_of_mask,
    write_trimap,
)
from inference.auto.clicks import trimap_of_clicks
from inference.auto.subject import trimap_of_subject
from inference.batch import Failure, attempt
from inference.jobs import Job, Kind, check_outputs, find_jobs
from runtime.command_line import integer_from, number_up_to, refuse_existing
from runtime.errors import UserError
from tools.prediction.command_line import add_points_option
from tools.prediction.messages import list_failures, say
from tools.prediction.steps import check_points

TOOL = "make_trimap.py"
TRIMAP = Kind("_trimap", LOSSLESS_SUFFIXES, "A trimap is stored without loss, so not as JPEG")
OVERLAY = Kind("_overlay", IMAGE_SUFFIXES, "No other format is written")
TINTS = {FOREGROUND: (0.0, 0.45, 0.7), BACKGROUND: (0.84, 0.37, 0.0)}  # blue and orange, for colour-blind eyes
TINT_STRENGTH = 0.5
BORDER_SHARE = 1 / 400  # of the longer side, so that it is visible on large images too


def draw_overlay(image: NDArray[np.float32], trimap: NDArray[np.float32]) -> NDArray[np.float32]:
    """Tint the known pixels of an image, with full colour along the band.

    Args:
        image: (H, W, 3) RGB in [0, 1].
        trimap: (H, W) in {0, 0.5, 1}.

    Returns: (H, W, 3) RGB in [0, 1]; unknown pixels are unchanged.
    """
    unknown = trimap == UNKNOWN
    border_px = max(round(max(trimap.shape) * BORDER_SHARE), 1)
    square = np.ones((2 * border_px + 1, 2 * border_px + 1), np.uint8)
    is_border = cv2.dilate(unknown.astype(np.uint8), square).astype(bool) & ~unknown
    overlay = image.copy()
    for value, tint in TINTS.items():
        known = trimap == value
        overlay[known] += TINT_STRENGTH * (np.array(tint, np.float32) - overlay[known])
        overlay[known & is_border] = tint
    return overlay


def make_trimap(
    job: Job, options: argparse.Namespace, find_photograph: Callable[[Path], Path], overlay: Path | None
) -> str:
    """Write one trimap and its overlay.

    Args:
        job: mask, or photograph with --auto or --points, and the trimap to write.
        options: of the command line.
        find_photograph: returns the photograph of a mask, for --image.
        overlay: image to write.

    Returns: a line with the share of each region.
    """
    image = read_image(find_photograph(job.image)) if options.image else None
    band_px = partial(choose_band_px, options)
    if options.auto or options.points:
        assert image is not None, "--auto and --points need --image"
        longer_px = max(image.shape[:2])
        if options.auto:
            trimap = trimap_of_subject(image, 100 * band_px(longer_px) / longer_px, job.image)
        else:
            trimap = trimap_of_clicks(image, band_px(longer_px), options.points, name=job.image)
    else:
        size = None if image is None else (image.shape[1], image.shape[0])
        trimap = trimap_of_mask(job.image, band_px, options.threshold, size)
    if overlay:
        assert image is not None, "--overlay needs --image"
        overlay.parent.mkdir(parents=True, exist_ok=True)
        write_image(overlay, draw_overlay(image, trimap))
    job.output.parent.mkdir(parents=True, exist_ok=True)
    write_trimap(job.output, trimap)
    regions = {"foreground": FOREGROUND, "unknown": UNKNOWN, "background": BACKGROUND}
    shares = ", ".join(f"{(trimap == value).mean():.1%} {region}" for region, value in regions.items())
    return f"{job.output}: {shares}, band {band_px(max(trimap.shape))} px"


def choose_band_px(options: argparse.Namespace, longer_px: int) -> int:
    """Return the band's width for the longer side of an image, both in px."""
    return options.width_px or band_width_px(options.width_percent or WIDTH_PERCENT, longer_px)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line (`sys.argv` by default) and make the trimaps.

    Returns: the exit status.
    """
    options = parse(arguments)
    try:
        return make_trimaps(options)
    except (OSError, UserError) as error:
        say(str(error), TOOL)
        return 1
    except KeyboardInterrupt:
        say("interrupted; the same command with --resume goes on", TOOL)
        return 130


def make_trimaps(options: argparse.Namespace) -> int:
    """Make all trimaps. A bad file is listed at the end, and the others are made.

    Returns: the exit status.

    Raises:
        OSError, UserError: nothing, or nothing more, can be made.
    """
    sources = [str(options.mask or options.image)]
    jobs = find_jobs(sources, options.output, TRIMAP, ".png", MATTED)
    check_points(options, len(jobs))
    find_photograph, photographs = find_photographs(options)
    check_outputs(jobs, photographs, TRIMAP, bits=8)
    overlays = find_jobs(sources, options.overlay, OVERLAY, ".png", MATTED) if options.overlay else []
    check_outputs(overlays, [*photographs, *(job.output for job in jobs)], OVERLAY, bits=8)
    pairs = list(zip_longest(jobs, (job.output for job in overlays)))
    if options.resume:
        pairs = [
            (job, overlay) for job, overlay in pairs if not all(map(Path.is_file, filter(None, (job.output, overlay))))
        ]
        say(f"{len(jobs) - len(pairs)} of {len(jobs)} are there already", TOOL)
    elif not options.overwrite:
        refuse_existing((job.output for job in [*jobs, *overlays]), can_resume=True)
    failures: dict[Path, str] = {}
    for job, overlay in pairs:
        made = attempt(make_trimap, job, options, find_photograph, overlay)
        if isinstance(made, Failure):
            failures[job.image] = made.reason
        else:
            print(made)
    list_failures(failures, len(pairs), TOOL)
    return 1 if failures else 0


def find_photographs(options: argparse.Namespace) -> tuple[Callable[[Path], Path], list[Path]]:
    """Find the photographs of the masks.

    Returns: a function from a mask to its photograph, and all photographs; without masks from a photograph to itself.

    Raises:
        FileNotFoundError: --image is missing, or a folder without images.
        DataError: of --mask and --image, one is a file and the other is not.
    """
    mask, image = options.mask, options.image
    if not (mask and image):
        return lambda path: path, []
    if not image.exists():
        raise FileNotFoundError(f"--image {image}: no such file or folder")
    if mask.is_file() != image.is_file():
        raise DataError(f"--mask {mask} and --image {image}: expected two files or two folders, got one of each")
    if image.is_file():
        return lambda path: image, [image]
    groups = find_by_stem(image, MATTED)
    return lambda path: find_partner(path, groups, image), [path for paths in groups.values() for path in paths]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line. Contradicting options end with status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--mask", type=Path, help="mask, folder of masks, or pattern")
    source.add_argument("--auto", action="store_true", help="find the subject in --image, without a mask")
    add_points_option(source)
    parser.add_argument("--output", type=Path, required=True, help="trimap to write, or folder for trimaps")
    width = parser.add_mutually_exclusive_group()
    width.add_argument(
        "--width-px", type=integer_from(1), help="width of the unknown band, half inside and half outside"
    )
    width.add_argument(
        "--width-percent",
        type=number_up_to(100),
        help=f"the same in percent of the image's longer side (default: {WIDTH_PERCENT:g})",
    )
    parser.add_argument(
        "--threshold",
        type=number_up_to(1),
        help="threshold (0 to 1) for soft masks, such as JPEG files and network outputs",
    )
    parser.add_argument("--image", type=Path, help="photograph, or folder of photographs, for all but --mask")
    parser.add_argument("--overlay", type=Path, help="image for checking the trimap, or folder for such images")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="make only missing files")
    existing.add_argument("--overwrite", action="store_true", help="replace existing files")
    options = parser.parse_args(arguments)
    if not options.mask and (options.image is None or options.threshold is not None):
        parser.error("--auto and --points need --image and take no --threshold")
    if options.overlay and not options.image:
        parser.error("--overlay needs --image")
    return options


if __name__ == "__main__":
    logging.basicConfig(format=f"{TOOL}: %(message)s")
    raise SystemExit(main())
