"""tools/dataset/make_clips.py: composites with exactly the written alpha, same seed same bytes, what clips show."""

import numpy as np
import pytest

from data.image_io.images import read_alpha, read_image, write_image
from data.procedural import clips as drawn
from data.procedural.clips import Motion, draw_shot
from data.trimap import UNKNOWN, read_trimap
from tools.dataset import make_clips


@pytest.fixture
def backgrounds(tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / "photographs").mkdir(exist_ok=True)
        write_image(tmp_path / "photographs" / f"{name}.png", rng.random((90, 160, 3)))
    return tmp_path / "photographs"


@pytest.fixture
def small(monkeypatch):
    for module in (drawn, make_clips):
        monkeypatch.setattr(module, "SIZE", (64, 36))


def test_the_same_seed_gives_the_same_clip_with_three_keyframes(tmp_path, backgrounds, small):
    for output in ("first", "second"):
        arguments = ["--backgrounds", backgrounds, "--output", tmp_path / output, "--clips", "blur", "--seed", 3]
        assert make_clips.main([*map(str, arguments), "--num-workers", "1"]) == 0
    files = sorted(path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*.png"))
    assert len(files) == 60 + 60 + 3
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
    for number in (0, 30, 59):
        trimap = read_trimap(tmp_path / "first" / "trimap" / "blur" / f"{number:04d}.png")
        alpha = read_alpha(tmp_path / "first" / "alpha" / "blur" / f"{number:04d}.png")
        known = trimap != UNKNOWN
        assert np.array_equal(trimap[known], alpha[known])
    assert read_image(tmp_path / "first" / "image" / "blur" / "0000.png").shape == (36, 64, 3)
    arguments = ["--backgrounds", backgrounds, "--output", tmp_path / "first", "--clips", "blur"]
    assert make_clips.main([*map(str, arguments)]) == 1


def test_a_foreground_of_one_colour_is_composited_with_its_alpha(small):
    """Over black, a white foreground is its alpha."""
    alpha = np.zeros((72, 72), np.float32)
    alpha[20:50, 20:50] = np.linspace(0, 1, 30)
    black = np.zeros((40, 70, 3), np.float32)
    shot = draw_shot(np.random.default_rng(0), np.ones((72, 72, 3), np.float32), alpha, black, Motion(), 0, 3)
    for frame in shot:
        assert np.allclose(frame.image, frame.alpha[..., None], atol=1e-5)
        assert np.allclose(frame.alpha * 255, np.rint(frame.alpha * 255), atol=1e-4) and frame.alpha.max() > 0.5


def test_a_subject_leaves_and_returns(small):
    alpha = np.zeros((72, 72), np.float32)
    alpha[20:50, 20:50] = 1
    white = np.ones((72, 72, 3), np.float32)
    shot = list(draw_shot(np.random.default_rng(0), white, alpha, white, Motion(absence=2.0), 0, 60))
    assert all(shot[number].alpha.max() == 1 for number in (0, 59)) and shot[30].alpha.max() == 0


def test_a_photograph_that_cannot_be_read_is_one_line(tmp_path, backgrounds, small, capsys):
    for path in backgrounds.iterdir():
        path.write_bytes(b"words")
    arguments = ["--backgrounds", str(backgrounds), "--output", str(tmp_path / "out"), "--clips", "blur"]
    assert make_clips.main([*arguments, "--num-workers", "1"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("make_clips.py: ") and "cannot read" in line
