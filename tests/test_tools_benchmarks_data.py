"""tools/benchmark.py data: a tiny run measures what it says, on files of the stated size."""

import re

import cv2
import pytest
from PIL import Image

from data.datasets.composition import CompositionDataset
from tools import benchmark
from tools.benchmarks import data


@pytest.fixture()
def _tiny(monkeypatch):
    monkeypatch.setattr(data, "FOREGROUND_SIZE", (120, 90))
    monkeypatch.setattr(data, "BACKGROUND_SIZE", (64, 48))
    monkeypatch.setattr(data, "NUM_PICTURES", 3)
    monkeypatch.setattr(data, "NUM_WARM_UP", 3)


@pytest.mark.usefixtures("_tiny")
def test_the_files_of_a_sample_are_decoded_whole(tmp_path, monkeypatch):
    data.make_files(tmp_path)
    folders = tmp_path / "fg", tmp_path / "bg", tmp_path / "alpha"
    dataset = CompositionDataset(*folders, samples_per_epoch=9, crop_px=16)
    decoded = []
    imdecode = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda *arguments: decoded.append(imdecode(*arguments)) or decoded[-1])
    counts = set()
    for index in range(8):
        decoded.clear()
        data.decode_bare(dataset, index)
        bare = [len(decoded), *(pixels.shape for pixels in decoded)]
        decoded.clear()
        dataset[0, index]
        assert {pixels.shape[:2] for pixels in decoded[:-1]} <= {(90, 120), (45, 60), (23, 30), (12, 15)}
        counts.add(bare[0])
        assert bare[1:] == [(90, 120, 3), (90, 120)] * (bare[0] // 2) + [(48, 64, 3)]
    assert counts == {3, 5}


def test_files_are_as_large_as_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "NUM_PICTURES", 1)
    data.make_files(tmp_path)
    for name, num_bytes in (("fg", 1_100_000), ("alpha", 300_000)):
        assert abs((tmp_path / name / "0.jpg").stat().st_size / num_bytes - 1) < 0.15
        with Image.open(tmp_path / name / "0.jpg") as image:
            assert image.size == (2000, 1500)


@pytest.mark.usefixtures("_tiny")
def test_a_tiny_run_prints_what_was_measured(capsys):
    benchmark.main(["data", "--rounds", "2", "--num-samples", "8", "--crop-px", "32"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "round 1, a sample, mean (median)",
        "round 2, a sample, mean (median)",
        "files",
        "packed",
        "round 1, samples a second",
        "round 2, samples a second",
        "two workers",
    ]
    rounds = [[float(number) for number in re.findall(r"\d+\.\d+", line)] for line in lines]
    for place, line in ((2, 2), (4, 3)):  # median of files and of packed, after that of decoding and its median
        ratios = sorted(rounds[number][place] / rounds[number][0] for number in range(2))
        for printed, ratio in zip(rounds[line][1:], ratios, strict=True):
            assert printed == pytest.approx(ratio, rel=0.05)  # of milliseconds printed to a hundredth
    speedups = sorted(rounds[number][1] / rounds[number][0] for number in (4, 5))
    assert rounds[6][1:] == pytest.approx(speedups, rel=0.02, abs=0.011)
