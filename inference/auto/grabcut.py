"""Cut a region out along the edges of colours: GrabCut (Rother et al. 2004)."""

import cv2
import numpy as np
from numpy.typing import NDArray

from data.trimap import distance_to

NUM_COLOURS = 5  # Gaussians on each side, each of which needs a pixel


def band_labels(rough: NDArray[np.bool_], reach_px: float) -> NDArray[np.uint8]:
    """Make GrabCut's labels: a rough region is probable near its boundary, and certain beyond.

    Args:
        rough: (H, W), true and false somewhere.
        reach_px: how far the cut may move the boundary.

    Returns: (H, W) of cv2.GC_BGD, GC_FGD, GC_PR_BGD and GC_PR_FGD.
    """
    labels = np.where(rough, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[distance_to(rough) > reach_px] = cv2.GC_BGD
    labels[distance_to(~rough) > reach_px] = cv2.GC_FGD
    return labels


def grab_cut(image: NDArray[np.uint8], labels: NDArray[np.uint8], num_iterations: int) -> NDArray[np.bool_]:
    """Decide the probable pixels by their colours and the edges between them. Same input, same output.

    Args:
        image: (H, W, 3) RGB.
        labels: (H, W), see `band_labels`. If one side has fewer than `NUM_COLOURS` pixels, nothing moves.
        num_iterations: of fitting colours and cutting.

    Returns: (H, W), true on the foreground.
    """
    cut = labels.copy()
    is_foreground = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    if NUM_COLOURS <= is_foreground.sum() <= is_foreground.size - NUM_COLOURS:
        cv2.setRNGSeed(0)  # the clusters start at random
        background, foreground = np.zeros((2, 1, 13 * NUM_COLOURS))  # the Gaussians, which nobody reads
        no_box = 0, 0, 0, 0
        cv2.grabCut(image, cut, no_box, background, foreground, num_iterations, cv2.GC_INIT_WITH_MASK)
    return (cut == cv2.GC_FGD) | (cut == cv2.GC_PR_FGD)
