"""tools/predict.py on clips: what is damaged, and all that is refused."""

import av
import cv2
import numpy as np
import pytest

from data.trimap import decode_trimap, ramp_alpha
from data.video_io.reading import Clip
from inference.video.keyframes import carried_trimaps
from tests.helpers.clips import make_clip, rgb, times, trimap
from tests.helpers.predict_clips import RAMP, assert_written, refused, run, write_trimaps
from tools import predict


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


def make_damaged(folder, number):
    """A clip whose frame of this number cannot be decoded, and those after it can."""
    clip = make_clip(folder / "damaged.mov", codec="png", pixel_format="rgb24")
    content = bytearray(clip.read_bytes())
    place = -1
    for _ in range(number + 1):
        place = content.index(b"\x89PNG", place + 1)
    content[place : place + 64] = bytes(64)
    clip.write_bytes(content)
    return clip


@pytest.mark.parametrize("keys", [[0], [0, 11], [0, 5, 11], [3, 7]])
def test_a_clip_damaged_in_the_middle_is_matted_up_to_there_with_keyframes(clip, capsys, keys):
    """By the keyframes before the damage."""
    damaged = make_damaged(clip.parent, 7)
    made = clip.with_name("a.mkv")
    keyframes = write_trimaps(clip.with_name("keyframes"), keys)
    run(damaged, "--keyframes", keyframes, "--as", "alpha", "--output", made, status=1, trimaps=False)
    printed = capsys.readouterr()
    assert printed.out == f"wrote 7 frames to {made}\n"
    assert f"{damaged}: it ends at frame 7 (0:00:00.280): it cannot be decoded" in printed.err
    images = [rgb(number) for number in range(7)]
    before = {number: decode_trimap(trimap(number)) for number in keys if number < 7}
    carried = carried_trimaps(before, lambda start, stop: iter(images[start:stop]), 0, 7)
    expected = np.stack([ramp_alpha(found.trimap) for found in carried])
    assert_written(np.stack(list(Clip(made).frames()))[..., 0], np.rint(255 * expected))


def test_a_clip_whose_keyframes_are_all_behind_its_damage_is_one_line(clip, capsys):
    keyframes = write_trimaps(clip.with_name("keyframes"), [9])
    run(make_damaged(clip.parent, 7), "--keyframes", keyframes, "--as", "alpha", status=1, trimaps=False)
    printed = capsys.readouterr()
    expected = "it ends at frame 7 (0:00:00.280): it cannot be decoded. All keyframes lie behind it: add one before"
    assert printed.err.splitlines()[-1].endswith(expected) and printed.out == ""
    assert not list(clip.parent.glob("damaged_alpha.mp4"))


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
