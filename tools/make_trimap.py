"""Make a trimap from a mask or of what stands out in a photograph; or trimaps from a folder of these.

    python tools/make_trimap.py --mask mask.png --width-px 20 --output trimap.png --image photo.jpg --overlay look.jpg
    python tools/make_trimap.py --mask masks --width-percent 2 --output trimaps --image photos --overlay looks
    python tools/make_trimap.py --auto --image photo.jpg --output trimap.png --overlay look.jpg

Unknown is a band of that width around the mask's boundary, half of it inside, and all fractional pixels of a soft mask;
percent are of the picture's longer side. A mask is 8- or 16-bit grey (0 background, full scale foreground; where the
maximum is 1: classes 0 and 1), a picture whose transparency is the mask, or one colour on black. With folders, files
belong together by name without suffix, and NAME.png is written. An overlay shows the picture with the foreground
tinted blue, the background orange, their borders to the band drawn and the band left as it is.
--auto finds the subject by an optional package (requirements-extra.txt); its band is wider where it is in doubt.
Exit status: 0 made, 1 something is wrong with the files, 2 wrong usage.
"""

import _root  # noqa: F401

import argparse
import os
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from data.datasets import check_same_size
from data.images import IMAGE_SUFFIXES, LOSSLESS_SUFFIXES, DataError, read_image, write_image
from data.layouts import match_by_name
from data.trimap import BACKGROUND, FOREGROUND, UNKNOWN, band_width_px, trimap_of_mask, write_trimap
from inference.extras import MissingExtraError
from inference.subject import WIDTH_PERCENT, trimap_of_subject

FOLDER_LAYOUT = "A mask and its image share their name without suffix."
TINTS = {FOREGROUND: (0.0, 0.45, 0.7), BACKGROUND: (0.84, 0.37, 0.0)}  # blue and orange: told apart by all eyes
TINT_STRENGTH = 0.5
BORDER_SHARE = 1 / 400  # of the longer side, so that it is seen on large pictures too


class Job(NamedTuple):
    """Files of one trimap."""

    source: Path  # its mask or, without one, its photograph
    image: Path  # for the overlay; the source where there is nothing else
    trimap: Path
    overlay: Path | None


def find_jobs(inputs: dict[str, Path], output: Path, overlay: Path | None) -> list[Job]:
    """List what to make for one file or a folder.

    Args:
        inputs: option -> its file or folder; the first holds the sources, the last the images.
        output: trimap to write, or folder for them.
        overlay: picture to write, or folder for them.

    Raises:
        FileNotFoundError: a file or folder is missing, or files lack their partners.
        DataError: a file beside a folder, a suffix that cannot hold the output, an output that would replace an input
            or another output.
    """
    for option, path in inputs.items():
        if not path.exists():
            raise FileNotFoundError(f"{option} {path}: no such file or folder")
    if len({path.is_dir() for path in inputs.values()}) > 1:
        given = " and ".join(f"{option} {path}" for option, path in inputs.items())
        raise DataError(f"{given}: expected two files or two folders, got one of each")
    sources = list(inputs.values())
    if sources[0].is_dir():
        jobs = [
            Job(paths[0], paths[-1], output / name, overlay / name if overlay else None)
            for paths in match_by_name(sources, FOLDER_LAYOUT)
            for name in [f"{paths[0].stem}.png"]
        ]
    else:
        check_suffix("--output", output, LOSSLESS_SUFFIXES)
        if overlay:
            check_suffix("--overlay", overlay, IMAGE_SUFFIXES)
        jobs = [Job(sources[0], sources[-1], output, overlay)]
    taken = {os.path.realpath(path) for job in jobs for path in (job.source, job.image)}
    for path in (path for job in jobs for path in (job.trimap, job.overlay) if path):
        if os.path.realpath(path) in taken:
            raise DataError(f"{path} is an input or an output already and would be overwritten; name another place")
        taken.add(os.path.realpath(path))
    return jobs


def check_suffix(option: str, path: Path, suffixes: Collection[str]) -> None:
    """Raise a DataError where a file's name does not end as one of these picture formats."""
    if path.suffix.lower() not in suffixes:
        raise DataError(f"{option} {path}: expected the name of a picture ending in {', '.join(sorted(suffixes))}")


