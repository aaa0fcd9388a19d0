"""Join segments to one clip with exact times, and copy the sound beside them, without encoding anything anew."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from fractions import Fraction
from heapq import merge
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from data.image_io.images import DataError
from data.video_io.writing import MUXERS, Encoder, FrameFormat
from runtime.atomic_write import atomic_write

if TYPE_CHECKING:  # images alone must not load ffmpeg
    import av

ISO_MUXERS = ("mov", "mp4")
MAX_TIMESCALE = 2**31 - 1  # of MOV and MP4
END_S = 1e-6  # tolerance of sums of seconds


class Times(NamedTuple):
    """When the frames of a result are shown.

    Attributes:
        ticks: of each frame, increasing.
        end: tick at which the last one ends.
        time_base: seconds of a tick.
    """

    ticks: Sequence[int]
    end: int
    time_base: Fraction


class Sound(NamedTuple):
    """The sound of a clip to copy.

    Attributes:
        path: of the clip.
        start: from when on it is copied, in seconds of the clip's own times; None is everything.
        stop: until when; None is everything.
        shift: seconds to add to its times.
    """

    path: Path
    start: float | None = None
    stop: float | None = None
    shift: Fraction = Fraction(0)


def join(
    segments: Sequence[Path],
    path: Path,
    encoder: Encoder,
    form: FrameFormat,
    times: Times,
    sound: Sound | None = None,
) -> None:
    """Join segments, in this order, to one file, which is complete or absent.

    Frame times are exact in MOV, MP4 and NUT; Matroska and WebM have ticks of a millisecond.

    Args:
        segments: files of `data.video_io.writing.segment`, of one encoder.
        path: of the file; its suffix is a key of `MUXERS`.
        encoder: of the segments.
        form: of their frames.
        times: of all their frames.
        sound: copied beside the frames.

    Raises:
        WriteError: the file cannot be written.
    """
    import av

    muxer = MUXERS[path.suffix.lower()]
    scale = str(min(times.time_base.denominator, MAX_TIMESCALE))
    options = {"video_track_timescale": scale, "movie_timescale": scale} if muxer in ISO_MUXERS else {}
    with ExitStack() as stack:
        unfinished = stack.enter_context(atomic_write(path))
        first = stack.enter_context(av.open(str(segments[0])))
        output = stack.enter_context(av.open(str(unfinished), "w", format=muxer, container_options=options))
        video = output.add_stream_from_template(first.streams.video[0])
        video.time_base = times.time_base
        video.metadata.update(encoder.metadata)
        if form.pixel_aspect:
            video.codec_context.sample_aspect_ratio = form.pixel_aspect
        parts = [_video_packets(segments, video, times)]
        if sound:
            source = stack.enter_context(av.open(str(sound.path), metadata_errors="replace"))
            copies = {stream.index: output.add_stream_from_template(stream) for stream in source.streams.audio}
            # Matroska and NUT have no times below 0; they would move all frames to where the sound begins.
            parts.append(_sound_packets(source, copies, sound, can_be_negative=muxer in ISO_MUXERS))
        for _, packet in merge(*parts, key=lambda part: part[0]):
            output.mux(packet)


def check_sound(path: Path, target: Path) -> bool:
    """Tell whether a clip has sound, which a target file can hold.

    Raises:
        DataError: its format cannot hold this sound.
    """
    import av

    with av.open(str(path), metadata_errors="replace") as source:
        codecs = [stream.codec_context.codec.canonical_name for stream in source.streams.audio]
    muxer = MUXERS[target.suffix.lower()]
    with av.open("/dev/null", "w", format=muxer) as output:
        missing = [codec for codec in codecs if codec not in output.supported_codecs]
    if missing:
        raise DataError(f"{target}: this format does not hold the clip's sound ({missing[0]}). Name .mkv or .mov")
    return bool(codecs)


def _video_packets(
    segments: Iterable[Path], stream: "av.VideoStream", times: Times
) -> Iterator[tuple[float, "av.Packet"]]:
    """Yield the packets of all segments, each with the time of its frame, which is in seconds too."""
    import av

    following = [*times.ticks[1:], times.end]
    number = 0
    for segment in segments:
        with av.open(str(segment)) as container:
            for packet in container.demux(container.streams.video[0]):
                if not packet.size:
                    continue
                packet.stream, packet.time_base = stream, times.time_base
                packet.pts = packet.dts = times.ticks[number]
                packet.duration = following[number] - times.ticks[number]
                yield float(packet.pts * times.time_base), packet
                number += 1
    if number != len(times.ticks):
        raise AssertionError(f"{number} frames in the segments for {len(times.ticks)} times")


def _sound_packets(
    source: "av.container.InputContainer", copies: Mapping[int, "av.stream.Stream"], sound: Sound, can_be_negative: bool
) -> Iterator[tuple[float, "av.Packet"]]:
    """Yield the packets of the sound from start to stop, with their times shifted, which are in seconds too."""
    for packet in source.demux(list(source.streams.audio)) if copies else ():
        if not packet.size or packet.dts is None:
            continue
        seconds = float(packet.dts * packet.time_base)
        if sound.start is not None and seconds < sound.start - END_S:
            continue
        if sound.stop is not None and seconds >= sound.stop - END_S:
            continue
        ticks = round(sound.shift / packet.time_base)
        if packet.dts + ticks < 0 and not can_be_negative:
            continue
        packet.stream = copies[packet.stream_index]
        packet.dts += ticks
        packet.pts = packet.dts if packet.pts is None else packet.pts + ticks
        yield seconds + float(sound.shift), packet
