"""Read and write OpenEXR: scene-linear light without a bound, in half or float.

The values are those of the file. Nothing here brings them to a display: see `SceneLinear.shown`.
"""

from collections.abc import Collection, Mapping, Sequence
from io import BytesIO
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.image_io.formats import MAX_PIXELS, decoder_errors, too_large
from data.image_io.light import SRGB_CHROMATICITIES, change_primaries, from_light
from runtime.errors import UserError, few

START, SUFFIX = b"v/1\x01", ".exr"
FLAGS_OF_ROWS = (b"\0\0\0", b"\4\0\0")  # not tiled, deep or of several parts; the second with long names
BITS = {16: np.float16, 32: np.float32}
"""Bits per value -> dtype, which OpenEXR calls half and float."""

KEPT = (
    "chromaticities", "dataWindow", "displayWindow", "framesPerSecond", "pixelAspectRatio", "screenWindowCenter",
    "screenWindowWidth", "timeCode", "xDensity",
)  # fmt: skip
"""Attributes that results keep."""

MOST_CHANNELS = 8  # of an image of the most pixels

Window = tuple[int, int, int, int]
"""Left, top, right and bottom in px of the file's plane; right and bottom lie behind the last pixel."""


class SceneLinear(NamedTuple):
    """Scene-linear light.

    Attributes:
        values: (H, W, 3) float32 RGB without a bound, or one colour (3,).
        attributes: of an EXR, those of `KEPT` that it has; its data window lies in the frame of `values`.
        bits: per value as stored, 16 or 32.
        left_out: channels of the file that were not read.
    """

    values: NDArray[np.float32]
    attributes: Mapping[str, Any] = {}
    bits: int = 16
    left_out: tuple[str, ...] = ()

    @property
    def chromaticities(self) -> tuple[float, ...]:
        """Give x and y of red, green, blue and white."""
        return tuple(self.attributes.get("chromaticities", SRGB_CHROMATICITIES))

    @property
    def inside(self) -> tuple[slice, slice]:
        """Give the rows and columns of the data window. Outside of it an EXR is transparent, and `values` are 0."""
        if "dataWindow" not in self.attributes:
            return slice(None), slice(None)
        left, top, _, _ = _frame(self.attributes)
        x, y, right, bottom = _window(self.attributes["dataWindow"])
        return slice(y - top, bottom - top), slice(x - left, right - left)

    def with_chromaticities(self, target: tuple[float, ...]) -> "SceneLinear":
        """Convert to other primaries and another white."""
        values = change_primaries(self.values, self.chromaticities, target)
        return self._replace(values=values, attributes={**self.attributes, "chromaticities": target})

    def exposed(self, stops: float) -> NDArray[np.float32]:
        """Convert the values to sRGB's primaries, and multiply them by 2 ** stops."""
        return self.with_chromaticities(SRGB_CHROMATICITIES).values * np.float32(2**stops)

    def shown(self, stops: float = 0) -> NDArray[np.float32]:
        """Convert the values to sRGB in [0, 1]: expose, clip, and apply sRGB's curve."""
        return from_light(self.exposed(stops))


def read_attributes(file: BinaryIO) -> dict[str, Any]:
    """Read the attributes of an EXR of one flat part, from the file's start.

    Raises:
        UserError: it is another, or damaged, or its frame is above `MAX_PIXELS`. The message continues a file's name.
    """
    with decoder_errors():
        import OpenEXR

        parts = OpenEXR.File(file, header_only=True).parts
        headers = [part.header for part in parts]
    if len(headers) > 1:
        raise UserError(f"an EXR of {len(headers)} parts, and one is expected. Save the part that you want as a file")
    if not headers:
        raise UserError("an EXR without an image. Is it complete? Replace or remove it")
    header: dict[str, Any] = headers[0]
    if str(header.get("type", "")).rpartition(".")[2].startswith("deep"):
        raise UserError("a deep EXR, with several values in a pixel. Flatten it")
    left, top, right, bottom = _frame(header)
    num_pixels = (right - left) * (bottom - top)
    if num_pixels > MAX_PIXELS or num_pixels * len(header["channels"]) > MOST_CHANNELS * MAX_PIXELS:
        raise too_large(f"{right - left} x {bottom - top}, {len(header['channels'])} channels")
    return header


