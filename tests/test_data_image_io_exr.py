"""OpenEXR is read as its library and ffmpeg read it, and written so that nothing is lost where alpha is 1."""

import re
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import OpenEXR
import pytest
from numpy.typing import NDArray

from data.image_io import exr
from data.image_io.colour import PRIMARIES, convert, rgb_profile
from data.image_io.exr import SceneLinear
from data.image_io.images import (
    DataError,
    is_exr,
    read_alpha,
    read_alpha_values,
    read_colours,
    read_image,
    read_light,
    read_raw,
    read_raw_alpha,
    read_raw_image,
    write_exr,
    write_image,
)
from data.image_io.light import SRGB_CHROMATICITIES, change_primaries, from_light, to_light
from data.image_io.metadata import read_metadata, read_size
from data.mask import read_mask
from data.trimap import read_trimap
from tests.helpers.image_files import wide_profile

HEIGHT, WIDTH = 19, 26
DTYPES = {"half": np.float16, "float": np.float32}
COMPRESSIONS = {
    name: getattr(OpenEXR, f"{name}_COMPRESSION")
    for name in ("NO", "RLE", "ZIPS", "ZIP", "PIZ", "PXR24", "B44", "B44A", "DWAA", "DWAB")
}
WINDOWS = {  # data window and display window: left, top, right, bottom, all inside
    "same": ((0, 0, WIDTH - 1, HEIGHT - 1), (0, 0, WIDTH - 1, HEIGHT - 1)),
    "smaller": ((5, 3, WIDTH + 4, HEIGHT + 2), (0, 0, WIDTH + 9, HEIGHT + 7)),
    "overscan": ((-4, -2, WIDTH - 5, HEIGHT - 3), (0, 0, WIDTH - 9, HEIGHT - 7)),
    "crossing": ((-4, 6, WIDTH - 5, HEIGHT + 5), (0, 0, WIDTH + 3, HEIGHT + 1)),
}
CHANNELS = {"rgb": "RGB", "rgba": "RGBA", "y": "Y", "ya": "YA"}


def draw(dtype: type, seed: int = 0) -> NDArray:
    """Draw (H, W) of light: a slope with noise, 20.0, negative values, zeros."""
    rng = np.random.default_rng(seed)
    values = np.add.outer(np.linspace(0, 1.5, HEIGHT), np.linspace(0, 0.5, WIDTH)) + 0.1 * rng.random((HEIGHT, WIDTH))
    values[4:6, 4:8], values[8:10, 4:8], values[12:14, 4:8] = 20, -0.25, 0
    return values.astype(dtype)


def box(window: tuple[int, int, int, int]) -> tuple[NDArray, NDArray]:
    return np.array(window[:2], np.int32), np.array(window[2:], np.int32)


def save(path: Path, channels: dict[str, Any], windows: str = "same", **attributes: Any) -> Path:
    """Write an EXR by its library."""
    data, display = WINDOWS[windows]
    header = {"dataWindow": box(data), "displayWindow": box(display), "type": OpenEXR.scanlineimage, **attributes}
    OpenEXR.File(header, dict(channels)).write(str(path))  # which changes the dictionary
    return path


def read(path: Path) -> tuple[dict[str, Any], dict[str, NDArray]]:
    file = OpenEXR.File(str(path), separate_channels=True)
    return file.header(), {name: channel.pixels for name, channel in file.channels().items()}


def in_frame(values: NDArray, windows: str) -> NDArray:
    """Put what the data window holds into the frame, pixel by pixel."""
    data, display = WINDOWS[windows]
    left, top = min(data[0], display[0]), min(data[1], display[1])
    right, bottom = max(data[2], display[2]), max(data[3], display[3])
    frame = np.zeros((bottom - top + 1, right - left + 1, *values.shape[2:]), values.dtype)
    for y in range(values.shape[0]):
        for x in range(values.shape[1]):
            frame[data[1] + y - top, data[0] + x - left] = values[y, x]
    return frame


