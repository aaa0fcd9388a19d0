"""Joining segments: exact times in every container, and sound that is copied without a change."""

from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest

from data.image_io.images import DataError
from data.video_io.joining import Sound, Times, check_sound, join
from data.video_io.pixels import ColourTags
from data.video_io.writing import FrameFormat, encoder_for, segment
from tests.helpers.clips import SIZE, make_clip, picture, times

FORM = FrameFormat(*SIZE, ColourTags(1, 1, 1))
CONTAINERS = [("rgba", "a.mov"), ("rgba", "a.webm"), ("rgba", "a.mkv"), ("rgba", "a.nut"), ("alpha", "a.mp4"),
              ("composite", "a.mp4"), ("composite", "a.mkv"), ("composite", "a.nut")]  # fmt: skip
VARIABLE = {
    "MP4 of a phone": (Fraction(1, 600), [0, 20, 41, 60, 81, 100, 141]),
    "NTSC in MOV": (Fraction(1, 30000), [1001 * number for number in range(7)]),
    "NTSC in AVI": (Fraction(1001, 30000), [0, 1, 2, 3, 4, 7, 8]),
    "MPEG-TS": (Fraction(1, 90000), [129600, 133203, 136807, 140411, 150000, 153000, 160001]),
}


def write(path, kind, timing, sound=None):
    time_base, ticks = timing
    encoder = encoder_for(path, kind, 8, SIZE)
    parts = [path.with_name(f"{number}.mkv") for number in range(2)]
    channels = {"alpha": 3, "rgba": np.s_[:], "composite": np.s_[:3]}[kind]
    for part, numbers in zip(parts, (range(3), range(3, 7)), strict=True):
        with segment(part, encoder, FORM) as encode:
            for number in numbers:
                encode(picture(number)[:, :, channels])
    join(parts, path, encoder, FORM, Times(ticks, ticks[-1] + ticks[1] - ticks[0], time_base), sound)
    return path


@pytest.mark.parametrize("timing", VARIABLE.values(), ids=VARIABLE)
@pytest.mark.parametrize(
    ("kind", "name", "has_sound"),
    [(kind, name, has_sound) for kind, name in CONTAINERS for has_sound in {False, kind == "composite"}],
)
def test_times_equal_the_inputs(tmp_path, kind, name, timing, has_sound):
    """To the tick in MOV, MP4 and NUT; Matroska counts milliseconds. Sound begins before 0, as AAC does."""
    sound = Sound(make_clip(tmp_path / "sound.mp4", sound_s=0.5)) if has_sound else None
    found = times(write(tmp_path / name, kind, timing, sound))
    expected = [tick * timing[0] for tick in timing[1]]
    tolerance = Fraction(1, 2000) if name in ("a.mkv", "a.webm") else 0
    assert len(found) == 7
    assert max(abs(one - other) for one, other in zip(found, expected, strict=True)) <= tolerance


def test_the_last_frame_lasts_until_the_end(tmp_path):
    path = write(tmp_path / "a.mov", "rgba", (Fraction(1, 600), [0, 25, 50, 75, 100, 125, 150]))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.duration * stream.time_base == Fraction(175, 600)


def sound_packets(path, start=0.0, stop=1e9):
    """List time and bytes of the packets of a clip's sound that begin in a span of seconds."""
    with av.open(str(path)) as container:
        packets = [(packet.pts * packet.time_base, bytes(packet)) for packet in container.demux(audio=0) if packet.size]
    return [(time, content) for time, content in packets if start <= time < stop]


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.nut"])
def test_sound_is_copied_with_its_times(tmp_path, name):
    source = make_clip(tmp_path / "source.mp4", sound_s=1)
    made = write(tmp_path / name, "composite", VARIABLE["NTSC in MOV"], Sound(source))
    expected, found = sound_packets(source), sound_packets(made)
    assert len(expected) > 40
    assert [content for _, content in found] == [content for _, content in expected]
    assert max(abs(one[0] - other[0]) for one, other in zip(found, expected, strict=True)) <= Fraction(1, 2000)
    assert all(before[0] < after[0] for before, after in pairwise(found))


def test_sound_of_a_span_is_shifted(tmp_path):
    source = make_clip(tmp_path / "source.mp4", sound_s=1)
    made = write(
        tmp_path / "a.mov", "composite", VARIABLE["NTSC in MOV"], Sound(source, 0.25, 0.5, shift=Fraction(-1, 4))
    )
    expected, found = sound_packets(source, 0.25, 0.5), sound_packets(made)
    assert [content for _, content in found] == [content for _, content in expected]
    assert abs(found[0][0] + Fraction(1, 4) - expected[0][0]) < 1e-4


def test_sound_that_a_format_lacks_is_refused(tmp_path):
    with_sound, silent = make_clip(tmp_path / "a.mp4", sound_s=0.2), make_clip(tmp_path / "b.mp4")
    for suffix in (".mp4", ".mov", ".mkv", ".nut"):
        target = tmp_path / f"c{suffix}"
        assert check_sound(with_sound, target)
        assert not check_sound(silent, target)
    with pytest.raises(DataError, match=r"does not hold the clip's sound \(aac\)"):
        check_sound(with_sound, tmp_path / "c.webm")
