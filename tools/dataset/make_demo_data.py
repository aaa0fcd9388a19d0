"""Generate the demo's matting set: procedural foregrounds over photographs from installed packages.

    python tools/dataset/make_demo_data.py --output output/demo/data --seed 0

writes `train/rgba`, `train/backgrounds`, `test/image`, `test/trimap`, `test/alpha` and `manifest.json`. The same
seed gives the same bytes. Training and test share no photograph and no random numbers.
"""

import _root  # noqa: F401

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from data.composition import composite
from data.image_io.images import read_image, to_float, to_uint8, write_alpha, write_image
from data.procedural.demo import DEMO_KINDS, REFERENCE_PX
from data.sources.sample_photos import TEST_PHOTOGRAPHS, TRAIN_PHOTOGRAPHS, find_photograph
from data.trimap import trimap_from_alpha, write_trimap
from runtime.command_line import OutputExistsError, refuse_existing
from runtime.threads import num_cores
from runtime.worker_pool import map_in_workers

Array = NDArray[np.float32]

TRAIN_FOREGROUND, TRAIN_BACKGROUND, TEST_SAMPLE = STREAMS = ("train_foreground", "train_background", "test_sample")
MIN_RADIUS_PX, MAX_RADIUS_PX = 4, 16  # of the test trimaps, at REFERENCE_PX


@dataclass
class Sample:
    """A test sample: foreground and background (H, W, 3) RGB, alpha (H, W), all 8-bit values / 255; trimap (H, W)."""

    foreground: Array
    alpha: Array
    background: Array
    trimap: Array


def generator(seed: int, stream: str, index: int) -> Generator:
    """Make the random generator of one image, independent of all other images and their number."""
    return np.random.default_rng([seed, STREAMS.index(stream), index])


def kind_of(index: int) -> str:
    """Name the kind of the index-th foreground of a stream; the kinds alternate."""
    return list(DEMO_KINDS)[index % len(DEMO_KINDS)]


def draw_foreground(rng: Generator, index: int, size_px: int) -> tuple[Array, Array]:
    """Draw the index-th foreground of a stream: (H, W, 3) RGB and (H, W) alpha, rounded to 8 bit as in files."""
    foreground, alpha = DEMO_KINDS[kind_of(index)](rng, size_px)
    return to_float(to_uint8(foreground)), to_float(to_uint8(alpha))


def draw_background(rng: Generator, photograph: Path, size_px: int) -> Array:
    """Cut a random square out of a photograph, change its colours and blur it as a lens would.

    A grey photograph is toned between a dark and a bright colour first.

    Returns: (size_px, size_px, 3) RGB in steps of 1 / 255.
    """
    image = read_image(photograph)
    height, width = image.shape[:2]
    side = int(min(height, width) * rng.uniform(0.5, 1))
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    shrinking = cv2.INTER_AREA if side > size_px else cv2.INTER_LINEAR
    square = cv2.resize(image[top : top + side, left : left + side], (size_px, size_px), interpolation=shrinking)
    if rng.random() < 0.5:
        square = square[:, ::-1]
    if np.ptp(square, axis=2).max() == 0:
        tones = np.array([[[rng.uniform(0, 360), 0.3, 0.1], [rng.uniform(0, 360), 0.3, 1]]], np.float32)
        dark, bright = cv2.cvtColor(tones, cv2.COLOR_HSV2RGB)[0]
        square = dark + square * (bright - dark)
    hsv = cv2.cvtColor(np.ascontiguousarray(square), cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + rng.uniform(-25, 25)) % 360
    hsv[..., 1] = np.clip(hsv[..., 1] * rng.uniform(0.6, 1.1), 0, 1)
    hsv[..., 2] = hsv[..., 2] ** rng.uniform(0.7, 1.4)
    lens_px = size_px / REFERENCE_PX * rng.uniform(0.3, 2.5)
    return to_float(to_uint8(cv2.GaussianBlur(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), (0, 0), lens_px)))


