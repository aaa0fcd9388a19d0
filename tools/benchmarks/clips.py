"""Matte the clips of `tools/dataset/make_clips.py` in three ways, for `tools/evaluate.py --video`."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.image_io.formats import find_images
from data.image_io.images import DataError, read_image, to_uint8, write_alpha
from data.trimap import BACKGROUND, read_trimap
from inference.auto.subject import trimap_of_subject
from inference.predictor import Predictor
from inference.video.keyframes import carried_trimaps
from inference.video.stability import DEFAULT_STRENGTH, Stabiliser
from runtime.command_line import integer_from, number_up_to

AUTO, KEYFRAMES, STABLE = "auto", "keyframes", "stable"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("--clips", type=Path, required=True, help="folder that tools/dataset/make_clips.py has written")
    parser.add_argument("--output", type=Path, required=True, help="folder for the alphas: auto/, keyframes/, stable/")
    parser.add_argument("--model", help="network (default: the one that this project ships)")
    parser.add_argument("--start", type=integer_from(0), default=0, help="first frame (default: 0)")
    parser.add_argument("--stop", type=integer_from(2), default=60, help="end of the frames (default: 60)")
    parser.add_argument("--stability", type=number_up_to(1), default=DEFAULT_STRENGTH, help="(default: %(default)s)")


def run(options: argparse.Namespace) -> None:
    """Write the alphas of every clip."""
    predictor = Predictor.load(options.model)
    for folder in sorted(path for path in (options.clips / "image").iterdir() if path.is_dir()):
        files = find_images(folder)
        keyframes = {int(path.stem): read_trimap(path) for path in find_images(options.clips / "trimap" / folder.name)}

        def frames(start: int, stop: int, files: list[Path] = files) -> Iterator[NDArray[np.uint8]]:
            return (to_uint8(read_image(path)) for path in files[start:stop])

        span = options.start, min(options.stop, len(files))
        stabiliser = Stabiliser(options.stability)
        for path, image, carried in zip(
            files[slice(*span)], frames(*span), carried_trimaps(keyframes, frames, *span), strict=True
        ):
            alpha = predictor.predict(image, carried.trimap)
            alphas = {
                AUTO: predictor.predict(image, auto_trimap(image)),
                KEYFRAMES: alpha,
                STABLE: stabiliser.next(image, carried.trimap, alpha),
            }
            for name, values in alphas.items():
                place = options.output / name / folder.name
                place.mkdir(parents=True, exist_ok=True)
                write_alpha(place / path.name, values)
        print(f"{folder.name}: frames {span[0]} to {span[1] - 1}", flush=True)


def auto_trimap(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Make a trimap as --auto does; background alone where nothing stands out."""
    try:
        return trimap_of_subject(image)
    except DataError:
        return np.full(image.shape[:2], BACKGROUND, np.float32)
