"""Read clips: every frame by its number, with its exact time, from any place on."""

from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from numpy.typing import NDArray

from data.image_io.colour import Codes, profile_of_codes
from data.image_io.formats import warn_once
from data.image_io.images import DataError
from data.video_io.pixels import ColourTags, is_deep, tags_of, to_rgb
from runtime.errors import UserError, one_line

if TYPE_CHECKING:  # images alone must not load ffmpeg
    import av

BACK = 100
"""Frames from which decoding starts anew if a seek arrives too late, as in MPEG-TS."""


class DamagedClipError(DataError):
    """A clip that cannot be read from a frame on; the frames before it can.

    Attributes:
        number: of the first frame that cannot be read.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


class Clip:
    """The frames of a video file, numbered from 0 in the order in which they are shown.

    Opening reads the file once without decoding it: a list of all frames' times makes numbers, seeking and the frame
    count exact, also for variable frame rates.

    Args:
        path: of the file; PyAV decides what can be read.

    Attributes:
        times: of each frame, in ticks of `time_base`, increasing.
        duration: ticks of the last frame.
        time_base: seconds of a tick.
        width: in px, upright.
        height: in px, upright.
        bits: 8, or 16 if the frames have more than 8 bits per value.
        tags: colours as the file states them; see `tags_of`.
        icc_profile: of the frames' RGB colours; None is sRGB, or a space that is shown as it.
        pixel_aspect: width of a pixel by its height, upright; None if the file does not state it.
        damage: why the file has fewer frames than it states, in one line; None if it has all.

    Raises:
        DataError: the file holds no video, no frame, no times, HDR, or cannot be read at all.
        OSError: no such file, or it may not be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with self.path.open("rb"):
            pass  # its own error for a missing file
        with self._errors(), self._opened() as (container, stream):
            self.time_base = stream.time_base or Fraction(1, 1000)
            self._read_index(container, stream)
        with self._errors(), self._opened() as (container, stream):
            frame = next((frame for time, frame in _timed(container, stream) if time == self.times[0]), None)
            if frame is None:
                raise DataError(f"{self.path}: no frame of it can be decoded. Is it complete?")
            self.tags: ColourTags = tags_of(frame)
            self.height, self.width = to_rgb(frame, self.tags.matrix).shape[:2]
            self.bits = 16 if is_deep(frame) else 8
            aspect = stream.sample_aspect_ratio or None
            is_turned = (self.width, self.height) != (frame.width, frame.height)
            self.pixel_aspect: Fraction | None = 1 / aspect if aspect and is_turned else aspect
            if any(component.is_alpha for component in frame.format.components):
                warn_once(f"{self.path}: its transparency is ignored, its colours are taken as they are")
        self.icc_profile = profile_of_codes(Codes(self.tags.primaries, self.tags.transfer))

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return len(self.times)

    def seconds(self, number: int) -> float:
        """Return the time of a frame since the first one; for the number of frames, the end of the clip."""
        ticks = self.times[number] if number < self.num_frames else self.times[-1] + self.duration
        return float((ticks - self.times[0]) * self.time_base)

    def first_from(self, seconds: float) -> int:
        """Find the first frame that starts at a time since the first frame, or after it."""
        return bisect_left(self.times, self.times[0] + seconds / float(self.time_base) - 1e-6)

    def nearest(self, seconds: float) -> int:
        """Find the frame whose time since the first frame is nearest; behind the end, the number of frames."""
        if seconds > self.seconds(self.num_frames):
            return self.num_frames
        after = min(self.first_from(seconds), self.num_frames - 1)
        return min((max(after - 1, 0), after), key=lambda number: abs(self.seconds(number) - seconds))

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[NDArray]:
        """Decode frames anew, in order.

        Args:
            start: number of the first frame.
            stop: number after the last frame; None is the end.

        Yields: (H, W, 3) RGB as stored, upright: uint8, or uint16 if `bits` is 16.

        Raises:
            DamagedClipError: a frame cannot be decoded, or has another size.
        """
        stop = self.num_frames if stop is None else min(stop, self.num_frames)
        number = start
        try:
            with self._opened() as (container, stream):
                for time, frame in self._decoded_from(container, stream, start) if start < stop else ():
                    if time < self.times[number]:
                        continue
                    if time > self.times[number]:
                        break
                    pixels = to_rgb(frame, self.tags.matrix)
                    if pixels.shape[:2] != (self.height, self.width):
                        height, width = pixels.shape[:2]
                        reason = f"its size changes from {self.width} x {self.height} to {width} x {height} px"
                        raise self._damaged(number, f"{reason}. Cut the clip there by ffmpeg and run the parts alone")
                    yield pixels
                    number += 1
                    if number == stop:
                        return
        except _decoding_errors() as error:
            raise self._damaged(number, one_line(error)) from error
        if number < stop:
            raise self._damaged(number, "it cannot be decoded")

    def _damaged(self, number: int, reason: str) -> DamagedClipError:
        place = f"frame {number} ({clock(self.seconds(number))})"
        return DamagedClipError(f"{self.path}: it ends at {place}: {reason}", number)

    @contextmanager
    def _opened(self) -> Iterator[tuple["av.container.InputContainer", "av.VideoStream"]]:
        """Open the file's first video stream that is no cover picture."""
        import av

        with av.open(str(self.path), metadata_errors="replace") as container:
            cover = av.stream.Disposition.attached_pic
            streams = [stream for stream in container.streams.video if not stream.disposition & cover]
            if not streams:
                kinds = ", ".join(sorted({stream.type for stream in container.streams}))
                found = f"no video, only {kinds}" if kinds else "no frame. Is it complete?"
                raise DataError(f"{self.path}: it holds {found}")
            yield container, streams[0]

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise what PyAV cannot read as an error of one line."""
        try:
            yield
        except DataError:
            raise
        except UserError as error:
            raise DataError(f"cannot read {self.path}: {error}") from error
        except _decoding_errors() as error:
            raise DataError(f"cannot read {self.path}: {_reason(error)}. Is it complete?") from error

    def _read_index(self, container: "av.container.InputContainer", stream: "av.VideoStream") -> None:
        """List the times of all frames that are complete in the file."""
        durations: dict[int | None, int] = {}
        num_hidden, num_doubled, num_damaged = 0, 0, 0
        try:
            for packet in container.demux(stream):
                if packet.is_discard:
                    num_hidden += 1
                elif packet.is_corrupt:
                    num_damaged += 1
                elif packet.size:
                    num_doubled += packet.pts in durations
                    durations[packet.pts] = packet.duration or 0
        except _decoding_errors():
            pass  # the count tells
        if None in durations:
            raise DataError(
                f"{self.path}: its frames have no times. Put it into a container: ffmpeg -i IN -c copy OUT.mp4"
            )
        if not durations:
            raise DataError(f"{self.path}: its video has no frame. Is it complete?")
        if num_doubled:
            raise DataError(f"{self.path}: several frames have the same time. Encode it anew by ffmpeg")
        self.times = sorted(time for time in durations if time is not None)
        steps = [second - first for first, second in zip(self.times, self.times[1:], strict=False)]
        self.duration = durations[self.times[-1]] or (steps[-1] if steps else max(round(1 / (25 * self.time_base)), 1))
        num_stated = max(stream.frames - num_hidden, len(self.times) + num_damaged)
        self.damage = None
        if len(self.times) < num_stated:
            self.damage = f"{self.path}: only {len(self.times)} of {num_stated} frames can be read. Is it complete?"

    def _decoded_from(
        self, container: "av.container.InputContainer", stream: "av.VideoStream", start: int
    ) -> Iterator[tuple[int, "av.VideoFrame"]]:
        """Decode from a frame at or before `start` on, each frame with its time."""
        for number in (start, start - BACK):
            if number > 0:
                container.seek(self.times[number], stream=stream)
                frames = _timed(container, stream)
                first = next(frames, None)
                if first is not None and first[0] <= self.times[start]:
                    yield first
                    yield from frames
                    return
        with self._opened() as (container, stream):
            yield from _timed(container, stream)


def _timed(container: "av.container.InputContainer", stream: "av.VideoStream") -> Iterator[tuple[int, "av.VideoFrame"]]:
    """Decode frames with their times; what cannot be decoded is left out, and missed by its time."""
    packets = container.demux(stream)
    packet: av.Packet | None = None
    while True:
        with suppress(*_decoding_errors()):
            packet = next(packets, None)
        decoded = []
        with suppress(*_decoding_errors()):
            decoded = stream.decode(packet if packet and packet.size else None)
        yield from ((frame.pts, frame) for frame in decoded if frame.pts is not None)
        if packet is None or not packet.size:
            return
        packet = None  # which an error of the next one leaves


def _decoding_errors() -> tuple[type[Exception], ...]:
    import av

    return (av.FFmpegError,)


def _reason(error: BaseException) -> str:
    """Return ffmpeg's words without the number and the file."""
    return getattr(error, "strerror", None) or one_line(error)


def clock(seconds: float) -> str:
    """Write a time as H:M:S with milliseconds, as --start takes it."""
    minutes, rest = divmod(round(seconds * 1000), 60_000)
    return f"{minutes // 60}:{minutes % 60:02}:{rest / 1000:06.3f}"
