"""Draw random crops: resizing, affine map and window as one matrix, before any colour is decoded."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.validation import check_number, checked_range
from runtime.errors import ConfigError

Matrix = NDArray[np.floating]  # 3 x 3, on (x, y, 1) with pixel i reaching from i to i + 1

MIN_SCALE = 0.01  # far below useful values, far above values that cannot be inverted


@dataclass(frozen=True)
class View:
    """A drawn window.

    Args:
        frame: (width, height) in px, the size to which foregrounds are resized first.
        window_px: side of the window in the frame.
        from_frame: maps the frame's points to the crop's, S px on a side.
    """

    frame: NDArray[np.floating]
    window_px: float
    from_frame: Matrix

    def from_image(self, size: tuple[int, int]) -> Matrix:
        """Map the points of an image of this (width, height) to the crop's."""
        return self.from_frame @ scaling(self.frame / size)


class DrawView:
    """Draw a random crop of a foreground, centred on an unknown pixel if the border allows it.

    The foreground is scaled, sheared, rotated and flipped about its centre. Unknown pixels are those of fractional
    alpha, or else those on edges of alpha. A window larger than the foreground is moved until it contains the
    foreground.

    Args:
        square_probability: how often the foreground is resized to a square first, aspect not kept.
        square_px: side of that square, at most `max_enlargement` times the foreground's longer side.
        rotation_deg: rotation is uniform in +- this, at least 0.
        rotation_min_px: foregrounds whose longer side is below this are not rotated. A square counts by its own side.
        scale_range: scale per axis, uniform; at least `MIN_SCALE`, as for `crop_factors` and `max_enlargement`.
        shear_deg: shear angle, uniform in +- this; within 0 to 89.
        flip_probability: for either axis.
        crop_factors: the window is one of these times the crop's side, at most the foreground's shorter side.
        max_enlargement: a smaller foreground is enlarged up to this factor; the rest of the crop has alpha 0.

    Raises:
        ConfigError: a setting is no number, or out of its range.
    """

    def __init__(
        self,
        square_probability: float = 0.25,
        square_px: int = 640,
        rotation_deg: float = 30.0,
        rotation_min_px: int = 1024,
        scale_range: Sequence[float] = (0.8, 1.25),
        shear_deg: float = 10.0,
        flip_probability: float = 0.5,
        crop_factors: Sequence[float] = (1.0, 1.5, 2.0),
        max_enlargement: float = 2.0,
    ) -> None:
        for name, probability in (("square", square_probability), ("flip", flip_probability)):
            check_number(f"{name}_probability", probability, 0, 1)
        check_number("square_px", square_px, 1)
        check_number("rotation_deg", rotation_deg, 0)
        check_number("rotation_min_px", rotation_min_px, 0)
        check_number("shear_deg", shear_deg, 0, 89)
        check_number("max_enlargement", max_enlargement, MIN_SCALE)
        if not isinstance(crop_factors, Sequence) or not crop_factors:
            raise ConfigError(f"crop_factors must be a list of at least one number, got {crop_factors}")
        for factor in crop_factors:
            check_number("each of crop_factors", factor, MIN_SCALE)
        self.square_probability = square_probability
        self.square_px = square_px
        self.rotation_deg = rotation_deg
        self.rotation_min_px = rotation_min_px
        self.lowest_scale, self.highest_scale = checked_range("scale_range", scale_range, MIN_SCALE)
        self.shear_deg = shear_deg
        self.flip_probability = flip_probability
        self.crop_factors = tuple(crop_factors)
        self.max_enlargement = max_enlargement

    def __call__(self, crop_px: int, size: tuple[int, int], points: NDArray, rng: np.random.Generator) -> View:
        """Draw a random crop.

        Args:
            crop_px: side S of the crop.
            size: (width, height) of the foreground in px.
            points: (N, 2) draws x, y of an unknown pixel; N = 0 centres the window.
            rng: generator to draw from.
        """
        frame = self._draw_frame(size, rng)
        affine = self._draw_affine(frame, rng)
        window_px = min(crop_px * rng.choice(self.crop_factors), max(frame.min(), crop_px / self.max_enlargement))
        centre = choose_centre(points, affine @ scaling(frame / size), frame, window_px)
        return View(frame, window_px, scaling(crop_px / window_px) @ translation(window_px / 2 - centre) @ affine)

    def _draw_frame(self, size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.floating]:
        """Draw the size (width, height) in px to which the foregrounds are resized first."""
        if rng.random() < self.square_probability:
            return np.full(2, min(self.square_px, self.max_enlargement * max(size)))
        return np.array(size, float)

    def _draw_affine(self, frame: NDArray[np.floating], rng: np.random.Generator) -> Matrix:
        """Draw rotation, shear, scale and flips about the frame's centre."""
        angle = np.deg2rad(rng.uniform(-self.rotation_deg, self.rotation_deg)) * (frame.max() >= self.rotation_min_px)
        shear = np.deg2rad(rng.uniform(-self.shear_deg, self.shear_deg))
        scale = rng.uniform(self.lowest_scale, self.highest_scale, size=2)
        scale[rng.random(2) < self.flip_probability] *= -1
        rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        shearing = np.array([[1, np.tan(shear), 0], [0, 1, 0], [0, 0, 1]])
        return translation(frame / 2) @ rotation @ shearing @ scaling(scale) @ translation(-frame / 2)


def translation(offset: NDArray[np.floating]) -> Matrix:
    """Move points by an offset (x, y)."""
    return np.array([[1, 0, offset[0]], [0, 1, offset[1]], [0, 0, 1.0]])


def scaling(factor: float | NDArray[np.floating]) -> Matrix:
    """Scale points about the origin by one factor or by one per axis (x, y)."""
    return np.diag([*np.broadcast_to(factor, 2), 1.0])


def choose_centre(
    points: NDArray, to_frame: Matrix, frame: NDArray[np.floating], window_px: float
) -> NDArray[np.floating]:
    """Choose the window's centre (x, y) in the frame: the first point inside, moved to keep the window inside.

    If no point lies inside, it is the first point; without points it is the frame's centre. A window larger than the
    frame is moved until it contains the frame.

    Args:
        points: (N, 2) pixels x, y of the image.
        to_frame: maps the image's points to the frame's.
        frame: (width, height) in px.
        window_px: side of the window.
    """
    centre = frame / 2
    if len(points):
        places = (points + 0.5) @ to_frame[:2, :2].T + to_frame[:2, 2]
        is_inside = ((places >= 0) & (places < frame)).all(axis=1)
        centre = places[np.argmax(is_inside)]
    ends = np.sort([np.full(2, window_px / 2), frame - window_px / 2], axis=0)
    return centre.clip(*ends)
