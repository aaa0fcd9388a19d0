"""tools/benchmark.py infer: the same work on all sides, memory and ratios as they are."""

import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig
from scipy import ndimage
from transformers import VitMatteImageProcessor

from data.image_io.images import read_image
from data.trimap import encode_trimap
from inference.formats.model_folder import CONSTRUCTORS
from tests.helpers.paths import REPOSITORY
from tools import benchmark, export
from tools.benchmarks import fresh, infer, memory_plot, networks, scene

MEGABYTE = 10**6


@pytest.fixture(scope="module")
def folder():
    """Every side's network in its usual size: 300 MB, gone afterwards."""
    with tempfile.TemporaryDirectory() as name:
        networks.write_networks(Path(name), networks.WEIGHTS)
        yield Path(name)


def picture(width, height):
    """An image and a trimap of all three values, both uint8."""
    rng = np.random.default_rng(1)
    trimap = rng.choice(np.array([0, 128, 128, 255], np.uint8), (height, width))
    return rng.integers(0, 256, (height, width, 3), np.uint8), trimap


@pytest.mark.parametrize("size", [(64, 64), (512, 512), (650, 490), (200, 700), (1920, 1080)])
def test_the_band_is_closed_and_a_fifth_of_the_pixels(size):
    trimap = scene.band_trimap(*size)
    assert trimap.shape == size[::-1] and trimap.dtype == np.float32
    assert (trimap == 0.5).mean() == pytest.approx(0.2, abs=0.005)
    assert (trimap == 1).mean() == pytest.approx(0.15, abs=0.005)
    parts = [ndimage.label(trimap == value, np.ones((3, 3)))[1] for value in (0, 0.5, 1)]
    assert parts == [1, 1, 1]
    # Foreground and background touch nowhere, corners included, and no border pixel is in the band.
    assert not (ndimage.binary_dilation(trimap == 1, np.ones((3, 3))) & (trimap == 0)).any()
    assert not np.concatenate((trimap[0], trimap[-1], trimap[:, 0], trimap[:, -1])).any()


def test_the_image_has_many_colours_and_is_always_the_same():
    image = scene.draw_image(70, 50)
    assert image.shape == (50, 70, 3) and image.dtype == np.uint8
    assert image.std(axis=(0, 1)).min() > 20
    assert np.array_equal(image, scene.draw_image(70, 50))


def test_on_cuda_memory_is_what_torch_allocates(monkeypatch):
    state = {"allocated": 3e9, "peak": 9e9}
    fakes = {
        "synchronize": lambda: None,
        "reset_peak_memory_stats": lambda: state.update(peak=state["allocated"]),
        "memory_allocated": lambda: state["allocated"],
        "max_memory_allocated": lambda: state["peak"],
        "max_memory_reserved": lambda: 11e9,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, fake=fake: fake() if device == "cuda:1" else None)
    memory = fresh.PeakMemory("cuda:1")
    assert memory.above_gb() == 0
    state["peak"] = 5e9
    assert (memory.above_gb(), memory.whole_gb()) == (2, 11)


@pytest.mark.parametrize("size", [(96, 64), (75, 50)])
def test_transformers_is_given_what_its_processor_makes_but_for_the_unknown_value(size):
    image, trimap = picture(*size)
    theirs = VitMatteImageProcessor()(images=image, trimaps=trimap, return_tensors="pt")["pixel_values"]
    theirs[:, 3:][theirs[:, 3:] == 128 / 255] = 0.5
    ours = networks.transformers_input(image, trimap)
    assert ours.shape == (1, 4, 64, 96) and (ours[:, 3] == 0.5).sum() == (trimap == 128).sum() > 0
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "trimap_kind"),
    [
        ((120, 90), "band"),
        ((120, 90), "unknown"),
        *(pytest.param(size, "unknown", marks=pytest.mark.slow) for size in [(512, 512), (650, 490), (1024, 768)]),
    ],
)
def test_both_sides_of_the_same_weights_give_the_same_alpha(folder, size, trimap_kind):
    trimap = scene.TRIMAPS[trimap_kind](*size)
    unknown = trimap == 0.5
    theirs, ours = (
        networks.load(side, folder, "cpu", "float32")(scene.draw_image(*size), encode_trimap(trimap))()
        for side in ("transformers", "ours-vitmatte")
    )
    assert theirs.shape == ours.shape == trimap.shape and theirs.dtype == np.float32
    assert theirs[unknown].std() > 0.1
    np.testing.assert_allclose(ours[unknown], theirs[unknown], rtol=0, atol=1e-4)


