"""Colour spaces, each as an ICC profile: convert between them, and make the profiles of what files state otherwise."""

from functools import lru_cache
from io import BytesIO
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from data.image_io.formats import decoder_errors
from runtime.errors import UserError

D65 = (0.3127, 0.3290)
PRIMARIES = {  # ITU-T H.273, table 2: code -> x and y of red, green and blue, where D65 is white
    1: (0.640, 0.330, 0.300, 0.600, 0.150, 0.060),  # BT.709 and sRGB
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046),  # BT.2020
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060),  # Display P3
}
ADOBE_RGB = (0.640, 0.330, 0.210, 0.710, 0.150, 0.060)
ADOBE_RGB_GAMMA = 563 / 256
GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}  # H.273, table 3: code of a transfer curve that is a power
LIKE_SRGB = (1, 6, 13, 14, 15)  # sRGB's curve, and BT.709's kin, which browsers show as it
HDR = {16: "PQ", 18: "HLG"}
NUM_STEPS = 4096  # of a stored curve
RELATIVE, BLACK_POINT = 1, 0x2000  # littleCMS: relative colorimetric, with compensation of the black point


class Codes(NamedTuple):
    """A colour space as ITU-T H.273 numbers it: primaries (table 2) and transfer curve (table 3)."""

    primaries: int
    transfer: int


def convert(colours: NDArray, source: bytes | None, target: bytes | None = None) -> NDArray[np.float32]:
    """Convert RGB colours from one space to another; what the other space lacks is clipped.

    Args:
        colours: (..., 3) in [0, 1].
        source: ICC profile of an RGB space; None is sRGB.
        target: likewise.

    Raises:
        UserError: a profile that cannot be used.
    """
    values = np.asarray(colours, np.float32)
    if source == target:
        return values
    converted = transform(values.reshape(1, -1, 3), "rgb", source, target)
    return np.clip(converted, 0, 1, dtype=np.float32).reshape(values.shape)


def transform(values: NDArray[np.float32], space: str, source: bytes | None, target: bytes | None = None) -> NDArray:
    """Convert values of a space, "rgb" (1, N, 3) or "gray" (1, N), to RGB (1, N, 3) without a bound; None is sRGB."""
    with decoder_errors():
        import imagecodecs

        srgb = imagecodecs.cms_profile("srgb")
        return imagecodecs.cms_transform(
            np.ascontiguousarray(values),
            source or srgb,
            target or srgb,
            colorspace=space,
            outcolorspace="rgb",
            intent=RELATIVE,
            flags=BLACK_POINT,
        )


def to_srgb(image: Image.Image) -> Image.Image:
    """Convert a loaded Pillow image of CMYK or CIELAB to sRGB, 8 bit.

    CMYK without a profile that can be used is converted by Pillow's plain formula; `data.image_io.metadata` warns.
    """
    profile = image.info.get("icc_profile", b"") if image.mode == "CMYK" else None
    try:
        with decoder_errors():
            source = ImageCms.createProfile("LAB") if profile is None else ImageCms.ImageCmsProfile(BytesIO(profile))
            flags, srgb = ImageCms.Flags.BLACKPOINTCOMPENSATION, ImageCms.createProfile("sRGB")
            intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
            return cast(Image.Image, ImageCms.profileToProfile(image, source, srgb, intent, "RGB", flags=flags))
    except UserError:
        if image.mode != "CMYK":
            raise
        return image.convert("RGB")


def decode_srgb(values: NDArray) -> NDArray:
    """Convert sRGB values to linear light, also those outside [0, 1]. Source: IEC 61966-2-1."""
    return np.where(values <= 0.04045, values / 12.92, ((np.maximum(values, 0) + 0.055) / 1.055) ** 2.4)


def encode_srgb(light: NDArray) -> NDArray:
    """Convert linear light to sRGB values, the inverse of `decode_srgb`."""
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * np.maximum(light, 0) ** (1 / 2.4) - 0.055)


@lru_cache(maxsize=64)
def rgb_profile(primaries: tuple[float, ...], gamma: float | None, white: tuple[float, ...] = D65) -> bytes:
    """Make the profile of an RGB space.

    Args:
        primaries: x and y of red, green and blue.
        gamma: exponent to linear light; None is sRGB's curve.
        white: x and y of white.

    Raises:
        UserError: there is no such space.
    """
    levels = np.linspace(0, 1, NUM_STEPS)
    return _profile_of_curve(decode_srgb(levels) if gamma is None else levels**gamma, primaries, white)


def _profile_of_curve(linear: NDArray, primaries: tuple[float, ...], white: tuple[float, ...] = D65) -> bytes:
    with decoder_errors():
        import imagecodecs

        curve = np.asarray(linear, np.float32)
        return bytes(
            imagecodecs.cms_profile("rgb", whitepoint=list(white), primaries=list(primaries), transferfunction=curve)
        )


@lru_cache(maxsize=64)
def rgb_profile_of_grey(profile: bytes) -> bytes:
    """Make the RGB profile in which equal channels mean what a profile of grey means.

    Raises:
        UserError: a profile that cannot be used.
    """
    levels = np.linspace(0, 1, NUM_STEPS, dtype=np.float32)[None]
    shown = transform(levels, "gray", profile)
    return _profile_of_curve(decode_srgb(np.clip(shown[0, :, 1], 0, 1)), PRIMARIES[1])


def profile_of_codes(codes: Codes) -> bytes | None:
    """Make the profile of a space of H.273; None for sRGB, and for codes that say "unspecified" or are not known."""
    primaries = PRIMARIES.get(codes.primaries)
    is_like_srgb = codes.transfer in LIKE_SRGB
    if primaries is None or not (is_like_srgb or codes.transfer in GAMMAS) or (codes.primaries == 1 and is_like_srgb):
        return None
    return rgb_profile(primaries, None if is_like_srgb else GAMMAS[codes.transfer])


def read_codes(content: bytes) -> Codes | None:
    """Read the numbers of H.273 from a PNG (chunk cICP) or from HEIF and AVIF (box colr); None if there are none.

    Sources: PNG, third edition, 11.3.2.6; ISO 14496-12, 12.1.5.
    """
    if content.startswith(b"\x89PNG"):
        place, width = content.find(b"cICP", 0, max(content.find(b"IDAT"), 0)), 1
    else:
        place, width = content.find(b"colrnclx"), 2
        place += 4 * (place >= 0)
    if place < 0:
        return None
    body = content[place + 4 : place + 4 + 2 * width]
    return Codes(int.from_bytes(body[:width], "big"), int.from_bytes(body[width:], "big"))


def refuse_hdr(content: bytes) -> None:
    """Raise a UserError for the brightness curves of HDR, which would look flat and grey when taken as sRGB."""
    codes = read_codes(content)
    if codes and codes.transfer in HDR:
        raise UserError(f"HDR of the curve {HDR[codes.transfer]}. Convert it to sRGB by tone mapping")