def cells(folder: Path) -> list[tuple[Path, str]]:
    """Write the grid: type x compression x channels x windows, and tiles."""
    found = []
    for kind, compression, channels, windows in product(DTYPES, COMPRESSIONS, CHANNELS, WINDOWS):
        path = folder / f"{kind}_{compression}_{channels}_{windows}.exr"
        planes = {name: draw(DTYPES[kind], seed) for seed, name in enumerate(CHANNELS[channels])}
        if "A" in planes:
            planes["A"] = planes["A"].clip(0, 1)
        found.append((save(path, planes, windows, compression=COMPRESSIONS[compression]), windows))
    tiles = OpenEXR.TileDescription()
    tiles.xSize = tiles.ySize = 16
    for kind, windows in product(DTYPES, WINDOWS):
        planes = {name: draw(DTYPES[kind], seed) for seed, name in enumerate("RGB")}
        path = folder / f"{kind}_tiles_rgb_{windows}.exr"
        found.append((save(path, planes, windows, type=OpenEXR.tiledimage, tiles=tiles), windows))
    return found


def test_every_file_is_read_as_its_library_reads_it(tmp_path, caplog):
    grid = cells(tmp_path)
    for path, windows in grid:
        _, planes = read(path)
        light = read_light(path)
        expected = np.dstack([planes[name] for name in ("RGB" if "R" in planes else "YYY")]).astype(np.float32)
        assert np.array_equal(light.values, in_frame(expected, windows)), path.name
        assert light.bits == (16 if path.name.startswith("half") else 32)
        assert light.left_out == (("A",) if "A" in planes else ())
        assert read_size(path) == light.values.shape[1::-1]
    print(f"{len(grid)} cells")
    assert len(grid) == 328
    assert "channels that are left out: A" in caplog.text


@pytest.mark.parametrize("kind", DTYPES)
def test_lossless_files_hold_what_was_written(tmp_path, kind):
    for compression in ("NO", "RLE", "ZIPS", "ZIP", "PIZ"):
        planes = {name: draw(DTYPES[kind], seed) for seed, name in enumerate("RGB")}
        path = save(tmp_path / f"{compression}.exr", planes, compression=COMPRESSIONS[compression])
        assert np.array_equal(read_light(path).values, np.dstack(list(planes.values())))


def read_by_ffmpeg(path: Path) -> NDArray:
    """Decode to (H, W, 3) of the display window by ffmpeg's own decoder, grey repeated."""
    with pytest.importorskip("av").open(str(path)) as container:
        frame = next(container.decode(video=0))
    dtype = np.dtype(np.float16 if "f16" in frame.format.name else np.float32)
    rows = [np.frombuffer(plane, dtype).reshape(frame.height, -1) for plane in frame.planes]
    if frame.format.name.startswith("ya"):  # grey and alpha, interleaved
        rows = [rows[0][:, ::2]]
    order = (2, 0, 1) if frame.format.name.startswith("gbr") else (0, 0, 0)
    return np.dstack([rows[plane][:, : frame.width] for plane in order]).astype(np.float32)


def test_every_file_is_read_as_ffmpeg_reads_it(tmp_path):
    faults, num_compared = [], 0
    for path, windows in cells(tmp_path):
        if re.search(r"DWA._ya?_", path.name):  # ffmpeg decodes one channel of this compression to noise
            continue
        data, display = WINDOWS[windows]
        shown = read_light(path).values[max(-data[1], 0) :, max(-data[0], 0) :][: display[3] + 1, : display[2] + 1]
        difference = np.abs(read_by_ffmpeg(path) - shown).max()
        if difference > (0.1 if "DWA" in path.name else 0):  # lossy, with roundings of cosines of values of 20
            faults.append(f"{path.name}: {difference}")
        num_compared += 1
    print(f"{num_compared} cells compared")
    assert faults == []
    assert num_compared == 296


