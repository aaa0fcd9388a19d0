"""tools/predict.py with EXR images and results, and composites in linear light."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import OpenEXR
import pytest
from numpy.typing import NDArray
from PIL import Image

from data.image_io.colour import PRIMARIES
from data.image_io.images import read_image, read_metadata, read_raw, write_alpha, write_image
from data.image_io.light import SRGB_CHROMATICITIES, change_primaries, to_light
from data.image_io.metadata import Metadata
from inference.foreground import estimate_foreground, estimate_foreground_light
from tests.helpers.image_files import wide_profile
from tests.helpers.paths import REPOSITORY
from tests.helpers.prediction import write_images
from tools import predict

HEIGHT, WIDTH = 36, 44
DTYPES = {16: np.float16, 32: np.float32}
RAMP = ("--baseline", "ramp")


def light(seed: int = 0) -> NDArray[np.float32]:
    """Draw (H, W, 3): noise, with 20.0, 1.5, negative values and zero in all regions."""
    values = np.random.default_rng(seed).random((HEIGHT, WIDTH, 3), np.float32)
    values[::5, ::7], values[::7, ::5], values[1::7, ::5, 1], values[2::7, ::5] = 20, 1.5, -0.25, 0
    return values


def save(path: Path, values: NDArray, bits: int = 16, **attributes: Any) -> Path:
    channels = {name: np.ascontiguousarray(values[..., i], DTYPES[bits]) for i, name in enumerate("RGB")}
    OpenEXR.File({"type": OpenEXR.scanlineimage, **attributes}, channels).write(str(path))
    return path


def load(path: Path) -> tuple[dict[str, Any], dict[str, NDArray]]:
    file = OpenEXR.File(str(path), separate_channels=True)
    return file.header(), {name: channel.pixels for name, channel in file.channels().items()}


def rgb(planes: dict[str, NDArray], prefix: str = "") -> NDArray:
    return np.dstack([planes[f"{prefix}{name}"] for name in "RGB"]).astype(np.float32)


def write_trimap(path: Path, height: int = HEIGHT, width: int = WIDTH) -> Path:
    """Background on the left, foreground on the right, unknown between."""
    trimap = np.full((height, width), 0.5, np.float32)
    trimap[:, : width // 4], trimap[:, width // 2 :] = 0, 1
    write_alpha(path, trimap)
    return path


def run(folder: Path, image: Path, *more: Any, trimap: Path | None = None, status: int = 0) -> None:
    trimap = trimap or write_trimap(folder / "trimap.png")
    arguments = [image, "--trimap", trimap, *(RAMP if "--model" not in more else ()), *more, "--overwrite"]
    assert predict.main([str(argument) for argument in arguments]) == status


@pytest.mark.parametrize("bits", [16, 32])
def test_where_alpha_is_one_colours_are_those_of_the_input(tmp_path, bits):
    image, cut = save(tmp_path / "photo.exr", light(), bits), tmp_path / "cut.exr"
    run(tmp_path, image, "--as", "rgba", "--output", cut, "--exr-layers")
    stored, planes = rgb(load(image)[1]), load(cut)[1]
    opaque = planes["A"] == 1
    assert 0.4 < opaque.mean() < 0.6 and stored[opaque].max() == 20 and stored[opaque].min() == -0.25
    assert np.array_equal(rgb(planes)[opaque], stored[opaque])
    assert np.array_equal(rgb(planes, "foreground.")[opaque], stored[opaque])
    assert all(plane.dtype == DTYPES[bits] for plane in planes.values())
    assert np.array_equal(planes["alpha.A"], planes["A"])
    assert set(np.unique(planes["trimap.A"])) == {0, 0.5, 1}
    foreground = estimate_foreground_light(stored, planes["A"].astype(np.float32))
    assert np.array_equal(rgb(planes, "foreground."), foreground.astype(DTYPES[bits]))
    premultiplied = foreground * planes["A"][..., None].astype(np.float32)
    assert np.array_equal(rgb(planes), premultiplied.astype(DTYPES[bits]))


def test_plain_cut_outs_have_four_channels_of_the_type_asked_for(tmp_path):
    image = save(tmp_path / "photo.exr", light(), 32)
    for more, dtype in (((), np.float32), (("--bits", 16), np.float16)):
        run(tmp_path, image, "--as", "rgba", "--output", tmp_path / "cut.exr", *more)
        planes = load(tmp_path / "cut.exr")[1]
        assert planes.keys() == set("RGBA") and all(plane.dtype == dtype for plane in planes.values())
    run(tmp_path, image, "--output", tmp_path / "alpha.exr")
    assert load(tmp_path / "alpha.exr")[1].keys() == {"Y"}


def test_the_data_window_is_kept_and_all_outside_is_transparent(tmp_path):
    windows = {
        "dataWindow": (np.array([6, 4], np.int32), np.array([5 + WIDTH, 3 + HEIGHT], np.int32)),
        "displayWindow": (np.array([0, 0], np.int32), np.array([59, 49], np.int32)),
    }
    image = save(tmp_path / "photo.exr", light(), pixelAspectRatio=2.0, **windows)
    trimap = write_trimap(tmp_path / "trimap.png", 50, 60)
    run(tmp_path, image, "--as", "rgba", "--output", tmp_path / "cut.exr", trimap=trimap)
    header, planes = load(tmp_path / "cut.exr")
    assert planes["A"].shape == (HEIGHT, WIDTH) and header["pixelAspectRatio"] == 2
    assert all(np.array_equal(header[name], windows[name]) for name in windows)
    run(tmp_path, image, "--as", "rgba", "--output", tmp_path / "cut.png", trimap=trimap)
    shown = read_raw(tmp_path / "cut.png").copy()
    assert shown.shape == (50, 60, 4)
    inside = shown[4 : 4 + HEIGHT, 6 : 6 + WIDTH, 3].copy()
    assert inside.max() == 255
    shown[4 : 4 + HEIGHT, 6 : 6 + WIDTH, 3] = 0
    assert not shown[..., 3].any()
    assert np.abs(inside / 255 - planes["A"]).max() < 1 / 255


def test_the_exposure_changes_what_is_shown_and_no_light(tmp_path):
    image = save(tmp_path / "photo.exr", light() / 8)
    shown, written = [], []
    for stops in ("-1", "0", "3"):
        run(tmp_path, image, "--as", "rgba", "--exposure", stops, "--output", tmp_path / "cut.png")
        run(tmp_path, image, "--as", "rgba", "--exposure", stops, "--output", tmp_path / "cut.exr")
        shown.append(read_raw(tmp_path / "cut.png")[:, WIDTH // 2 :, :3].mean())
        written.append((tmp_path / "cut.exr").read_bytes())
    assert shown == sorted(shown) and shown[2] > shown[0] + 50
    assert len(set(written)) == 1


def test_a_photograph_becomes_light_and_keeps_its_resolution(tmp_path):
    for name, profile in (("a.png", None), ("b.png", wide_profile())):
        colours = np.random.default_rng(0).random((HEIGHT, WIDTH, 3), np.float32)
        write_image(tmp_path / name, colours, 16, Metadata(profile, (300, 300)))
        run(tmp_path, tmp_path / name, "--as", "rgba", "--bits", "32", "--output", tmp_path / "cut.exr")
        header, planes = load(tmp_path / "cut.exr")
        opaque = planes["A"] == 1
        stored = read_raw(tmp_path / name).astype(np.float32) / 65535
        assert np.abs(rgb(planes)[opaque] - to_light(stored, profile)[opaque]).max() < 1e-6
        assert header["xDensity"] == pytest.approx(300, abs=0.1)
    run(tmp_path, tmp_path / "cut.exr", "--output", tmp_path / "alpha.png")
    assert read_metadata(tmp_path / "alpha.png").dpi == pytest.approx((300, 300), abs=0.1)


@pytest.mark.parametrize("background", ["teal", "wide.png", "light.exr"])
def test_an_exr_composite_is_blended_in_linear_light(tmp_path, background):
    image = save(tmp_path / "photo.exr", light(), 32)
    behind = np.random.default_rng(3).random((HEIGHT, WIDTH, 3), np.float32)
    write_image(tmp_path / "wide.png", behind, 16, Metadata(wide_profile()))
    save(tmp_path / "light.exr", 3 * behind, 32)
    expected_behind = {
        "teal": to_light(np.float32([0, 128 / 255, 128 / 255])),
        "wide.png": to_light(behind, wide_profile()),
        "light.exr": 3 * behind,
    }[background]
    place = background if background == "teal" else tmp_path / background
    run(tmp_path, image, "--as", "rgba", "--output", tmp_path / "cut.exr")
    run(tmp_path, image, "--background", place, "--output", tmp_path / "composite.exr")
    cut, planes = load(tmp_path / "cut.exr")[1], load(tmp_path / "composite.exr")[1]
    assert planes.keys() == set("RGB")
    expected = rgb(cut) + (1 - cut["A"][..., None]) * expected_behind
    assert np.abs(rgb(planes) - expected).max() < 1e-4
    assert np.array_equal(rgb(planes)[cut["A"] == 1], rgb(load(image)[1])[cut["A"] == 1])


def test_a_background_is_converted_to_the_primaries_of_the_image(tmp_path):
    bt2020 = (*PRIMARIES[9], *SRGB_CHROMATICITIES[6:])
    image = save(tmp_path / "photo.exr", light(), 32, chromaticities=bt2020)
    run(tmp_path, image, "--background", "teal", "--output", tmp_path / "composite.exr")
    header, planes = load(tmp_path / "composite.exr")
    assert header["chromaticities"] == pytest.approx(bt2020)
    in_srgb = change_primaries(rgb(planes)[:, : WIDTH // 4], bt2020, SRGB_CHROMATICITIES)
    assert np.abs(in_srgb - to_light(np.float32([0, 128 / 255, 128 / 255]))).max() < 1e-5
    run(tmp_path, image, "--background", "teal", "--colour", "srgb", "--output", tmp_path / "composite.exr")
    header, planes = load(tmp_path / "composite.exr")
    assert header["chromaticities"] == pytest.approx(SRGB_CHROMATICITIES)
    known = np.s_[:, WIDTH // 2 :]
    expected = change_primaries(light(), bt2020, SRGB_CHROMATICITIES)
    assert rgb(planes)[known] == pytest.approx(expected[known], abs=1e-5)


@pytest.mark.parametrize("more", [(), ("--linear",)])
def test_the_exposure_holds_for_a_background_too(tmp_path, more):
    save(tmp_path / "behind.exr", np.full((HEIGHT, WIDTH, 3), 0.1, np.float32), 32)
    write_image(tmp_path / "photo.png", np.full((HEIGHT, WIDTH, 3), 0.5, np.float32))
    options = ("--background", tmp_path / "behind.exr", "--exposure", "2", *more)
    run(tmp_path, tmp_path / "photo.png", *options, "--output", tmp_path / "composite.png")
    assert read_raw(tmp_path / "composite.png")[0, 0] == pytest.approx(255 * encoded(0.4), abs=0.51)


def decoded(value: float) -> float:
    """Follow the definition of sRGB, for one value."""
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def encoded(value: float) -> float:
    return 12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055


def test_linear_blends_light_and_the_default_blends_stored_values(tmp_path):
    colours = np.random.default_rng(5).random((HEIGHT, WIDTH, 3), np.float32)
    write_image(tmp_path / "photo.png", colours, 16)
    run(tmp_path, tmp_path / "photo.png", "--output", tmp_path / "alpha.tif", "--bits", "16")
    for more in ((), ("--linear",)):
        output = tmp_path / "composite.png"
        run(tmp_path, tmp_path / "photo.png", "--background", "#ff8000", "--bits", "16", "--output", output, *more)
        written, alpha = read_image(output), read_image(tmp_path / "alpha.tif")[..., 0]
        stored = read_image(tmp_path / "photo.png")
        estimate = estimate_foreground_light if more else estimate_foreground
        foreground = estimate(to_light(stored) if more else stored, alpha)
        for y, x in ((0, 0), (10, 12), (20, 15), (35, 20), (30, 40)):
            for channel, behind in enumerate((1, 128 / 255, 0)):
                a, f = float(alpha[y, x]), float(foreground[y, x, channel])
                expected = encoded(max(a * f + (1 - a) * decoded(behind), 0)) if more else a * f + (1 - a) * behind
                assert written[y, x, channel] == pytest.approx(expected, abs=5e-4)
        opaque = alpha == 1
        assert np.array_equal(written[opaque], stored[opaque])


def test_linear_composites_keep_profile_and_values(tmp_path):
    colours = np.random.default_rng(5).random((HEIGHT, WIDTH, 3), np.float32)
    write_image(tmp_path / "photo.png", colours, 16, Metadata(wide_profile()))
    output = tmp_path / "composite.png"
    run(tmp_path, tmp_path / "photo.png", "--background", "teal", "--linear", "--bits", "16", "--output", output)
    assert read_metadata(output).icc_profile == wide_profile()
    known = np.s_[:, WIDTH // 2 :]
    assert np.array_equal(read_raw(output)[known], read_raw(tmp_path / "photo.png")[known])
    shown = read_image(output)[:, : WIDTH // 4]
    assert np.abs(shown - np.float32([0, 128 / 255, 128 / 255])).max() < 1 / 255


def test_an_exr_is_blended_in_linear_light_for_a_display(tmp_path):
    image = save(tmp_path / "photo.exr", light(), 32)
    run(tmp_path, image, "--background", "teal", "--linear", "--exposure", "1", "--output", tmp_path / "shown.png")
    run(tmp_path, image, "--as", "rgba", "--output", tmp_path / "cut.exr")
    cut = load(tmp_path / "cut.exr")[1]
    blended = 2 * rgb(cut) + (1 - cut["A"][..., None]) * to_light(np.float32([0, 128 / 255, 128 / 255]))
    expected = np.vectorize(encoded)(blended.clip(0, 1))
    assert np.abs(read_raw(tmp_path / "shown.png") / 255 - expected).max() < 0.6 / 255


def test_folders_take_exr_and_match_trimaps_by_name(tmp_path):
    write_images(tmp_path)
    size = Image.open(tmp_path / "images" / "a.png").size
    save(tmp_path / "images" / "shot.exr", np.ones((size[1], size[0], 3)))
    (tmp_path / "trimaps" / "shot.bmp").write_bytes((tmp_path / "trimaps" / "a.bmp").read_bytes())
    arguments = ["images", "--trimap-dir", "trimaps", "--as", "rgba", "--format", "exr", "--output", "out", *RAMP]
    assert predict.main([str(tmp_path / a) if a in ("images", "trimaps", "out") else a for a in arguments]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.exr", "b.exr", "c.d.exr", "shot.exr"]


@pytest.mark.parametrize(
    ("more", "status", "words"),
    [
        (["--exr-layers", "--as", "rgba"], 1, "--exr-layers is for EXR: add --format exr"),
        (["--exr-layers", "--format", "exr"], 2, "--exr-layers is for --as rgba"),
        (["--linear"], 2, "--linear is for --as composite"),
        (["--bits", "8", "--format", "exr"], 1, "EXR holds no 8 bit: take 16 (half) or 32 (float)"),
        (["--bits", "32"], 1, "PNG holds no 32 bit: take .exr, or fewer"),
        (["--exposure", "nan"], 2, "must be a number from -32 to 32, got nan"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(tmp_path, capsys, more, status, words):
    image = save(tmp_path / "photo.exr", light())
    trimap = write_trimap(tmp_path / "trimap.png")
    arguments = [str(image), "--trimap", str(trimap), *RAMP, *more]
    if status == 2:
        with pytest.raises(SystemExit):
            predict.main(arguments)
    else:
        assert predict.main(arguments) == status
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_a_bad_exr_is_one_line_and_stops_no_other(tmp_path, capsys):
    folder = tmp_path / "shots"
    folder.mkdir()
    values = light()
    save(folder / "good.exr", values)
    values[3, 5, 1] = np.nan
    save(folder / "bad.exr", values)
    trimaps = tmp_path / "trimaps"
    trimaps.mkdir()
    for name in ("good", "bad"):
        write_trimap(trimaps / f"{name}.png")
    assert predict.main([str(folder), "--trimap-dir", str(trimaps), *RAMP, "--output", str(tmp_path / "out")]) == 1
    assert "bad.exr: NaN or infinity in 1 values of G, the first at x 5, y 3" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.png"]


def test_trimaps_and_masks_of_folders_may_be_exr(tmp_path):
    """A sequence of EXR with a sequence of EXR: the results are those with PNG trimaps and masks."""
    for folder in ("shots", "trimaps", "masks"):
        (tmp_path / folder).mkdir()
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for number in range(3):
        save(tmp_path / "shots" / f"shot.{number}.exr", light(number))
        distance = np.hypot(y - HEIGHT / 2, x - WIDTH / 2 - number)
        values = {"trimaps": np.select([distance < 8, distance > 15], [1, 0], 0.5), "masks": distance < 11}
        for folder, stored in values.items():
            path = tmp_path / folder / f"shot.{number}"
            write_alpha(f"{path}.png", stored.astype(np.float32))
            OpenEXR.File({"type": OpenEXR.scanlineimage}, {"A": stored.astype(np.float16)}).write(f"{path}.exr")
    for folder, options in (("trimaps", ["--trimap-dir"]), ("masks", ["--width-px", "8", "--mask"])):
        alphas = []
        for other in (".png", ".exr"):
            given = tmp_path / f"{folder}{other}"
            given.mkdir()
            for path in (tmp_path / folder).glob(f"*{other}"):
                path.rename(given / path.name)
            output = tmp_path / f"alphas_{folder}" / other[1:]
            arguments = [tmp_path / "shots", *options, given, "--as", "alpha", "--output", output, *RAMP]
            assert predict.main([str(argument) for argument in arguments]) == 0
            alphas.append([read_raw(output / f"shot.{number}.png") for number in range(3)])
        np.testing.assert_allclose(np.array(alphas[0]), alphas[1], atol=1)
        assert len(np.unique(alphas[0])) > 10


def test_a_trimap_of_colours_is_one_line(tmp_path, capsys):
    image = save(tmp_path / "photo.exr", light())
    run(tmp_path, image, trimap=image, status=1)
    line = capsys.readouterr().err.splitlines()[-1]
    assert "photo.exr: an EXR whose R, G and B differ, where grey values are expected. Save one channel" in line


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--exr-layers",)], ids=["four channels", "layers"])
def test_blender_composites_a_cut_out_as_linear_does(tmp_path, more):
    blender = shutil.which("blender")
    if blender is None:
        pytest.skip("Blender is not installed (apt-get install blender)")
    colours, behind = np.random.default_rng(5).random((2, HEIGHT, WIDTH, 3), np.float32)
    photo, background = tmp_path / "photo.png", tmp_path / "background.png"
    write_image(photo, colours, 16)
    write_image(background, behind, 16)
    run(tmp_path, photo, "--as", "rgba", "--bits", "32", "--output", tmp_path / "cut.exr", *more)
    run(tmp_path, photo, "--background", background, "--linear", "--bits", "16", "--output", tmp_path / "ours.png")
    script = REPOSITORY / "tests" / "helpers" / "blender_alpha_over.py"
    command = [blender, "--background", "-noaudio", "--factory-startup", "--python", script, "--"]
    arguments = [tmp_path / "cut.exr", background, tmp_path / "theirs.png"]
    subprocess.run([*command, *arguments], check=True, capture_output=True)
    difference = np.abs(read_image(tmp_path / "theirs.png") - read_image(tmp_path / "ours.png"))
    assert difference.max() < 0.3 / 255
