"""Compare estimated foreground colours with exact ones, and measure the estimate: see tools/benchmark.py."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from data.composition import composite
from data.image_io.formats import find_images
from data.image_io.images import read_image, to_float, to_uint8
from data.procedural.demo import DEMO_KINDS
from data.procedural.surfaces import texture
from data.sources.foreground_colour import decontaminate
from data.trimap import trimap_from_alpha
from inference.closed_form import closed_form_alpha
from inference.foreground import estimate_foreground
from runtime.optional_packages import import_extra
from tools.benchmarks.fresh import PeakMemory
from tools.benchmarks.scene import band_trimap, draw_image

ALPHAS: dict[str, Callable[[NDArray, NDArray], NDArray]] = {
    "exact": lambda image, alpha: alpha,
    "closed-form": lambda image, alpha: closed_form_alpha(image, trimap_from_alpha(alpha, 4, 4)),
    "blurred": lambda image, alpha: cv2.GaussianBlur(alpha, (0, 0), 0.7),
}
"""Image and its exact alpha -> the alpha given to the estimate."""


def by_pymatting(image: NDArray, alpha: NDArray) -> NDArray:
    """Estimate with the library's defaults."""
    library = import_extra("pymatting.foreground.estimate_foreground_ml", "the comparison")
    return library.estimate_foreground_ml(image, alpha)


def by_training(image: NDArray, alpha: NDArray) -> NDArray:
    """Estimate as a training set does for foregrounds cut from photographs."""
    return to_float(decontaminate(to_uint8(image), to_uint8(alpha)))


SIDES: dict[str, Callable[[NDArray, NDArray], NDArray]] = {
    "image's own": lambda image, alpha: image,
    "pymatting's": by_pymatting,
    "ours": estimate_foreground,
    "training's": by_training,
}


def draw(rng: Generator, kind: str, size_px: int, photographs: list[Path]) -> tuple[NDArray, NDArray, NDArray]:
    """Draw a foreground (H, W, 3), its alpha (H, W) and a background; cut colours from photographs if given."""
    foreground, alpha = DEMO_KINDS[kind](rng, size_px)
    if not photographs:
        return foreground, alpha, texture(rng, size_px)
    colours = []
    for _ in range(2):
        photograph: NDArray = read_image(photographs[rng.integers(len(photographs))])
        enlargement = max(size_px / min(photograph.shape[:2]), 1)
        photograph = cv2.resize(photograph, None, fx=enlargement, fy=enlargement)
        top, left = (rng.integers(side - size_px + 1) for side in photograph.shape[:2])
        colours.append(photograph[top : top + size_px, left : left + size_px])
    return colours[0], alpha, colours[1]


def compare_colours(options: argparse.Namespace) -> None:
    """Print each side's mean of alpha |F' - F| over the given alpha's fractional pixels, in 1/255."""
    photographs = find_images(options.photographs) if options.photographs else []
    for name, change in ALPHAS.items():
        means = []
        for kind in DEMO_KINDS:
            errors = []
            for seed in range(options.num_images):
                foreground, alpha, background = draw(np.random.default_rng(seed), kind, options.size_px, photographs)
                image = to_float(to_uint8(composite(alpha[..., None], foreground, background)))
                given = to_float(to_uint8(change(image, alpha)))
                fractional = (given > 0) & (given < 1)
                off = [np.abs(side(image, given) - foreground)[fractional] for side in SIDES.values()]
                errors.append([255 * (given[fractional][:, None] * each).mean() for each in off])
            means.append(np.mean(errors, axis=0))
            print(f"{name} alpha, {kind}: {_listed(means[-1])}", flush=True)
        print(f"{name} alpha, mean of the kinds: {_listed(np.mean(means, axis=0))}")


def _listed(errors: NDArray) -> str:
    return ", ".join(f"{name} {error:.2f}" for name, error in zip(SIDES, errors, strict=True))


def measure_cost(options: argparse.Namespace) -> None:
    """Print time and memory of the second estimate in this process, because the first loads the library."""
    alpha = cv2.GaussianBlur(band_trimap(options.width, options.height), (0, 0), 5)
    image = to_float(draw_image(options.width, options.height))
    estimate_foreground(image[:9, :9], alpha[:9, :9])
    memory, start = PeakMemory("cpu"), time.perf_counter()
    estimate_foreground(image, alpha)
    seconds = time.perf_counter() - start
    print(f"{options.width} x {options.height}: {seconds:.1f} s, {memory.above_gb():.2f} GB beside image and alpha")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("--size-px", type=int, default=384, help="side of the images whose colours are compared")
    parser.add_argument("--num-images", type=int, default=3, help="images of each kind")
    parser.add_argument("--photographs", type=Path, help="folder to cut colours from (default: drawn)")
    parser.add_argument("--width", type=int, default=3840, help="size of the image that is timed")
    parser.add_argument("--height", type=int, default=2160)


def run(options: argparse.Namespace) -> None:
    """Compare colours, then measure."""
    compare_colours(options)
    measure_cost(options)
