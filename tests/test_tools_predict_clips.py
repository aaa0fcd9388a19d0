"""tools/predict.py on clips: every kind of result, trimaps, spans, --resume after a kill, and all that it refuses."""

import os
import signal
import subprocess
import sys
import time
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from data.image_io.images import read_raw, to_float
from data.trimap import decode_trimap, ramp_alpha, trimap_of_mask
from data.video_io.reading import Clip
from inference.foreground import cut_out, estimate_foreground, over
from tests.helpers.clips import by_ffmpeg, make_clip, needs_ffmpeg, rgb, times, trimap
from tests.helpers.paths import REPOSITORY
from tools import predict

RAMP = ["--baseline", "ramp"]
ALONE = ["--stability", "0"]
TICKS = [0, 512, 1030, 1600, 1700, 3000, 3512, 4024, 5000, 5512, 6000, 6600]


def write_trimaps(folder, numbers=range(12)):
    folder.mkdir()
    for number in numbers:
        cv2.imwrite(str(folder / f"frame_{number:04}.png"), trimap(number))
    return folder


@pytest.fixture
def clip(tmp_path):
    """`clip.mp4` of 12 frames of a variable rate with sound, and `trimaps`."""
    write_trimaps(tmp_path / "trimaps")
    return make_clip(tmp_path / "clip.mp4", ticks=TICKS, sound_s=0.5)


def run(clip, *more, status=0, trimaps=True):
    given = ["--trimap-dir", clip.parent / "trimaps"] if trimaps else []
    assert predict.main([str(part) for part in (clip, *given, *RAMP, *ALONE, *more)]) == status


def expected_alphas():
    return np.stack([ramp_alpha(decode_trimap(trimap(number))) for number in range(12)])


def assert_written(found, expected):
    """Allow a level of 255: OpenCV's distances, of which ramps are made, vary by 1e-7 from call to call."""
    np.testing.assert_allclose(found, expected, atol=1)


def images_of(clip):
    return [to_float(pixels) for pixels in Clip(clip).frames()]


def test_the_alpha_of_each_frame_is_that_of_its_image_and_trimap(clip, capsys):
    run(clip, "--output", clip.with_name("a.mkv"))
    assert capsys.readouterr().out == f"wrote 12 frames to {clip.with_name('a.mkv')}\n"
    found = np.stack(list(Clip(clip.with_name("a.mkv")).frames()))[..., 0]
    assert_written(found, np.rint(255 * expected_alphas()))
    assert not clip.with_name("a.mkv.parts").exists()


@pytest.mark.parametrize("name", ["a.mov", "a.mkv", "a.nut", "a.webm"])
@pytest.mark.parametrize("options", [[], ["--premultiplied"]], ids=["straight", "premultiplied"])
@needs_ffmpeg
def test_cut_outs_with_the_times_of_the_clip(clip, name, options):
    made = clip.with_name(name)
    run(clip, "--as", "rgba", *options, "--output", made)
    tolerance = Fraction(1, 2000) if name in ("a.mkv", "a.webm") else 0
    assert max(abs(a - b) for a, b in zip(times(made), times(clip), strict=True)) <= tolerance
    found = by_ffmpeg(made, "rgba", decoder="libvpx-vp9" if name == "a.webm" else None)
    for image, alpha, frame in zip(images_of(clip), expected_alphas(), found, strict=True):
        expected = 255 * cut_out(estimate_foreground(image, alpha), alpha, bool(options))
        assert np.abs(frame - expected).mean() < (4 if name == "a.webm" else 1)
        assert np.abs(frame[..., 3] - expected[..., 3]).max() <= (2.5 if name == "a.webm" else 1.5)


def test_a_folder_gets_images_named_by_frame_number(clip):
    folder = clip.with_name("cutouts")
    run(clip, "--as", "rgba", "--bits", "16", "--output", folder)
    assert sorted(path.name for path in folder.iterdir()) == [f"{number:06}.png" for number in range(12)]
    for number, (image, alpha) in enumerate(zip(images_of(clip), expected_alphas(), strict=True)):
        expected = np.rint(65535 * cut_out(estimate_foreground(image, alpha), alpha).astype(np.float64))
        assert np.abs(read_raw(folder / f"{number:06}.png") - expected).max() <= 1


