"""Errors of a predicted alpha on an explicit region, as the Adobe Deep Image Matting evaluation code defines them.

All functions take numpy arrays (H, W): prediction and truth both uint8, 255 being opaque, or both float in [0, 1], and
a boolean region. They return one plain float per image in natural units; only reports scale for print (see `METRICS`).
A region without a pixel has no error: 0.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.trimap import check_stored

PROTOCOL = "dim: unknown region (trimap == 128), uint8, SAD/1000, MSE x1e-3"


def sad(pred_alpha: NDArray, alpha: NDArray, region: NDArray[np.bool_]) -> float:
    """Sum the absolute differences over the region, in thousands of fully wrong pixels (hence / 1000).

    Args:
        pred_alpha: (H, W) prediction, uint8 or float in [0, 1].
        alpha: (H, W) truth, of the same kind as the prediction.
        region: (H, W) boolean, True where it counts.

    Raises:
        ValueError: shapes that differ, one array uint8 and the other float, floats outside [0, 1], a region that is not
            boolean.
    """
    return float(np.abs(_differences(pred_alpha, alpha, region)).sum()) / 1000


def mse(pred_alpha: NDArray, alpha: NDArray, region: NDArray[np.bool_]) -> float:
    """Average the squared differences over the region, in [0, 1]; arguments and errors as for `sad`."""
    differences = _differences(pred_alpha, alpha, region)
    return float(np.square(differences).mean()) if differences.size else 0.0


def mad(pred_alpha: NDArray, alpha: NDArray, region: NDArray[np.bool_]) -> float:
    """Average the absolute differences over the region, in [0, 1]; arguments and errors as for `sad`."""
    differences = _differences(pred_alpha, alpha, region)
    return float(np.abs(differences).mean()) if differences.size else 0.0


class Metric(NamedTuple):
    """A metric and how reports show it: times `shown_factor`, under `label`."""

    measure: Callable[[NDArray, NDArray, NDArray[np.bool_]], float]
    label: str
    shown_factor: float


METRICS = {
    "SAD": Metric(sad, "SAD/1000", 1.0),  # `sad` has divided already
    "MSE": Metric(mse, "MSE x1e-3", 1e3),
    "MAD": Metric(mad, "MAD x1e-3", 1e3),
}


def measure(pred_alpha: NDArray, alpha: NDArray, region: NDArray[np.bool_]) -> dict[str, float]:
    """Measure one image by every metric of `METRICS`; arguments and errors as for `sad`."""
    return {name: metric.measure(pred_alpha, alpha, region) for name, metric in METRICS.items()}


def average(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Average each metric over images, every image counting once whatever its region's size.

    The sum is exactly rounded, so that neither the order of the images nor their split over processes shows.

    Args:
        rows: the metrics of each image, all with the same names.

    Raises:
        ValueError: no image.
    """
    table = list(rows)
    if not table:
        raise ValueError("expected the metrics of at least one image, got none: is the test set empty?")
    return {name: math.fsum(row[name] for row in table) / len(table) for name in table[0]}


def unknown_region(trimap: NDArray[np.uint8], name: str | Path = "the trimap") -> NDArray[np.bool_]:
    """Mark the pixels of a stored trimap that count: 128 and nothing else, as in the reference code.

    Args:
        trimap: (H, W) uint8 as stored in the file.
        name: what an error calls it, a path for instance.

    Returns: (H, W) boolean.

    Raises:
        DataError: not uint8, or values beside 0, 128 and 255, of which the reference would count none.
    """
    check_stored(trimap, name)
    return trimap == 128


def _differences(pred_alpha: NDArray, alpha: NDArray, region: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Take prediction minus truth on the region's pixels, (N,) float64 in [-1, 1]; integers before the division."""
    if not pred_alpha.shape == alpha.shape == region.shape:
        raise ValueError(f"expected one shape, got prediction {pred_alpha.shape}, truth {alpha.shape}, {region.shape=}")
    if region.dtype != np.bool_:
        raise ValueError(f"expected a boolean region, got {region.dtype}: compare the trimap with its unknown value")
    full_scale = _full_scale(pred_alpha)
    if full_scale != _full_scale(alpha):
        raise ValueError(f"expected uint8 or float twice, got {pred_alpha.dtype} and {alpha.dtype}: convert one")
    return (pred_alpha[region].astype(np.float64) - alpha[region]) / full_scale


def _full_scale(values: NDArray) -> int:
    """Return what stands for 1: 255 in uint8, 1 in floats."""
    if values.dtype == np.uint8:
        return 255
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"expected uint8 or float alphas, got {values.dtype}")
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"expected float alphas in [0, 1], got {values.min():.4g} to {values.max():.4g}")
    return 1
