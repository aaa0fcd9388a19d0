"""Compare common variants of the metrics with their definition: see tools/benchmark.py."""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.image_io.formats import find_images
from data.image_io.images import DataError, read_alpha, to_uint8
from data.trimap import read_strict_trimap, unknown_mask
from evaluation.metrics import measure
from evaluation.output.report import format_table
from runtime.errors import UserError
from tools.benchmarks.metrics import plain_conn, plain_grad
from tools.benchmarks.scene import draw_fragments, draw_matte

Case = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_]]
"""Prediction, ground truth and the unknown pixels, each (H, W)."""

FLOAT64_TENTHS = np.arange(0, 1.1, 0.1)
"""Thresholds as a script would write them: in float64, 153 / 255 is below the sixth of them, 0.6."""

VARIANTS: tuple[tuple[str, str, Callable[..., float]], ...] = (
    ("Conn", "the background may be the largest component", partial(plain_conn, has_background=True)),
    (
        "Conn",
        "thresholds compared in float64",
        partial(plain_conn, reaches=lambda values, tenths: values / 255 >= FLOAT64_TENTHS[tenths]),
    ),
    ("Grad", "alphas not scaled by minimum and maximum", partial(plain_grad, scale=lambda values: values / 255)),
    ("Grad", "filters of 13 x 13 px", partial(plain_grad, half_size_px=6)),
    (
        "MSE",
        "over the whole image",
        lambda pred_alpha, alpha, region: measure(pred_alpha, alpha, np.ones_like(region))["MSE"],
    ),
)
"""Metric, the variant's difference from the definition, and the variant."""


def drawn_cases() -> Iterator[tuple[str, Case]]:
    """Draw a subject with strands, smoke that is opaque nowhere, and a thousand soft blobs."""
    for name, draw, opacity in (("subject", draw_matte, 1), ("smoke", draw_matte, 0.45), ("blobs", draw_fragments, 1)):
        pred_alpha, alpha, trimap = draw(480, 320, seed=0)
        region = np.asarray(unknown_mask(trimap), np.bool_) if opacity == 1 else np.ones(alpha.shape, np.bool_)
        yield name, (to_uint8(opacity * pred_alpha), to_uint8(opacity * alpha), region)


def read_cases(pred_dir: Path, label_dir: Path, trimap_dir: Path) -> Iterator[tuple[str, Case]]:
    """Read the images of three folders, matched by name without suffix.

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
        UserError: only some of the folders are given.
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
