"""tools/make_test_set.py: what it writes can be trusted as ground truth, the same seed writes it again."""

import hashlib

import cv2
import numpy as np
import pytest

from data.datasets.composition import MattingFolder
from data.sources.layouts import find_test_set
from engine.config.config import load_config
from engine.config.targets import instantiate
from evaluation.statistics.bootstrap import group_by_foreground
from tests.helpers.paths import REPOSITORY
from tools import make_test_set

NUM, CROP_PX = 4, 48
FOLDERS = ("image", "trimap", "alpha")
NAMES = ["0000_0", "0000_1", "0001_0", "0001_1"]
FOREGROUNDS, BLUE = ((220, 30, 40), (30, 200, 50)), (20, 60, 200)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A soft red disc and a green one as RGBA, as fg/ and alpha/ too, over blue: a composite shows its alpha."""
    folder = tmp_path_factory.mktemp("sources")
    for name in ("rgba", "fg", "alpha", "backgrounds"):
        (folder / name).mkdir()
    y, x = np.mgrid[:128, :128]
    for i in range(2):
        alpha = np.rint(255 * np.clip((46 + 8 * i - np.hypot(y - 64, x - 64)) / 16, 0, 1)).astype(np.uint8)
        colours, blue = (np.full((128, 128, 3), colour[::-1], np.uint8) for colour in (FOREGROUNDS[i], BLUE))
        cv2.imwrite(str(folder / "rgba" / f"{i}.png"), np.dstack([colours, alpha]))
        cv2.imwrite(str(folder / "fg" / f"{i}.png"), colours)
        cv2.imwrite(str(folder / "alpha" / f"{i}.png"), alpha)
        cv2.imwrite(str(folder / "backgrounds" / f"{i}.png"), blue)
    return folder


def arguments(sources, output, *more, foregrounds="rgba", backgrounds="backgrounds"):
    paths = ["--foreground-dir", sources / foregrounds, "--background-dir", sources / backgrounds, "--output", output]
    return [*map(str, paths), "--num", str(NUM), "--crop-px", str(CROP_PX), *map(str, more)]


def digests(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def made(sources, tmp_path_factory):
    output = tmp_path_factory.mktemp("made") / "set"
    assert make_test_set.main(arguments(sources, output, "--seed", 3)) == 0
    return output


def stored(made, folder):
    """Images of a folder as stored, RGB where they have colours, int64 to reckon with."""
    images = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in sorted((made / folder).iterdir())]
    assert all(image.dtype == np.uint8 for image in images)
    return [(image[:, :, ::-1] if image.ndim == 3 else image).astype(np.int64) for image in images]


def test_one_layout_serves_the_evaluation_and_the_fine_tuning(made):
    found = find_test_set(str(made))
    assert (found.image_dir, found.trimap_dir, found.alpha_dir) == tuple(made / folder for folder in FOLDERS)
    assert found.num_images == NUM
    cfg = load_config(REPOSITORY / "configs" / "finetune.py")
    cfg.dataloader.folder = str(made.parent)
    made.with_name("test").symlink_to(made)
    try:
        assert len(instantiate(cfg.dataloader.test).dataset) == NUM
    finally:
        made.with_name("test").unlink()


def test_an_evaluation_groups_the_composites_by_their_foreground(made):
    groups = group_by_foreground(path.stem for path in (made / "image").iterdir())
    assert groups == {"0000": ["0000_0", "0000_1"], "0001": ["0001_0", "0001_1"]}


def test_the_composites_are_the_blend_of_one_foreground_at_a_time(made):
    for index, (merged, alpha) in enumerate(zip(stored(made, "image"), stored(made, "alpha"), strict=True)):
        assert 0 < alpha.mean() < 255
        for channel in range(3):
            blend = (alpha * FOREGROUNDS[int(NAMES[index][:4])][channel] + (255 - alpha) * BLUE[channel]) / 255
            assert np.abs(merged[:, :, channel] - blend).max() <= 1.5  # image and alpha, each rounded


def test_the_trimaps_fit_their_alphas(made):
    for trimap, alpha in zip(stored(made, "trimap"), stored(made, "alpha"), strict=True):
        assert set(np.unique(trimap)) <= {0, 128, 255} and (trimap == 128).any()
        assert (alpha[trimap == 0] == 0).all() and (alpha[trimap == 255] == 255).all()
        assert (trimap[(alpha > 0) & (alpha < 255)] == 128).all()
        assert np.isin(alpha[trimap == 128], (0, 255)).any()  # wider than the fractional zone


def test_the_radii_are_those_asked_for(sources, tmp_path):
    shares = []
    for radius in (0, 9):
        output = tmp_path / str(radius)
        assert make_test_set.main(arguments(sources, output, "--trimap-radius-px", radius, radius)) == 0
        alphas, trimaps = (np.stack(stored(output, folder)) for folder in ("alpha", "trimap"))
        fractional = (alphas > 0) & (alphas < 255)
        shares.append((trimaps == 128).sum() / fractional.sum())
    assert shares[0] == 1 and shares[1] > 1.5


def test_reads_as_a_data_set(made):
    data_set = MattingFolder(*(made / folder for folder in FOLDERS))
    images = [stored(made, folder) for folder in FOLDERS]
    assert [data_set[index]["name"] for index in range(len(data_set))] == NAMES
    for index, (merged, trimap, alpha) in enumerate(zip(*images, strict=True)):
        sample = data_set[index]
        np.testing.assert_allclose(sample["image"], merged.transpose(2, 0, 1) / 255, atol=1e-7)
        np.testing.assert_allclose(sample["alpha"][0], alpha / 255, atol=1e-7)
        np.testing.assert_array_equal(sample["trimap"][0], np.where(trimap == 128, 0.5, trimap / 255))


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(sources, made, tmp_path, capsys):
    for seed in (3, 4):
        assert make_test_set.main(arguments(sources, tmp_path / str(seed), "--seed", seed)) == 0
        assert capsys.readouterr().out == f"wrote {NUM} composites to {tmp_path / str(seed)}\n"
    expected = digests(made)
    assert digests(tmp_path / "3") == expected
    other = digests(tmp_path / "4")
    assert other.keys() == expected.keys() and not any(other[name] == expected[name] for name in expected)


def test_colours_beside_alphas_give_what_cut_outs_give(sources, made, tmp_path):
    more = ("--alpha-dir", sources / "alpha", "--seed", 3)
    assert make_test_set.main(arguments(sources, tmp_path / "set", *more, foregrounds="fg")) == 0
    assert digests(tmp_path / "set") == digests(made)


@pytest.mark.parametrize(
    ("changes", "more", "words"),
    [
        ({"foregrounds": "nowhere"}, [], "nowhere"),
        ({"backgrounds": "nowhere"}, [], "nowhere"),
        ({"foregrounds": "fg"}, [], "0.png has no transparency"),
        ({"foregrounds": "fg"}, ["--alpha-dir", "absent"], "absent"),
        ({"foregrounds": "fg"}, ["--alpha-dir", "one", "two"], "one"),
    ],
)
def test_what_is_missing_is_one_message_and_status_1(sources, tmp_path, capsys, changes, more, words):
    assert make_test_set.main(arguments(sources, tmp_path / "set", *more, **changes)) == 1
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("make_test_set.py: ") and words in output.err
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_that_holds_images_gets_no_others(sources, tmp_path, capsys, folder):
    (tmp_path / "set" / folder).mkdir(parents=True)
    kept = tmp_path / "set" / folder / "0099.png"
    cv2.imwrite(str(kept), np.zeros((2, 2), np.uint8))
    assert make_test_set.main(arguments(sources, tmp_path / "set")) == 1
    assert f"{tmp_path}/set/{folder} holds files already" in capsys.readouterr().err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [kept]


@pytest.mark.parametrize("more", [["--nums", "3"], ["--num", "three"], ["--num", "0"], ["--trimap-radius-px", "3"]])
def test_wrong_usage_is_status_2(sources, tmp_path, capsys, more):
    with pytest.raises(SystemExit) as stop:
        make_test_set.main(arguments(sources, tmp_path / "set", *more))
    assert stop.value.code == 2
    assert more[0] in capsys.readouterr().err