def draw_overlay(image: NDArray[np.float32], trimap: NDArray[np.float32]) -> NDArray[np.float32]:
    """Tint what a trimap knows, with full colour along the band.

    Args:
        image: (H, W, 3) RGB in [0, 1].
        trimap: (H, W) in {0, 0.5, 1}.

    Returns: (H, W, 3) RGB in [0, 1]; unknown pixels as they were.
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


def from_photograph(path: Path, band_px: Callable[[int], int]) -> NDArray[np.float32]:
    """Make the trimap of what stands out in a photograph, arguments and result as of `data.trimap.trimap_of_mask`."""
    image = read_image(path)
    longer_px = max(image.shape[:2])
    return trimap_of_subject(image, 100 * band_px(longer_px) / longer_px, path)


def make_trimap(job: Job, band_px: Callable[[int], int], find: Callable[[Path], NDArray[np.float32]]) -> str:
    """Write one trimap and its overlay.

    Args:
        job: the files.
        band_px: gives the band's width for a picture's longer side, both in px.
        find: gives the trimap of a source.

    Returns: a line that says how large each region became.
    """
    trimap = find(job.source)
    if job.overlay:
        image = read_image(job.image)
        check_same_size(image, job.image, trimap, job.source)
        job.overlay.parent.mkdir(parents=True, exist_ok=True)
        write_image(job.overlay, draw_overlay(image, trimap))
    job.trimap.parent.mkdir(parents=True, exist_ok=True)
    write_trimap(job.trimap, trimap)
    regions = {"foreground": FOREGROUND, "unknown": UNKNOWN, "background": BACKGROUND}
    shares = ", ".join(f"{(trimap == value).mean():.1%} {region}" for region, value in regions.items())
    return f"{job.trimap}: {shares}, band {band_px(max(trimap.shape))} px"


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line (`sys.argv` by default) and make the trimaps.

    Returns: the exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--mask", type=Path, help="mask, or folder of masks")
    source.add_argument("--auto", action="store_true", help="find what stands out in --image, without a mask")
    parser.add_argument("--output", type=Path, required=True, help="trimap to write, or folder for them")
    width = parser.add_mutually_exclusive_group()
    width.add_argument("--width-px", type=int, help="width of the unknown band, half inside and half outside")
    width.add_argument(
        "--width-percent",
        type=float,
        help=f"the same in percent of the picture's longer side (with --auto {WIDTH_PERCENT:g} by default)",
    )
    parser.add_argument("--threshold", type=float, help="cut the mask here first, for JPEG and network masks; 0 to 1")
    parser.add_argument("--image", type=Path, help="photograph, or folder of them, for --overlay or --auto")
    parser.add_argument("--overlay", type=Path, help="picture to check the trimap by, or folder for them")
    options = parser.parse_args(arguments)
    if options.width_px is not None and options.width_px < 1:
        parser.error(f"--width-px must be at least 1, got {options.width_px}")
    if options.width_percent is not None and not 0 < options.width_percent <= 100:
        parser.error(f"--width-percent must be above 0 and at most 100, got {options.width_percent}")
    if options.threshold is not None and not 0 < options.threshold <= 1:
        parser.error(f"--threshold must be above 0 and at most 1, got {options.threshold}")
    if options.auto and (options.image is None or options.threshold is not None):
        parser.error("--auto needs --image and takes no --threshold")
    if options.mask and bool(options.image) != bool(options.overlay):
        parser.error("give --image and --overlay together, or neither")
    if options.mask and options.width_px is None and options.width_percent is None:
        parser.error("a mask needs --width-px or --width-percent")

    def band_px(longer_px: int) -> int:
        percent = WIDTH_PERCENT if options.width_percent is None else options.width_percent
        return options.width_px or band_width_px(percent, longer_px)

    def find(source: Path) -> NDArray[np.float32]:
        return from_photograph(source, band_px) if options.auto else trimap_of_mask(source, band_px, options.threshold)

    inputs = {"--mask": options.mask, "--image": options.image}
    try:
        for job in find_jobs({name: path for name, path in inputs.items() if path}, options.output, options.overlay):
            print(make_trimap(job, band_px, find))
    except (OSError, ValueError, MissingExtraError) as error:  # DataError is a ValueError
        print(f"make_trimap.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("make_trimap.py: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
