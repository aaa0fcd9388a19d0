"""The parts of the connectivity metric: the source region, a pixel's level in it, its connectedness.

At each threshold the source is the largest 4-connected component of the pixels at which both alphas reach it (Rhemann
et al., CVPR 2009, in the form of the Adobe Deep Image Matting evaluation code). `evaluation.metrics.conn` combines the
parts.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

NUM_THRESHOLDS = 10  # 0.1, 0.2, ... 1.0
SEED_STEP_PX = 4
FLOOD = 4 | cv2.FLOODFILL_FIXED_RANGE | cv2.FLOODFILL_MASK_ONLY | (1 << 8)  # 4-connected; only writes 1 into a mask


def source_level(pred_alpha: NDArray, alpha: NDArray) -> NDArray[np.uint8]:
    """Count for each pixel the thresholds, from the lowest on, at which it lies in the source without a gap.

    Args:
        pred_alpha: (H, W) prediction, uint8 or float in [0, 1].
        alpha: (H, W) ground truth, of the same dtype.

    Returns: (H, W), 0 to 10: the level l of Conn's definition in tenths.
    """
    reached = np.ascontiguousarray(np.minimum(thresholds_reached(pred_alpha), thresholds_reached(alpha)))
    # Flood filling from one pixel costs a twentieth of labelling all components. If it fills more than half the mask,
    # it is the largest. A likely start is the deepest pixel of a coarse copy.
    coarse = reached[::SEED_STEP_PX, ::SEED_STEP_PX]
    depth = cv2.distanceTransform((coarse == coarse.max()).view(np.uint8), cv2.DIST_L1, 3)
    row, column = (SEED_STEP_PX * int(i) for i in np.unravel_index(depth.argmax(), coarse.shape))
    level = np.zeros(reached.shape, np.uint8)
    is_joined = np.ones(reached.shape, np.bool_)
    for threshold in range(1, int(reached.max()) + 1):
        mask = reached >= threshold
        flooded = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), np.uint8)
        area = 0
        if mask[row, column]:
            spread = int(reached[row, column]) - threshold, NUM_THRESHOLDS
            area = cv2.floodFill(reached, flooded, (column, row), 0, *spread, FLOOD)[0]
        is_largest = 2 * area > np.count_nonzero(mask)
        is_joined &= flooded[1:-1, 1:-1].view(np.bool_) if is_largest else largest_component(mask)
        if not is_joined.any():
            break
        level += is_joined
    return level


def connectedness(values: NDArray, level: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Compute 1 - d where d >= 0.15, else 1, with d = alpha - level / 10; (N,) alphas and levels in tenths."""
    floats = values / 255 if values.dtype == np.uint8 else values
    # d >= 0.15 as alpha >= (2 level + 3) / 20: no difference is rounded before it is compared
    bounds = (2 * np.arange(NUM_THRESHOLDS + 1) + 3).astype(floats.dtype) / 20
    distance = floats.astype(np.float64) - level / NUM_THRESHOLDS
    return 1 - distance * (floats >= bounds[level])


def thresholds_reached(values: NDArray) -> NDArray[np.uint8]:
    """Count the thresholds k / 10 that each alpha reaches, 0 to 10, exactly.

    In float64, 153 / 255 is above a threshold 0.6 that was summed up from 0.1. So uint8 is compared in integers, and
    floats with the nearest float to k / 10 of their own precision.
    """
    if values.dtype == np.uint8:
        return (np.arange(256) * NUM_THRESHOLDS // 255).astype(np.uint8)[values]
    thresholds = np.arange(1, NUM_THRESHOLDS + 1).astype(values.dtype) / NUM_THRESHOLDS
    return np.searchsorted(thresholds, values.ravel(), side="right").reshape(values.shape).astype(np.uint8)


def largest_component(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark the largest 4-connected component; of equal ones the one whose first pixel in column order comes first.

    Args:
        mask: (H, W), not empty.
    """
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=4)
    areas = stats[1:, cv2.CC_STAT_AREA]  # label 0 is outside the mask
    largest = np.flatnonzero(areas == areas.max()) + 1
    if len(largest) > 1:
        columns = stats[largest, cv2.CC_STAT_LEFT]
        largest = largest[columns == columns.min()]
        # argmax finds the first row of each
        rows = [int((labels[:, columns.min()] == label).argmax()) for label in largest]
        largest = largest[[int(np.argmin(rows))]]
    return labels == largest[0]
