"""tools/predict.py on clips: frames as EXR, and composites in linear light."""

from fractions import Fraction

import cv2
import numpy as np
import OpenEXR
import pytest

from data.image_io.colour import PRIMARIES
from data.image_io.exr import SceneLinear
from data.image_io.images import read_raw, write_exr, write_image
from data.image_io.light import SRGB_CHROMATICITIES, change_primaries
from data.video_io.reading import Clip
from inference.foreground import estimate_foreground, over
from tests.helpers.clips import by_ffmpeg, make_clip, needs_ffmpeg, rgb, trimap
from tests.helpers.predict_clips import (
    ALONE,
    RAMP,
    assert_written,
    expected_alphas,
    images_of,
    refused,
    run,
    write_trimaps,
)
from tools import predict

BT2020 = (*PRIMARIES[9], *SRGB_CHROMATICITIES[6:])
NAMES = [f"{number:06}" for number in range(3)]
SHORT = ["--end", "0.1"]  # the first three


def load(path):
    """Read an EXR by its library."""
    file = OpenEXR.File(str(path), separate_channels=True)
    return file.header(), {name: channel.pixels for name, channel in file.channels().items()}


def colours_of(planes, prefix=""):
    return np.dstack([planes[f"{prefix}{name}"] for name in "RGB"]).astype(np.float32)


def decoded(values):
    """Follow the definition of sRGB."""
    values = np.asarray(values, np.float64)
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def encoded(light):
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def test_frames_are_those_of_the_same_photographs(clip):
    """With layers, half by default. A frame as PNG and the frame in the clip give one EXR."""
    made, photographs = clip.with_name("cutouts"), clip.with_name("photographs")
    layers = ["--as", "rgba", "--format", "exr", "--exr-layers"]
    run(clip, *layers, *SHORT, "--output", made)
    photographs.mkdir()
    trimaps = write_trimaps(clip.with_name("of_photographs"), range(3))
    for number, image in enumerate(images_of(clip)[:3]):
        write_image(photographs / f"frame_{number:04}.png", image)
    given = [photographs, "--trimap-dir", trimaps, *RAMP, *layers, "--output", clip.with_name("expected")]
    assert predict.main([str(part) for part in given]) == 0
    assert sorted(path.name for path in made.iterdir()) == [f"{name}.exr" for name in NAMES]
    for number, name in enumerate(NAMES):
        planes = load(made / f"{name}.exr")[1]
        expected = load(clip.with_name("expected") / f"frame_{number:04}.exr")[1]
        assert planes.keys() == expected.keys() > {"A", "R", "foreground.B", "alpha.A", "trimap.A"}
        for channel, values in planes.items():
            assert values.dtype == np.float16
            np.testing.assert_allclose(values, expected[channel], atol=2e-3, err_msg=channel)


@pytest.mark.parametrize("chromaticities", [SRGB_CHROMATICITIES, BT2020], ids=["BT.709", "BT.2020"])
@pytest.mark.parametrize("colour", ["keep", "srgb"])
def test_light_is_that_of_the_curve_and_the_primaries_of_the_clip(tmp_path, chromaticities, colour):
    """Primaries of sRGB, as of photographs: nothing of a wider space is clipped. The shape of pixels is kept."""

    def tag(stream):
        stream.codec_context.color_primaries = 1 if chromaticities == SRGB_CHROMATICITIES else 9
        stream.codec_context.color_trc = 1
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    write_trimaps(tmp_path / "trimaps", range(2))
    frames = [rgb(number) for number in range(2)]
    clip = make_clip(tmp_path / "clip.mp4", frames, pixel_format="yuv444p", set_up=tag)
    made = tmp_path / "made"
    run(clip, "--as", "rgba", "--format", "exr", "--bits", "32", "--colour", colour, "--output", made)
    lowest = 0.0
    for number, image in enumerate(images_of(clip)):
        header, planes = load(made / f"{NAMES[number]}.exr")
        opaque = planes["A"] == 1
        expected = change_primaries(decoded(image).astype(np.float32), chromaticities, SRGB_CHROMATICITIES)
        assert opaque.mean() > 0.1
        assert np.abs(colours_of(planes) - expected)[opaque].max() < 5e-4
        assert header["pixelAspectRatio"] == pytest.approx(4 / 3)
        lowest = min(lowest, colours_of(planes)[opaque].min())
    assert (lowest < -0.01) == (chromaticities == BT2020)


