"""tools/benchmark.py foreground: a tiny run prints each side's error by its definition."""

import re

import numpy as np
import pytest
from PIL import Image

from data.procedural.demo import DEMO_KINDS
from data.procedural.surfaces import texture
from tools import benchmark
from tools.benchmarks import foreground

NUMBER = r"(\d+\.\d+)"


@pytest.fixture(autouse=True)
def two_kinds(monkeypatch):
    monkeypatch.setattr(foreground, "DEMO_KINDS", {kind: DEMO_KINDS[kind] for kind in ("hair", "fur")})


def tiny_run(capsys, *more):
    """The figures of each kind and alpha, in the order of `SIDES`, by the words before the colon; the last line."""
    benchmark.main(["foreground", "--size-px", "64", "--num-images", "2", "--width", "64", "--height", "40", *more])
    *lines, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"64 x 40: {NUMBER} s, {NUMBER} GB beside image and alpha", last)
    return {line.partition(":")[0]: [float(figure) for figure in re.findall(NUMBER, line)] for line in lines}


@pytest.mark.slow
def test_the_image_s_own_colours_are_off_by_the_background(capsys):
    figures = tiny_run(capsys)
    expected = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        own, alpha = DEMO_KINDS["hair"](rng, 64)
        behind = texture(rng, 64)
        off = [
            alpha[at] * (1 - alpha[at]) * np.abs(own[at] - behind[at]).mean()  # alpha |I - F|
            for at in np.ndindex(alpha.shape)
            if 0 < alpha[at] < 1
        ]
        expected.append(255 * np.mean(off))
    assert figures["exact alpha, hair"][0] == pytest.approx(np.mean(expected), abs=0.3)  # of the rounding to 8 bit
    for name in foreground.ALPHAS:
        kinds = [figures[f"{name} alpha, {kind}"] for kind in foreground.DEMO_KINDS]
        np.testing.assert_allclose(figures[f"{name} alpha, mean of the kinds"], np.mean(kinds, axis=0), atol=0.011)
        own, _, ours, trainings = figures[f"{name} alpha, mean of the kinds"]
        assert ours < own and trainings < own


def test_colours_are_cut_from_photographs_of_any_size(capsys, tmp_path, monkeypatch):
    monkeypatch.delitem(foreground.ALPHAS, "closed-form")  # for speed
    Image.new("RGB", (20, 90), (200, 0, 0)).save(tmp_path / "a.png")
    figures = tiny_run(capsys, "--photographs", str(tmp_path))
    assert max(max(errors) for name, errors in figures.items() if name.startswith("exact")) < 0.6  # red over red
