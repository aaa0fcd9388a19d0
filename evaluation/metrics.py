"""Errors of a predicted alpha on an explicit region, as the Adobe Deep Image Matting evaluation code defines them.

The metrics take numpy arrays (H, W): prediction and ground truth, both uint8 (255 is opaque) or both float in [0, 1],
and a boolean region. They return one float per image: SAD, Grad and Conn / 1000, MSE and MAD in [0, 1]. Reports scale
it (see `METRICS`). An empty region has error 0. A protocol (`PROTOCOLS`) states the region and the rounding.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from data.image_io.images import to_float, to_uint8
from data.trimap import check_stored
from evaluation.connectivity import connectedness, source_level
from runtime.errors import UserError

GRAD_SIGMA_PX = 1.4
GRAD_HALF_SIZE_PX = 4  # where the Gaussian falls to 1e-2: ceil(sigma sqrt(-2 ln(sqrt(2 pi) sigma 1e-2)))


def sad(pred_alpha: NDArray, alpha: NDArray, region: NDArray[np.bool_]) -> float:
    """Sum the absolute differences over the region, in thousands of fully wrong pixels (hence / 1000).

    Args:
        pred_alpha: (H, W) prediction, uint8 or float in [0, 1].
        alpha: (H, W) ground truth, uint8 or float as the prediction.
        region: (H, W) boolean, True for pixels that count.

    Raises:
        UserError: floats outside [0, 1], or NaN.
        ValueError: shapes that differ, one array uint8 and the other float, a region that is not boolean.
    """
    differences, full_scale = _differences(pred_alpha, alpha, region)
    return float(differences.sum()) / full_scale / 1000


def mse(pred_alpha: NDArray, alpha: NDArray, region: NDArray[np.bool_]) -> float:
    """Average the squared differences over the region, in [0, 1]; arguments and errors as for `sad`."""
    differences, full_scale = _differences(pred_alpha, alpha, region)
    return float(np.square(differences).sum()) / full_scale**2 / max(differences.size, 1)


def mad(pred_alpha: NDArray, alpha: NDArray, region: NDArray[np.bool_]) -> float:
    """Average the absolute differences over the region, in [0, 1]; arguments and errors as for `sad`."""
    differences, full_scale = _differences(pred_alpha, alpha, region)
    return float(differences.sum()) / full_scale / max(differences.size, 1)


def grad(pred_alpha: NDArray, alpha: NDArray, region: NDArray[np.bool_]) -> float:
    """Sum the squared differences of the gradients' lengths over the region, / 1000.

    Prediction and ground truth are each scaled to [0, 1] by their extremes over the whole image; a constant image has
    gradient 0. Then derivatives of a Gaussian filter them, each filter of L2 norm 1, with replicated borders. So pixels
    outside the region matter too. Arguments and errors as for `sad`.
    """
    _check(pred_alpha, alpha, region)
    if not region.any():
        return 0.0
    # The filters reach only a few pixels beyond the region.
    window = _window(region, GRAD_HALF_SIZE_PX)
    lengths = [_gradient_length(values[window], values.min(), values.max()) for values in (pred_alpha, alpha)]
    return float(np.square((lengths[0] - lengths[1])[region[window]]).sum()) / 1000


def conn(pred_alpha: NDArray, alpha: NDArray, region: NDArray[np.bool_]) -> float:
    """Sum the differences of connectedness over the region, / 1000.

    For each threshold 0.1, 0.2, ... 1.0, the source is the largest 4-connected component of the pixels where both
    alphas reach it (of equal ones the first in column order; empty if no pixel does). A pixel's level l is the last
    threshold, counted from 0, before it first lies outside; 1 if it never does. Its connectedness in an alpha a is
    1 - (a - l), or 1 where a - l is below 0.15. Arguments and errors as for `sad`.
    """
    _check(pred_alpha, alpha, region)
    if not region.any():
        return 0.0
    level = source_level(pred_alpha, alpha)[region]
    degrees = [connectedness(values[region], level) for values in (pred_alpha, alpha)]
    return float(np.abs(degrees[0] - degrees[1]).sum()) / 1000


class Metric(NamedTuple):
    """A metric, its label in reports and the factor by which reports multiply it."""

    measure: Callable[[NDArray, NDArray, NDArray[np.bool_]], float]
    label: str
    shown_factor: float


METRICS = {
    "SAD": Metric(sad, "SAD/1000", 1.0),  # `sad`, `grad` and `conn` have divided already
    "MSE": Metric(mse, "MSE x1e-3", 1e3),
    "MAD": Metric(mad, "MAD x1e-3", 1e3),
    "Grad": Metric(grad, "Grad/1000", 1.0),
    "Conn": Metric(conn, "Conn/1000", 1.0),
}


class Protocol(NamedTuple):
    """Whether alphas are rounded to 8 bit, and whether all pixels count or the unknown ones."""

    name: str
    is_rounded: bool
    is_whole: bool

    @property
    def description(self) -> str:
        """One line for reports, beside every number."""
        region = "whole image" if self.is_whole else "unknown region (trimap == 128)"
        return f"{self.name}: {region}, {'uint8' if self.is_rounded else 'float, not rounded'}"


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("dim", is_rounded=True, is_whole=False),  # the reference code's numbers, and the field's
        Protocol("float", is_rounded=False, is_whole=False),
        Protocol("whole", is_rounded=True, is_whole=True),
    )
}


def measure(
    pred_alpha: NDArray, alpha: NDArray, unknown: NDArray[np.bool_], protocol: Protocol = PROTOCOLS["dim"]
) -> dict[str, float]:
    """Measure one image by every metric of `METRICS`.

    Args:
        pred_alpha: (H, W) prediction as read, uint8 or uint16, or float in [0, 1]; the protocol may round it.
        alpha: (H, W) ground truth, as `pred_alpha`.
        unknown: (H, W) boolean, True where the trimap is unknown; ignored where the whole image counts.
        protocol: one of `PROTOCOLS`.

    Returns: name -> value as the metric returns it (MSE 0.0061, not 6.1), and "pixels", the number of measured pixels.

    Raises:
        UserError, ValueError: as for `sad`.
    """
    if protocol.is_whole:
        unknown = np.ones(alpha.shape, np.bool_)
    pair = [as_protocol(values, protocol) for values in (pred_alpha, alpha)]
    values = {name: metric.measure(pair[0], pair[1], unknown) for name, metric in METRICS.items()}
    return {**values, "pixels": int(np.count_nonzero(unknown))}


def as_protocol(values: NDArray, protocol: Protocol) -> NDArray:
    """Convert an alpha as read for a protocol: to uint8, or to floats in [0, 1] if the protocol does not round.

    Args:
        values: uint8, uint16, or float in [0, 1].
        protocol: one of `PROTOCOLS`.

    Raises:
        ValueError: another dtype.
        UserError: floats outside [0, 1].
    """
    if protocol.is_rounded and values.dtype == np.uint8:
        return values
    floats = values if np.issubdtype(values.dtype, np.floating) else to_float(values)
    if not protocol.is_rounded:
        return floats
    _full_scale(floats)  # `to_uint8` would clip
    return to_uint8(floats)


def average(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Average each metric over images; every image counts once whatever its region's size.

    The sum is exactly rounded, so the result does not depend on the order of the images or their split over processes.

    Args:
        rows: results of `measure`, one for each image.

    Raises:
        UserError: no image.
    """
    table = list(rows)
    if not table:
        raise UserError("expected the metrics of at least one image, got none: is the test set empty?")
    return {name: math.fsum(row[name] for row in table) / len(table) for name in METRICS}


