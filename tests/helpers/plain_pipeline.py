"""The training pipeline before it was rebuilt around the crop, kept as the oracle of its distribution.

Every picture is decoded whole, and every step is a float one. What the loader draws must have the distribution of this.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from data.composition import composite, merge_foregrounds
from data.image_io.images import read_raw_alpha, read_raw_image, read_raw_rgba, to_float
from data.trimap import ALPHA_TOLERANCE, trimap_from_alpha

Sample = dict[str, Any]

INTERPOLATIONS = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)

Matrix = NDArray[np.floating]  # 3 x 3, on (x, y, 1) with pixel i reaching from i to i + 1

INTERPOLATION_REACH_PX = 4  # Lanczos4 looks this far
INVISIBLE_ALPHA = 1e-6  # below it a colour cannot be told from its premultiplied value, and does not show


def translation(offset: NDArray[np.floating]) -> Matrix:
    """Move points by an offset (x, y)."""
    return np.array([[1, 0, offset[0]], [0, 1, offset[1]], [0, 0, 1.0]])


def scaling(factor: float | NDArray[np.floating]) -> Matrix:
    """Scale points about the origin by one factor or by one per axis (x, y)."""
    return np.diag([*np.broadcast_to(factor, 2), 1.0])


def resize_matrix(picture: NDArray, frame: NDArray[np.floating]) -> Matrix:
    """Map a picture (H, W, ...) onto a frame (width, height) in px."""
    return scaling(frame / picture.shape[1::-1])


def sample_layer(
    colour: NDArray, alpha: NDArray, to_crop: Matrix, crop_px: int, interpolation: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Sample a foreground and its alpha through a matrix; outside the picture alpha is 0.

    Args:
        colour: raw (H, W, 3), not premultiplied.
        alpha: raw (H, W).
        to_crop: maps the picture's points to the crop's.
        crop_px: side S of the crop.
        interpolation: OpenCV's flag; shrinking by 2 and more averages areas first.

    Returns: alpha (S, S, 1) and foreground (S, S, 3), not premultiplied, in [0, 1].
    """
    picture_size = alpha.shape[::-1]
    to_picture = np.linalg.inv(to_crop)
    reduction = max(1, int(np.sqrt(abs(np.linalg.det(to_picture)))))
    corners = crop_px * np.array([[0, 0], [0, 1], [1, 0], [1, 1]]) @ to_picture[:2, :2].T + to_picture[:2, 2]
    # In whole areas counted from the picture's corner, so that no view changes what is averaged.
    left, top = reduction * np.floor(corners.min(axis=0) / reduction - INTERPOLATION_REACH_PX).astype(int).clip(0)
    right, bottom = reduction * np.ceil(corners.max(axis=0) / reduction + INTERPOLATION_REACH_PX).astype(int).clip(0)
    alpha = to_float(alpha[top:bottom, left:right])
    if alpha.size == 0:
        return np.zeros((crop_px, crop_px, 1), np.float32), np.zeros((crop_px, crop_px, 3), np.float32)
    colour = to_float(colour[top:bottom, left:right])
    layer = np.dstack([colour * alpha[:, :, None], alpha])
    to_crop = to_crop @ translation(np.array([left, top]))
    if reduction > 1:
        height, width = alpha.shape
        size = max(1, width // reduction), max(1, height // reduction)
        layer = cv2.resize(layer, size, interpolation=cv2.INTER_AREA)
        to_crop = to_crop @ scaling(np.array([width / size[0], height / size[1]]))
    half = np.full(2, 0.5)
    by_index = translation(-half) @ to_crop @ translation(half)  # OpenCV puts pixel i at i, not at i + 0.5
    layer = cv2.warpAffine(
        layer, by_index[:2], (crop_px, crop_px), flags=interpolation, borderMode=cv2.BORDER_REPLICATE
    )
    layer[~is_inside(picture_size, to_picture, crop_px)] = 0
    alpha = layer[:, :, 3:]  # before clipping: cubic and Lanczos overshoot in colours and alpha alike
    return alpha.clip(0, 1), (layer[:, :, :3] / alpha.clip(INVISIBLE_ALPHA)).clip(0, 1)


def is_inside(size: tuple[int, ...], to_picture: Matrix, crop_px: int) -> NDArray[np.bool_]:
    """Tell which pixels (S, S) of a crop have their centre inside a picture of this (width, height).

    Sampling repeats the picture's border and this cuts it off: blending with zeros would draw a seam wherever a
    foreground is cut by its own picture's border.
    """
    centres = np.arange(crop_px) + 0.5
    inside = np.ones((crop_px, crop_px), bool)
    for (along_x, along_y, offset), side in zip(to_picture[:2], size, strict=True):
        coordinate = along_x * centres + (along_y * centres[:, None] + offset)
        inside &= (coordinate >= 0) & (coordinate <= side)
    return inside


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


class PlainPipeline:
    """Samples of foreground files over background files, as `data.datasets.composition.CompositionDataset` makes them.

    Args:
        foregrounds: colours and alpha, or a cut-out and None.
        backgrounds: files.
        merge_probability: as for `CompositionDataset`, as all until `jitter_share`.
    """

    def __init__(
        self,
        foregrounds: Sequence[tuple[Path, Path | None]],
        backgrounds: Sequence[Path],
        *,
        seed: int,
        crop_px: int,
        merge_probability: float = 0.5,
        trimap_radius_px: Sequence[int] = (0, 14),
        hue_deg: float = 40.0,
        jitter_share: float = 0.1,
        **view: Any,
    ) -> None:
        self.foregrounds, self.backgrounds = foregrounds, backgrounds
        self.seed = seed
        self.merge_probability = merge_probability
        self.transforms = (
            CropAroundUnknown(crop_px, **view),
            MergeLayers(),
            JitterColour(hue_deg, jitter_share),
            MakeTrimap(trimap_radius_px),
            CompositeImage(),
        )

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng([self.seed, index])
        chosen = [index % len(self.foregrounds)]
        if rng.random() < self.merge_probability:
            chosen.append(int(rng.integers(len(self.foregrounds))))
        background = self.backgrounds[rng.integers(len(self.backgrounds))]
        sample: Sample = {
            "sources": [read_foreground(*self.foregrounds[number]) for number in chosen],
            "background": read_raw_image(background),
        }
        for transform in self.transforms:
            sample = transform(sample, rng)
        return sample


def read_foreground(path: Path, alpha_path: Path | None) -> tuple[NDArray, NDArray]:
    """Read raw colours (H, W, 3) and raw alpha (H, W)."""
    return read_raw_rgba(path) if alpha_path is None else (read_raw_image(path), read_raw_alpha(alpha_path))
