"""Clean colours: what a subject looks like without its background, cut out or laid over another."""

import threading
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from numpy.typing import NDArray

from data.composition import composite
from data.image_io.images import DataError, as_colours, as_unit_floats
from runtime.optional_packages import import_extra
from runtime.threads import check_not_forked, num_threads

GRADIENT_WEIGHT = 0.1
"""How much more neighbours count where alpha is steep. With pymatting's own 1, two iterations a level do not get far
from the coarser level: half as much error again on exact alphas, a tenth less on blurred ones (docs/cutouts.md)."""

_ONE_AT_A_TIME = threading.Lock()
"""numba's own threads, where there is neither OpenMP nor TBB, end a process that enters them twice."""


def estimate_foreground(image: NDArray, alpha: NDArray) -> NDArray[np.float32]:
    """Estimate F in I = alpha F + (1 - alpha) B: the colours of the subject, free of the background's.

    Where alpha is 1 they are exactly the image's; where it is 0 they continue smoothly from the nearest foreground.

    Args:
        image: (H, W, 3) RGB, or what else `data.image_io.images.as_colours` takes; uint8, uint16, or float in [0, 1].
        alpha: (H, W) float in [0, 1].

    Returns: (H, W, 3) RGB in [0, 1], not premultiplied, a new array.

    Raises:
        DataError: sizes differ, or values are not those above.
        MissingExtraError: pymatting is not installed.
        UserError: see `runtime.threads.check_not_forked`.

    Source: Germer et al. 2020, "Fast Multi-Level Foreground Estimation" (arXiv:2006.14970).
    """
    colours, opacity = as_unit_floats(as_colours(image), "the image"), _checked_alpha(alpha, image)
    if opacity.size == 1:  # which has no levels
        return colours.copy()
    check_not_forked(num_threads())
    with _ONE_AT_A_TIME, ThreadPoolExecutor(1) as other:
        foreground = other.submit(_by_pymatting, colours, opacity).result()
    np.copyto(foreground, colours, where=(opacity == 1)[..., None])
    return foreground


def estimate_foreground_light(light: NDArray[np.float32], alpha: NDArray) -> NDArray[np.float32]:
    """Estimate the subject's light, which has no bound; see `estimate_foreground`.

    Each channel is brought to [0, 1] and back: the equation and its solution allow that, as they are linear.

    Args:
        light: (H, W, 3) RGB, finite.
        alpha: (H, W) float in [0, 1].

    Returns: (H, W, 3) RGB, not premultiplied; where alpha is 1 exactly the given light.
    """
    darkest = light.min((0, 1))
    span = light.max((0, 1)) - darkest
    span[span == 0] = 1
    foreground = estimate_foreground(((light - darkest) / span).clip(0, 1), alpha) * span + darkest
    np.copyto(foreground, light, where=(alpha == 1)[..., None])
    return foreground


def _by_pymatting(colours: NDArray[np.float32], opacity: NDArray[np.float32]) -> NDArray[np.float32]:
    """Estimate; in a thread of its own, for numba sets OpenMP's number of threads, torch's too, in the one it is in."""
    library = import_extra("pymatting.foreground.estimate_foreground_ml", "foreground estimation")
    numba = import_extra("numba", "foreground estimation")
    numba.set_num_threads(min(num_threads(), numba.config.NUMBA_NUM_THREADS))  # of this thread alone
    return library.estimate_foreground_ml(colours, opacity, gradient_weight=GRADIENT_WEIGHT)


def cut_out(foreground: NDArray, alpha: NDArray, is_premultiplied: bool = False) -> NDArray[np.float32]:
    """Join colours and alpha into one image, for `data.image_io.images.write_rgba`.

    Args:
        foreground: (H, W, 3) RGB in [0, 1], not premultiplied, as `estimate_foreground` gives it.
        alpha: (H, W) float in [0, 1].
        is_premultiplied: multiply the colours by alpha. Otherwise they stay as they are, even where alpha is 0: a
            program that blurs or resizes the image then finds no foreign colour beside the edge.

    Returns: (H, W, 4) RGBA in [0, 1].

    Raises:
        DataError: sizes differ, or values are not those above.
    """
    opacity = _checked_alpha(alpha, foreground)
    rgba = np.empty((*opacity.shape, 4), np.float32)
    rgba[:, :, :3] = as_unit_floats(foreground, "the foreground")
    if is_premultiplied:
        rgba[:, :, :3] *= opacity[..., None]
    rgba[:, :, 3] = opacity
    return rgba


def over(foreground: NDArray, alpha: NDArray, background: NDArray) -> NDArray[np.float32]:
    """Lay a subject over a colour or an image.

    Args:
        foreground: (H, W, 3) RGB in [0, 1], not premultiplied.
        alpha: (H, W) float in [0, 1].
        background: (3,) RGB in [0, 1]; or an image (h, w, 3) of any size, which is resized to cover the foreground in
            its own proportions, and cropped around its centre.

    Returns: (H, W, 3) RGB in [0, 1].

    Raises:
        DataError: sizes differ, or values are not those above.
    """
    opacity = _checked_alpha(alpha, foreground)
    behind = as_unit_floats(background, "the background")
    if behind.shape != (3,):
        behind = cover(as_colours(behind, "the background"), *opacity.shape)
    colours = as_unit_floats(foreground, "the foreground")
    return composite(opacity[..., None], colours, behind)


def cover(image: NDArray, height: int, width: int) -> NDArray:
    """Resize an image (h, w, 3) in its own proportions until it covers a size, and crop it around its centre.

    Only what is seen is resized. It may lie half a pixel of the result beside its place.

    Returns: (height, width, 3); the image's own values where they need no resizing.
    """
    own_height, own_width = image.shape[:2]
    scale = max(height / own_height, width / own_width)
    rows, resized_height, top = _central(own_height, max(height, round(own_height * scale)), height)
    columns, resized_width, left = _central(own_width, max(width, round(own_width * scale)), width)
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(image[rows, columns], (resized_width, resized_height), interpolation=interpolation)
    return resized[top : top + height, left : left + width]


def _central(own_px: int, whole_px: int, wanted_px: int) -> tuple[slice, int, int]:
    """Find the part of an axis that is seen, where its own pixels would become `whole_px` and the middle is wanted.

    Returns: the part, with a pixel more at each end to interpolate from; what it is resized to; what of that comes
        before the wanted pixels.
    """
    first = (whole_px - wanted_px) // 2
    begin = max(first * own_px // whole_px - 1, 0)
    end = min(-(-(first + wanted_px) * own_px // whole_px) + 1, own_px)
    resized_begin, resized_end = (round(edge * whole_px / own_px) for edge in (begin, end))
    return slice(begin, end), resized_end - resized_begin, first - resized_begin


def _checked_alpha(alpha: NDArray, beside: NDArray) -> NDArray[np.float32]:
    """Return alpha (H, W) as float32, after a look at its size and values."""
    if alpha.ndim != 2 or alpha.shape != beside.shape[:2] or not alpha.size:
        raise DataError(f"expected colours (H, W, 3), alpha (H, W) of one size, got {beside.shape} and {alpha.shape}")
    return as_unit_floats(alpha, "the alpha")
