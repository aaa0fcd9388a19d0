"""The picture of flicker: which pixels it shows, and its errors."""

import numpy as np
import pytest

from data.image_io.images import read_alpha, write_alpha
from tools.runs.draw_flicker import FRAME_PX, GAP_PX, main


@pytest.fixture
def clip(tmp_path):
    """Two folders of three frames (5, 4); column 2 of the second changes most."""
    alphas = np.random.default_rng(0).integers(0, 64, (2, 3, 5, 4))
    alphas[1, 1, :, 2] += 150
    alphas[0, :, :, 1] = 200  # the first folder changes most elsewhere
    alphas[0, 1, :, 1] = 0
    for folder, frames in zip("ab", alphas, strict=True):
        (tmp_path / folder).mkdir()
        for number, frame in enumerate(frames):
            write_alpha(tmp_path / folder / f"{number}.png", (frame / 255).astype(np.float32))
    return tmp_path, alphas


@pytest.mark.parametrize(("given", "column"), [([], 2), (["--column", "3"], 3)])
def test_a_panel_holds_a_column_of_each_frame(clip, given, column):
    folder, alphas = clip
    assert main([str(folder / "a"), str(folder / "b"), "--output", str(folder / "made.png"), *given]) == 0
    made = np.rint(255 * read_alpha(folder / "made.png"))
    width = 3 * FRAME_PX
    assert made.shape == (5, 2 * width + GAP_PX)
    for panel, frames in ((made[:, :width], alphas[0]), (made[:, width + GAP_PX :], alphas[1])):
        for x in range(width):
            np.testing.assert_array_equal(panel[:, x], frames[x // FRAME_PX][:, column])


def test_what_does_not_match_is_one_line(clip, capsys):
    folder, _ = clip
    common = [str(folder / "a"), str(folder / "b"), "--output", str(folder / "made.png")]
    assert main([*common, "--column", "4"]) == 1
    assert capsys.readouterr().err == (f"draw_flicker.py: {folder / 'a'} has no column 4: its frames are 4 px wide\n")
    write_alpha(folder / "b" / "0.png", np.zeros((6, 4), np.float32))
    assert main(common) == 1
    assert capsys.readouterr().err == (f"draw_flicker.py: {folder / 'b' / '0.png'} is 4 x 6 px, expected 4 x 5 px\n")
    (folder / "b" / "0.png").unlink()
    assert main(common) == 1
    assert "0.png" in capsys.readouterr().err and not (folder / "made.png").exists()
