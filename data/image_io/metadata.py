"""Read the metadata of image files: size, and what results keep, colour profile and resolution."""

import logging
from io import BytesIO
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms
from tifffile import TiffFile

from data.image_io.decoding import FORMATS
from data.image_io.formats import decoder_errors
from data.image_io.tiff import STARTS
from runtime.errors import UserError

logger = logging.getLogger(__name__)

INTEROPERABILITY, ADOBE_RGB = 0xA005, "R03"  # EXIF's directory and how cameras mark Adobe RGB without a profile
PROFILE_TAG, X_RESOLUTION_TAG, Y_RESOLUTION_TAG, UNIT_TAG = 34675, 282, 283, 296  # of TIFF
UNITS_PER_INCH = {2: 1, 3: 2.54}  # its numbers of inch and centimetre
SRGB_GAMMA, GAMMA_TOLERANCE = 1 / 2.2, 0.02  # as PNG's gAMA states it
SAME_COLOUR = 2  # of 255: what profiles of sRGB differ by among each other


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
    """Read profile and resolution of an image file, and log a warning for colours that are not sRGB.

    Nothing is converted: colours are taken as sRGB. An RGB profile is kept.

    Raises:
        OSError: no such file, or it may not be read.
    """
    try:
        with path.open("rb") as file, decoder_errors():
            if file.read(4) in STARTS:
                profile, dpi, other = _read_tiff(path)
            else:
                profile, dpi, other = _read(path)
        name, is_rgb = _describe(profile) if profile else (other, False)
    except UserError:
        logger.warning("%s: its colour profile cannot be read and is ignored; its colours are taken as sRGB", path)
        return NO_METADATA
    if name:
        kept = "cut-outs and composites carry its profile" if is_rgb else "what is written carries no profile"
        logger.warning(
            "%s: its colours are %s, and are taken as sRGB; %s. Convert it to sRGB for exact results", path, name, kept
        )
    is_dpi = dpi is not None and all(isfinite(value) and value > 0 for value in dpi)
    return Metadata(profile if name and is_rgb else None, dpi if is_dpi else None)


def read_size(path: Path) -> tuple[int, int]:
    """Read the width and height that a file states, in px, without decoding it. EXIF rotation is not applied.

    Raises:
        LargeImageError: Pillow itself refuses so many pixels.
        UserError: not an image that is read.
        OSError: no such file, or it may not be read.
    """
    with path.open("rb") as file:
        is_tiff = file.read(4) in STARTS
    with decoder_errors():
        if is_tiff:
            with TiffFile(path) as tiff:
                page = tiff.pages[0].aspage()
                return int(page.imagewidth), int(page.imagelength)
        with Image.open(path, formats=FORMATS) as image:
            return image.size


def _read(path: Path) -> tuple[bytes | None, tuple[float, float] | None, str]:
    """Read profile, resolution, and the name of a colour space other than sRGB that is stated without a profile."""
    with Image.open(path, formats=FORMATS) as image:
        profile, dpi = image.info.get("icc_profile"), image.info.get("dpi")
        gamma, other = image.info.get("gamma", SRGB_GAMMA), ""
        if image.format in ("JPEG", "MPO") and _interoperability(image).get(1) == ADOBE_RGB:
            other = "Adobe RGB (by EXIF)"
        elif abs(gamma - SRGB_GAMMA) > GAMMA_TOLERANCE and "srgb" not in image.info:
            other = f"of gamma {1 / gamma:.2g}"
    return profile, dpi and (float(dpi[0]), float(dpi[1])), other


def _interoperability(image: Image.Image) -> dict[int, object]:
    """Read EXIF's directory of that name; {} if there is none, where Pillow before 13 raises an error."""
    try:
        return image.getexif().get_ifd(INTEROPERABILITY)
    except KeyError:
        return {}


def _read_tiff(path: Path) -> tuple[bytes | None, tuple[float, float] | None, str]:
    with TiffFile(path) as file:
        tags = file.pages[0].aspage().tags
        scale = UNITS_PER_INCH.get(int(tags.valueof(UNIT_TAG, 2)))
        fractions = [tags.valueof(tag) for tag in (X_RESOLUTION_TAG, Y_RESOLUTION_TAG)]
        x, y = (scale * part[0] / part[1] if scale and part and part[1] else 0.0 for part in fractions)
        return tags.valueof(PROFILE_TAG), (x, y), ""


def _describe(content: bytes) -> tuple[str, bool]:
    """Name a profile, and tell whether it is for RGB; no name if its colours equal sRGB."""
    with decoder_errors():
        profile = ImageCms.ImageCmsProfile(BytesIO(content))
        space = profile.profile.xcolor_space.strip()
        name = ImageCms.getProfileDescription(profile).strip()
    if space in ("RGB", "GRAY"):
        levels = np.arange(0, 256, 15, dtype=np.uint8)
        ramp = np.stack(np.meshgrid(levels, levels, levels), 2).reshape(-1, 1, 3) if space == "RGB" else levels[:, None]
        with decoder_errors():
            srgb, intent = ImageCms.createProfile("sRGB"), ImageCms.Intent.RELATIVE_COLORIMETRIC
            converted = ImageCms.profileToProfile(Image.fromarray(ramp), profile, srgb, intent, "RGB")
        steps = np.asarray(converted).astype(int) - ramp.reshape(len(ramp), 1, -1)
        if np.abs(steps).max() <= SAME_COLOUR:
            return "", False
    return f"of the profile {name!r}", space == "RGB"