def read_frame_size(file: BinaryIO) -> tuple[int, int]:
    """Return the width and height in px of what `decode_exr` gives. Errors as `read_attributes`."""
    left, top, right, bottom = _frame(read_attributes(file))
    return right - left, bottom - top


def read_dpi(file: BinaryIO) -> tuple[float, float] | None:
    """Return the horizontal and vertical resolution in px an inch, if the file states it. Errors as `read_attributes`.

    Source: OpenEXR's standard attributes: xDensity times pixelAspectRatio is the vertical one.
    """
    header = read_attributes(file)
    density = header.get("xDensity")
    return density and (float(density), float(density * header["pixelAspectRatio"]))


def decode_exr(content: bytes) -> SceneLinear:
    """Decode the channels R, G and B, or Y, of an EXR.

    The frame is the smallest rectangle around display window and data window. Alpha is left out: the colours stay as
    they are stored, over black.

    Raises:
        UserError: no such channels, of integers or subsampled; NaN or infinity; or as `read_attributes`.
    """
    header, channels = _read_channels(content)
    names = _colour_names(channels)
    if names[0] not in channels or {"RY", "BY"} & channels.keys():
        raise UserError(f"an EXR of the channels {few(sorted(channels))}; expected R, G and B, or Y. Save it so")
    left_out = tuple(name for name in channels if name not in names and not _is_opaque(name, channels[name]))
    return _in_frame(header, [channels[name] for name in names], names)._replace(left_out=left_out)


def decode_grey_exr(content: bytes) -> NDArray[np.float32]:
    """Decode the alpha, mask or trimap that an EXR holds.

    It is the only channel, whatever its name; of several, A unless that is 1 in the whole data window; otherwise Y, or
    R, G and B if they are equal. Other layers are left out.

    Returns: (H, W) over the frame of `decode_exr`, without a bound; 0 outside the data window.

    Raises:
        UserError: another one is as likely to be meant; or as `decode_exr`.
    """
    header, channels = _read_channels(content)
    if len(channels) == 1:
        names = list(channels)
    elif "A" in channels and not _is_opaque("A", channels["A"]):
        names = ["A"]
    else:
        names = _colour_names(channels)
    if names[0] not in channels or {"RY", "BY"} & channels.keys():
        raise UserError(f"an EXR of the channels {few(sorted(channels))}; expected one, or A, or Y. Save one channel")
    values = _in_frame(header, [channels[name] for name in names], names).values
    if (values != values[..., :1]).any():
        raise UserError("an EXR whose R, G and B differ, where grey values are expected. Save one channel")
    return np.ascontiguousarray(values[..., 0])


def _colour_names(channels: Collection[str]) -> list[str]:
    """Name the channels of colours or greys: Y unless there are R, G and B."""
    return ["R", "G", "B"] if {"R", "G", "B"} <= set(channels) else ["Y"]


def _read_channels(content: bytes) -> tuple[dict[str, Any], dict[str, NDArray]]:
    """Read the attributes, and the pixels of all channels in the data window. Errors as `read_attributes`."""
    header = read_attributes(BytesIO(content))
    if _is_cut(content, header):
        raise UserError("truncated: rows are missing. Is it complete? Replace or remove it")
    with decoder_errors():
        import OpenEXR

        parts = OpenEXR.File(BytesIO(content), separate_channels=True).parts
    if not parts:
        raise UserError("damaged: its pixels cannot be decoded. Is it complete? Replace or remove it")
    return header, {name: channel.pixels for name, channel in parts[0].channels.items()}


