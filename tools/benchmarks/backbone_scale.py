"""Measure what a reduced copy for the backbone costs in quality: see tools/benchmark.py."""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from data.image_io.images import read_alpha, read_image
from data.sources.layouts import TestSet, find_test_set
from data.trimap import UNKNOWN
from evaluation.folders import check_test_set
from evaluation.metrics import average, measure
from evaluation.output.report import format_table
from evaluation.output.result_folder import read_or_make_trimap
from inference.network import TorchNetwork
from inference.predictor import Predictor
from runtime.command_line import integer_from, number_up_to
from runtime.errors import ConfigError

WARM_UP_PX = 64


class Case(NamedTuple):
    """An image (H, W, 3), its trimap (H, W) of {0, 0.5, 1} and its alpha (H, W), float32 in [0, 1]."""

    image: NDArray[np.float32]
    trimap: NDArray[np.float32]
    alpha: NDArray[np.float32]


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


def measure_case(network: TorchNetwork, case: Case, scale: float) -> dict[str, float]:
    """Matte a case at one scale.

    Args:
        network: to run.
        case: to matte.
        scale: size of the copy that the backbone sees, above 0 to 1.

    Returns: metrics of `evaluation.metrics.measure` (protocol `dim`), "seconds", and "px", the longer side of the copy.
    """
    longer_px = max(network.model.padded_size(*case.trimap.shape))
    scaled = TorchNetwork(network.model, precision=network.precision, backbone_px=round(scale * longer_px))
    predictor = Predictor(scaled)
    start = time.perf_counter()
    alpha = predictor.alpha(case.image, case.trimap)  # in the main memory, so that a CUDA device has finished
    seconds = time.perf_counter() - start
    px = round(scaled.backbone_scale(*case.trimap.shape) * longer_px)
    return {**measure(alpha, case.alpha, case.trimap == UNKNOWN), "seconds": seconds, "px": px}


def compare_scales(
    network: TorchNetwork, test_set: TestSet, factor: int, options: argparse.Namespace
) -> list[dict[str, str | float]]:
    """Matte a test set at all scales, alternating for each image, and return a row of the table for each scale."""
    measured: dict[float, list[dict[str, float]]] = {scale: [] for scale in options.scales}
    for case in read_cases(test_set, options.num_images):
        for scale, rows in measured.items():
            rows.append(measure_case(network, enlarged(case, factor), scale))
    table: list[dict[str, str | float]] = []
    for scale, rows in measured.items():
        sides = sorted({round(row["px"]) for row in rows})
        table.append(
            {
                "data set": test_set.name,
                "enlarged": f"x{factor}",
                "images": len(rows),
                "scale": f"{scale:g}",
                "backbone, px": f"{sides[0]}" if len(sides) == 1 else f"{sides[0]} to {sides[-1]}",
                **average(rows),
                "seconds": f"{sum(row['seconds'] for row in rows) / len(rows):.2f}",
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
    parser.add_argument("--num-images", type=integer_from(1), help="the first images of each set (default: all)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="float32", help="see tools/predict.py (default: float32)")


def run(options: argparse.Namespace) -> None:
    """Measure every test set at every size, and print the table."""
    network = load_network(options.model, options.device, options.precision)
    test_sets = [find_test_set(name) for name in options.datasets]
    blank = np.full((WARM_UP_PX, WARM_UP_PX), UNKNOWN, np.float32)
    measure_case(network, Case(np.zeros((*blank.shape, 3), np.float32), blank, blank), 1.0)  # starts threads, kernels
    rows = []
    for test_set in test_sets:
        for factor in options.enlarge:
            rows += compare_scales(network, test_set, factor, options)
            print(f"{test_set.name} x{factor} is measured", flush=True)
    print(format_table(rows, markdown=True))
