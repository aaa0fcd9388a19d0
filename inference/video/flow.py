"""Connect neighbouring frames of a clip by optical flow, and find its cuts."""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from data.optical_flow import Flow, dense_flow, follow, grey_of

FLOW_PX = 960  # longer side of the copies that flow is estimated on: a third of the time at 1080p
# What the flow does not explain, in standard deviations of the frames' greys. On the test clips it is below 0.1 within
# a shot and above 0.6 across cuts.
MIN_CUT_RESIDUAL = 0.35
MIN_DEVIATION = 16.0  # of 255, so that the noise of a flat frame is no cut


class Link(NamedTuple):
    """What connects the pixels of a frame with its neighbour.

    Attributes:
        flow: (h, w, 2) from the frame to the neighbour, in pixels of the reduced copies.
        error: (h, w) pixels of the reduced copies by which the flow there and back misses its start.
    """

    flow: Flow
    error: NDArray[np.float32]


def reduced_grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert a frame (H, W, 3) sRGB to the grey copy (h, w) that flow is estimated on, at most `FLOW_PX` long."""
    return reduced(grey_of(image))


def reduced(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Reduce a frame (H, W) or (H, W, 3) to a copy of at most `FLOW_PX`; a smaller one is returned as it is."""
    height, width = image.shape[:2]
    scale = FLOW_PX / max(height, width)
    if scale >= 1:
        return image
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def link(frame: NDArray[np.uint8], neighbour: NDArray[np.uint8]) -> Link | None:
    """Connect a frame with the one before or after it.

    Args:
        frame: (h, w) copy of `reduced_grey`.
        neighbour: (h, w) copy of the other frame.

    Returns: None if a cut lies between them, whichever of the two comes first.
    """
    there, back = dense_flow(frame, neighbour), dense_flow(neighbour, frame)
    pairs = (frame, follow(neighbour, there)), (neighbour, follow(frame, back))
    residual = sum(cv2.absdiff(*pair).mean() for pair in pairs)
    deviation = max(frame.std(), MIN_DEVIATION) + max(neighbour.std(), MIN_DEVIATION)
    if residual > MIN_CUT_RESIDUAL * deviation:
        return None
    return Link(there, missed_by(there, back))


def missed_by(there: Flow, back: Flow) -> NDArray[np.float32]:
    """Measure by how many pixels the way there and back misses its start: (h, w).

    A way that leaves the image comes back from the border, so it misses by what it is outside, too.
    """
    missed = there + follow(back, there)
    return np.hypot(missed[..., 0], missed[..., 1])


def enlarged(flow: Flow, shape: tuple[int, ...]) -> Flow:
    """Convert a flow of reduced copies to one of the frames, (H, W, 2) in their pixels, for a shape (H, W, ...)."""
    height, width = shape[:2]
    if flow.shape[:2] == (height, width):
        return flow
    scale = np.array([width / flow.shape[1], height / flow.shape[0]], np.float32)
    return cv2.resize(flow, (width, height), interpolation=cv2.INTER_LINEAR) * scale
