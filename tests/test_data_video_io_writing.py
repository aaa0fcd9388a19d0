"""Writing clips: what Debian's ffmpeg decodes equals what was written, and formats that cannot hold it are refused."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from data.image_io.images import DataError
from data.video_io.joining import Times, join
from data.video_io.pixels import ColourTags
from data.video_io.reading import Clip
from data.video_io.writing import FrameFormat, encoder_for, segment
from runtime.atomic_write import WriteError
from tests.helpers.clips import SIZE, by_ffmpeg, needs_ffmpeg, picture, probe

FORM = FrameFormat(*SIZE, ColourTags(1, 1, 1))
FRAMES = np.stack([picture(number) for number in range(8)]).astype(np.float32)


def noisy(seed=0):
    """Frames whose alpha is noise where it is neither 0 nor 1, which codecs find hard."""
    frames = FRAMES.copy()
    noise = np.random.default_rng(seed).random(frames.shape[:3], np.float32)
    alpha = frames[..., 3]
    frames[..., 3] = np.where((alpha > 0) & (alpha < 1), noise, alpha)
    return frames


def write(path, kind, frames, bits=8, form=FORM):
    """Write a clip of two segments."""
    encoder = encoder_for(path, kind, bits, (form.width, form.height))
    parts = [path.with_name(f"{number}.mkv") for number in range(2)]
    for part, half in zip(parts, np.array_split(frames, 2), strict=True):
        with segment(part, encoder, form) as encode:
            for values in half:
                encode(values)
    ticks = [512 * number for number in range(len(frames))]
    join(parts, path, encoder, form, Times(ticks, 512 * len(frames), Fraction(1, 12800)))
    return path


@needs_ffmpeg
@pytest.mark.parametrize("frames", [FRAMES, noisy()], ids=["smooth", "noisy"])
@pytest.mark.parametrize(
    ("name", "bits", "decoded", "decoder", "tolerance"),
    [("a.mov", 8, "rgba64le", None, 1), ("a.webm", 8, "rgba", "libvpx-vp9", 2), ("a.mkv", 8, "rgba", None, 0),
     ("a.nut", 8, "rgba", None, 0), ("a.mkv", 16, "rgba64le", None, 0)],
)  # fmt: skip
def test_alpha_is_what_was_written(tmp_path, name, bits, decoded, decoder, tolerance, frames):
    path = write(tmp_path / name, "rgba", frames, bits)
    sited = "scale=in_h_chr_pos=0:in_v_chr_pos=128:flags=accurate_rnd+full_chroma_int" if name == "a.webm" else None
    got = by_ffmpeg(path, decoded, decoder=decoder, filters=sited)
    full_scale = np.iinfo(got.dtype).max
    expected = np.rint(frames[..., 3] * (65535 if bits == 16 else 255)) / (65535 if bits == 16 else 255)
    off = np.abs(got[..., 3] / full_scale - expected).max() * 255
    assert off <= tolerance + 1e-4
    colours = np.abs(got[..., :3] / full_scale - frames[..., :3]) * 255
    assert colours.mean() < (1.5 if name == "a.webm" else 0.5)
    assert colours.max() <= (20 if name == "a.webm" else 2)  # VP9 has a quarter of the chroma


@needs_ffmpeg
@pytest.mark.parametrize(
    ("name", "bits", "pixel_format"),
    [("a.mov", 8, "yuva444p10le"), ("a.mkv", 8, "bgra"), ("a.nut", 16, "gbrap16le")],
)
def test_ffprobe_shows_alpha(tmp_path, name, bits, pixel_format):
    found = probe(write(tmp_path / name, "rgba", FRAMES, bits), "pix_fmt")["pix_fmt"]
    assert found in (pixel_format, pixel_format.replace("10le", "12le"))  # as newer versions call ProRes 4444


@needs_ffmpeg
def test_ffprobe_shows_the_alpha_of_vp9(tmp_path):
    assert (
        probe(write(tmp_path / "a.webm", "rgba", FRAMES), "codec_name:stream_tags=alpha_mode")["TAG:ALPHA_MODE"] == "1"
    )


@needs_ffmpeg
@pytest.mark.parametrize(
    ("name", "bits", "tolerance"), [("a.mp4", 8, 4), ("a.mov", 8, 4), ("a.mkv", 8, 0), ("a.mkv", 16, 0)]
)
def test_an_alpha_alone_is_full_range_grey(tmp_path, name, bits, tolerance):
    path = write(tmp_path / name, "alpha", FRAMES[..., 3], bits)
    got = by_ffmpeg(path, "gray16le" if bits == 16 else "gray")[..., 0]
    full_scale = np.iinfo(got.dtype).max
    expected = np.rint(FRAMES[..., 3] * full_scale)
    assert np.abs(got - expected).max() <= tolerance
    assert got.min() == 0
    assert got.max() == full_scale
    if bits == 8 and name != "a.mkv":
        assert probe(path, "color_range")["color_range"] == "pc"
        read = np.stack(list(Clip(path).frames()))[..., 1]
        np.testing.assert_allclose(read, expected, atol=tolerance)


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.nut"])
def test_a_composite_is_read_as_it_was_written(tmp_path, name):
    """By the project's own reader: matrix and range are the file's."""
    for matrix in (1, 6, 9):
        form = FORM._replace(tags=ColourTags(1, 1, matrix))
        clip = Clip(write(tmp_path / name, "composite", FRAMES[..., :3], form=form))
        assert clip.tags == form.tags
        assert np.abs(np.stack(list(clip.frames())) - 255 * FRAMES[..., :3]).mean() < 1.5


def test_pixel_aspect_and_tags_are_kept(tmp_path):
    form = FORM._replace(tags=ColourTags(12, 1, 1), pixel_aspect=Fraction(4, 3))
    for kind, name, frames in (("rgba", "a.mov", FRAMES), ("composite", "a.mp4", FRAMES[..., :3])):
        clip = Clip(write(tmp_path / name, kind, frames, form=form))
        assert (clip.pixel_aspect, clip.tags) == (Fraction(4, 3), form.tags)


@pytest.mark.parametrize(
    ("kind", "name"), [("rgba", "a.mov"), ("rgba", "a.webm"), ("rgba", "a.mkv"), ("alpha", "a.mkv")]
)
def test_odd_sides_are_written_where_the_format_has_them(tmp_path, kind, name):
    frames = FRAMES[:, :-1, :-1]
    form = FORM._replace(width=SIZE[0] - 1, height=SIZE[1] - 1)
    clip = Clip(write(tmp_path / name, kind, frames if kind == "rgba" else frames[..., 3], form=form))
    assert (clip.width, clip.height) == (63, 47)


@pytest.mark.parametrize(
    ("kind", "name", "bits", "size", "words"),
    [
        ("rgba", "a.mp4", 8, SIZE, r"a\.mp4: for colours with alpha .*\.mov, \.webm, \.mkv, \.nut, or a folder"),
        ("alpha", "a.webm", 8, SIZE, r"for an alpha, expected a clip ending in \.mp4, \.mov"),
        ("composite", "a.png", 8, SIZE, "for a composite, expected a clip"),
        ("alpha", "a.mp4", 16, SIZE, r"8 bit here.*\.mkv"),
        ("rgba", "a.webm", 16, SIZE, r"8 bit here.*\.mkv"),
        ("composite", "a.mp4", 8, (63, 48), r"even sides, and the clip is 63 x 48 px\. Name a folder"),
        ("alpha", "a.mov", 8, (64, 47), r"even sides.*Name \.mkv, \.nut, a folder"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(kind, name, bits, size, words):
    with pytest.raises(DataError, match=words):
        encoder_for(Path(name), kind, bits, size)


def test_a_failed_segment_leaves_nothing(tmp_path):
    encoder = encoder_for(Path("a.mov"), "rgba", 8, SIZE)
    with pytest.raises(WriteError, match="cannot write"), segment(tmp_path / "a.mkv", encoder, FORM) as encode:
        encode(FRAMES[0])
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []
