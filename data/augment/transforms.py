"""Augment samples as in the GCA line (Li and Lu 2020): one class each, (sample, generator) -> sample, no state.

A sample is a dict of float32 arrays in [0, 1], S x S px: "alpha" (S, S, 1), "foreground" (S, S, 3), not premultiplied,
and "background" (S, S, 3) at first; "trimap" (S, S, 1) and "image" (S, S, 3) are made of these. `data.augment.warp`
cuts them out of files.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from data.augment.warp import triple
from data.composition import composite
from data.trimap import trimap_from_alpha
from data.validation import check_number, checked_range

Sample = dict[str, Any]


class JitterColour:
    """Shift hue, saturation and value of the "foreground", each by one draw for the whole crop.

    Args:
        hue_deg: the hue shifts by a uniform draw in +- this, within 0 to 180, which gives any hue.
        jitter_share: saturation and value move by a uniform draw in +- this x (1.1 - their mean where alpha > 0),
            clipped; within 0 to 1.

    Raises:
        ConfigError: a setting out of its range.
    """

    def __init__(self, hue_deg: float = 40.0, jitter_share: float = 0.1) -> None:
        check_number("hue_deg", hue_deg, 0, 180)
        check_number("jitter_share", jitter_share, 0, 1)
        self.hue_deg = hue_deg
        self.jitter_share = jitter_share

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        visible = (sample["alpha"] > 0).view(np.uint8)
        hue_shift = rng.uniform(-self.hue_deg, self.hue_deg)
        shifts = rng.uniform(-self.jitter_share, self.jitter_share, size=2)
        if not visible.any():
            return sample
        hsv = cv2.cvtColor(sample["foreground"], cv2.COLOR_RGB2HSV)  # hue in degrees, the others in [0, 1]
        means = cv2.mean(hsv, visible)[1:3]
        hue, *others = cv2.split(hsv)
        hue += np.float32(hue_shift)
        hue -= 360 * np.floor(hue / 360)
        shifted = [
            np.clip(plane + np.float32(shift * (1.1 - mean)), 0, 1)
            for plane, shift, mean in zip(others, shifts, means, strict=True)
        ]
        return {**sample, "foreground": cv2.cvtColor(cv2.merge([hue, *shifted]), cv2.COLOR_HSV2RGB).clip(0, 1)}


class MakeTrimap:
    """Make the "trimap" from the "alpha" of the crop by two erosions of separately drawn size.

    They erode pure foreground and pure background: the pixels whose alpha is 255 or 0 in 8 bit. The border of the crop
    erodes nothing.

    Args:
        radius_px: lowest and highest radius r, whole numbers of at least 0. All between them are equally likely. The
            kernel is an ellipse of 2 r + 1 px.
        reference_px: side of the crop that the radii are meant for: each r becomes round(r S / this), so that the
            trimaps of larger crops are wider in proportion. None does not scale the radii.

    Raises:
        ConfigError: a setting out of its range.
    """

    def __init__(self, radius_px: Sequence[int] = (0, 14), reference_px: int | None = None) -> None:
        self.radii_px = checked_range("radius_px", radius_px, 0, is_whole=True)
        if reference_px is not None:
            check_number("reference_px", reference_px, 1)
        self.reference_px = reference_px

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        crop_px = len(sample["alpha"])
        lowest_px, highest_px = (round(radius * crop_px / (self.reference_px or crop_px)) for radius in self.radii_px)
        radii_px = rng.integers(lowest_px, highest_px, size=2, endpoint=True)
        trimap = trimap_from_alpha(sample["alpha"][:, :, 0], int(radii_px[0]), int(radii_px[1]))
        return {**sample, "trimap": trimap[:, :, None]}


class CompositeImage:
    """Blend "foreground" over "background" by "alpha" into "image"."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        image = composite(triple(sample["alpha"]), sample["foreground"], sample["background"])
        return {**sample, "image": image.clip(0, 1)}  # float rounding may leave [0, 1] by 1e-7
