"""Stabilise the alpha of a clip: average it along the optical flow where the trimap is unknown."""

from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

from data.optical_flow import Flow, follow, grey_of
from data.trimap import unknown_mask
from inference.video.flow import enlarged, link, reduced
from runtime.errors import ConfigError

DEFAULT_STRENGTH = 0.5
COLOUR_DIFFERENCE = 20.0  # of 255, in any channel: along the flow, it halves the weight of the frame before
ALPHA_DIFFERENCE = 0.1  # so does this mean change of alpha around a pixel. More is no flicker: the subject came or left
CHANGE_WINDOW = 0.064  # side of the window of that mean, of the frame's longer side
FOREGROUND_REACH = 0.0125  # how far opaque pixels give their flow to others, of the frame's longer side
OPACITY_POWER = 12  # alpha 0.9 counts a quarter of alpha 1


class Stabiliser:
    """Stabilises alpha frame by frame, along the flow of the foreground and inside the unknown region alone.

    Args:
        strength: 0 to 1, the weight of the frames before where the flow is certain. 0 changes nothing.
    """

    def __init__(self, strength: float = DEFAULT_STRENGTH) -> None:
        if not 0 <= strength <= 1:
            raise ConfigError(f"expected a strength of 0 to 1, got {strength:g}")
        self.strength = strength
        self._frame: NDArray[np.uint8] | None = None
        self._alpha: NDArray[np.float32] | None = None

    def next(
        self, image: NDArray[np.uint8], trimap: NDArray[np.float32], alpha: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Stabilise the alpha of the next frame.

        Args:
            image: (H, W, 3) sRGB.
            trimap: (H, W) in {0, 0.5, 1}. A known pixel keeps its alpha.
            alpha: (H, W) in [0, 1], of the frame alone.

        Returns: (H, W) in [0, 1]; `alpha` itself if the strength is 0, or after a cut.
        """
        if self.strength == 0:
            return alpha
        frame = reduced(image).copy()  # a caller may use its buffer again
        before, moving = self._frame, self._alpha
        joint = None if before is None else link(grey_of(frame), grey_of(before))
        if joint is not None and before is not None and moving is not None:
            flow = _of_foreground(joint.flow, alpha)
            difference = cv2.absdiff(frame, follow(before, flow)).max(2).astype(np.float32)
            weight = self.strength / (1 + (difference / COLOUR_DIFFERENCE) ** 2)
            weight = cv2.resize(weight, alpha.shape[::-1], interpolation=cv2.INTER_LINEAR) * unknown_mask(trimap)
            change = follow(moving, enlarged(flow, alpha.shape), cv2.INTER_CUBIC).clip(0, 1) - alpha
            mean = cv2.blur(change, (round(CHANGE_WINDOW * max(alpha.shape)) | 1,) * 2)
            alpha = alpha + weight / (1 + (mean / ALPHA_DIFFERENCE) ** 2) * change
        self._frame, self._alpha = frame, alpha
        return alpha

    def state(self) -> dict[str, NDArray]:
        """Return what `restore` needs to go on after this frame; empty before the first."""
        kept = {"frame": self._frame, "alpha": self._alpha}
        return {name: values for name, values in kept.items() if values is not None}

    def restore(self, state: Mapping[str, NDArray]) -> None:
        """Go on after the frame whose `state` this is."""
        self._frame, self._alpha = state.get("frame"), state.get("alpha")


def _of_foreground(flow: Flow, alpha: NDArray[np.float32]) -> Flow:
    """Continue the flow (h, w, 2) of opaque pixels to those around them.

    Alpha moves with the foreground. Between strands, the flow of the image is that of the background.
    """
    copy = cv2.resize(alpha, flow.shape[1::-1], interpolation=cv2.INTER_AREA)
    reach_px = FOREGROUND_REACH * max(copy.shape)
    weight = copy**OPACITY_POWER + 1e-4  # where nothing opaque is near, the flow of the image remains, smoothed
    flows = cv2.GaussianBlur(flow * weight[..., None], (0, 0), reach_px)
    return np.asarray(flows / cv2.GaussianBlur(weight, (0, 0), reach_px)[..., None], np.float32)