def draw_test_sample(seed: int, index: int, size_px: int) -> Sample:
    """Draw the index-th test sample: foreground, held-out photograph, and trimap with radii drawn separately."""
    rng = generator(seed, TEST_SAMPLE, index)
    foreground, alpha = draw_foreground(rng, index, size_px)
    names = list(TEST_PHOTOGRAPHS)
    photograph = names[(index + index // len(DEMO_KINDS)) % len(names)]  # a kind meets another photograph in each turn
    background = draw_background(rng, find_photograph(photograph), size_px)
    radii_px = rng.integers(MIN_RADIUS_PX, MAX_RADIUS_PX + 1, 2) * size_px // REFERENCE_PX
    return Sample(foreground, alpha, background, trimap_from_alpha(alpha, *map(int, radii_px)))


def write_sample(task: tuple[str, int], output: Path, seed: int, size_px: int) -> None:
    """Draw and write the files of one (stream, index): a cut-out, a background, or three files of a test sample."""
    cv2.setNumThreads(1)  # the other cores draw other images
    stream, index = task
    name = f"{kind_of(index)}_{index:03d}.png"
    if stream == TRAIN_FOREGROUND:
        foreground, alpha = draw_foreground(generator(seed, stream, index), index, size_px)
        Image.fromarray(to_uint8(np.dstack([foreground, alpha]))).save(output / "train" / "rgba" / name)
    elif stream == TRAIN_BACKGROUND:
        names = list(TRAIN_PHOTOGRAPHS)
        photograph = find_photograph(names[index % len(names)])
        background = draw_background(generator(seed, stream, index), photograph, size_px)
        write_image(output / "train" / "backgrounds" / f"{photograph.stem}_{index:03d}.png", background)
    else:
        sample = draw_test_sample(seed, index, size_px)
        merged = composite(sample.alpha[..., None], sample.foreground, sample.background)
        write_image(output / "test" / "image" / name, merged)
        write_trimap(output / "test" / "trimap" / name, sample.trimap)
        write_alpha(output / "test" / "alpha" / name, sample.alpha)


def make_demo_data(
    output: Path, seed: int, size_px: int, num_train: int, num_backgrounds: int, num_test: int, num_workers: int
) -> None:
    """Write the complete set.

    Args:
        output: folder to create; existing files are replaced.
        seed: any non-negative integer; the same seed gives the same bytes for any number of workers.
        size_px: side of every image.
        num_train: foregrounds with alpha; every kind once per six.
        num_backgrounds: squares cut out of the training photographs.
        num_test: composites of foregrounds and photographs that training does not see.
        num_workers: processes.
    """
    for folder in ("train/rgba", "train/backgrounds", "test/image", "test/trimap", "test/alpha"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    counts = {TRAIN_FOREGROUND: num_train, TRAIN_BACKGROUND: num_backgrounds, TEST_SAMPLE: num_test}
    tasks = [(stream, index) for stream, count in counts.items() for index in range(count)]
    draw = partial(write_sample, output=output, seed=seed, size_px=size_px)
    for _ in map_in_workers(draw, tasks, num_workers):
        pass
    photographs = {"train": TRAIN_PHOTOGRAPHS, "test": TEST_PHOTOGRAPHS}
    manifest = {"seed": seed, "size_px": size_px, "counts": counts, "photograph_licences": photographs}
    (output / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line (`sys.argv` by default) and write the set.

    Returns: the exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size-px", type=int, default=REFERENCE_PX, help="side of every image")
    parser.add_argument("--num-train", type=int, default=120, help="training foregrounds")
    parser.add_argument("--num-backgrounds", type=int, default=64, help="training backgrounds")
    parser.add_argument("--num-test", type=int, default=24, help="test composites")
    parser.add_argument("--num-workers", type=int, default=num_cores(), help="processes")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    options = parser.parse_args(arguments)
    if not options.overwrite:
        try:
            refuse_existing([options.output / "manifest.json"])
        except OutputExistsError as error:
            print(f"make_demo_data.py: {error}", file=sys.stderr)
            return 1
    make_demo_data(**{name: value for name, value in vars(options).items() if name != "overwrite"})
    counts = f"{options.num_train} foregrounds, {options.num_backgrounds} backgrounds, {options.num_test} composites"
    print(f"wrote {counts} to {options.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
