"""Small clips made by PyAV, and Debian's ffmpeg as the second decoder."""

import shutil
import subprocess
from fractions import Fraction

import av
import numpy as np
import pytest

SIZE = (64, 48)  # width and height

needs_ffmpeg = pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")), reason="Debian's ffmpeg, the second decoder, is absent"
)


def picture(number, size=SIZE):
    """Draw a frame (H, W, 4) of floats in [0, 1]: smooth colours, and a disc that moves as alpha."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    alpha = np.clip((height / 3 - np.hypot(y - height / 2, x - width / 3 - number)) / 6 + 0.5, 0, 1)
    colours = np.stack([x / width, y / height, 0.5 + 0.5 * np.sin((x + y + 3 * number) / 9)], axis=-1)
    return np.dstack([colours, alpha])


def rgb(number, size=SIZE):
    """Draw a frame (H, W, 3) uint8."""
    return np.rint(255 * picture(number, size)[:, :, :3]).astype(np.uint8)


def trimap(number, size=SIZE):
    """Draw the trimap (H, W) of 0, 128, 255 of a frame."""
    alpha = picture(number, size)[:, :, 3]
    return np.where(alpha == 0, 0, np.where(alpha == 1, 255, 128)).astype(np.uint8)


def make_clip(
    path,
    frames=None,
    ticks=None,
    time_base=Fraction(1, 12800),
    codec="libx264",
    pixel_format="yuv420p",
    muxer=None,
    sound_s=0,
    options=None,
    set_up=lambda stream: None,
):
    """Write a clip.

    Args:
        path: of the file.
        frames: (H, W, 3) uint8 each, or in the shape of `pixel_format`; 12 of `rgb` by default.
        ticks: times of the frames; 25 frames per second by default.
        sound_s: seconds of a tone beside the frames, as AAC.
        set_up: changes the stream before it is opened.
    """
    frames = [rgb(number) for number in range(12)] if frames is None else frames
    ticks = [round(number / 25 / time_base) for number in range(len(frames))] if ticks is None else ticks
    scale = str(time_base.denominator)
    scales = {"video_track_timescale": scale, "movie_timescale": scale} if path.suffix in (".mp4", ".mov") else {}
    with av.open(str(path), "w", format=muxer, container_options=scales) as container:
        stream = container.add_stream(codec, 25, options or {})
        stream.height, stream.width = frames[0].shape[:2] if frames else SIZE[::-1]
        stream.pix_fmt = pixel_format
        stream.time_base = stream.codec_context.time_base = time_base
        set_up(stream)
        sound = container.add_stream("aac", 44100) if sound_s else None
        container.start_encoding()  # a clip without frames gets a header, too
        for array, tick in zip(frames, ticks, strict=True):
            is_rgb = array.ndim == 3 and array.shape[2] == 3
            frame = av.VideoFrame.from_ndarray(array, format="rgb24" if is_rgb else pixel_format)
            if frame.format.name != pixel_format:
                frame = frame.reformat(format=pixel_format)
            frame.pts, frame.time_base = tick, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None) if frames else [])
        if sound:
            tone = np.sin(np.arange(round(44100 * sound_s)) / 20).astype(np.float32)[None]
            for start in range(0, tone.shape[1], 1024):
                part = av.AudioFrame.from_ndarray(tone[:, start : start + 1024], format="fltp", layout="mono")
                part.rate, part.pts, part.time_base = 44100, start, Fraction(1, 44100)
                container.mux(sound.encode(part))
            container.mux(sound.encode(None))
    return path


def encoded(path):
    """Read the encoded frames of a clip: equal ones are decoded to equal colours and alphas. VP9's alpha lies aside."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        return [[bytes(packet), *map(bytes, packet.iter_sidedata())] for packet in packets]


def times(path):
    """Read the exact times of all frames in seconds, by PyAV's decoder alone."""
    with av.open(str(path)) as container:
        return [frame.pts * frame.time_base for frame in container.decode(video=0)]


def by_ffmpeg(path, pixel_format, size=SIZE, decoder=None, filters=None):
    """Decode all frames by Debian's ffmpeg, (N, H, W, C) uint8, or uint16 or float32 for names that end in "le"."""
    before = ["-c:v", decoder] if decoder else []
    after = ["-vf", filters] if filters else []
    command = ["ffmpeg", "-v", "error", *before, "-i", path, *after, "-fps_mode", "passthrough"]
    done = subprocess.run([*command, "-f", "rawvideo", "-pix_fmt", pixel_format, "-"], capture_output=True, check=True)
    deep = np.float32 if "f32" in pixel_format else np.uint16
    values = np.frombuffer(done.stdout, deep if pixel_format.endswith("le") else np.uint8)
    channels = 4 if "a" in pixel_format.replace("gray", "") else 1 if "gray" in pixel_format else 3
    return values.reshape(-1, size[1], size[0], channels)


def probe(path, entries):
    """Return ffprobe's entries of the first video stream, such as {"pix_fmt": "bgra"}."""
    command = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-show_entries", f"stream={entries}", path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
