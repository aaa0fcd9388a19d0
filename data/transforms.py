"""The augmentations of the GCA line (Li and Lu 2020), one class each: (sample, generator) -> sample, no state.

A sample is a dict. It starts with "sources", the foregrounds as raw pairs of colours (H, W, 3) and alpha (H, W), the
upper one first, and "background", raw (H, W, 3); raw is uint8 or uint16. It ends with float32 in [0, 1], S x S px:
"image" (S, S, 3), "trimap" and "alpha" (S, S, 1), made of the float "foreground" and "background" beside them.

Resizing, affine map and crop are one matrix, and each picture is sampled through it once (`data.sampling`).
The defaults of all ranges stand in one place, `data.datasets.CompositionDataset`.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from data.composition import composite, merge_foregrounds
from data.images import to_float
from data.sampling import Matrix, resize_matrix, sample_layer, scaling, translation
from data.trimap import ALPHA_TOLERANCE, trimap_from_alpha

Sample = dict[str, Any]

INTERPOLATIONS = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)


class CropAroundUnknown:
    """Draw a view on the foreground, centred on an unknown pixel where the border allows, and sample all through it.

    Turns "sources" into "layers", a list of (alpha (S, S, 1), foreground (S, S, 3)), and the raw "background" into the
    float one. The background is enlarged or shrunk to cover the foreground's frame, its aspect kept (GCA stretches it),
    and cropped to a window of the same size at a random place. A window that leaves the foreground sees alpha 0.

    Args:
        crop_px: side S of the crop.
        square_probability: how often the foreground is resized to a square first, aspect not kept.
        square_px: side of that square.
        rotation_deg: rotation is uniform in +- this.
        rotation_min_px: foregrounds whose longer side is below this are not rotated.
        scale_range: scale per axis, uniform.
        shear_deg: shear angle, uniform in +- this.
        flip_probability: for either axis.
        crop_factors: the window measures one of these times `crop_px`, at most the foreground's shorter side.
        max_enlargement: a foreground smaller than that is enlarged up to this much, and surrounded by alpha 0 beyond.
    """

    def __init__(
        self,
        crop_px: int,
        square_probability: float,
        square_px: int,
        rotation_deg: float,
        rotation_min_px: int,
        scale_range: Sequence[float],
        shear_deg: float,
        flip_probability: float,
        crop_factors: Sequence[float],
        max_enlargement: float,
    ) -> None:
        self.crop_px = crop_px
        self.square_probability = square_probability
        self.square_px = square_px
        self.rotation_deg = rotation_deg
        self.rotation_min_px = rotation_min_px
        self.lowest_scale, self.highest_scale = scale_range
        self.shear_deg = shear_deg
        self.flip_probability = flip_probability
        self.crop_factors = tuple(crop_factors)
        self.max_enlargement = max_enlargement

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        alpha = sample["sources"][0][1]
        frame = self._draw_frame(alpha, rng)
        affine = self._draw_affine(frame, rng)
        window_px = min(
            self.crop_px * rng.choice(self.crop_factors), max(frame.min(), self.crop_px / self.max_enlargement)
        )
        centre = draw_centre(alpha, affine @ resize_matrix(alpha, frame), frame, window_px, rng)
        to_crop = scaling(self.crop_px / window_px) @ translation(window_px / 2 - centre) @ affine
        layers = [
            sample_layer(colour, alpha, to_crop @ resize_matrix(alpha, frame), self.crop_px, draw_interpolation(rng))
            for colour, alpha in sample["sources"]
        ]
        background = crop_background(sample["background"], frame, window_px, self.crop_px, rng)
        return {"layers": layers, "background": background}

    def _draw_frame(self, alpha: NDArray, rng: np.random.Generator) -> NDArray[np.floating]:
        """Draw the size (width, height) in px to which the foregrounds are resized first."""
        frame = np.array(alpha.shape[::-1], float)
        if rng.random() < self.square_probability:
            return np.full(2, min(self.square_px, self.max_enlargement * frame.max()))
        return frame

    def _draw_affine(self, frame: NDArray[np.floating], rng: np.random.Generator) -> Matrix:
        """Draw rotation, shear, scale and flips about the frame's centre."""
        angle = np.deg2rad(rng.uniform(-self.rotation_deg, self.rotation_deg)) * (frame.max() >= self.rotation_min_px)
        shear = np.deg2rad(rng.uniform(-self.shear_deg, self.shear_deg))
        scale = rng.uniform(self.lowest_scale, self.highest_scale, size=2)
        scale[rng.random(2) < self.flip_probability] *= -1
        rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        shearing = np.array([[1, np.tan(shear), 0], [0, 1, 0], [0, 0, 1]])
        return translation(frame / 2) @ rotation @ shearing @ scaling(scale) @ translation(-frame / 2)


