"""tools/predict.py on clips: trimaps of folders, clips, masks, --auto and keyframes, and stability."""

import cv2
import numpy as np

from data.trimap import decode_trimap, ramp_alpha, trimap_of_mask
from data.video_io.reading import Clip
from tests.helpers.clips import make_clip, trimap
from tests.helpers.predict_clips import RAMP, TICKS, assert_written, expected_alphas, run, write_trimaps
from tools import predict


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