def test_our_network_is_that_of_the_configs():
    config = LazyConfig.load(str(REPOSITORY / "configs" / "ViTMatte_S_100ep.py"))
    description = export.describe("model", config.model)
    for part in ("backbone", "decoder", "model"):
        described = description if part == "model" else description[part]
        benched = networks.DINOV3 if part == "model" else networks.DINOV3[part]
        assert described["type"] == benched["type"]
        parameters = inspect.signature(CONSTRUCTORS[part][described["type"]]).parameters
        for name, value in described.items():
            if name not in ("type", "backbone", "decoder"):
                used = benched.get(name, parameters[name].default if name in parameters else None)
                assert value == (list(used) if isinstance(used, tuple) else used), name


@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_small_prediction_goes_before_the_one_that_is_measured(tmp_path, monkeypatch, is_compiled):
    calls = []

    def load(*arguments):
        calls.append(("load", *arguments))

        def prepare(image, trimap):
            def predict():
                calls.append(("predict", image.shape, trimap.shape))
                work = np.ones(100 * MEGABYTE, np.uint8)
                return work[: trimap.size].reshape(trimap.shape) / np.float32(2)

            return predict

        return prepare

    clock = iter([10.0, 13.0])
    monkeypatch.setattr(infer, "load", load)
    monkeypatch.setattr(infer.time, "perf_counter", lambda: next(clock))
    image, trimap = picture(70, 50)
    np.save(tmp_path / "image.npy", image)
    np.save(tmp_path / "trimap.npy", trimap)
    case = infer.Case("ours", "bf16")
    result = infer.measure_prediction(case, tmp_path, "cpu", is_compiled, 8.0)
    assert result["seconds"] == 3
    assert result["above_gb"] == pytest.approx(0.1, abs=0.01)
    small, full = ("predict", (64, 64, 3), (64, 64)), ("predict", (50, 70, 3), (50, 70))
    loaded = ("load", "ours", tmp_path, "cpu", "bf16", is_compiled, 8.0)
    assert calls == [loaded, full if is_compiled else small, full]
    assert np.array_equal(np.load(tmp_path / case.alpha_file), np.full((50, 70), 0.5, np.float32))


def test_rounds_are_summed_up_by_medians_and_ratios_to_the_first(tmp_path, monkeypatch, capsys):
    seconds = iter([8, 4, 2, 9, 3, 1, 6, 6, 2])  # transformers, ours of their weights, ours; three rounds
    peaks = iter([4, 1, 1, 4, 2, 1, 8, 1, 1])
    commands = []

    def run_fresh(*arguments):
        commands.append(arguments)
        side = arguments[arguments.index("--only") + 1]
        folder = Path(arguments[arguments.index("--folder") + 1])
        trimap = np.load(folder / "trimap.npy")
        assert trimap.shape == np.load(folder / "image.npy").shape[:2] == (40, 60)
        alpha = np.where(trimap == 128, 0.5, 0.0 if side == "transformers" else 1.0)  # known pixels do not count
        alpha[20, 30 if (trimap == 128).all() else np.flatnonzero(trimap[20] == 128)[0]] += 0.25 * (
            side != "transformers"
        )
        np.save(folder / infer.Case(side, "float32").alpha_file, alpha)
        return {"seconds": next(seconds), "above_gb": next(peaks), "whole_gb": 10.0}

    monkeypatch.setattr(infer, "run_fresh", run_fresh)
    monkeypatch.setattr(infer, "write_networks", lambda folder, sides: commands.append(sides))
    records, plot = tmp_path / "records.jsonl", tmp_path / "memory.png"
    arguments = ["infer", "--sizes", "60x40", "--trimaps", "band", "--max-memory", "8", "--compile"]
    benchmark.main([*arguments, "--records", str(records), "--plot", str(plot)])
    *_, theirs, same, ours = capsys.readouterr().out.splitlines()
    num_unknown = int((scene.band_trimap(60, 40) == 0.5).sum())
    assert theirs == "| 60 x 40 | band | transformers, float32 | 8.00 | 4.000 | 10.00 |  |  |  |"
    assert same == (
        "| 60 x 40 | band | ours-vitmatte, float32 | 4.00 | 1.000 | 10.00 | 2.00 (1.00 to 3.00) | "
        f"0.250 (0.125 to 0.500) | 2.5e-01, {0.25 / num_unknown:.1e} (from transformers, float32) |"
    )
    assert ours == (
        "| 60 x 40 | band | ours, float32 | 2.00 | 1.000 | 10.00 | 4.00 (3.00 to 9.00) | 0.250 (0.125 to 0.250) |  |"
    )
    assert commands[0] == list(networks.WEIGHTS)
    assert [command[2] for command in commands[1:]] == list(networks.WEIGHTS) * 3
    assert set(commands[1]) >= {"infer", "--only", "--compile", "--device", "cpu"}
    assert commands[1][commands[1].index("--max-memory") + 1] == "8.0"
    written = [json.loads(line) for line in records.read_text().splitlines()]
    assert len(written) == 9 and {(r["width"], r["height"], r["trimap"]) for r in written} == {(60, 40, "band")}
    assert read_image(plot).shape[2] == 3


