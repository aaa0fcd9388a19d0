"""Check pixels: valid alphas, colours that are not premultiplied, trimaps that agree with their alphas.

Thresholds were set on 369 honest cut-outs with soft edges (205 photographic and 125 rendered ones, less those that are
masks themselves, and 48 procedural ones), on 18 measured alphas with two trimaps each, and on broken copies of these.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from data.image_io.decoding import turn_upright
from data.trimap import STORED_VALUES

LOWEST, HIGHEST = 2 / 255, 253 / 255  # an alpha that never leaves these is all 0 or all 1 but for compression
HARD_SOFTNESS = 0.1  # JPEGs of masks of quality 60 and above stay below; soft edges of one pixel are above 0.37
SOFT = (0.15, 0.85)  # beyond the ringing of a JPEG along a hard edge
COLOUR_EXCESS = 8 / 255  # of rounding, and of a JPEG
MAX_EXCESSIVE = 0.02  # share of pixels; honest cut-outs have 0.10 and more, premultiplied ones none but for compression
MIN_SOFT_PIXELS = 16  # to say anything from
MIN_CONTRADICTION, MAX_CONTRADICTING = 0.1, 0.001  # honest trimaps: no pixel at all
EDGE_PX = 256  # longer side at which edges are compared
EDGE_MARGIN = 0.05  # of correlations that are 0.09 to 0.49 where alpha and image fit, and up to 0.08 where not


def describe_alpha(alpha: NDArray) -> tuple[str, str] | None:
    """Tell why an array is no valid alpha: it is empty, full or a hard mask.

    Args:
        alpha: (H, W) uint8 or uint16.

    Returns: code and detail, or None.
    """
    full_scale = np.iinfo(alpha.dtype).max
    lowest, highest = int(alpha.min()), int(alpha.max())
    if highest <= LOWEST * full_scale:
        return "empty-alpha", f"highest value {highest} of {full_scale}"
    if lowest >= HIGHEST * full_scale:
        return "full-alpha", f"lowest value {lowest} of {full_scale}"
    softness = measure_softness(alpha)
    if softness < HARD_SOFTNESS:
        return "hard-mask", f"{softness:.2f} soft pixels for each pixel of its outline"
    return None


def measure_softness(alpha: NDArray) -> float:
    """Count soft pixels (within `SOFT`) for each step between neighbours across 0.5; infinite without such a step.

    Args:
        alpha: (H, W) uint8 or uint16.
    """
    full_scale = np.iinfo(alpha.dtype).max
    inside = alpha > full_scale / 2
    steps = np.count_nonzero(inside[1:] != inside[:-1]) + np.count_nonzero(inside[:, 1:] != inside[:, :-1])
    soft = np.count_nonzero((alpha > SOFT[0] * full_scale) & (alpha < SOFT[1] * full_scale))
    return soft / steps if steps else np.inf


def is_premultiplied(colours: NDArray, alpha: NDArray) -> bool:
    """Tell whether colours were multiplied by alpha, from the fractional pixels.

    Their brightest channel never exceeds alpha then, and it varies less once divided by alpha, since it went up and
    down with alpha. Straight colours exceed a low alpha, unless they are black. Of lossy files, where colours bleed
    over thin edges, not all are found.

    Args:
        colours: (H, W, 3) uint8 or uint16.
        alpha: (H, W) uint8 or uint16.
    """
    full_scale = np.iinfo(alpha.dtype).max
    soft = (alpha > 0.05 * full_scale) & (alpha < 0.9 * full_scale)
    if np.count_nonzero(soft) < MIN_SOFT_PIXELS:
        return False
    opacity = alpha[soft] / full_scale
    brightest = colours[soft].max(axis=1) / np.iinfo(colours.dtype).max
    if (brightest > opacity + COLOUR_EXCESS).mean() > MAX_EXCESSIVE or not brightest.any():
        return False
    divided = brightest / opacity
    return bool(divided.std() / divided.mean() < brightest.std() / brightest.mean())


def describe_trimap(trimap: NDArray, alpha: NDArray | None) -> tuple[str, str] | None:
    """Describe the first thing that is wrong with the trimap of a test image.

    Args:
        trimap: (H, W) as stored.
        alpha: its alpha (H, W), uint8 or uint16; None where there is none of its size.

    Returns: code and detail, or None.
    """
    others = np.setdiff1d(trimap, STORED_VALUES)
    if others.size or trimap.dtype != np.uint8:
        listed = ", ".join(str(value) for value in others[:5]) + (", ..." if others.size > 5 else "")
        return "trimap-values", f"{trimap.dtype} with {listed or 'no other values'}"
    background, unknown, foreground = STORED_VALUES
    is_known = trimap != unknown
    if is_known.all():
        return "trimap-no-unknown", "0 and 255 alone" if np.ptp(trimap) else f"{trimap.flat[0]} alone"
    if alpha is None or not is_known.any():
        return None
    opacity = alpha[is_known] / np.float32(np.iinfo(alpha.dtype).max)
    wrong = np.abs(opacity - trimap[is_known] / np.float32(foreground)) > MIN_CONTRADICTION
    share = wrong.mean()
    if share > MAX_CONTRADICTING:
        return "trimap-contradiction", f"{share:.1%} of its known pixels differ from alpha by above {MIN_CONTRADICTION}"
    return None


def fits_turned(colours: NDArray, alpha: NDArray, orientation: int) -> bool:
    """Tell whether an alpha matches the edges of an image only after it is turned by the image's EXIF orientation.

    Args:
        colours: (H, W) or (H, W, C) uint8 or uint16, upright.
        alpha: (H, W) uint8 or uint16.
        orientation: 1 to 8.
    """
    turned = np.ascontiguousarray(turn_upright(alpha, orientation))
    if turned.shape != alpha.shape:  # it has the size of the upright image as it is
        return False
    edges = measure_edges(np.atleast_3d(colours)[:, :, :3].mean(axis=2))
    return correlate(edges, measure_edges(turned)) > correlate(edges, measure_edges(alpha)) + EDGE_MARGIN


def measure_edges(grey: NDArray) -> NDArray[np.float32]:
    """Measure the steepness of (H, W), reduced to `EDGE_PX`."""
    height, width = grey.shape
    scale = min(1.0, EDGE_PX / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(grey.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return np.hypot(*(cv2.Sobel(small, cv2.CV_32F, *order) for order in ((1, 0), (0, 1))))


def correlate(first: NDArray, second: NDArray) -> float:
    """Correlate two arrays of one shape; 0 if one of them is constant."""
    first, second = first - first.mean(), second - second.mean()
    scale = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / scale if scale else 0.0