def _in_frame(header: Mapping[str, Any], planes: Sequence[NDArray], names: Sequence[str]) -> SceneLinear:
    """Put one or three channels into the frame, as RGB.

    Raises:
        UserError: they are of integers or subsampled, or hold NaN or infinity.
    """
    left, top, right, bottom = _frame(header)
    light = SceneLinear(
        np.zeros((bottom - top, right - left, 3), np.float32),
        {name: header[name] for name in KEPT if name in header},
        16 if all(plane.dtype == np.float16 for plane in planes) else 32,
    )
    target = light.values[light.inside]
    for name, plane in zip(names, planes, strict=True):
        if plane.dtype not in BITS.values() or plane.shape != target.shape[:2]:
            raise UserError(f"an EXR whose channel {name} is of integers or subsampled. Save it as half or float")
        wrong = ~np.isfinite(plane)
        if wrong.any():
            y, x = np.argwhere(wrong)[0]
            where = f"the first at x {x}, y {y} of the data window"
            raise UserError(f"NaN or infinity in {wrong.sum()} values of {name}, {where}. Replace them")
    target[:] = np.dstack(planes)
    return light


def _is_cut(content: bytes, header: Mapping[str, Any]) -> bool:
    """Tell whether a file of rows from top to bottom ends before its last chunk, where OpenEXR prints its own lines.

    Source: OpenEXR File Layout: version and flags, attributes (name, type, size, value), a table of the chunks' places,
    and the chunks, which begin with the number of a row and a size.
    """
    if content[5:8] not in FLAGS_OF_ROWS or not str(header["lineOrder"]).endswith("INCREASING_Y"):
        return False

    def number(place: int, num_bytes: int) -> int:
        return int.from_bytes(content[place : place + num_bytes], "little")

    place = 8
    try:
        while content[place]:
            place = content.index(0, content.index(0, place) + 1) + 1
            place += 4 + number(place, 4)
    except (IndexError, ValueError):  # the end is reached
        return True
    first_chunk = number(place + 1, 8)  # directly behind the table
    last_chunk = number(first_chunk - 8, 8) if first_chunk > place else 0
    return not place < first_chunk <= last_chunk <= len(content) - 8 - number(last_chunk + 4, 4)


def _is_opaque(name: str, pixels: NDArray) -> bool:
    return name == "A" and bool((pixels == 1).all())


def encode_exr(channels: Mapping[str, NDArray], light: SceneLinear, bits: int | None = None) -> bytes:
    """Encode channels, ZIP compressed without loss.

    Args:
        channels: name -> (H, W) floats over the frame of `light`. Of its data window, the pixels inside are stored.
        light: whose attributes are kept.
        bits: 16 (half) or 32 (float); None takes those of `light`.

    Raises:
        UserError: values that are not finite, or too large for half. The message continues a file's name.
    """
    import OpenEXR

    planes = {}
    for name, values in channels.items():
        with np.errstate(over="ignore"):
            planes[name] = np.ascontiguousarray(values[light.inside], BITS[bits or light.bits])
        if not np.isfinite(planes[name]).all():
            raise UserError(f"its channel {name} has values beyond 65504, which half cannot hold: take 32 bits")
    header = {**light.attributes, "compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    content = BytesIO()
    OpenEXR.File(header, planes).write(content)
    return content.getvalue()


def _window(box: Any) -> Window:
    """Read an attribute of two corners, both inside."""
    (left, top), (right, bottom) = ([int(value) for value in corner] for corner in box)
    return left, top, right + 1, bottom + 1


def _frame(header: Mapping[str, Any]) -> Window:
    """Find the smallest rectangle around display window and data window."""
    first, second = (_window(header[name]) for name in ("dataWindow", "displayWindow"))
    return min(first[0], second[0]), min(first[1], second[1]), max(first[2], second[2]), max(first[3], second[3])
