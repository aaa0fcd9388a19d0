"""Decoded video frames <-> RGB arrays: colour matrix, range, depth, rotation."""

from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.image_io.colour import HDR
from runtime.errors import UserError

if TYPE_CHECKING:  # images alone must not load ffmpeg
    import av

UNSPECIFIED = 2  # in every table of ITU-T H.273
BT709, BT601 = 1, 6  # H.273, table 4: matrix coefficients
MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
"""Matrix coefficients of H.273 -> swscale's number of them."""

FILTER_MATRICES = {1: "bt709", 4: "fcc", 5: "smpte170m", 7: "smpte240m", 9: "bt2020nc"}
"""swscale's number of a matrix -> its name for ffmpeg's filters."""

EXACT = {
    "BICUBIC": "bicubic", "ACCURATE_RND": "accurate_rnd", "FULL_CHR_H_INT": "full_chroma_int",
    "FULL_CHR_H_INP": "full_chroma_inp", "BITEXACT": "bitexact",
}  # fmt: skip
"""swscale's flags for exact rounding, and chroma at full resolution: PyAV's name -> ffmpeg's name."""

STORED = {("uint8", 3): "rgb24", ("uint8", 4): "rgba", ("uint16", 3): "rgb48le", ("uint16", 4): "rgba64le"}
"""Type and channels of an array -> ffmpeg's name."""

HD_LINES = 720  # from this height on, an unspecified matrix is BT.709's
LIMITED, FULL = 1, 2  # ranges, as ffmpeg numbers them
UNIT = 2**16  # 1.0 in a display matrix


class ColourTags(NamedTuple):
    """A clip's colours, as ITU-T H.273 numbers them: primaries, transfer curve, and the matrix to Y'CbCr."""

    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED
    matrix: int = BT709


def tags_of(frame: "av.VideoFrame") -> ColourTags:
    """Read a frame's colour tags. An unspecified matrix is BT.601's below 720 lines, and BT.709's from there on.

    Raises:
        UserError: a transfer curve of HDR, or a matrix that is not read.
    """
    if frame.color_trc in HDR:
        raise UserError(f"HDR of the curve {HDR[frame.color_trc]}. Convert it to BT.709 by tone mapping")
    if frame.format.is_rgb or frame.colorspace in (0, UNSPECIFIED):  # 0 is RGB
        matrix = BT709 if frame.height >= HD_LINES else BT601
    elif frame.colorspace in MATRICES:
        matrix = frame.colorspace
    else:
        raise UserError(f"colours of matrix {frame.colorspace} of ITU-T H.273. Convert it to BT.709 by ffmpeg")
    return ColourTags(frame.color_primaries, frame.color_trc, matrix)


def is_deep(frame: "av.VideoFrame") -> bool:
    """Tell whether a frame has more than 8 bits per value."""
    return any(component.bits > 8 for component in frame.format.components)


def to_rgb(frame: "av.VideoFrame", matrix: int) -> NDArray:
    """Convert a decoded frame to RGB, upright.

    An unspecified range is limited (16 to 235) for Y'CbCr, and full for grey. Transparency is dropped.

    Args:
        frame: decoded.
        matrix: coefficients of Y'CbCr; see `ColourTags`.

    Returns: (H, W, 3) uint8, or uint16 if the frame has more than 8 bits per value.
    """
    deep = is_deep(frame)
    if frame.format.name.startswith("gray"):  # whose range swscale ignores
        grey = _full_range(frame.reformat(format="gray16le" if deep else "gray").to_ndarray(), frame.color_range)
        return upright(np.repeat(grey[:, :, None], 3, axis=2), frame)
    source = {} if frame.format.is_rgb else {"src_colorspace": MATRICES[matrix]}
    converted = frame.reformat(
        format="rgb48le" if deep else "rgb24",
        src_color_range=frame.color_range or None,
        dst_color_range=FULL,
        interpolation=_exact(),
        **source,
    )
    return upright(converted.to_ndarray(), frame)


def _exact() -> int:
    """Return the flags of `EXACT` together."""
    from av.video.reformatter import Interpolation

    return sum(int(Interpolation[name]) for name in EXACT)