class MergeLayers:
    """Merge the "layers" into one "alpha" and "foreground"; where that is opaque all over, the upper stays alone."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        alpha, foreground = sample["layers"][0]
        for lower in sample["layers"][1:]:
            merged, merged_foreground = merge_foregrounds(alpha, foreground, *lower)
            if (merged < 1 - ALPHA_TOLERANCE).any():
                alpha, foreground = merged, merged_foreground
        return {"alpha": alpha, "foreground": foreground, "background": sample["background"]}


class JitterColour:
    """Shift hue, saturation and value of the "foreground", each by one draw for the whole crop.

    Args:
        hue_deg: the hue turns by a uniform draw in +- this.
        share: saturation and value move by a uniform draw in +- share x (1.1 - their mean where alpha > 0), clipped.
    """

    def __init__(self, hue_deg: float, share: float) -> None:
        self.hue_deg = hue_deg
        self.share = share

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        visible = (sample["alpha"] > 0).view(np.uint8)
        hue_shift = rng.uniform(-self.hue_deg, self.hue_deg)
        shifts = rng.uniform(-self.share, self.share, size=2)
        if not visible.any():
            return sample
        hsv = cv2.cvtColor(sample["foreground"], cv2.COLOR_RGB2HSV)  # hue in degrees, the others in [0, 1]
        means = np.array(cv2.mean(hsv, visible)[1:3])
        hue = hsv[:, :, 0] + np.float32(hue_shift)
        hsv[:, :, 0] = hue - 360 * np.floor(hue / 360)
        hsv[:, :, 1:] = (hsv[:, :, 1:] + (shifts * (1.1 - means)).astype(np.float32)).clip(0, 1)
        return {**sample, "foreground": cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB).clip(0, 1)}


class MakeTrimap:
    """Make the "trimap" of the crop's own "alpha" by two erosions of separately drawn size.

    Args:
        radius_px: lowest and highest radius r, both drawn; the kernel is an ellipse of 2 r + 1 px.
    """

    def __init__(self, radius_px: Sequence[int]) -> None:
        self.lowest_px, self.highest_px = radius_px

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        radii_px = rng.integers(self.lowest_px, self.highest_px, size=2, endpoint=True)
        trimap = trimap_from_alpha(sample["alpha"][:, :, 0], int(radii_px[0]), int(radii_px[1]))
        return {**sample, "trimap": trimap[:, :, None]}


class CompositeImage:
    """Blend "foreground" over "background" by "alpha" into "image"."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        image = composite(sample["alpha"], sample["foreground"], sample["background"])
        return {**sample, "image": image.clip(0, 1)}  # float rounding may leave [0, 1] by 1e-7


def draw_interpolation(rng: np.random.Generator) -> int:
    """Draw one of OpenCV's nearest, linear, cubic and Lanczos."""
    return int(rng.choice(INTERPOLATIONS))


def draw_centre(
    alpha: NDArray, to_frame: Matrix, frame: NDArray[np.floating], window_px: float, rng: np.random.Generator
) -> NDArray[np.floating]:
    """Draw the window's centre (x, y) in the frame: a random unknown pixel, moved to keep the window inside.

    Unknown pixels are the fractional ones of the alpha; where it has none, those on its edges; an alpha without edges
    gives the frame's centre. A window larger than the frame is moved until it holds the frame.

    Args:
        alpha: raw (H, W).
        to_frame: where the alpha's points come to lie.
        frame: (width, height) in px.
        window_px: side of the window.
        rng: generator to draw from.
    """
    points = unknown_points(alpha)
    centre = frame / 2
    if len(points):
        drawn = points[rng.integers(len(points), size=64)] + 0.5
        drawn = drawn @ to_frame[:2, :2].T + to_frame[:2, 2]
        is_inside = ((drawn >= 0) & (drawn < frame)).all(axis=1)
        centre = drawn[np.argmax(is_inside)]  # the first one inside; the first of all where none is
    ends = np.sort([np.full(2, window_px / 2), frame - window_px / 2], axis=0)
    return centre.clip(*ends)


def unknown_points(alpha: NDArray) -> NDArray:
    """List a raw alpha's fractional pixels, or else those on its edges, as (N, 2) integers x, y; N may be 0."""
    full = np.iinfo(alpha.dtype).max
    low = int(ALPHA_TOLERANCE * full) + 1
    points = cv2.findNonZero(cv2.inRange(alpha, low, full - low))
    if points is None:
        edges = cv2.morphologyEx(alpha, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
        points = cv2.findNonZero(cv2.inRange(edges, 1, full))
    return np.empty((0, 2), np.int32) if points is None else points.reshape(-1, 2)


def crop_background(
    background: NDArray, frame: NDArray[np.floating], window_px: float, crop_px: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Crop a background as if it were resized to cover the frame, at a random place, and resize the crop.

    Args:
        background: raw (H, W, 3).
        frame: (width, height) in px.
        window_px: side of the window in the frame; beyond the covering background the scale gives way.
        crop_px: side S of the result.
        rng: generator to draw from.

    Returns: (S, S, 3) in [0, 1].
    """
    size = np.array(background.shape[1::-1])
    enlargement = (frame / size).max()
    side = max(1, round(min(window_px / enlargement, size.min())))
    left, top = rng.integers(size - side, endpoint=True)
    window = background[top : top + side, left : left + side]
    interpolation = cv2.INTER_AREA if side >= 2 * crop_px else draw_interpolation(rng)
    return to_float(cv2.resize(window, (crop_px, crop_px), interpolation=interpolation))
