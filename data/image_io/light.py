"""Linear light: convert stored colours to it and back, change its primaries, and show it on a display."""

import numpy as np
from numpy.typing import NDArray

from data.image_io.colour import D65, PRIMARIES, decode_srgb, encode_srgb, transform

SRGB_CHROMATICITIES = (*PRIMARIES[1], *D65)
"""x and y of red, green, blue and white, as an EXR's attribute has them; those that an EXR has without it."""

BRADFORD = np.array([(0.8951, 0.2664, -0.1614), (-0.7502, 1.7135, 0.0367), (0.0389, -0.0685, 1.0296)])
"""XYZ to the cones' responses in which white is adapted. Source: Lam 1985, as in ICC.1:2022, annex E."""


def to_light(colours: NDArray, icc_profile: bytes | None = None) -> NDArray[np.float32]:
    """Convert stored RGB colours (..., 3) in [0, 1] to linear light of sRGB's primaries.

    Colours outside sRGB get values below 0 or above 1: nothing is clipped.

    Args:
        colours: to convert.
        icc_profile: of their RGB space; None is sRGB.

    Raises:
        UserError: a profile that cannot be used.
    """
    values = np.asarray(colours, np.float32)
    if icc_profile is not None:
        values = transform(values.reshape(1, -1, 3), "rgb", icc_profile).reshape(values.shape)
    return decode_srgb(values).astype(np.float32, copy=False)


def from_light(light: NDArray, icc_profile: bytes | None = None) -> NDArray[np.float32]:
    """Convert linear light of sRGB's primaries to stored colours; the inverse of `to_light`, clipped to [0, 1]."""
    values = encode_srgb(np.asarray(light, np.float32)).astype(np.float32, copy=False)
    if icc_profile is not None:
        values = transform(values.reshape(1, -1, 3), "rgb", None, icc_profile).reshape(values.shape)
    return np.clip(values, 0, 1)


def change_primaries(
    light: NDArray[np.float32], source: tuple[float, ...], target: tuple[float, ...]
) -> NDArray[np.float32]:
    """Convert linear light (..., 3) between spaces of other primaries and white; unbounded.

    Args:
        light: to convert. It is returned itself if both spaces are the same.
        source: chromaticities, see `SRGB_CHROMATICITIES`.
        target: likewise.
    """
    if np.allclose(source, target, rtol=0, atol=1e-4):  # an EXR stores them as float32, and programs round them
        return light
    matrix = np.linalg.inv(_rgb_to_xyz(target)) @ _adaptation(source[6:], target[6:]) @ _rgb_to_xyz(source)
    return light @ matrix.T.astype(np.float32)


def _rgb_to_xyz(chromaticities: tuple[float, ...]) -> NDArray[np.float64]:
    """Make the matrix from RGB to XYZ in which white has Y = 1. Source: SMPTE RP 177."""
    x, y = np.array(chromaticities).reshape(4, 2).T
    columns = np.stack([x, y, 1 - x - y]) / y
    return columns[:, :3] * np.linalg.solve(columns[:, :3], columns[:, 3])


def _adaptation(source: tuple[float, ...], target: tuple[float, ...]) -> NDArray[np.float64]:
    """Make the matrix on XYZ that turns one white into another."""
    whites = [BRADFORD @ (np.array([x, y, 1 - x - y]) / y) for x, y in (source, target)]
    return np.linalg.solve(BRADFORD, np.diag(whites[1] / whites[0]) @ BRADFORD)
