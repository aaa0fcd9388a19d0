"""Clicks placed by rule on photographs whose alpha is known, as someone would place them who sees the alpha."""

import cv2
import numpy as np


def overlap(region, truth):
    """Intersection over union of two masks (H, W)."""
    return (region & truth).sum() / (region | truth).sum()


def deepest_point(region):
    """x and y of the point of a mask (H, W) that is farthest from its edge; the image's border is an edge, too."""
    distance = cv2.distanceTransform(np.pad(region.astype(np.uint8), 1), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    y, x = np.unravel_index(distance[1:-1, 1:-1].argmax(), region.shape)
    return int(x), int(y)


def first_clicks(truth):
    """The deepest point of the subject, and of the background."""
    return [(*deepest_point(truth), 1), (*deepest_point(~truth), 0)]


def next_click(region, truth):
    """The deepest point of the largest connected region that is wrong to the same side, or None."""
    parts = []
    for side in (1, 0):
        wrong = ((region != truth) & (truth == side)).astype(np.uint8)
        _, numbers, stats, _ = cv2.connectedComponentsWithStats(wrong, connectivity=4)
        parts += [(stats[n, cv2.CC_STAT_AREA], side, numbers == n) for n in range(1, len(stats))]
    if not parts:
        return None
    _, side, part = max(parts, key=lambda found: found[0])
    return (*deepest_point(part), side)