@pytest.mark.slow
def test_a_run_prints_a_table(tmp_path):
    """In processes of their own, as it is used."""
    command = [sys.executable, "tools/benchmark.py", "infer", "--sides", "ours", "--sizes", "64x48", "--rounds", "1"]
    done = subprocess.run(
        [*command, "--trimaps", "unknown"],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    machine, line, header, rule, row = done.stdout.splitlines()
    assert machine == f"torch {torch.__version__}, 1 threads"
    assert line.startswith("64 x 48, unknown, round 1: ours, float32")
    assert header.count("|") == rule.count("|") == row.count("|") == 10
    found = re.fullmatch(r"\| 64 x 48 \| unknown \| ours, float32 \| (.+) \| (.+) \| (.+) \|  \|  \|  \|", row)
    seconds, above, whole = (float(figure) for figure in found.groups())
    assert seconds >= 0 and 0 <= above < whole


def record(megapixels, above_gb, side="ours, float32"):
    return {"side": side, "trimap": "band", "width": int(megapixels * 1e6), "height": 1, "above_gb": above_gb}


def test_memory_is_drawn_by_median_with_the_line_that_fits(tmp_path):
    records = [record(4, 1.3), record(1, 0.4), record(1, 0.9), record(1, 0.2), record(2, 0.7)]
    records += [record(size, size**2, "theirs") for size in (1, 2, 4)]
    points = memory_plot.memory_points(records)
    assert points == {"ours, float32, band": {1: 0.4, 2: 0.7, 4: 1.3}, "theirs, band": {1: 1, 2: 4, 4: 16}}
    assert [list(line) for line in points.values()] == [[1, 2, 4]] * 2
    ours, theirs = (memory_plot.describe_line(line) for line in points.values())
    assert ours == ": 0.30 GB a megapixel +0.10 GB, off by 0.0%"
    # Through (1, 1), (2, 4), (4, 16): slope 24 / (14 / 3), start 7 - 12, at 2 it is 9 / 7 too high.
    assert theirs == ": 5.14 GB a megapixel -5.00 GB, off by 8.0%"
    assert memory_plot.describe_line({1: 2, 2: 3}) == ""
    memory_plot.draw_memory(records, tmp_path / "memory.png")
    drawn = cv2.imread(str(tmp_path / "memory.png"))
    assert (tmp_path / "memory.png").stat().st_size < 60_000
    for colour in memory_plot.COLOURS[:2]:
        bgr = tuple(int(colour[start : start + 2], 16) for start in (5, 3, 1))
        assert (np.abs(drawn.astype(int) - bgr).max(axis=2) < 4).sum() > 100
    colours = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in memory_plot.COLOURS])
    assert len({tuple(colour) for colour in colours}) == len(memory_plot.MARKERS) == 6


def test_a_side_that_fails_is_one_line_and_status_1(monkeypatch, capsys):
    def run(command, **settings):
        raise subprocess.CalledProcessError(-9, "a side")

    monkeypatch.setattr(infer, "write_networks", lambda folder, sides: None)
    monkeypatch.setattr(fresh.subprocess, "run", run)
    with pytest.raises(SystemExit) as stop:
        benchmark.main(["infer", "--sizes", "60x40"])
    assert stop.value.code == "benchmark.py: Command 'a side' died with <Signals.SIGKILL: 9>."


@pytest.mark.parametrize(
    "arguments", [["--sizes", "512"], ["--sizes", "0x5"], ["--sides", "theirs"], ["--trimaps", "x"]]
)
def test_wrong_usage_is_status_2(arguments):
    with pytest.raises(SystemExit) as stop:
        benchmark.main(["infer", *arguments])
    assert stop.value.code == 2
