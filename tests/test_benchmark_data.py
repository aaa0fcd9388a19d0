"""tools/benchmark.py data: a tiny run measures what it says, on files of the stated size."""

import re

import cv2
import pytest
from PIL import Image

from data.datasets import CompositionDataset
from tools import benchmark
from tools.benchmarks import data


@pytest.fixture()
def _tiny(monkeypatch):
    monkeypatch.setattr(data, "FOREGROUND_SIZE", (120, 90))
    monkeypatch.setattr(data, "BACKGROUND_SIZE", (64, 48))
    monkeypatch.setattr(data, "FOREGROUND_BYTES", 8000)
    monkeypatch.setattr(data, "ALPHA_BYTES", 3000)
    monkeypatch.setattr(data, "NUM_PICTURES", 3)


@pytest.mark.usefixtures("_tiny")
def test_files_are_as_large_as_asked_for_and_all_of_a_samples_are_decoded(tmp_path, monkeypatch):
    data.make_files(tmp_path)
    for name, most in (("fg", 8000), ("alpha", 3000)):
        for path in (tmp_path / name).iterdir():
            assert most / 3 < path.stat().st_size <= most
            with Image.open(path) as image:
                assert image.size == (120, 90)
    dataset = CompositionDataset(tmp_path / "fg", tmp_path / "bg", tmp_path / "alpha", samples_per_epoch=9)
    decoded = []
    imdecode = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda *arguments: decoded.append(imdecode(*arguments).shape))
    for index, number in ((0, 1), (1, 2)):
        decoded.clear()
        data.decode_bare(dataset, index)
        assert decoded == [(90, 120, 3), (90, 120)] * number + [(48, 64, 3)]


@pytest.mark.usefixtures("_tiny")
def test_a_tiny_run_prints_what_was_measured(capsys):
    benchmark.main(["data", "--rounds", "2", "--num-samples", "8", "--crop-px", "32"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "round 1, a sample, median (mean)",
        "round 2, a sample, median (mean)",
        "files",
        "packed",
        "round 1, samples a second",
        "round 2, samples a second",
        "two workers",
    ]
    rounds = [[float(number) for number in re.findall(r"\d+\.\d+", line)] for line in lines]
    for place, line in ((2, 2), (4, 3)):  # median of files and of packed, after that of decoding and its mean
        ratios = sorted(rounds[number][place] / rounds[number][0] for number in range(2))
        for printed, ratio in zip(rounds[line][1:], ratios, strict=True):
            assert printed == pytest.approx(ratio, rel=0.05)  # of milliseconds printed to a hundredth
    speedups = sorted(rounds[number][1] / rounds[number][0] for number in (4, 5))
    assert rounds[6][1:] == pytest.approx(speedups, rel=0.02, abs=0.011)