def unknown_region(trimap: NDArray[np.uint8], name: str | Path = "the trimap") -> NDArray[np.bool_]:
    """Mark the pixels of a stored trimap that count: 128 only, as in the reference code.

    Args:
        trimap: (H, W) uint8 as stored in the file.
        name: name in error messages, for example a path.

    Returns: (H, W) boolean.

    Raises:
        DataError: the trimap is not uint8, or has values beside 0, 128 and 255, which the reference does not count.
    """
    check_stored(trimap, name)
    return trimap == 128


def _check(pred_alpha: NDArray, alpha: NDArray, region: NDArray[np.bool_]) -> int:
    """Raise the errors of `sad`; return the value of full opacity."""
    if not pred_alpha.shape == alpha.shape == region.shape or alpha.ndim != 2:
        raise ValueError(
            f"expected one shape (H, W), got prediction {pred_alpha.shape}, ground truth {alpha.shape}, {region.shape=}"
        )
    if region.dtype != np.bool_:
        raise ValueError(f"expected a boolean region, got {region.dtype}: compare the trimap with its unknown value")
    full_scale = _full_scale(pred_alpha)
    if full_scale != _full_scale(alpha):
        raise ValueError(f"expected uint8 or float twice, got {pred_alpha.dtype} and {alpha.dtype}: convert one")
    return full_scale