def test_what_is_written_is_what_every_reader_reads(tmp_path):
    for bits, windows in product((16, 32), WINDOWS):
        source = save(
            tmp_path / "source.exr",
            {name: draw(np.float32, seed) for seed, name in enumerate("RGB")},
            windows,
            pixelAspectRatio=1.5,
            chromaticities=(0.713, 0.293, 0.165, 0.83, 0.128, 0.044, 0.32168, 0.33767),
            framesPerSecond=Fraction(24000, 1001),
            xDensity=300.0,
        )
        light = read_light(source)
        channels = {"R": light.values[..., 0], "G": light.values[..., 1], "B": light.values[..., 2]}
        write_exr(tmp_path / "written.exr", {**channels, "alpha.A": light.values[..., 2]}, light, bits)
        header, planes = read(tmp_path / "written.exr")
        stored = read(source)[1]
        dtype = {16: np.float16, 32: np.float32}[bits]
        assert all(np.array_equal(planes[name], stored[name].astype(dtype)) for name in "RGB")
        assert all(plane.dtype == dtype for plane in planes.values())
        assert np.array_equal(planes["alpha.A"], planes["B"])
        for name in exr.KEPT:
            if name in read(source)[0]:
                assert str(header[name]) == str(read(source)[0][name]), name
        assert header["compression"] == OpenEXR.ZIP_COMPRESSION
        data, display = WINDOWS[windows]
        seen = read_light(tmp_path / "written.exr").values[max(-data[1], 0) :, max(-data[0], 0) :]
        assert np.array_equal(read_by_ffmpeg(tmp_path / "written.exr"), seen[: display[3] + 1, : display[2] + 1])


def test_one_channel_of_float_makes_the_image_float(tmp_path):
    path = save(tmp_path / "a.exr", {"R": half(), "G": draw(np.float32), "B": half()})
    assert read_light(path).bits == 32


def test_resolution_is_that_of_both_directions(tmp_path):
    path = save(tmp_path / "a.exr", {"Y": draw(np.float16)}, pixelAspectRatio=2.0, xDensity=72.0)
    assert read_metadata(path) == (None, (72, 144))
    assert read_metadata(save(path, {"Y": draw(np.float16)})) == (None, None)


def half(value: float = 0.5) -> NDArray:
    return np.full((HEIGHT, WIDTH), value, np.float16)


def wrong(value: float) -> NDArray:
    values = half()
    values[3, 7] = value
    return values


def deep() -> NDArray:
    values = np.empty((HEIGHT, WIDTH), object)
    for place in np.ndindex(values.shape):
        values[place] = np.ones(2, np.float32)
    return values


@pytest.mark.parametrize(
    ("channels", "attributes", "reason"),
    [
        ({"R": half(), "G": half()}, {}, "an EXR of the channels G, R; expected R, G and B, or Y"),
        ({"beauty.R": half(), "beauty.G": half(), "beauty.B": half()}, {}, "an EXR of the channels beauty.B, beauty.G"),
        ({"Y": half(), "RY": half(), "BY": half()}, {}, "an EXR of the channels BY, RY, Y"),
        ({"Y": np.ones((HEIGHT, WIDTH), np.uint32)}, {}, "channel Y is of integers or subsampled"),
        ({"Y": wrong(np.nan)}, {}, "NaN or infinity in 1 values of Y, the first at x 7, y 3 of the data window"),
        ({"Y": wrong(-np.inf)}, {}, "NaN or infinity in 1 values of Y"),
        (dict.fromkeys("RGB", deep()), {"type": OpenEXR.deepscanline, "compression": OpenEXR.ZIPS_COMPRESSION}, "deep"),
        ({"Y": half()}, {"displayWindow": box((0, 0, 2**14, 2**14))}, "too large (16385 x 16385, 1 channels)"),
    ],
)
def test_what_is_not_read_is_refused_in_one_line(tmp_path, channels, attributes, reason):
    path = save(tmp_path / "a.exr", channels, **attributes)
    with pytest.raises(DataError) as error:
        read_light(path)
    assert str(error.value).startswith(f"cannot read {path}: ") and reason in str(error.value)
    assert "\n" not in str(error.value)


def test_several_parts_are_refused_in_one_line(tmp_path):
    parts = [OpenEXR.Part({}, {"Y": half()}, name) for name in ("left", "right")]
    OpenEXR.File(parts).write(str(tmp_path / "a.exr"))
    with pytest.raises(DataError, match="an EXR of 2 parts, and one is expected. Save the part"):
        read_light(tmp_path / "a.exr")


