"""Sampling a raw foreground and its alpha through one affine matrix, colours premultiplied.

No more of a picture is touched than the crop sees, and hidden colours of transparent pixels do not bleed into edges.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from data.images import to_float

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
