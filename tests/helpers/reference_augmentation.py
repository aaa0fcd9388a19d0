"""A second implementation of the training augmentations, for comparing distributions with the data sets' own.

It is written from the documented meaning of the settings and from the literature, without a look at `data.augment`:
Deep Image Matting (Xu et al. 2017) for crops and trimaps, GCA (Li and Lu 2020) for merging, affine map and colours.
Where these leave a choice open, it takes the simplest one. It draws its random numbers in an order of its own.
"""

from dataclasses import dataclass

import cv2
import numpy as np

INTERPOLATIONS = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)


@dataclass
class Settings:
    """The settings of a training data set, by their names in the configs, with the defaults of the GCA line."""

    crop_px: int = 512
    merge_probability: float = 0.5
    square_probability: float = 0.25
    square_px: int = 640
    rotation_deg: float = 30.0
    rotation_min_px: int = 1024
    scale_range: tuple[float, float] = (0.8, 1.25)
    shear_deg: float = 10.0
    flip_probability: float = 0.5
    crop_factors: tuple[float, ...] = (1.0, 1.5, 2.0)
    max_enlargement: float = 2.0
    radius_px: tuple[int, int] = (0, 14)
    hue_deg: float = 40.0
    jitter_share: float = 0.1


def draw_composite(
    foregrounds: list[np.ndarray], index: int, settings: Settings, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Draw a sample over a black background.

    Args:
        foregrounds: arrays (H, W, 4) of RGB, not premultiplied, and alpha, in [0, 1].
        index: of the sample; foregrounds take turns.
        settings: of the data set.
        rng: generator of the sample.

    Returns: "image" (S, S, 3), "alpha" (S, S), both in [0, 1], and "trimap" (S, S) in {0, 0.5, 1}.
    """
    foreground = foregrounds[index % len(foregrounds)]
    if rng.random() < settings.merge_probability:
        foreground = lay_over(foreground, foregrounds[rng.integers(len(foregrounds))])
    matrix = draw_matrix(foreground[..., 3], settings, rng)
    foreground = warp(foreground, matrix, settings.crop_px, rng)
    colour, alpha = foreground[..., :3], foreground[..., 3]
    colour = jitter_colour(colour, alpha, settings, rng)
    return {"image": alpha[..., None] * colour, "alpha": alpha, "trimap": draw_trimap(alpha, settings, rng)}


def draw_photograph(photograph: np.ndarray, settings: Settings, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw a crop of a photograph (H, W, 4) and its alpha. It never shows anything outside of the photograph."""
    matrix = draw_inner_matrix(photograph[..., 3], settings, rng)
    photograph = warp(photograph, matrix, settings.crop_px, rng, border=cv2.BORDER_REPLICATE)
    colour, alpha = photograph[..., :3], photograph[..., 3]
    colour = jitter_colour(colour, alpha, settings, rng)
    return {"image": colour, "alpha": alpha, "trimap": draw_trimap(alpha, settings, rng)}


def lay_over(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Lay one foreground over another one, which is stretched to its size: alpha = 1 - (1 - a1)(1 - a2)."""
    height, width = upper.shape[:2]
    lower = cv2.resize(lower, (width, height), interpolation=cv2.INTER_LINEAR)
    upper_alpha, lower_alpha = upper[..., 3:], lower[..., 3:]
    alpha = 1 - (1 - upper_alpha) * (1 - lower_alpha)
    colour = upper_alpha * upper[..., :3] + (1 - upper_alpha) * lower_alpha * lower[..., :3]
    return np.concatenate([colour / np.maximum(alpha, 1e-6), alpha], axis=2)


def draw_matrix(alpha: np.ndarray, settings: Settings, rng: np.random.Generator) -> np.ndarray:
    """Draw the 2 x 3 matrix from the points of a foreground to those of its crop.

    The foreground is turned, scaled and sheared about its centre, on a canvas of its own size. A square window of
    this canvas becomes the crop. It is centred on an unknown pixel, then moved inside the canvas. If it is larger than
    the canvas, it is moved until it holds the canvas.
    """
    canvas, stretch = _draw_canvas(alpha, settings, rng)
    linear = _draw_linear(canvas, settings, rng)
    smallest = settings.crop_px / settings.max_enlargement
    window = max(min(_draw_window(settings, rng), canvas.min()), smallest)
    centre = linear @ (stretch * _draw_unknown_point(alpha, rng) - canvas / 2) + canvas / 2
    ends = np.sort([np.full(2, window / 2), canvas - window / 2], axis=0)
    centre = np.clip(centre, *ends)
    zoom = settings.crop_px / window
    offset = zoom * (canvas / 2 - linear @ canvas / 2 - centre) + settings.crop_px / 2
    return np.column_stack([zoom * linear @ np.diag(stretch), offset])


def draw_inner_matrix(alpha: np.ndarray, settings: Settings, rng: np.random.Generator) -> np.ndarray:
    """Draw the 2 x 3 matrix from the points of a photograph to those of its crop.

    The window is turned, scaled and sheared instead. It shrinks until it fits into the photograph. Then it is moved
    inside.
    """
    canvas, stretch = _draw_canvas(alpha, settings, rng)
    linear = _draw_linear(canvas, settings, rng)
    reach = np.abs(np.linalg.inv(linear)).sum(axis=1) / 2  # half sides of the box around a turned window of 1 px
    window = min(_draw_window(settings, rng), (canvas / 2 / reach).min())
    centre = np.clip(stretch * _draw_unknown_point(alpha, rng), window * reach, canvas - window * reach)
    zoom = settings.crop_px / window
    return np.column_stack([zoom * linear @ np.diag(stretch), settings.crop_px / 2 - zoom * linear @ centre])


def _draw_canvas(alpha: np.ndarray, settings: Settings, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw whether the foreground becomes a square. Return width and height, and the factors that lead to them."""
    size = np.array(alpha.shape[::-1], dtype=float)
    square_px = min(settings.square_px, settings.max_enlargement * size.max())
    canvas = np.full(2, square_px) if rng.random() < settings.square_probability else size
    return canvas, canvas / size


def _draw_linear(canvas: np.ndarray, settings: Settings, rng: np.random.Generator) -> np.ndarray:
    """Draw a 2 x 2 matrix: the x axis turns by the rotation, the y axis by rotation and shear."""
    can_turn = canvas.max() >= settings.rotation_min_px
    rotation = rng.uniform(-1, 1) * np.radians(settings.rotation_deg) * can_turn
    sheared = rotation + rng.uniform(-1, 1) * np.radians(settings.shear_deg)
    flips = np.where(rng.random(2) < settings.flip_probability, -1, 1)
    axes = np.array([[np.cos(rotation), -np.sin(sheared)], [np.sin(rotation), np.cos(sheared)]])
    return axes @ np.diag(flips * rng.uniform(*settings.scale_range, size=2))


def _draw_window(settings: Settings, rng: np.random.Generator) -> float:
    """Draw the side of the window in pixels of the canvas, before it is limited."""
    return settings.crop_px * rng.choice(settings.crop_factors)


def _draw_unknown_point(alpha: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw the centre of a pixel of fractional alpha: x, y, where 0, 0 is the corner of the image."""
    rows, columns = np.nonzero((alpha > 0) & (alpha < 1))
    chosen = rng.integers(len(rows))
    return np.array([columns[chosen], rows[chosen]]) + 0.5


def warp(
    image: np.ndarray, matrix: np.ndarray, crop_px: int, rng: np.random.Generator, border: int = cv2.BORDER_CONSTANT
) -> np.ndarray:
    """Warp an image (H, W, 4) to the crop (S, S, 4), with an interpolation that is drawn.

    An image that shrinks by a factor of 2 or more is first reduced by the whole part of the factor, by averaging areas.
    """
    reduction = int(1 / np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    if reduction > 1:
        height, width = image.shape[:2]
        image = cv2.resize(image, (width // reduction, height // reduction), interpolation=cv2.INTER_AREA)
        factors = np.array([width, height]) / image.shape[1::-1]
        matrix = np.column_stack([matrix[:, :2] * factors, matrix[:, 2]])
    shift = 0.5 * matrix[:, :2].sum(axis=1) - 0.5  # OpenCV counts from the centre of the first pixel
    matrix = np.column_stack([matrix[:, :2], matrix[:, 2] + shift])
    flags = INTERPOLATIONS[rng.integers(len(INTERPOLATIONS))]
    return np.clip(cv2.warpAffine(image, matrix, (crop_px, crop_px), flags=flags, borderMode=border), 0, 1)


def jitter_colour(colour: np.ndarray, alpha: np.ndarray, settings: Settings, rng: np.random.Generator) -> np.ndarray:
    """Shift hue, saturation and value of a foreground (S, S, 3) by one draw each."""
    if not settings.hue_deg and not settings.jitter_share:
        return colour
    hsv = cv2.cvtColor(colour.astype(np.float32), cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + rng.uniform(-1, 1) * settings.hue_deg) % 360
    for channel in (1, 2):
        mean = hsv[..., channel][alpha > 0].mean()
        hsv[..., channel] += rng.uniform(-1, 1) * settings.jitter_share * (1.1 - mean)
    hsv[..., 1:] = np.clip(hsv[..., 1:], 0, 1)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def draw_trimap(alpha: np.ndarray, settings: Settings, rng: np.random.Generator) -> np.ndarray:
    """Draw the trimap of an alpha (S, S): pure foreground and pure background are eroded by separate ellipses.

    Pure is what 8 bit store as 0 or 255.
    """
    stored = np.rint(255 * alpha)
    foreground, background = (
        cv2.erode(pure.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2))
        for pure, radius in zip(
            (stored == 255, stored == 0),
            rng.integers(settings.radius_px[0], settings.radius_px[1] + 1, size=2),
            strict=True,
        )
    )
    return np.where(foreground, 1.0, np.where(background, 0.0, 0.5))
