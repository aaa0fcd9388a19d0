"""Reading clips: colours against Debian's ffmpeg, times, seeking, rotation, and files that are no use."""

import gc
from fractions import Fraction

import av
import numpy as np
import pytest

from data.image_io.images import DataError
from data.video_io.pixels import ColourTags
from data.video_io.reading import Clip, DamagedClipError, clock
from tests.helpers.clips import SIZE, by_ffmpeg, make_clip, needs_ffmpeg, rgb, times

WIDTH, HEIGHT = SIZE
LINES = {1: "bt709", 5: "bt601", 6: "bt601", 9: "bt2020"}  # ffmpeg's names of matrices
SITING = {"yuv420p": ":in_h_chr_pos=0:in_v_chr_pos=128", "yuv422p10le": ":in_h_chr_pos=0"}  # H.264's, which is left
EXACT = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp+bitexact"


def tagged(matrix, color_range):
    """Set the colours that a stream states; None leaves them out."""

    def set_up(stream):
        if matrix is not None:
            stream.codec_context.colorspace, stream.codec_context.color_range = matrix, color_range

    return set_up


@needs_ffmpeg
@pytest.mark.parametrize("color_range", [1, 2], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", [None, 1, 6, 9])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p", "yuv422p10le"])
def test_colours_equal_those_of_ffmpeg(tmp_path, pixel_format, matrix, color_range):
    """An unspecified matrix is BT.601's, since there are fewer than 720 lines."""
    path = make_clip(tmp_path / "a.mkv", pixel_format=pixel_format, set_up=tagged(matrix, color_range))
    clip = Clip(path)
    stored = "rgb48le" if pixel_format.endswith("le") else "rgb24"
    limits = "auto" if matrix is None else ("tv", "pc")[color_range - 1]
    scale = f"scale=in_color_matrix={LINES[matrix or 6]}:in_range={limits}:{EXACT}{SITING.get(pixel_format, '')}"
    expected = by_ffmpeg(path, stored, filters=scale)
    np.testing.assert_array_equal(np.stack(list(clip.frames())), expected)
    assert clip.bits == (16 if stored == "rgb48le" else 8)


@pytest.mark.parametrize(("height", "matrix"), [(718, 6), (720, 1)])
def test_an_unspecified_matrix_is_that_of_hd_from_720_lines_on(tmp_path, height, matrix):
    frame = np.full((height, 64, 3), (200, 40, 40), np.uint8)
    clip = Clip(make_clip(tmp_path / "a.mkv", [frame], pixel_format="yuv444p"))
    assert clip.tags == ColourTags(2, 2, matrix)


@pytest.mark.parametrize(("matrix", "expected"), [(1, [255, 0, 0]), (6, [255, 0, 0])])
def test_red_is_red_in_each_matrix(tmp_path, matrix, expected):
    """Y'CbCr of pure red by the formulas of BT.709 and BT.601, limited range."""
    red_weight, blue_weight = {1: (0.2126, 0.0722), 6: (0.299, 0.114)}[matrix]
    luma, blue, red = red_weight, (0 - red_weight) / (2 * (1 - blue_weight)), 0.5
    planes = [16 + 219 * luma, 128 + 224 * blue, 128 + 224 * red]
    frame = np.stack([np.full((HEIGHT, WIDTH), round(plane), np.uint8) for plane in planes])
    path = make_clip_of_planes(tmp_path / "a.mkv", frame, matrix)
    assert np.abs(next(Clip(path).frames()).astype(int) - expected).max() <= 2


def make_clip_of_planes(path, planes, matrix):
    """Write one frame of Y'CbCr 4:4:4 without loss."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", 25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv444p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 1
        frame = av.VideoFrame.from_ndarray(planes, format="yuv444p")
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_grey_of_limited_range_is_stretched(tmp_path):
    ramp = np.tile(np.arange(16, 80, dtype=np.uint8), (HEIGHT, 1))
    path = make_clip(tmp_path / "a.mkv", [ramp], codec="ffv1", pixel_format="gray", set_up=tagged(2, 1))
    expected = np.rint((ramp.astype(float) - 16) / 219 * 255)
    np.testing.assert_array_equal(next(Clip(path).frames())[:, :, 1], expected)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("is_mirrored", [False, True])
def test_a_display_matrix_is_applied(tmp_path, degrees, is_mirrored):
    """PyAV's angle is counter-clockwise, like numpy's; mirroring comes after it."""
    frame = rgb(3)
    path = make_clip(
        tmp_path / "a.mov",
        [frame],
        codec="qtrle",
        pixel_format="rgb24",
        set_up=lambda stream: stream.set_display_rotation(degrees, hflip=is_mirrored),
    )
    clip = Clip(path)
    expected = np.rot90(frame, degrees // 90)
    expected = expected[:, ::-1] if is_mirrored else expected
    np.testing.assert_array_equal(next(clip.frames()), expected)
    assert (clip.width, clip.height) == expected.shape[1::-1]


def test_a_turn_by_another_angle_is_refused(tmp_path):
    path = make_clip(tmp_path / "a.mov", set_up=lambda stream: stream.set_display_rotation(30))
    with pytest.raises(DataError, match="multiple of 90"):
        Clip(path)


TICKS = [0, 512, 1030, 1600, 1601, 5000, 5512, 6024, 9000, 9512, 9900, 12000]


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.mp4", {"bf": "3", "g": "4"}), ("a.mov", {"bf": "3", "g": "100"}), ("a.nut", {"bf": "0", "g": "3"}),
     ("a.mkv", {"bf": "3", "g": "5"}), ("a.ts", {"bf": "3", "g": "4"})],
)  # fmt: skip
def test_times_and_seeking(tmp_path, name, options):
    """Of a variable frame rate; from each frame on, decoding gives what decoding everything gives."""
    time_base = {"a.mkv": Fraction(1, 1000), "a.ts": Fraction(1, 90000)}.get(name, Fraction(1, 12800))
    ticks = [512 * (number + 3) for number in range(12)] if name == "a.ts" else TICKS
    path = make_clip(tmp_path / name, ticks=ticks, time_base=time_base, options=options)
    clip = Clip(path)
    assert [time * clip.time_base for time in clip.times] == times(path)
    if name != "a.ts":  # whose times begin at 1.4 s
        assert [time * clip.time_base for time in clip.times] == [tick * time_base for tick in ticks]
    everything = list(clip.frames())
    assert clip.num_frames == len(everything) == 12
    for start in range(12):
        part = list(clip.frames(start, start + 3))
        np.testing.assert_array_equal(np.stack(part), np.stack(everything[start : start + 3]))


def test_a_frame_that_was_read_is_freed_at_once(tmp_path):
    """Python's collector of cycles may come after hundreds of frames."""
    path = make_clip(tmp_path / "a.mp4", [rgb(0)] * 40)
    gc.collect()
    gc.disable()
    try:
        for _ in Clip(path).frames():
            assert sum(isinstance(held, av.VideoFrame) for held in gc.get_objects()) < 10
    finally:
        gc.enable()


