"""Generate six clips with exact alpha, to measure video matting: drawn foregrounds over moving photographs.

    python tools/dataset/make_clips.py --backgrounds datasets/photographs --output output/clips --seed 0

writes `image/NAME` and `alpha/NAME` for each clip, 60 frames of 640 x 360 px, and `trimap/NAME`, of frames 0, 30 and
59. The same seed and photographs give the same bytes.

    hair     a person whose hair waves
    lace     a cloth that deforms
    smoke    smoke that rises and changes
    cut      a furry animal, and from frame 40 foliage over another photograph
    blur     opaque shapes that move fast, with motion blur
    return   a furry animal that leaves the frame and returns
"""

import _root  # noqa: F401

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from data.image_io.formats import find_images
from data.image_io.images import read_image, write_alpha, write_image
from data.procedural import KINDS
from data.procedural.canvas import Array
from data.procedural.clips import NUM_FRAMES, SAMPLES, SIZE, Motion, draw_shot
from data.procedural.demo import solid
from data.trimap import WIDTH_PERCENT, band_width_px, trimap_from_alpha, write_trimap
from runtime.command_line import integer_from, refuse_existing
from runtime.errors import UserError
from runtime.threads import num_cores
from runtime.worker_pool import map_in_workers

KEYFRAMES = 0, 30, 59
CUT = 40


class Shot(NamedTuple):
    """A foreground and its motion, up to a frame."""

    draw: Callable[[Generator, int], tuple[Array, Array]]
    motion: Motion
    stop: int = NUM_FRAMES


CLIPS: dict[str, list[Shot]] = {
    "hair": [Shot(KINDS["hair"], Motion(place=(0.0, 0.12), sway=(0.12, 0.02), zoom=1.15))],
    "lace": [Shot(KINDS["lace"], Motion(drift=(0.006, 0), turn=0.3, wave=0.03))],
    "smoke": [Shot(KINDS["smoke"], Motion(drift=(0, -0.003), turn=0.05, wave=0.04, zoom=1.1))],
    "cut": [
        Shot(KINDS["fur"], Motion(place=(-0.2, 0.05), drift=(0.007, 0), turn=0.15), CUT),
        Shot(KINDS["foliage"], Motion(place=(0.1, 0.0), drift=(-0.005, 0), wave=0.02)),
    ],
    "blur": [Shot(solid, Motion(sway=(0.3, 0.1), turn=0.4, period=40, wave=0.0, shutter=0.6))],
    "return": [Shot(KINDS["fur"], Motion(place=(-0.1, 0.05), sway=(0.02, 0.02), absence=1.7))],
}


def make_clip(name: str, output: Path, photographs: Sequence[Path], seed: int) -> None:
    """Draw and write one clip; each of its shots is over another photograph."""
    rng = np.random.default_rng([seed, list(CLIPS).index(name)])
    chosen = rng.permutation(len(photographs))
    folders = {kind: output / kind / name for kind in ("image", "alpha", "trimap")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    radius_px = band_width_px(WIDTH_PERCENT, max(SIZE)) // 2
    start = 0
    for index, shot in enumerate(CLIPS[name]):
        foreground, alpha = shot.draw(rng, SIZE[1] * SAMPLES)
        photograph = read_image(photographs[chosen[index % len(photographs)]])
        frames = draw_shot(rng, foreground, alpha, photograph, shot.motion, start, shot.stop)
        for number, frame in enumerate(frames, start):
            file = f"{number:04d}.png"
            write_image(folders["image"] / file, frame.image)
            write_alpha(folders["alpha"] / file, frame.alpha)
            if number in KEYFRAMES:
                write_trimap(folders["trimap"] / file, trimap_from_alpha(frame.alpha, radius_px, radius_px))
        start = shot.stop


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line (`sys.argv` by default) and write the clips.

    Returns: the exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backgrounds", type=Path, required=True, help="folder of photographs without a subject")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=integer_from(0), default=0)
    parser.add_argument("--clips", nargs="+", choices=CLIPS, default=list(CLIPS), help="default: all")
    parser.add_argument("--num-workers", type=integer_from(1), default=num_cores(), help="processes")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    options = parser.parse_args(arguments)
    try:
        if not options.overwrite:
            refuse_existing([options.output / "image" / name / "0000.png" for name in options.clips])
        photographs = find_images(options.backgrounds)
        work = partial(make_clip, output=options.output, photographs=photographs, seed=options.seed)
        for _ in map_in_workers(work, options.clips, min(options.num_workers, len(options.clips))):
            pass
    except (OSError, UserError) as error:
        print(f"make_clips.py: {error}", file=sys.stderr)
        return 1
    print(f"wrote {len(options.clips)} clips of {NUM_FRAMES} frames to {options.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
