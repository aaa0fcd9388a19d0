"""Drawn foregrounds with a photograph's colours, and photographs out of focus."""

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from data.image_io.images import read_image, read_raw_rgba, write_image
from data.procedural import KINDS
from tools.dataset.open_data.pictures import TEXTURED_KINDS, choose_texture, dye, write_defocused, write_drawn

HAIR = list(KINDS).index("hair")


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """Green with a bright spot, not square."""
    image = np.zeros((200, 300, 3), np.float32)
    image[..., 1] = 0.4
    image[95:105, 145:155] = 1
    write_image(tmp_path / "photograph.png", image)
    return tmp_path / "photograph.png"


def test_a_photograph_colours_a_foreground_and_leaves_its_alpha(photograph: Path, tmp_path: Path) -> None:
    for name, texture in (("plain", None), ("green", photograph), ("again", photograph)):
        write_drawn(tmp_path / f"{name}.png", 3, 0, HAIR, 96, texture)
    assert (tmp_path / "green.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    (plain, alpha), (green, same_alpha) = (read_raw_rgba(tmp_path / f"{name}.png") for name in ("plain", "green"))
    np.testing.assert_array_equal(same_alpha, alpha)
    opaque = alpha > 250

    def share_green(colours: np.ndarray) -> float:
        return float((colours[opaque].argmax(axis=1) == 1).mean())

    assert share_green(green) > 0.9 > 0.5 > share_green(plain)
    assert green[opaque][:, 1].std() > 5, "the strands are no longer seen"


def test_dyed_colours_keep_the_mean_of_the_photograph() -> None:
    rng = np.random.default_rng(0)
    shade, alpha = rng.uniform(0.2, 0.4, (64, 64)).astype(np.float32), np.ones((64, 64), np.float32)
    dyed = dye(np.dstack([shade] * 3), alpha, np.full((64, 64, 3), [0.2, 0.4, 0.1], np.float32))
    np.testing.assert_allclose(dyed.mean(axis=(0, 1)), [0.2, 0.4, 0.1], rtol=1e-3)
    assert np.corrcoef(dyed[..., 0].ravel(), shade.ravel())[0, 1] > 0.999


def test_half_of_the_foregrounds_of_opaque_kinds_are_dyed() -> None:
    photographs, number = ["a.jpg", "b.jpg"], 100 * len(KINDS)
    chosen = [choose_texture(photographs, 0, 0, index) for index in range(number)]
    for place, kind in enumerate(KINDS):
        share = np.mean([texture is not None for texture in chosen[place :: len(KINDS)]])
        assert 0.35 < share < 0.65 if kind in TEXTURED_KINDS else share == 0
    assert {*chosen} == {None, *photographs}
    assert {choose_texture([], 0, 0, index) for index in range(number)} == {None}


def test_out_of_focus_a_spot_becomes_a_disc_of_the_same_light(photograph: Path, tmp_path: Path) -> None:
    write_defocused(tmp_path / "out.png", photograph, seed=0)
    sharp, blurred = read_image(photograph), read_image(tmp_path / "out.png")
    assert blurred.shape == sharp.shape
    np.testing.assert_allclose((blurred**2.2).mean(axis=(0, 1)), (sharp**2.2).mean(axis=(0, 1)), rtol=0.03)
    spot, disc = (ndimage.label(image[..., 0] > 0.05) for image in (sharp, blurred))
    assert (spot[0] > 0).sum() == 100 < (disc[0] > 0).sum() and disc[1] == 1
