"""Measure what a reduced copy for the backbone, or for all, costs in quality: see tools/benchmark.py."""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from data.image_io.images import read_alpha, read_image, to_uint8
from data.sources.layouts import TestSet, find_test_set
from data.trimap import UNKNOWN, encode_trimap
from evaluation.folders import check_test_set
from evaluation.metrics import average, measure
from evaluation.output.report import format_table
from evaluation.output.result_folder import read_or_make_trimap
from inference.network import TorchNetwork
from inference.predictor import Predictor
from runtime.command_line import integer_from, number_up_to
from runtime.errors import ConfigError
from tools.benchmarks.networks import SQUASHED, Prepare
from tools.benchmarks.squashed import SQUASHED_PX, load_squashed, write_squashed

WARM_UP_PX = 64


class Case(NamedTuple):
    """An image (H, W, 3), its trimap (H, W) of {0, 0.5, 1} and its alpha (H, W), float32 in [0, 1]."""

    image: NDArray[np.float32]
    trimap: NDArray[np.float32]
    alpha: NDArray[np.float32]


Way = Callable[[Case], tuple[NDArray[np.float32], int]]
"""Case -> alpha (H, W), and the longer side in px of what the backbone saw."""


def read_cases(test_set: TestSet, num_images: int | None) -> Iterator[Case]:
    """Read the images of a test set in the order of their names, or the first of them."""
    checked = check_test_set(test_set.alpha_dir, test_set.trimap_dir, test_set.image_dir)
    for files in list(checked.values())[:num_images]:
        trimap = read_or_make_trimap(files, test_set.trimap_radius_px)
        assert trimap is not None, "a layout names one of the two"
        yield Case(read_image(files["image"]), trimap, read_alpha(files["label"]))


def enlarged(case: Case, factor: int) -> Case:
    """Enlarge a case: the image by cubic, alpha by linear interpolation, the trimap by repeated pixels."""
    if factor == 1:
        return case
    size = (factor * case.trimap.shape[1], factor * case.trimap.shape[0])
    ways = (cv2.INTER_CUBIC, cv2.INTER_NEAREST, cv2.INTER_LINEAR)
    resized = (cv2.resize(pixels, size, interpolation=way).clip(0, 1) for pixels, way in zip(case, ways, strict=True))
    return Case(*resized)


def load_network(source: Path, device: str, precision: str) -> TorchNetwork:
    """Load a model folder.

    Raises:
        UserError: the folder cannot be used, or it is an `.onnx` file.
    """
    network = Predictor.load(source, device=device, precision=precision).network
    if not isinstance(network, TorchNetwork):
        raise ConfigError(f"{source}: an .onnx file has no reduced backbone; a model folder has")
    return network


def matte_at_scale(network: TorchNetwork, scale: float, case: Case) -> tuple[NDArray[np.float32], int]:
    """Matte a case with the backbone on a copy.

    Args:
        network: to run.
        scale: size of the copy, above 0 to 1.
        case: to matte.

    Returns: alpha (H, W), and the longer side of the copy in px.
    """
    longer_px = max(network.model.padded_size(*case.trimap.shape))
    scaled = TorchNetwork(network.model, precision=network.precision, backbone_px=round(scale * longer_px))
    alpha = Predictor(scaled).alpha(case.image, case.trimap)  # in the main memory, so that a CUDA device has finished
    return alpha, round(scaled.backbone_scale(*case.trimap.shape) * longer_px)


def matte_squashed(prepare: Prepare, case: Case) -> tuple[NDArray[np.float32], int]:
    """Matte a case as `matte_at_scale`, in rembg's way; see `tools.benchmarks.squashed.load_squashed`."""
    return prepare(to_uint8(case.image), encode_trimap(case.trimap))(), SQUASHED_PX


def compare_ways(
    ways: Mapping[str, Way], test_set: TestSet, factor: int, num_images: int | None
) -> list[dict[str, str | float]]:
    """Matte a test set in several ways, alternating for each image.

    Args:
        ways: label -> a function that mattes a case.
        test_set: to matte.
        factor: by which the images are enlarged.
        num_images: the first images of the set; None is all.

    Returns: a row of the table for each way. Alpha is compared with the first way's on unknown pixels: the largest
        difference of all images, and the mean over images of the mean difference.
    """
    measured: dict[str, list[dict[str, float]]] = {label: [] for label in ways}
    for small in read_cases(test_set, num_images):
        case = enlarged(small, factor)
        unknown = case.trimap == UNKNOWN
        first: NDArray[np.float32] | None = None
        for label, matte in ways.items():
            start = time.perf_counter()
            alpha, px = matte(case)
            seconds = time.perf_counter() - start
            first = alpha if first is None else first
            off = np.abs(alpha - first)[unknown]
            differences = {"largest": float(off.max(initial=0)), "mean": float(off.mean()) if off.size else 0.0}
            measured[label].append({**measure(alpha, case.alpha, unknown), **differences, "seconds": seconds, "px": px})
    table: list[dict[str, str | float]] = []
    for label, rows in measured.items():
        sides = sorted({round(row["px"]) for row in rows})
        largest = max(row["largest"] for row in rows)
        mean, seconds = (sum(row[key] for row in rows) / len(rows) for key in ("mean", "seconds"))
        table.append(
            {
                "data set": test_set.name,
                "enlarged": f"x{factor}",
                "images": len(rows),
                "scale": label,
                "backbone, px": f"{sides[0]}" if len(sides) == 1 else f"{sides[0]} to {sides[-1]}",
                **average(rows),
                "alpha differs at most, on average": f"{largest:.3f}, {mean:.4f}" if table else "",
                "seconds": f"{seconds:.2f}",
            }
        )
    return table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("--model", type=Path, required=True, help="model folder of tools/export.py")
    parser.add_argument("--datasets", nargs="+", required=True, help="test sets, as --dataset of tools/evaluate.py")
    parser.add_argument("--enlarge", nargs="+", type=integer_from(1), default=[1], help="factors (default: 1)")
    parser.add_argument(
        "--scales",
        nargs="+",
        type=number_up_to(1),
        default=[1.0, 0.75, 0.5, 0.33],
        help="sizes of the copy that the backbone sees (default: 1 0.75 0.5 0.33)",
    )
    parser.add_argument("--rembg", action="store_true", help="also in rembg's way: squashed to 1024 x 1024 px")
    parser.add_argument("--num-images", type=integer_from(1), help="the first images of each set (default: all)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="float32", help="see tools/predict.py (default: float32)")


def run(options: argparse.Namespace) -> None:
    """Measure every test set at every size, and print the table."""
    network = load_network(options.model, options.device, options.precision)
    test_sets = [find_test_set(name) for name in options.datasets]
    ways: dict[str, Way] = {f"{scale:g}": partial(matte_at_scale, network, scale) for scale in options.scales}
    blank = np.full((WARM_UP_PX, WARM_UP_PX), UNKNOWN, np.float32)
    rows = []
    with tempfile.TemporaryDirectory() as home:
        if options.rembg:
            write_squashed(options.model, Path(home))
            ways[SQUASHED] = partial(matte_squashed, load_squashed(Path(home)))
        for matte in ways.values():
            matte(Case(np.zeros((*blank.shape, 3), np.float32), blank, blank))  # starts threads and kernels
        for test_set in test_sets:
            for factor in options.enlarge:
                rows += compare_ways(ways, test_set, factor, options.num_images)
                print(f"{test_set.name} x{factor} is measured", flush=True)
    print(format_table(rows, markdown=True))
