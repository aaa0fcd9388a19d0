"""How far common variants of the metrics are from their definition: see tools/benchmark.py."""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from data.image_io.formats import find_images
from data.image_io.images import DataError, read_alpha, to_uint8
from data.trimap import read_strict_trimap, unknown_mask
from evaluation.metrics import measure
from evaluation.output.report import format_table
from runtime.errors import UserError
from tools.benchmarks.metrics import draw_fragments, draw_matte

SIGMA_PX = 1.4

Case = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_]]
"""Prediction, ground truth and the unknown pixels, each (H, W)."""


def conn_with_background(pred_alpha: NDArray, alpha: NDArray, region: NDArray[np.bool_]) -> float:
    """Conn where all pixels outside a component count as one component, which may be the largest."""
    return _conn(pred_alpha, alpha, region, has_background=True, is_exact=True)


def conn_in_float64(pred_alpha: NDArray, alpha: NDArray, region: NDArray[np.bool_]) -> float:
    """Conn whose thresholds are compared in float64, where 153 / 255 lies below 0.6."""
    return _conn(pred_alpha, alpha, region, has_background=False, is_exact=False)


def _conn(
    pred_alpha: NDArray, alpha: NDArray, region: NDArray[np.bool_], has_background: bool, is_exact: bool
) -> float:
    level = np.full(alpha.shape, -1.0)
    for tenths in range(1, 11):
        if is_exact:
            reached = [10 * values.astype(int) >= 255 * tenths for values in (pred_alpha, alpha)]
        else:
            reached = [values / 255 >= np.arange(0, 1.1, 0.1)[tenths] for values in (pred_alpha, alpha)]
        both = (reached[0] & reached[1]).astype(np.uint8)
        num_labels, labels, stats, _ = cv2.connectedComponentsWithStats(both.T.copy(), connectivity=4)
        areas = stats[:, cv2.CC_STAT_AREA]
        first = 0 if has_background else 1
        largest = first + int(areas[first:].argmax()) if num_labels > first else -1
        level[(level == -1) & (largest != labels.T)] = (tenths - 1) / 10
    level[level == -1] = 1
    degrees = []
    for values in (pred_alpha, alpha):
        distance = values / 255 - level
        degrees.append(1 - distance * (distance >= 0.15))
    return float(np.abs(degrees[0] - degrees[1])[region].sum() / 1000)


def grad_unscaled(pred_alpha: NDArray, alpha: NDArray, region: NDArray[np.bool_]) -> float:
    """Grad of alphas that are divided by 255, and not scaled by their own minimum and maximum."""
    return _grad([values / 255 for values in (pred_alpha, alpha)], region, half_size_px=4)


def grad_of_wider_filters(pred_alpha: NDArray, alpha: NDArray, region: NDArray[np.bool_]) -> float:
    """Grad by filters that reach 4 sigma, 13 x 13 px instead of 9 x 9."""
    scaled = [(values - values.min()) / max(np.ptp(values), 1) for values in (pred_alpha, alpha)]
    return _grad(scaled, region, half_size_px=6)


def _grad(scaled: list[NDArray], region: NDArray[np.bool_], half_size_px: int) -> float:
    offsets = np.arange(-half_size_px, half_size_px + 1)
    gauss = np.exp(-(offsets**2) / (2 * SIGMA_PX**2))
    kernel = np.outer(gauss, offsets * gauss)
    kernel /= np.sqrt((kernel**2).sum())
    lengths = [
        np.hypot(
            *(cv2.filter2D(values.astype(float), -1, k, borderType=cv2.BORDER_REPLICATE) for k in (kernel, kernel.T))
        )
        for values in scaled
    ]
    return float(((lengths[0] - lengths[1])[region] ** 2).sum() / 1000)


def mse_of_the_whole_image(pred_alpha: NDArray, alpha: NDArray, region: NDArray[np.bool_]) -> float:
    """MSE over all pixels."""
    return measure(pred_alpha, alpha, np.ones_like(region))["MSE"]


VARIANTS: tuple[tuple[str, str, Callable[..., float]], ...] = (
    ("Conn", "the background may be the largest component", conn_with_background),
    ("Conn", "thresholds compared in float64", conn_in_float64),
    ("Grad", "alphas not scaled by minimum and maximum", grad_unscaled),
    ("Grad", "filters of 13 x 13 px", grad_of_wider_filters),
    ("MSE", "over the whole image", mse_of_the_whole_image),
)
"""Metric, how a variant differs from its definition, and the variant."""


def drawn_cases() -> Iterator[tuple[str, Case]]:
    """Draw a subject with strands, smoke that is opaque nowhere, and a thousand soft blobs."""
    for name, draw, opacity in (("subject", draw_matte, 1), ("smoke", draw_matte, 0.45), ("blobs", draw_fragments, 1)):
        pred_alpha, alpha, trimap = draw(480, 320, seed=0)
        region = np.asarray(unknown_mask(trimap), np.bool_) if opacity == 1 else np.ones(alpha.shape, np.bool_)
        yield name, (to_uint8(opacity * pred_alpha), to_uint8(opacity * alpha), region)


def read_cases(pred_dir: Path, label_dir: Path, trimap_dir: Path) -> Iterator[tuple[str, Case]]:
    """Read the images of three folders, which belong together by name without suffix.

    Raises:
        FileNotFoundError: a folder has no image, or one lacks its partner.
    """
    found = [{path.stem: path for path in find_images(folder)} for folder in (pred_dir, label_dir, trimap_dir)]
    for name, path in found[1].items():
        if name not in found[0] or name not in found[2]:
            raise FileNotFoundError(f"{path} has no partner in {pred_dir} or in {trimap_dir}")
        alphas = [to_uint8(read_alpha(table[name])) for table in found[:2]]
        region = np.asarray(unknown_mask(read_strict_trimap(found[2][name])), np.bool_)
        if len({alphas[0].shape, alphas[1].shape, region.shape}) > 1:
            raise DataError(f"{path}, its prediction and its trimap are not of one size")
        yield name, (alphas[0], alphas[1], region)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    for option, text in (("pred", "predicted alphas"), ("label", "true alphas"), ("trimap", "trimaps of 0, 128, 255")):
        parser.add_argument(f"--{option}-dir", type=Path, help=f"{text}; without all three, cases are drawn")


def run(options: argparse.Namespace) -> None:
    """Print each variant's value beside the definition's, for each case.

    Raises:
        ConfigError: some of the folders are named and others not.
    """
    folders = (options.pred_dir, options.label_dir, options.trimap_dir)
    if any(folders) and not all(folders):
        raise UserError("--pred-dir, --label-dir and --trimap-dir belong together")
    rows = []
    for name, case in read_cases(*folders) if all(folders) else drawn_cases():
        defined = measure(*case)
        for metric, variant, compute in VARIANTS:
            value, expected = compute(*case), defined[metric]
            change = f"{100 * (value / expected - 1):+.0f} %" if expected else "-"
            figures = {"defined": f"{expected:.4g}", "variant gives": f"{value:.4g}", "change": change}
            rows.append({"case": name, "metric": metric, "variant": variant, **figures})
    print(format_table(rows))