@pytest.mark.parametrize("compression", ["NO", "ZIP"])
def test_a_file_that_is_cut_is_refused_in_one_line_on_the_screen(tmp_path, compression, capfd):
    """OpenEXR prints lines of its own where it finds damage; they name no file."""
    planes = {"R": draw(np.float16), "G": half(), "B": half()}
    path = save(tmp_path / "a.exr", planes, compression=COMPRESSIONS[compression])
    content = path.read_bytes()
    after_header = content.index(b"scanlineimage") + len("scanlineimage") + 1
    for end in (*range(after_header, len(content), 31), len(content) - 1):
        path.write_bytes(content[:end])
        with pytest.raises(DataError, match=r"a\.exr: truncated: rows are missing\. Is it complete") as error:
            read_light(path)
        assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_damaged_file_is_refused(tmp_path):
    path = save(tmp_path / "a.exr", {"R": draw(np.float16), "G": half(), "B": half()})
    content = bytearray(path.read_bytes())
    content[-60:-30] = bytes(30)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.exr: damaged: its pixels cannot be decoded"):
        read_light(path)
    for end in range(8, 300, 7):
        path.write_bytes(content[:end])
        with pytest.raises(DataError, match=r"cannot read .*a\.exr: .*Is it complete") as error:
            read_light(path)
        assert "\n" not in str(error.value)


def test_functions_of_stored_pixels_refuse_exr(tmp_path):
    path = save(tmp_path / "photo", {"R": half(), "G": half(), "B": half()})
    assert is_exr(path)
    for read_pixels in (read_raw, read_raw_alpha, read_raw_image):
        with pytest.raises(DataError, match="scene-linear: EXR is not read here; save it as PNG"):
            read_pixels(path)


TRIMAP = np.array([0, 0.5, 1], np.float32)[np.random.default_rng(2).integers(0, 3, (HEIGHT, WIDTH))]
ALPHA = np.random.default_rng(3).random((HEIGHT, WIDTH), np.float32)
NOISE = np.random.default_rng(4).random((HEIGHT, WIDTH), np.float32)
HELD = {  # an alpha, mask or trimap, and what may stand beside it
    "only A": lambda values: {"A": values},
    "only Y": lambda values: {"Y": values},
    "only a layer": lambda values: {"matte.red": values},
    "equal channels": lambda values: dict.fromkeys("RGB", values),
    "equal channels, opaque": lambda values: {**dict.fromkeys("RGB", values), "A": half(1)},
    "grey, opaque": lambda values: {"Y": values, "A": half(1)},
    "a cut-out": lambda values: {"R": NOISE, "G": 3 * NOISE, "B": NOISE, "A": values, "depth.Z": 9 * NOISE},
    "grey with alpha": lambda values: {"Y": NOISE, "A": values},
}


@pytest.mark.parametrize("windows", WINDOWS)
@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("channels", HELD)
def test_alphas_masks_and_trimaps_are_those_that_the_library_reads(tmp_path, channels, kind, windows):
    """Outside the data window all is 0."""
    for stored, read_file in ((ALPHA, read_alpha), (TRIMAP, read_trimap), (ALPHA, read_mask)):
        stored = stored.astype(DTYPES[kind])
        path = save(tmp_path / "a.exr", HELD[channels](stored), windows)
        found = read_file(path)
        assert found.dtype == np.float32
        assert np.array_equal(found, in_frame(stored.astype(np.float32), windows))
        path.rename(tmp_path / "a.png")  # the content decides
        assert np.array_equal(read_file(tmp_path / "a.png"), found)


@pytest.mark.parametrize(
    ("channels", "reason"),
    [
        ({"R": NOISE, "G": ALPHA, "B": NOISE}, "R, G and B differ, where grey values are expected. Save one channel"),
        ({"R": NOISE, "G": ALPHA, "B": NOISE, "A": np.ones_like(ALPHA)}, "R, G and B differ, where grey"),
        ({"left.A": ALPHA, "right.A": ALPHA}, "an EXR of the channels left.A, right.A; expected one, or A, or Y. Save"),
        ({"A": ALPHA + 0.01}, "in [0, 1], got 0.01"),
        ({"Y": ALPHA - 0.01}, "in [0, 1], got -0.0"),
        ({"A": np.where(ALPHA > 0.9, np.nan, ALPHA).astype(np.float32)}, "NaN or infinity in"),
        (
            {"A": np.ones((HEIGHT, WIDTH), np.uint32)},
            "channel A is of integers or subsampled. Save it as half or float",
        ),
    ],
)
def test_an_alpha_that_is_ambiguous_or_out_of_range_is_one_line(tmp_path, channels, reason):
    path = save(tmp_path / "a.exr", channels)
    for read_file in (read_alpha, read_alpha_values):
        with pytest.raises(DataError) as error:
            read_file(path)
        assert "a.exr" in str(error.value) and reason in str(error.value) and "\n" not in str(error.value)


