"""Read the metadata of image files: size, and what results keep, colour profile and resolution."""

from io import BytesIO
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms
from tifffile import TiffFile

from data.image_io import exr
from data.image_io.colour import (
    ADOBE_RGB,
    ADOBE_RGB_GAMMA,
    D65,
    PRIMARIES,
    profile_of_codes,
    read_codes,
    rgb_profile,
    rgb_profile_of_grey,
)
from data.image_io.decoding import FORMATS
from data.image_io.formats import decoder_errors, warn_once
from data.image_io.tiff import STARTS
from runtime.errors import UserError

INTEROPERABILITY, ADOBE_RGB_MARK = 0xA005, "R03"  # EXIF's directory and how cameras mark Adobe RGB without a profile
PROFILE_TAG, X_RESOLUTION_TAG, Y_RESOLUTION_TAG, UNIT_TAG = 34675, 282, 283, 296  # of TIFF
UNITS_PER_INCH = {2: 1, 3: 2.54}  # its numbers of inch and centimetre
SRGB_GAMMA, GAMMA_TOLERANCE = 1 / 2.2, 0.02  # as PNG's gAMA states it
SAME_COLOUR = 2  # of 255: what profiles of sRGB differ by among each other
HEAD_BYTES = 2**20  # of a file; the numbers of H.273 stand before the pixels


class Metadata(NamedTuple):
    """Metadata that results keep.

    Attributes:
        icc_profile: of RGB colours that are not sRGB.
        dpi: horizontal and vertical, in px an inch.
    """

    icc_profile: bytes | None = None
    dpi: tuple[float, float] | None = None


NO_METADATA = Metadata()


def read_metadata(path: Path) -> Metadata:
    """Read colour space and resolution of an image file.

    The profile is that of the file, or one made of what it states otherwise: numbers of H.273, PNG's gamma and
    chromaticities, a camera's mark of Adobe RGB. A profile of grey becomes one of RGB. Colours without one are sRGB, as
    are CMYK and CIELAB when they are decoded. A profile that cannot be read is ignored with a warning.

    Raises:
        OSError: no such file, or it may not be read.
    """
    try:
        with path.open("rb") as file, decoder_errors():
            content = file.read(HEAD_BYTES)
        if content.startswith(exr.START):
            with path.open("rb") as file:
                profile, dpi = None, exr.read_dpi(file)
        else:
            profile, dpi = _read_tiff(path) if content.startswith(STARTS) else _read(path, content)
        profile = profile and _rgb_profile(profile)
    except UserError:
        warn_once(f"{path}: its colour profile cannot be read and is ignored; its colours are taken as sRGB")
        return NO_METADATA
    is_dpi = dpi is not None and all(isfinite(value) and value > 0 for value in dpi)
    return Metadata(profile or None, dpi if is_dpi else None)


def read_size(path: Path) -> tuple[int, int]:
    """Read the width and height that a file states, in px, without decoding it. EXIF rotation is not applied.

    Raises:
        LargeImageError: Pillow itself refuses so many pixels.
        UserError: not an image that is read.
        OSError: no such file, or it may not be read.
    """
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        if start == exr.START:
            return exr.read_frame_size(file)
    with decoder_errors():
        if start in STARTS:
            with TiffFile(path) as tiff:
                page = tiff.pages[0].aspage()
                return int(page.imagewidth), int(page.imagelength)
        with Image.open(path, formats=FORMATS) as image:
            return image.size


def _read(path: Path, content: bytes) -> tuple[bytes | None, tuple[float, float] | None]:
    """Read the profile, or make that of the space that is stated otherwise, and the resolution."""
    codes = read_codes(content)
    with decoder_errors(), Image.open(path, formats=FORMATS) as image:
        info, is_adobe = image.info, image.format in ("JPEG", "MPO") and _interoperability(image) == ADOBE_RGB_MARK
        dpi = info.get("dpi")
    profile = info.get("icc_profile")
    if codes and (image.format == "PNG" or not profile):  # there they come before a profile
        profile = profile_of_codes(codes)
    elif is_adobe and not profile:
        profile = rgb_profile(ADOBE_RGB, ADOBE_RGB_GAMMA)
    elif not profile and "gamma" in info and "srgb" not in info:
        profile = _profile_of_gamma(info["gamma"], info.get("chromaticity"))
    return profile, dpi and (float(dpi[0]), float(dpi[1]))


def _interoperability(image: Image.Image) -> object:
    """Read EXIF's entry of that name; None if there is none, where Pillow before 13 raises an error."""
    try:
        return image.getexif().get_ifd(INTEROPERABILITY).get(1)
    except KeyError:
        return None


def _profile_of_gamma(gamma: float, chromaticity: tuple[float, ...] | None) -> bytes | None:
    """Make the profile of PNG's gAMA, the exponent of what is stored, and cHRM, x and y of white, red, green, blue."""
    usual = (*D65, *PRIMARIES[1])
    chromaticity = usual if chromaticity is None else chromaticity
    if gamma == 0 or (abs(gamma - SRGB_GAMMA) <= GAMMA_TOLERANCE and chromaticity == usual):
        return None
    return rgb_profile(chromaticity[2:], 1 / gamma, chromaticity[:2])


def _read_tiff(path: Path) -> tuple[bytes | None, tuple[float, float] | None]:
    with decoder_errors(), TiffFile(path) as file:
        tags = file.pages[0].aspage().tags
        scale = UNITS_PER_INCH.get(int(tags.valueof(UNIT_TAG, 2)))
        fractions = [tags.valueof(tag) for tag in (X_RESOLUTION_TAG, Y_RESOLUTION_TAG)]
        x, y = (scale * part[0] / part[1] if scale and part and part[1] else 0.0 for part in fractions)
        return tags.valueof(PROFILE_TAG), (x, y)


def _rgb_profile(content: bytes) -> bytes | None:
    """Return a profile as one of RGB; None of one whose colours equal sRGB, and of CMYK and CIELAB."""
    with decoder_errors():
        profile = ImageCms.ImageCmsProfile(BytesIO(content))
        space = profile.profile.xcolor_space.strip()
        if space not in ("RGB", "GRAY"):
            return None
        levels = np.arange(0, 256, 15, dtype=np.uint8)
        ramp = np.stack(np.meshgrid(levels, levels, levels), 2).reshape(-1, 1, 3) if space == "RGB" else levels[:, None]
        srgb, intent = ImageCms.createProfile("sRGB"), ImageCms.Intent.RELATIVE_COLORIMETRIC
        converted = ImageCms.profileToProfile(Image.fromarray(ramp), profile, srgb, intent, "RGB")
        steps = np.asarray(converted).astype(int) - ramp.reshape(len(ramp), 1, -1)
    if np.abs(steps).max() <= SAME_COLOUR:
        return None
    return content if space == "RGB" else rgb_profile_of_grey(content)
