"""Estimate dense optical flow between two frames, and move images along it."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

MIN_SIDE_PX = 16  # OpenCV's DIS refuses frames with a side below 12 px
FINEST_SCALE = 0  # the frame itself: at the preset's 1, half of it, a carried trimap drifts a third more

Flow = NDArray[np.float32]


def dense_flow(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> Flow:
    """Estimate where each pixel of a frame lies in another one, by dense inverse search.

    Kroeger et al., Fast Optical Flow using Dense Inverse Search (ECCV 2016), as OpenCV has it.

    Args:
        first: (H, W) grey frame.
        second: (H, W) grey frame.

    Returns: (H, W, 2) x and y in pixels: the pixel p of `first` lies at p + flow[p] in `second`.
    """
    height, width = first.shape
    margins = max(0, MIN_SIDE_PX - height), max(0, MIN_SIDE_PX - width)
    padded = [np.pad(frame, ((0, margins[0]), (0, margins[1])), "edge") for frame in (first, second)]
    search: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    search.setFinestScale(FINEST_SCALE)
    return np.ascontiguousarray(search.calc(padded[0], padded[1], None)[:height, :width], np.float32)


def grey_of(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert a frame (H, W, 3) sRGB to the grey (H, W) that flow is estimated on."""
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)


def follow(values: NDArray, flow: Flow, interpolation: int = cv2.INTER_LINEAR) -> NDArray:
    """Fetch for each pixel what lies where its flow points to: the result at p is `values` at p + flow[p].

    With the flow from a frame to its neighbour, this moves what belongs to the neighbour onto the frame.

    Args:
        values: (H, W) or (H, W, C). Beyond its border it continues with the border's values.
        flow: (H, W, 2) x and y in pixels.
        interpolation: a flag of `cv2.remap`.

    Returns: the shape and dtype of `values`.
    """
    height, width = flow.shape[:2]
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    places = flow[..., 0] + x, flow[..., 1] + y[:, None]
    return cv2.remap(values, *places, interpolation, borderMode=cv2.BORDER_REPLICATE)