def test_trimaps_and_masks_out_of_range_are_one_line(tmp_path):
    path = save(tmp_path / "a.exr", {"A": ALPHA})
    with pytest.raises(DataError, match=r"a\.exr holds floats .* not 0, 0.5 or 1, so it seems to be an alpha"):
        read_trimap(path)
    path = save(tmp_path / "a.exr", {"A": 255 * TRIMAP})
    with pytest.raises(DataError, match=r"a\.exr holds floats .*: divide 0 to 255 by 255"):
        read_trimap(path)
    with pytest.raises(DataError, match=r"a\.exr holds floats between 0 and 255: scale them to \[0, 1\]"):
        read_mask(path)


def test_values_that_half_cannot_hold_are_refused(tmp_path):
    light = SceneLinear(np.full((2, 2, 3), 70000, np.float32))
    with pytest.raises(DataError, match=r"a.exr: its channel Y has values beyond 65504, .*: take 32 bits"):
        write_exr(tmp_path / "a.exr", {"Y": light.values[..., 0]}, light)
    assert not list(tmp_path.iterdir())
    write_exr(tmp_path / "a.exr", {"Y": light.values[..., 0]}, light, 32)
    assert read_light(tmp_path / "a.exr").values.max() == 70000


def test_a_display_shows_light_by_the_curve_of_srgb(tmp_path):
    values = {name: draw(np.float32, seed) for seed, name in enumerate("RGB")}
    path = save(tmp_path / "a.exr", values)
    for stops in (-2, 0, 1.5):
        shown = read_light(path).shown(stops)
        for y, x, channel in ((0, 0, 0), (5, 6, 1), (9, 6, 2), (18, 25, 0), (13, 5, 1)):
            light = min(max(values["RGB"[channel]][y, x] * 2**stops, 0), 1)
            expected = 12.92 * light if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055
            assert shown[y, x, channel] == pytest.approx(expected, abs=1e-6)
    assert np.array_equal(read_image(path), read_light(path).shown())
    assert read_colours(path).icc_profile is None


def test_chromaticities_are_honoured(tmp_path):
    bt2020 = (*PRIMARIES[9], *SRGB_CHROMATICITIES[6:])
    colours = np.random.default_rng(0).random((HEIGHT, WIDTH, 3), np.float32)
    path = save(
        tmp_path / "a.exr",
        {name: colours[..., index].copy() for index, name in enumerate("RGB")},
        chromaticities=bt2020,
    )
    by_littlecms = convert(colours, rgb_profile(PRIMARIES[9], 1.0))
    assert np.abs(read_image(path) - by_littlecms).max() < 0.5 / 255


def test_white_stays_white_in_other_primaries():
    aces = (0.7347, 0.2653, 0, 1, 0.0001, -0.077, 0.32168, 0.33767)
    published = [(2.52169, -1.13413, -0.38756), (-0.27648, 1.37272, -0.09624), (-0.01538, -0.15298, 1.16835)]
    matrix = change_primaries(np.eye(3, dtype=np.float32), aces, SRGB_CHROMATICITIES).T
    assert matrix == pytest.approx(np.array(published), abs=1e-4)  # SMPTE ST 2065-1 to BT.709 by Bradford
    assert change_primaries(np.float32([20, 20, 20]), aces, SRGB_CHROMATICITIES) == pytest.approx(20, abs=1e-4)


def test_light_of_a_photograph_keeps_colours_outside_srgb(tmp_path):
    colours = np.random.default_rng(1).random((9, 9, 3), np.float32)
    for profile in (None, wide_profile(), rgb_profile(PRIMARIES[12], None)):
        light = to_light(colours, profile)
        assert np.abs(from_light(light, profile) - colours).max() < 0.1 / 255
        assert (light.min() < 0) == (profile is not None)
    write_image(tmp_path / "a.png", colours)
    assert np.array_equal(read_light(tmp_path / "a.png").values, to_light(read_image(tmp_path / "a.png")))