def _full_scale(values: NDArray) -> int:
    """Return the value of full opacity: 255 in uint8, 1 in floats."""
    if values.dtype == np.uint8:
        return 255
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"expected uint8 or float alphas, got {values.dtype}")
    if values.size and not (values.min() >= 0 and values.max() <= 1):  # false for NaN too
        raise UserError(f"expected float alphas in [0, 1], got {values.min():.4g} to {values.max():.4g}")
    return 1


def _differences(pred_alpha: NDArray, alpha: NDArray, region: NDArray[np.bool_]) -> tuple[NDArray[np.float64], int]:
    """Compute |prediction - ground truth| on the region's pixels, (N,) float64, and return the value of full opacity.

    Differences of uint8 are integers. Their sums are exact, and callers divide by the scale last.
    """
    full_scale = _check(pred_alpha, alpha, region)
    if full_scale == 255:
        return cv2.absdiff(pred_alpha, alpha)[region].astype(np.float64), full_scale
    return np.abs(pred_alpha[region].astype(np.float64) - alpha[region]), full_scale


def _window(region: NDArray[np.bool_], margin_px: int) -> tuple[slice, slice]:
    """Return the rows and columns of the region with a margin, clipped at the image's border."""
    bounds = (np.flatnonzero(region.any(axis=axis)) for axis in (1, 0))
    rows, columns = (slice(max(b[0] - margin_px, 0), b[-1] + margin_px + 1) for b in bounds)
    return rows, columns


def _gradient_length(values: NDArray, lowest: float, highest: float) -> NDArray[np.float64]:
    """Compute the gradient's length by derivatives of a Gaussian, in units of the range from lowest to highest.

    The filters are linear and their taps sum to 0, so scaling the result equals scaling the values.
    """
    if lowest == highest:
        return np.zeros(values.shape)
    offsets = np.arange(-GRAD_HALF_SIZE_PX, GRAD_HALF_SIZE_PX + 1)
    smooth = np.exp(-(offsets**2) / (2 * GRAD_SIGMA_PX**2))
    derive = -offsets * smooth
    # An outer product's L2 norm is the product of the norms.
    smooth, derive = smooth / np.linalg.norm(smooth), derive / np.linalg.norm(derive)
    source = values if values.dtype == np.uint8 else values.astype(np.float64)
    along_x = cv2.sepFilter2D(source, cv2.CV_64F, derive, smooth, borderType=cv2.BORDER_REPLICATE)
    along_y = cv2.sepFilter2D(source, cv2.CV_64F, smooth, derive, borderType=cv2.BORDER_REPLICATE)
    # Not cv2.magnitude, whose last digit depends on where the arrays lie in memory.
    return np.sqrt(np.square(along_x) + np.square(along_y)) / (float(highest) - float(lowest))