@needs_ffmpeg
def test_ffmpeg_reads_the_sequence(clip):
    made = clip.with_name("alphas")
    run(clip, "--as", "alpha", "--format", "exr", "--output", made)
    found = by_ffmpeg(made / "%06d.exr", "grayf32le")[..., 0]
    assert np.abs(found - expected_alphas()).max() < 1e-3


@pytest.mark.parametrize("suffix", ["png", "exr"])
def test_a_format_without_output_is_a_folder_beside_the_clip(clip, suffix):
    dotted = clip.rename(clip.with_name(f"clip.v2{clip.suffix}"))
    run(dotted, "--as", "rgba", "--format", suffix, "--end", "0.05")
    made = sorted(path.name for path in clip.with_name("clip.v2_cutout").iterdir())
    assert made == [f"000000.{suffix}", f"000001.{suffix}"]


@pytest.fixture
def backgrounds(clip):
    """Names of a colour, an image, an EXR and a clip -> light of the first three frames, (3, 3)."""
    values = [[255, 0, 0], [0, 255, 0], [40, 80, 255], [255, 255, 255]]
    behind = [np.full((48, 64, 3), value, np.uint8) for value in values]
    make_clip(clip.with_name("other.mkv"), behind, [0, 30, 60, 90], Fraction(1, 1000), "ffv1", "bgr0")
    cv2.imwrite(str(clip.with_name("grey.png")), np.full((30, 40, 3), 90, np.uint8))
    light = np.full((48, 64), 1.75, np.float32)
    write_exr(clip.with_name("light.exr"), dict.fromkeys("RGB", light), SceneLinear(light), 32)
    shown = [values[int(Clip(clip).seconds(number) // 0.03)] for number in range(3)]
    return {
        "teal": decoded([[0, 128 / 255, 128 / 255]] * 3),
        "grey.png": decoded([[90 / 255] * 3] * 3),
        "light.exr": np.full((3, 3), 1.75),
        "other.mkv": decoded(np.array(shown) / 255),
    }


def test_composites_are_blended_in_linear_light(clip, backgrounds):
    """EXR always, other images with --linear; both are the cut-out's light over that of the background."""
    cuts = clip.with_name("cuts")
    run(clip, *SHORT, "--as", "rgba", "--format", "exr", "--bits", "32", "--output", cuts)
    for index, (name, behind) in enumerate(backgrounds.items()):
        given = [*SHORT, "--background", name if name == "teal" else clip.with_name(name)]
        run(clip, *given, "--format", "exr", "--bits", "32", "--output", clip.with_name(f"light_{index}"))
        run(clip, *given, "--linear", "--bits", "16", "--output", clip.with_name(f"shown_{index}"))
        for number, frame in enumerate(NAMES):
            cut = load(cuts / f"{frame}.exr")[1]
            expected = colours_of(cut) + (1 - cut["A"][..., None]) * behind[number]
            planes = load(clip.with_name(f"light_{index}") / f"{frame}.exr")[1]
            assert planes.keys() == set("RGB")
            np.testing.assert_allclose(colours_of(planes), expected, atol=1e-4, err_msg=name)
            shown = read_raw(clip.with_name(f"shown_{index}") / f"{frame}.png") / 65535
            np.testing.assert_allclose(shown, encoded(expected), atol=2e-3, err_msg=name)


def test_a_clip_is_blended_in_linear_light_too(clip):
    """What is coded with loss is nearer to that than to a blend of stored values, where they differ."""
    run(clip, "--background", "white", "--linear", "--output", clip.with_name("a.mov"))
    for image, alpha, frame in zip(
        images_of(clip), expected_alphas(), Clip(clip.with_name("a.mov")).frames(), strict=True
    ):
        light = over(estimate_foreground(decoded(image).astype(np.float32), alpha), alpha, np.ones(3, np.float32))
        stored = over(estimate_foreground(image, alpha), alpha, np.ones(3, np.float32))
        differing = np.abs(encoded(light) - stored).max(axis=2) > 0.05
        assert differing.mean() > 0.01
        errors = [np.abs(frame[differing] / 255 - made[differing]).mean() for made in (encoded(light), stored)]
        assert errors[0] < errors[1] / 2


def test_the_exposure_holds_for_an_exr_background(clip, backgrounds):
    more = ["--end", "0.02", "--exposure", "-2"]
    for linear in ([], ["--linear"]):
        made = clip.with_name(f"made{len(linear)}")
        run(clip, "--background", clip.with_name("light.exr"), *more, *linear, "--output", made)
        corner = read_raw(made / "000000.png")[-1, -1]  # alpha is 0
        assert corner == pytest.approx(255 * encoded(1.75 / 4), abs=0.51)


def test_trimaps_and_keyframes_may_be_exr(clip):
    folder = clip.with_name("as_exr")
    folder.mkdir()
    for number in range(3):
        values = {"A": (np.rint(trimap(number) / 127.5) / 2).astype(np.float16)}
        OpenEXR.File({"type": OpenEXR.scanlineimage}, values).write(str(folder / f"{number:04}.exr"))
    for option in ("--trimap-dir", "--keyframes"):
        made = clip.with_name("a.mkv")
        more = ["--as", "alpha", "--output", made, "--overwrite"]
        run(clip, option, folder, *SHORT, *more, trimaps=False)
        found = np.stack(list(Clip(made).frames()))[..., 0]
        assert_written(found, np.rint(255 * expected_alphas()[:3]))


@pytest.mark.parametrize(
    ("more", "status", "words"),
    [
        (["--as", "rgba", "--exr-layers"], 1, "--exr-layers is for EXR: add --format exr"),
        (["--as", "rgba", "--bits", "32", "--output", "a.mkv"], 1, "no clip holds 32 bit. Name a folder with --format"),
        (["--bits", "32", "--output", "alphas"], 1, "PNG holds no 32 bit: take .exr, or fewer"),
        (["--bits", "8", "--format", "exr", "--output", "alphas"], 1, "EXR holds no 8 bit: take 16 (half) or 32"),
        (["--output", "a.exr"], 1, "for an alpha, expected a clip ending in .mp4, .mov, .mkv, .nut, or a folder"),
        (["--format", "exr", "--output", "a.mov"], 1, "--format is for images, and a.mov is a clip: leave it out, or"),
        (["--format", "exr", "--exposure", "1", "--background", "light.exr"], 1, "and another format than EXR"),
        (["--exposure", "1"], 1, "--exposure is for EXR images: leave it out, or give an EXR --background"),
        (["--background", "teal", "--exposure", "1"], 1, "--exposure is for EXR images"),
    ],
)
def test_options_that_make_no_sense_are_one_line(clip, capsys, monkeypatch, more, status, words):
    monkeypatch.chdir(clip.parent)
    assert words in refused(clip, capsys, *more, status=status)


def test_values_that_half_cannot_hold_are_one_line(clip, capsys):
    light = np.full((48, 64), 1e5, np.float32)
    write_exr(clip.with_name("bright.exr"), dict.fromkeys("RGB", light), SceneLinear(light), 32)
    given = [clip, "--trimap-dir", clip.parent / "trimaps", *RAMP, *ALONE, "--format", "exr"]
    arguments = [*given, "--background", clip.with_name("bright.exr"), "--output", clip.with_name("made")]
    assert predict.main([str(part) for part in arguments]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "000000.exr: its channel R has values beyond 65504, which half cannot hold: take 32 bits" in line