def _full_range(grey: NDArray, color_range: int) -> NDArray:
    """Stretch 16 to 235 (of 255) to the full range, if the frame states that it is limited."""
    if color_range != LIMITED:
        return grey
    most = np.iinfo(grey.dtype).max
    black, white = 16 * (most + 1) / 256, 235 * (most + 1) / 256
    return np.rint(np.clip((grey - black) / (white - black), 0, 1) * most).astype(grey.dtype)


class FrameMaker:
    """Makes the frames of an encoder; Y'CbCr gets the limited range and chroma sited left, and alpha is always full.

    Args:
        pixel_format: ffmpeg's name. RGB and grey formats take the values as they are. "yuvj420p" is for grey, in full
            range; it needs even sides.
        matrix: coefficients of Y'CbCr; see `ColourTags`.
    """

    def __init__(self, pixel_format: str, matrix: int) -> None:
        self.pixel_format, self.matrix = pixel_format, matrix
        self._graph: av.filter.Graph | None = None

    def __call__(self, pixels: NDArray) -> "av.VideoFrame":
        """Make a frame of (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA, uint8 or uint16, always of one size."""
        import av

        pixels = np.ascontiguousarray(pixels[:, :, [2, 1, 0, 3]] if self.pixel_format == "bgra" else pixels)
        if self.pixel_format == "yuvj420p":
            neutral = np.full((pixels.shape[0] // 2, pixels.shape[1]), 128, np.uint8)
            return av.VideoFrame.from_ndarray(np.concatenate([pixels, neutral]), format="yuvj420p")
        if not self.pixel_format.startswith("yuv"):
            return av.VideoFrame.from_ndarray(pixels, format=self.pixel_format)
        stored = STORED[pixels.dtype.name, pixels.shape[2]]
        self._graph = self._graph or self._convert_from(stored, *pixels.shape[:2])
        frame = av.VideoFrame.from_ndarray(pixels, format=stored)
        frame.pts = 0
        self._graph.vpush(frame)
        return self._graph.vpull()

    def _convert_from(self, stored: str, height: int, width: int) -> "av.filter.Graph":
        """Make ffmpeg's scale filter, which can site chroma, as PyAV's `reformat` cannot."""
        import av

        graph = av.filter.Graph()
        source = graph.add_buffer(
            width=width, height=height, format=av.VideoFormat(stored), time_base=Fraction(1, 1000)
        )
        matrix = FILTER_MATRICES[MATRICES[self.matrix]]
        flags = "+".join(EXACT.values())
        scale = graph.add("scale", f"out_color_matrix={matrix}:out_range=limited:out_chroma_loc=left:flags={flags}")
        graph.link_nodes(source, scale, graph.add("format", self.pixel_format), graph.add("buffersink")).configure()
        return graph


def upright(pixels: NDArray, frame: "av.VideoFrame") -> NDArray:
    """Turn and mirror stored pixels as the frame's display matrix says.

    Raises:
        UserError: an angle that is no multiple of 90 degrees.
    """
    from av.sidedata import sidedata

    side_data_of: Any = sidedata.SideDataContainer  # its annotation lacks the argument
    # `frame.side_data` would keep the frame, until Python's collector of cycles comes after some hundreds of them.
    found = side_data_of(frame)
    if "DISPLAYMATRIX" not in found:
        return pixels
    a, b, _, c, d = np.frombuffer(found["DISPLAYMATRIX"], np.int32)[:5] / UNIT
    if a == d == 0 and abs(b) == abs(c) == 1:  # x' = c y, y' = b x
        pixels, x_sign, y_sign = pixels.swapaxes(0, 1), c, b
    elif b == c == 0 and abs(a) == abs(d) == 1:  # x' = a x, y' = d y
        x_sign, y_sign = a, d
    else:
        raise UserError("it is turned by an angle that is no multiple of 90 degrees. Store it upright by ffmpeg")
    return np.ascontiguousarray(pixels[:: int(y_sign), :: int(x_sign)])