def test_frames_are_found_by_their_time(tmp_path):
    clip = Clip(make_clip(tmp_path / "a.mp4", ticks=[tick + 640 for tick in TICKS]))
    assert [clip.first_from(clip.seconds(number)) for number in range(12)] == list(range(12))
    assert clip.first_from(clip.seconds(4) + 0.001) == 5
    assert clip.first_from(1000) == 12
    assert clip.seconds(0) == 0
    assert clip.seconds(12) > clip.seconds(11)
    assert clock(3723.5) == "1:02:03.500"


def test_wide_gamut_has_a_profile_and_hdr_is_refused(tmp_path):
    def of(primaries, transfer):
        def set_up(stream):
            stream.codec_context.color_primaries, stream.codec_context.color_trc = primaries, transfer

        return set_up

    assert Clip(make_clip(tmp_path / "sdr.mp4", set_up=of(1, 1))).icc_profile is None
    assert Clip(make_clip(tmp_path / "p3.mp4", set_up=of(12, 1))).icc_profile is not None
    for transfer, curve in ((16, "PQ"), (18, "HLG")):
        with pytest.raises(DataError, match=f"HDR of the curve {curve}.*tone mapping"):
            Clip(make_clip(tmp_path / "hdr.mp4", set_up=of(9, transfer)))


def make_truncated(folder):
    """A clip whose index comes first, cut in the middle of its frames."""
    noise = np.random.default_rng(0).integers(0, 256, (24, HEIGHT, WIDTH, 3), np.uint8)
    path = folder / "short.mov"
    whole = make_clip(folder / "whole.mov", list(noise), codec="mpeg4", options={"movflags": "faststart"})
    with av.open(str(whole)) as source, av.open(str(path), "w", container_options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def test_a_truncated_clip_gives_what_is_there(tmp_path):
    clip = Clip(make_truncated(tmp_path))
    assert "of 24 frames can be read. Is it complete?" in clip.damage
    assert 3 <= clip.num_frames <= 14
    assert len(list(clip.frames())) == clip.num_frames


def test_a_clip_whose_index_is_cut_off_is_refused(tmp_path):
    path = make_clip(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DataError, match=r"a\.mp4: .*Is it complete\?"):
        Clip(path)


def make_two_sizes(folder):
    """An MPEG stream that goes on in another size."""
    ticks = {"time_base": Fraction(1, 90000), "options": {"bf": "0"}}
    first = make_clip(folder / "1.ts", **ticks)
    larger = [rgb(number, (96, 64)) for number in range(12)]
    second = make_clip(folder / "2.ts", larger, [43200 + 3600 * number for number in range(12)], **ticks)
    path = folder / "both.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    return path


def test_a_change_of_size_ends_the_clip(tmp_path):
    clip, read = Clip(make_two_sizes(tmp_path)), []
    with pytest.raises(
        DamagedClipError, match=r"it ends at frame 1\d \(0:00:00.\d+\).*64 x 48 to 96 x 64 px"
    ) as caught:
        read.extend(frame.shape for frame in clip.frames())
    assert read == [(48, 64, 3)] * caught.value.number
    assert caught.value.number in (11, 12)  # ffmpeg may call the packet before the joint damaged


def no_frames(folder):
    return make_clip(folder / "a.mp4", [])


def sound_alone(folder):
    path = folder / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", 44100)
        part = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        part.rate = 44100
        container.mux([*stream.encode(part), *stream.encode(None)])
    return path


def without_times(folder):
    return make_clip(folder / "a.h264", muxer="h264")


def text(folder):
    path = folder / "a.mp4"
    path.write_text("<html>404</html>")
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [(no_frames, "no frame"), (sound_alone, "holds no video, only audio"), (without_times, "have no times"),
     (text, "cannot read")],
)  # fmt: skip
def test_files_that_are_no_use(tmp_path, make, words):
    with pytest.raises(DataError, match=words) as caught:
        Clip(make(tmp_path))
    assert "\n" not in str(caught.value) and "a." in str(caught.value)


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        Clip(tmp_path / "a.mp4")
