"""tools/predict.py on clips: every kind of result, and spans."""

from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from data.image_io.images import read_raw
from data.video_io.reading import Clip
from inference.foreground import cut_out, estimate_foreground, over
from tests.helpers.clips import by_ffmpeg, make_clip, needs_ffmpeg, times
from tests.helpers.predict_clips import assert_written, expected_alphas, images_of, run


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
