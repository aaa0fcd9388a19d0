"""The demo's data: same seed same bytes, training and test apart, composites and trimaps that fit their alphas."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.procedural.demo import DEMO_KINDS
from tests.helpers.paths import REPOSITORY
from tools.dataset import make_demo_data as demo_data

SEED, SIZE_PX, NUM_TRAIN, NUM_BACKGROUNDS, NUM_TEST = 3, 96, 7, 9, 12
COUNTS = f"--num-train {NUM_TRAIN} --num-backgrounds {NUM_BACKGROUNDS} --num-test {NUM_TEST}"
ARGUMENTS = f"--seed {SEED} --size-px {SIZE_PX} {COUNTS}".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    output = tmp_path_factory.mktemp("demo_data")
    demo_data.main([*ARGUMENTS, "--output", str(output), "--num-workers", "1"])
    return output


def read(path):
    """Stored 8-bit values of an image as int64, to be reckoned with exactly."""
    return np.asarray(Image.open(path)).astype(np.int64)


def digests(folder):
    """Digest of every file below the folder, by relative path."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_command_line_gives_the_same_bytes_with_other_workers(folder, tmp_path):
    script = "tools/dataset/make_demo_data.py"
    tool = [sys.executable, script, *ARGUMENTS, "--output", str(tmp_path), "--num-workers", "2"]
    subprocess.run(tool, cwd=REPOSITORY, check=True, capture_output=True)
    assert digests(tmp_path) == digests(folder)


def test_every_image_of_another_seed_differs(folder):
    draw = demo_data.draw_test_sample
    for index in range(len(DEMO_KINDS)):
        ours, other = draw(SEED, index, SIZE_PX), draw(SEED + 1, index, SIZE_PX)
        assert not np.array_equal(ours.alpha, other.alpha)
        assert not np.array_equal(ours.background, other.background)


def test_layout_and_manifest(folder):
    names = {"train/rgba": NUM_TRAIN, "train/backgrounds": NUM_BACKGROUNDS, "test/image": NUM_TEST}
    for name, count in names.items():
        assert len(list((folder / name).glob("*.png"))) == count
    tests = [{p.name for p in (folder / "test" / name).iterdir()} for name in ("image", "trimap", "alpha")]
    assert tests[0] == tests[1] == tests[2]
    for part in ("train/rgba", "test/image"):
        assert {p.stem.split("_")[0] for p in (folder / part).iterdir()} == set(DEMO_KINDS)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["seed"], manifest["size_px"]) == (SEED, SIZE_PX)
    assert list(manifest["counts"].values()) == [NUM_TRAIN, NUM_BACKGROUNDS, NUM_TEST]
    for part in ("train", "test"):
        assert all(manifest["photograph_licences"][part].values())


def test_training_and_test_share_no_photograph(folder, monkeypatch):
    contents = {}
    for part, names in (("train", demo_data.TRAIN_PHOTOGRAPHS), ("test", demo_data.TEST_PHOTOGRAPHS)):
        contents[part] = {hashlib.sha256(demo_data.find_photograph(name).read_bytes()).hexdigest() for name in names}
        assert len(contents[part]) == len(names)
    assert not contents["train"] & contents["test"]

    asked = set()
    find = demo_data.find_photograph

    def find_and_note(name):
        asked.add(name)
        return find(name)

    monkeypatch.setattr(demo_data, "find_photograph", find_and_note)
    for index in range(18):
        demo_data.draw_test_sample(SEED, index, 32)
    assert asked == set(demo_data.TEST_PHOTOGRAPHS)
    used = {p.name.rsplit("_", 1)[0] for p in (folder / "train" / "backgrounds").iterdir()}
    assert used == {Path(name).stem for name in demo_data.TRAIN_PHOTOGRAPHS}


def test_training_and_test_share_no_foreground(folder):
    train = {p.name: read(p)[..., 3] for p in (folder / "train" / "rgba").iterdir()}
    test = {p.name: read(p) for p in (folder / "test" / "alpha").iterdir()}
    assert not any(np.array_equal(a, b) for a in train.values() for b in test.values())
    starts = {demo_data.generator(SEED, s, i).integers(2**62) for s in demo_data.STREAMS for i in range(50)}
    assert len(starts) == 50 * len(demo_data.STREAMS)


def test_composites_are_the_blend_of_their_parts(folder):
    for index in range(NUM_TEST):
        name = f"{demo_data.kind_of(index)}_{index:03d}.png"
        sample = demo_data.draw_test_sample(SEED, index, SIZE_PX)
        alpha = read(folder / "test" / "alpha" / name)
        foreground, background = (np.rint(255 * x).astype(np.int64) for x in (sample.foreground, sample.background))
        blend = alpha[..., None] * foreground + (255 - alpha[..., None]) * background  # in units of 1 / 255 level
        merged = read(folder / "test" / "image" / name)
        assert np.abs(255 * merged - blend).max() <= 128  # rounded: within half a level
        assert np.array_equal(merged[alpha == 255], foreground[alpha == 255])
        assert np.array_equal(merged[alpha == 0], background[alpha == 0])


def test_trimaps_fit_their_alphas(folder):
    for path in (folder / "test" / "trimap").iterdir():
        trimap, alpha = read(path), read(folder / "test" / "alpha" / path.name)
        assert set(np.unique(trimap)) <= {0, 128, 255}
        assert (alpha[trimap == 255] == 255).all() and (alpha[trimap == 0] == 0).all()
        unknown = trimap == 128
        assert 0.08 < unknown.mean() < 0.9
        assert np.isin(alpha[unknown], (0, 255)).mean() > 0.1  # wider than the fractional zone


def test_a_photograph_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match=r"skimage/data/no_such\.png.*package without that file.*make setup"):
        demo_data.find_photograph("skimage/data/no_such.png")
    with pytest.raises(FileNotFoundError, match="no such package"):
        demo_data.find_photograph("no_such_package/x.png")
