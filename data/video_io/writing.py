"""Encode frames: which codec for which file, and segments of a clip that are joined later."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, cast

from numpy.typing import NDArray

from data.image_io.images import DataError, to_uint8, to_uint16
from data.video_io.pixels import FULL, LIMITED, ColourTags, FrameMaker
from runtime.atomic_write import atomic_write

SEGMENT_RATE = 25
"""Frames per second inside a segment, where each frame has its number as time; `join` sets the clip's own times."""

SEGMENT_SUFFIX = ".mkv"


class Encoder(NamedTuple):
    """How frames are encoded.

    Attributes:
        codec: ffmpeg's name of the encoder.
        pixel_format: of the encoded frames.
        bits: of the values that it takes, 8 or 16.
        options: of the encoder.
        needs_even: whether width and height must be even.
        metadata: of the stream.
    """

    codec: str
    pixel_format: str
    bits: int = 8
    options: Mapping[str, str] = MappingProxyType({})
    needs_even: bool = False
    metadata: Mapping[str, str] = MappingProxyType({})


class FrameFormat(NamedTuple):
    """What all frames of a result share.

    Attributes:
        width: in px.
        height: in px.
        tags: colours, which the file states.
        pixel_aspect: width of a pixel by its height; None states nothing.
    """

    width: int
    height: int
    tags: ColourTags
    pixel_aspect: Fraction | None = None


# Without B-frames, frames are stored in the order of their times. What is unknown in an alpha is little to store.
GREY_H264 = Encoder("libx264", "yuvj420p", options=MappingProxyType({"crf": "4", "bf": "0"}), needs_even=True)
COLOUR_H264 = Encoder("libx264", "yuv420p", options=MappingProxyType({"crf": "12", "bf": "0"}), needs_even=True)
PRORES = Encoder("prores_ks", "yuva444p10le", 16, MappingProxyType({"profile": "4444", "alpha_bits": "16"}))
# Without loss: alpha shares the settings of the colours, and at other settings it is off by more than 2 of 255.
VP9 = Encoder(
    "libvpx-vp9",
    "yuva420p",
    options=MappingProxyType({"lossless": "1", "row-mt": "1", "cpu-used": "4"}),
    metadata=MappingProxyType({"alpha_mode": "1"}),
)
FFV1 = {
    (kind, bits): Encoder("ffv1", pixel_format, bits, MappingProxyType({"level": "3", "g": "1"}))
    for kind, bits, pixel_format in (
        ("alpha", 8, "gray"), ("alpha", 16, "gray16le"), ("rgba", 8, "bgra"), ("rgba", 16, "gbrap16le"),
    )
}  # fmt: skip

ENCODERS: dict[str, dict[str, Encoder | None]] = {
    "alpha": {".mp4": GREY_H264, ".mov": GREY_H264, ".mkv": None, ".nut": None},
    "rgba": {".mov": PRORES, ".webm": VP9, ".mkv": None, ".nut": None},
    "composite": {".mp4": COLOUR_H264, ".mov": COLOUR_H264, ".mkv": COLOUR_H264, ".nut": COLOUR_H264},
}
"""Kind of result -> suffix -> encoder; None is FFV1, which holds 8 and 16 bit."""

MUXERS = {".mov": "mov", ".mp4": "mp4", ".mkv": "matroska", ".webm": "webm", ".nut": "nut"}
"""Suffix -> ffmpeg's name of the format."""


def encoder_for(path: Path, kind: str, bits: int, size: tuple[int, int]) -> Encoder:
    """Choose the encoder of a file.

    Args:
        path: of the file.
        kind: "alpha", "rgba" or "composite".
        bits: per value, 8 or 16; ProRes has its own. No clip holds the 32 of an EXR.
        size: (width, height) in px.

    Raises:
        DataError: the file's format cannot hold this.
    """
    suffix, allowed = path.suffix.lower(), ENCODERS[kind]
    if suffix not in allowed:
        what = {"alpha": "an alpha", "rgba": "colours with alpha (--as rgba)", "composite": "a composite"}[kind]
        raise DataError(f"{path}: for {what}, expected a clip ending in {', '.join(allowed)}, or a folder")
    if bits == 32:
        raise DataError(f"{path}: no clip holds 32 bit. Name a folder with --format exr, or take 16")
    encoder = allowed[suffix] or FFV1[kind, bits]
    if encoder.bits < bits:
        advice = "a folder" if kind == "composite" else ".mkv or a folder"
        raise DataError(f"{path}: {encoder.codec} is written with 8 bit here. For 16 bit, name {advice}")
    if encoder.needs_even and (size[0] % 2 or size[1] % 2):
        others = [name for name, other in allowed.items() if not (other and other.needs_even)]
        advice = ", ".join([*others, "a folder"])
        raise DataError(f"{path}: H.264 needs even sides, and the clip is {size[0]} x {size[1]} px. Name {advice}")
    return encoder


@contextmanager
def segment(path: Path, encoder: Encoder, form: FrameFormat) -> Iterator[Callable[[NDArray], None]]:
    """Write some frames of a clip to a Matroska file, which is complete or absent.

    Args:
        path: of the file.
        encoder: see `encoder_for`.
        form: of the frames.

    Yields: a function that encodes the next frame: (H, W), (H, W, 3) or (H, W, 4) float in [0, 1], rounded.

    Raises:
        WriteError: the file cannot be written.
    """
    import av

    with atomic_write(path) as unfinished, av.open(str(unfinished), "w", format="matroska") as container:
        stream = cast("av.VideoStream", container.add_stream(encoder.codec, SEGMENT_RATE, dict(encoder.options)))
        stream.width, stream.height = form.width, form.height
        stream.pix_fmt = encoder.pixel_format
        stream.metadata.update(encoder.metadata)
        context = stream.codec_context
        context.color_primaries, context.color_trc = form.tags.primaries, form.tags.transfer
        if encoder.pixel_format.startswith("yuv"):
            context.colorspace = form.tags.matrix
            context.color_range = FULL if encoder.pixel_format == "yuvj420p" else LIMITED
        elif encoder.pixel_format.startswith("gray"):
            context.color_range = FULL
        if form.pixel_aspect:
            context.sample_aspect_ratio = form.pixel_aspect
        make, count = FrameMaker(encoder.pixel_format, form.tags.matrix), 0

        def encode(values: NDArray) -> None:
            nonlocal count
            pixels = to_uint16(values) if encoder.bits == 16 else to_uint8(values)
            frame = make(pixels)
            frame.color_primaries, frame.color_trc = context.color_primaries, context.color_trc  # ProRes reads these
            frame.pts, frame.time_base = count, Fraction(1, SEGMENT_RATE)
            count += 1
            container.mux(stream.encode(frame))

        yield encode
        container.mux(stream.encode(None))
