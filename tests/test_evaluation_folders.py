"""Folders measured file by file: equal to the metrics called directly, for any number of workers, and strict."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.image_io.images import DataError, read_raw_alpha
from data.trimap import trimap_from_alpha
from evaluation.folders import evaluate_folders
from evaluation.metrics import PROTOCOLS, measure
from runtime.errors import ConfigError
from tests.helpers.paths import REPOSITORY

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
NAMES = ["a_0", "a_1", "b", "c"]


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image)


@pytest.fixture
def test_set(tmp_path):
    """Four images of several sizes in pred/, label/, trimap/ and image/; predictions have 16 bit, others 8."""
    rng = np.random.default_rng(0)
    for i, name in enumerate(NAMES):
        size = (24 + i, 30 - i)
        label = cv2.GaussianBlur(rng.integers(0, 256, size).astype(np.uint8), (0, 0), 2)
        label = np.clip((label.astype(int) - 110) * 8, 0, 255).astype(np.uint8)
        pred = np.clip(label.astype(int) * 257 + rng.integers(-9000, 9000, size), 0, 65535).astype(np.uint16)
        trimap = rng.choice(np.array([0, 128, 255], np.uint8), size)
        image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        for folder, picture in (("pred", pred), ("label", label), ("trimap", trimap), ("image", image)):
            write(tmp_path / folder / f"{name}.png", picture)
    return tmp_path


def folders(root, *kinds):
    return [root / kind for kind in ("pred", "label", *kinds)]


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_rows_are_what_the_metrics_give(test_set, protocol):
    found = evaluate_folders(*folders(test_set, "trimap", "image"), protocol=protocol)
    assert list(found.rows) == NAMES and found.missing == []
    for name in NAMES:
        pred, label, trimap = (cv2.imread(str(test_set / f / f"{name}.png"), -1) for f in ("pred", "label", "trimap"))
        assert found.rows[name] == measure(pred, label, trimap == 128, protocol)
    assert {row["pixels"] for row in found.rows.values()} != {0}
    assert found.files["b"] == {kind: test_set / kind / "b.png" for kind in ("pred", "label", "trimap", "image")}


def test_trimaps_can_be_made_from_the_ground_truths(test_set):
    found = evaluate_folders(*folders(test_set), trimap_radius_px=3)
    for name in NAMES:
        pred, label = (read_raw_alpha(test_set / folder / f"{name}.png") for folder in ("pred", "label"))
        unknown = trimap_from_alpha(label / 255, 3, 3) == 0.5
        assert found.rows[name] == measure(pred, label, unknown)
        write(test_set / "made" / f"{name}.png", np.where(unknown, 128, 0).astype(np.uint8))
    assert 0 < found.rows["a_0"]["pixels"] < 24 * 30
    assert evaluate_folders(*folders(test_set, "made")) == found._replace(
        files={name: {**files, "trimap": test_set / "made" / f"{name}.png"} for name, files in found.files.items()}
    )


def test_any_number_of_workers_gives_the_same(test_set):
    alone, shared = (evaluate_folders(*folders(test_set, "trimap", "image"), num_workers=n) for n in (1, 2))
    assert alone == shared


def test_progress_sees_every_outcome(test_set):
    seen = []

    def track(outcomes, num_images):
        assert num_images == 4
        for outcome in outcomes:
            seen.append(outcome.row)
            yield outcome

    found = evaluate_folders(*folders(test_set, "trimap"), track=track)
    assert seen == list(found.rows.values())


def test_the_digest_tells_test_sets_apart(test_set):
    """A pixel of a ground truth or a region, or a name, changes it; a prediction, and what no protocol uses, do not."""

    def digest(protocol="dim"):
        return evaluate_folders(*folders(test_set, "trimap"), protocol=PROTOCOLS[protocol]).digest

    first, whole = digest(), digest("whole")
    assert len({first, whole, digest("float")}) == 3

    def change(folder, new):
        path = test_set / folder / "b.png"
        pixels = cv2.imread(str(path), -1)
        old = pixels[0, 0].copy()
        pixels[0, 0] = new(old)
        write(path, pixels)
        changed = digest(), digest("whole")
        pixels[0, 0] = old
        write(path, pixels)
        return changed

    assert change("pred", lambda old: 65535 - old) == (first, whole)
    label = change("label", lambda old: 255 - old)
    assert first != label[0] and whole != label[1]
    trimap = change("trimap", lambda old: 0 if old == 128 else 128)
    assert first != trimap[0] and whole == trimap[1]
    assert digest() == first
    path = test_set / "label" / "b.png"
    write(path, cv2.imread(str(path), -1).astype(np.uint16) * 257)
    assert digest() == first, "16 bits of the same 8"
    for folder in ("pred", "label", "trimap"):
        (test_set / folder / "b.png").rename(test_set / folder / "bb.png")
    assert digest() != first


def test_the_digest_knows_the_shape(tmp_path):
    """The same bytes in rows of another length are another test set."""
    digests = set()
    for size in ((2, 6), (3, 4)):
        for folder in ("pred", "label", "trimap"):
            write(tmp_path / folder / "a.png", np.full(size, 128, np.uint8))
        digests.add(evaluate_folders(*folders(tmp_path, "trimap")).digest)
    assert len(digests) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text there")
def test_names_match_however_an_accent_is_stored(test_set):
    expected = evaluate_folders(*folders(test_set, "trimap", "image")).rows["b"]
    for folder, name in (("pred", "\u00fc"), ("label", "u\u0308"), ("trimap", "\u00fc"), ("image", "u\u0308")):
        (test_set / folder / "b.png").rename(test_set / folder / f"{name}.png")
    assert evaluate_folders(*folders(test_set, "trimap", "image")).rows["\u00fc"] == expected


def test_a_name_that_is_no_text_is_a_problem_of_its_file(test_set):
    folder = test_set / "label"
    os.rename(folder / "b.png", os.fsencode(folder) + b"/b\xff.png")
    with pytest.raises(DataError) as error:
        evaluate_folders(*folders(test_set, "trimap"))
    problems = str(error.value).splitlines()[1:]
    assert f"{folder}: the name 'b\\udcff.png' is not UTF-8: rename the file" in problems
    others = [f"{test_set / kind / 'b.png'} is extra: no alpha has its name" for kind in ("pred", "trimap")]
    assert sorted(problems)[1:] == others


def test_missing_predictions_are_left_out_on_request_alone(test_set):
    full = evaluate_folders(*folders(test_set, "trimap"))
    (test_set / "pred" / "a_1.png").unlink()
    with pytest.raises(DataError, match=r"(?s)1 problem, nothing evaluated:\n.*pred/a_1.\* is missing"):
        evaluate_folders(*folders(test_set, "trimap"))
    found = evaluate_folders(*folders(test_set, "trimap"), allow_missing=True)
    assert found.missing == ["a_1"] and found.digest == full.digest
    assert found.rows == {name: row for name, row in full.rows.items() if name != "a_1"}

    for path in (test_set / "label" / "a_1.png", test_set / "trimap" / "c.png"):
        path.write_bytes(b"broken")
    (test_set / "trimap" / "a_0.png").unlink()
    write(test_set / "pred" / "d.png", np.zeros((2, 2), np.uint8))
    with pytest.raises(DataError) as error:
        evaluate_folders(*folders(test_set, "trimap"), allow_missing=True)
    assert str(error.value).startswith("4 problems") and all(
        words in str(error.value)
        for words in ("label/a_1.png: not", "trimap/c.png: not", "trimap/a_0.* is missing", "pred/d.png is extra")
    )
    for name in NAMES:
        (test_set / "pred" / f"{name}.png").unlink(missing_ok=True)
    (test_set / "pred" / "d.png").unlink()
    with pytest.raises(DataError, match="no image in .*pred"):
        evaluate_folders(*folders(test_set, "trimap"), allow_missing=True)


def test_images_are_checked_too(test_set):
    write(test_set / "image" / "b.png", np.zeros((3, 4, 3), np.uint8))
    (test_set / "image" / "c.png").unlink()
    with pytest.raises(DataError) as error:
        evaluate_folders(*folders(test_set, "trimap", "image"))
    assert [line.split("image/")[-1] for line in str(error.value).splitlines()[1:]] == [
        "c.* is missing",
        f"b.png is 4 x 3 px, but {test_set}/label/b.png is 28 x 26 px",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "counts unknown pixels: give trimaps, or take 'whole'"),
        ({"trimap_dir": "trimap", "trimap_radius_px": 3}, "got both"),
    ],
)
def test_one_source_of_trimaps(test_set, arguments, message):
    if "trimap_dir" in arguments:
        arguments = {**arguments, "trimap_dir": test_set / "trimap"}
    with pytest.raises(ConfigError, match=message):
        evaluate_folders(*folders(test_set), **arguments)


def test_nothing_is_measured_where_no_pixel_counts(test_set):
    for name in NAMES:
        path = test_set / "trimap" / f"{name}.png"
        write(path, np.where(cv2.imread(str(path), 0) == 128, 0, 255).astype(np.uint8))
    with pytest.raises(DataError, match="no trimap in .*trimap has an unknown pixel"):
        evaluate_folders(*folders(test_set, "trimap"))


def command(root: Path, num_workers: int) -> list[str]:
    return [
        sys.executable, "tools/evaluate.py", f"--workers={num_workers}",
        *(f"--{kind}-dir={root / kind}" for kind in ("pred", "label", "trimap")),
    ]  # fmt: skip


def test_workers_hold_neither_torch_nor_detectron2(test_set):
    """The interpreter lists what it and its workers import: the command and two workers, each with the metrics."""
    environment = {**ENVIRONMENT, "PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run(command(test_set, 2), cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    imported = [line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()]
    assert imported.count("evaluation.metrics") == 3
    assert not {"torch", "detectron2", "timm", "omegaconf"} & {name.split(".")[0] for name in imported}