def test_composites_over_a_colour_an_image_and_a_clip(clip):
    """The other clip has 4 frames of twice the length, and starts again."""
    colours = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]
    behind = [np.full((48, 64, 3), colour, np.uint8) for colour in colours]
    other = make_clip(clip.with_name("other.mkv"), behind, [0, 80, 160, 240], Fraction(1, 1000), "ffv1", "bgr0")
    cv2.imwrite(str(clip.with_name("grey.png")), np.full((30, 40, 3), 90, np.uint8))
    starts = [float(time) for time in times(clip)]
    length = Clip(other).seconds(4)
    shown = [colours[int((start % length) // 0.08)] for start in starts]
    cases = {"teal": [[0, 128, 128]] * 12, "grey.png": [[90] * 3] * 12, "other.mkv": shown}
    for name, expected in cases.items():
        given = name if name == "teal" else clip.with_name(name)
        made = clip.with_name(f"{name}.mov")
        run(clip, "--background", given, "--output", made)
        found = list(Clip(made).frames())
        assert times(made) == times(clip)
        for image, alpha, colour, frame in zip(images_of(clip), expected_alphas(), expected, found, strict=True):
            whole = 255 * over(estimate_foreground(image, alpha), alpha, np.float32(colour) / 255)
            assert np.abs(frame - whole).mean() < 4
            assert np.abs(frame[-6:, -6:].mean((0, 1)) - colour).max() < 8  # a corner, where alpha is 0
        with av.open(str(made)) as container:
            assert len(container.streams.audio) == 1


@pytest.mark.parametrize(
    ("span", "numbers"),
    [(["--start", "0.08"], range(2, 12)), (["--end", "0:0:0.2"], range(5)), (["--every", "5"], range(0, 12, 5)),
     (["--start", "0:0.1", "--end", "0.4", "--every", "2"], range(3, 9, 2))],
)  # fmt: skip
def test_a_span_keeps_its_frames_and_their_distances(clip, span, numbers):
    """Behind a start, times begin at 0; the trimaps are those of the same frames."""
    made = clip.with_name("a.mov")
    run(clip, *span, "--background", "black", "--output", made)
    all_times = times(clip)
    first = all_times[numbers[0]]
    assert times(made) == [all_times[number] - first for number in numbers]
    run(clip, *span, "--output", clip.with_name("a.nut"))
    found = np.stack(list(Clip(clip.with_name("a.nut")).frames()))[..., 0]
    assert_written(found, np.rint(255 * expected_alphas()[list(numbers)]))


def test_trimaps_of_a_clip(clip):
    """Coded with loss: what is near 0, 128 and 255 is that."""
    grey = [np.repeat(trimap(number)[:, :, None], 3, axis=2) for number in range(12)]
    trimaps = make_clip(clip.with_name("trimaps.mp4"), grey, options={"crf": "8"}, pixel_format="yuv444p")
    run(clip, "--trimap", trimaps, "--output", clip.with_name("a.mkv"), "--every", "3", trimaps=False)
    found = np.stack(list(Clip(clip.with_name("a.mkv")).frames()))[..., 0]
    expected = np.rint(255 * expected_alphas()[::3])
    assert (np.abs(found - expected) > 1).mean() < 0.01


def test_masks_get_a_band(clip):
    masks = clip.with_name("masks")
    masks.mkdir()
    for number in range(12):
        cv2.imwrite(str(masks / f"{number}.png"), np.where(trimap(number) == 255, 255, 0).astype(np.uint8))
    run(clip, "--mask", masks, "--width-px", "6", "--as", "alpha", "--output", clip.with_name("a.mkv"), trimaps=False)
    found = np.stack(list(Clip(clip.with_name("a.mkv")).frames()))[..., 0]
    assert (found == 255).any()
    assert (found == 0).any()
    assert ((found > 0) & (found < 255)).any()


def test_auto_finds_each_frames_subject_and_reports_frames_without_one(clip, monkeypatch, capsys):
    from data.image_io.images import DataError

    numbers = iter(range(12))

    def found(image, width_percent, name):
        number = next(numbers)
        if number in (3, 4):
            raise DataError("nothing stands out")
        return decode_trimap(trimap(number))

    monkeypatch.setattr("inference.auto.subject.trimap_of_subject", found)
    run(clip, "--auto", "--as", "alpha", "--output", clip.with_name("a.mkv"), trimaps=False)
    expected = np.rint(255 * expected_alphas())
    expected[3:5] = 0
    assert_written(np.stack(list(Clip(clip.with_name("a.mkv")).frames()))[..., 0], expected)
    assert "no subject was found, so alpha is 0: 2 frames, 3 (0:00:00.125), 4 (0:00:00.133)" in capsys.readouterr().err


def carried_alphas(numbers, expected):
    """The alphas of trimaps that are carried from keyframes, by the functions themselves."""
    from inference.video.keyframes import carried_trimaps

    keyframes = {number: decode_trimap(trimap(number)) for number in numbers}
    carried = list(carried_trimaps(keyframes, lambda start, stop: iter(expected[start:stop]), 0, len(expected)))
    return np.stack([ramp_alpha(found.trimap) for found in carried])


def test_keyframes_are_carried_to_all_frames(clip):
    """Named by number and by time; a span and a step take the same trimaps."""
    keyframes = clip.with_name("keyframes")
    keyframes.mkdir()
    cv2.imwrite(str(keyframes / "0.png"), trimap(0))
    cv2.imwrite(str(keyframes / f"shot_{TICKS[5] / 12800:.3f}s.png"), trimap(5))
    cv2.imwrite(str(keyframes / "frame_0011.png"), trimap(11))
    expected = np.rint(255 * carried_alphas((0, 5, 11), list(Clip(clip).frames())))
    for more, chosen in (([], range(12)), (["--start", "0.1", "--every", "3"], range(3, 12, 3))):
        made = clip.with_name("a.mkv")
        run(clip, "--keyframes", keyframes, "--as", "alpha", "--output", made, "--overwrite", *more, trimaps=False)
        assert_written(np.stack(list(Clip(made).frames()))[..., 0], expected[list(chosen)])


def test_a_mask_as_keyframe_gets_a_band(clip):
    keyframes = clip.with_name("keyframes")
    keyframes.mkdir()
    cv2.imwrite(str(keyframes / "0.png"), np.where(trimap(0) == 0, 0, 255).astype(np.uint8))
    made = clip.with_name("a.mkv")
    run(clip, "--keyframes", keyframes, "--width-px", "6", "--as", "alpha", "--output", made, trimaps=False)
    first = next(Clip(made).frames())[..., 0]
    expected = ramp_alpha(trimap_of_mask(keyframes / "0.png", lambda longer_px: 6))
    assert_written(first, np.rint(255 * expected))


def test_frames_whose_flow_is_not_trusted_are_reported(clip, monkeypatch, capsys):
    from inference.video.keyframes import Carried

    def carried(keyframes, frames, start, stop):
        return (Carried(keyframes[0], 0.2 if number == 7 else 1.0) for number in range(start, stop))

    monkeypatch.setattr("tools.prediction.clips.keyframes.carried_trimaps", carried)
    run(clip, "--keyframes", write_trimaps(clip.with_name("keyframes"), [0]), "--as", "alpha", trimaps=False)
    assert "is not trusted, a keyframe there would help: 1 frame, 7 (0:00:00.314)" in capsys.readouterr().err


def test_alpha_is_stabilised_frame_by_frame(clip):
    """By the default strength; 0 leaves each frame alone, as the other tests show."""
    from inference.video.stability import DEFAULT_STRENGTH, Stabiliser

    made = clip.with_name("a.mkv")
    given = [clip, "--trimap-dir", clip.parent / "trimaps", *RAMP, "--output", made]
    assert predict.main([str(part) for part in given]) == 0
    stabiliser, alphas, frames = Stabiliser(DEFAULT_STRENGTH), expected_alphas(), list(Clip(clip).frames())
    expected = [
        stabiliser.next(frame, decode_trimap(trimap(number)), alpha)
        for number, (frame, alpha) in enumerate(zip(frames, alphas, strict=True))
    ]
    found = np.stack(list(Clip(made).frames()))[..., 0]
    assert_written(found, np.rint(255 * np.stack(expected)))
    assert (np.abs(found - np.rint(255 * alphas)) > 3).any()


KILLED = """
import os, signal, sys
from tools import predict
from tools.prediction.clips import segments
segments.SEGMENT_FRAMES = 5
if sys.argv[1] != "-":
    from tools.prediction import steps
    count, stop = 0, int(sys.argv[1])
    plain = steps.BASELINES["trivial"]
    def killing(image, trimap):
        global count
        count += 1
        if count > stop:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(image, trimap)
    steps.BASELINES["trivial"] = killing
sys.exit(predict.main(sys.argv[2:]))
"""


def in_process(after, *arguments):
    """Run in segments of 5 frames; kill -9 after some frames, unless `after` is "-"."""
    command = [sys.executable, "-c", KILLED, after, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.mp4", "alpha"), ("frames", "alpha"), pytest.param("a.mov", "rgba", marks=pytest.mark.slow),
     pytest.param("a.webm", "rgba", marks=pytest.mark.slow)],
)  # fmt: skip
def test_a_killed_run_goes_on_to_the_same_frames_and_times(clip, name, kind):
    """Stabilised by the frames before, so that the next segment needs what the killed process held of the last one."""
    common = [
        "--trimap-dir",
        clip.parent / "trimaps",
        "--baseline",
        "trivial",
        "--as",
        kind,
        "--stability",
        "0.8",
        "--output",
    ]
    whole, parts = clip.with_name(f"whole_{name}"), clip.with_name(name)
    assert in_process("-", clip, *common, whole).returncode == 0
    assert in_process("7", clip, *common, parts).returncode == -signal.SIGKILL
    left = clip.with_name(f"{name}.parts")
    assert left.is_dir()
    again = in_process("-", clip, *common, parts)
    assert again.returncode == 1
    assert "--resume goes on, --overwrite starts anew" in again.stderr or "there already" in again.stderr
    done = in_process("-", clip, *common, parts, "--resume")
    assert done.returncode == 0, done.stderr
    assert "5/12" in done.stderr  # the first segment was not made again
    assert not left.exists()
    if name == "frames":
        for path in whole.iterdir():
            np.testing.assert_array_equal(read_raw(parts / path.name), read_raw(path))
    else:
        assert times(parts) == times(whole)
        np.testing.assert_array_equal(np.stack(list(Clip(parts).frames())), np.stack(list(Clip(whole).frames())))
    before = time.time()
    assert in_process("-", clip, *common, parts, "--resume").stderr.endswith("is there already\n")
    assert parts.stat().st_mtime < before


def test_resume_with_other_options_is_refused(clip):
    common = ["--trimap-dir", clip.parent / "trimaps", "--baseline", "trivial", "--output", clip.with_name("a.mov")]
    in_process("7", clip, *common)
    done = in_process("-", clip, *common, "--resume", "--every", "2")
    assert (done.returncode, "begun with another every: give the same" in done.stderr) == (1, True)
    assert in_process("-", clip, *common, "--overwrite", "--every", "2").returncode == 0
    assert len(times(clip.with_name("a.mov"))) == 6


def test_existing_results_are_kept(clip, capsys):
    made = clip.with_name("a.mov")
    made.write_text("mine")
    run(clip, "--as", "rgba", "--output", made, status=1)
    assert made.read_text() == "mine"
    assert "a.mov is there already: --overwrite replaces it, --resume" in capsys.readouterr().err
    run(clip, "--as", "rgba", "--output", made, "--overwrite")
    assert len(times(made)) == 12


@pytest.mark.slow
def test_a_full_disk_loses_nothing(clip):
    """A limit of the file size stands for it: the second segment does not fit, and --resume goes on."""
    code = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000));"
    noise = np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), np.uint8)
    noise[:6] = 90
    source = make_clip(clip.with_name("noise.mkv"), list(noise), codec="ffv1", pixel_format="bgr0")
    made = clip.with_name("a.mkv")
    arguments = [
        source,
        "--trimap-dir",
        clip.parent / "trimaps",
        "--baseline",
        "trivial",
        "--as",
        "rgba",
        "--output",
        made,
    ]
    command = [sys.executable, "-c", code + KILLED, "-", *map(str, arguments)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    line = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert "predict.py: cannot write" in line
    assert "File too large" in line
    assert line.endswith("The same command with --resume goes on")
    assert not made.exists()
    assert sorted(path.name for path in clip.with_name("a.mkv.parts").iterdir())[:2] == ["000000.mkv", "000000.npz"]
    assert in_process("-", *arguments, "--resume").returncode == 0
    assert len(times(made)) == 12


def test_a_truncated_clip_is_matted_up_to_its_end(clip, capsys):
    noise = list(np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), np.uint8))
    whole = make_clip(clip.with_name("noise.mp4"), noise, options={"bf": "0"})
    with (
        av.open(str(whole)) as source,
        av.open(str(clip.with_name("fast.mp4")), "w", container_options={"movflags": "faststart"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    content = clip.with_name("fast.mp4").read_bytes()
    short = clip.with_name("short.mp4")
    short.write_bytes(content[: len(content) * 3 // 4])
    run(short, "--output", clip.with_name("a.nut"), status=1)
    printed = capsys.readouterr()
    count = len(times(clip.with_name("a.nut")))
    assert 0 < count < 12
    assert f"only {count} of 12 frames can be read. Is it complete?" in printed.err
    assert printed.out == f"wrote {count} frames to {clip.with_name('a.nut')}\n"


def refused(clip, capsys, *arguments, status=1, trimaps=True):
    """Run, expect the exit status, and return the one line that says why."""
    before = {path: path.stat().st_mtime_ns for path in clip.parent.rglob("*")}
    given = ["--trimap-dir", clip.parent / "trimaps"] if trimaps else []
    try:
        assert predict.main([str(part) for part in (clip, *given, *RAMP, *arguments)]) == status
    except SystemExit as error:
        assert error.code == status  # noqa: PT017
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("predict.py: ")]
    assert len(lines) == 1
    assert {path: path.stat().st_mtime_ns for path in clip.parent.rglob("*")} == before
    return lines[0]


def test_what_a_clip_cannot_be_given(clip, capsys, monkeypatch):
    folder = clip.parent
    cv2.imwrite(str(folder / "one.png"), trimap(0))
    bare = {"trimaps": False}
    assert predict.main([str(clip), str(clip), "--auto", *RAMP]) == 1
    assert "give it alone, 2 inputs were given" in capsys.readouterr().err
    assert "--points and --scribbles are for one image" in refused(clip, capsys, "--points", "[[1,1,1]]", **bare)
    assert "is one file for a clip" in refused(clip, capsys, "--mask", folder / "one.png", **bare)
    assert "one image for a clip" in refused(clip, capsys, "--trimap", folder / "one.png", **bare)
    assert "expected a clip ending in" in refused(clip, capsys, "--output", folder / "a.png")
    assert "for colours with alpha" in refused(clip, capsys, "--as", "rgba", "--output", folder / "a.mp4")
    assert "is an input" in refused(clip, capsys, "--output", clip, "--overwrite")
    assert "no frame from 0:00:09.000 on; it lasts 0:00:00.5" in refused(clip, capsys, "--start", "9")
    (folder / "trimaps" / "frame_0000.png").unlink()
    assert (
        "no file for 1 of 12 frames (0). Frames count from 0: extract them by ffmpeg with -start_number 0"
        in refused(clip, capsys, "--output", folder / "a.mkv")
    )


def test_trimaps_that_do_not_match(clip, capsys):
    folder = clip.parent
    other = make_clip(folder / "other.mkv", [rgb(number) for number in range(5)])
    assert "has 5 frames, and" in refused(clip, capsys, "--trimap", other, trimaps=False)
    small = make_clip(folder / "small.mkv", [rgb(number, (32, 48)) for number in range(12)])
    assert "small.mkv is 32 x 48 px, and" in refused(clip, capsys, "--trimap", small, trimaps=False)
    cv2.imwrite(str(folder / "trimaps" / "0003.png"), trimap(0))
    assert "are both of frame 3" in refused(clip, capsys)
    keyframes = write_trimaps(folder / "keyframes", [2])
    by_keyframes = ["--keyframes", keyframes]
    cv2.imwrite(str(keyframes / "12.png"), trimap(0))
    assert "has no frame 12, they end at 11" in refused(clip, capsys, *by_keyframes, trimaps=False)
    (keyframes / "12.png").rename(keyframes / "9s.png")
    assert "has no frame 12" in refused(clip, capsys, *by_keyframes, trimaps=False)
    (keyframes / "9s.png").unlink()
    cv2.imwrite(str(keyframes / "0m0.08s.png"), trimap(0))
    assert "are both of frame 2" in refused(clip, capsys, *by_keyframes, trimaps=False)
    cv2.imwrite(str(keyframes / "0m0.08s.png"), trimap(0)[:40])
    (keyframes / "frame_0002.png").unlink()
    assert "0m0.08s.png is 64 x 40 px, and" in refused(clip, capsys, *by_keyframes, trimaps=False)


def test_a_clip_of_odd_size_advises_another_format(tmp_path, capsys):
    clip = make_clip(tmp_path / "clip.mkv", [rgb(number, (63, 47)) for number in range(3)], pixel_format="yuv444p")
    line = refused(clip, capsys, "--auto", "--background", "teal", trimaps=False)
    assert "H.264 needs even sides, and the clip is 63 x 47 px. Name a folder" in line


def test_clips_in_folders_are_left_out_with_advice(image_folders, caplog):
    make_clip(image_folders / "images" / "clip.mp4")
    arguments = [image_folders / "images", "--trimap-dir", image_folders / "trimaps", *RAMP]
    assert predict.main([str(part) for part in arguments]) == 0
    assert "clip.mp4 (video: give tools/predict.py the clip alone, by its path)" in caplog.text


def test_options_of_clips_are_for_clips(image_folders, capsys):
    with pytest.raises(SystemExit):
        predict.main([str(image_folders / "images"), "--auto", "--every", "2"])
    assert "--stability are for a clip" in capsys.readouterr().err
