"""dtSSD and MESSDdt against naive loops, and the evaluation of clips against known errors."""

import csv
import math

import cv2
import numpy as np
import OpenEXR
import pytest

from data.image_io.images import DataError
from evaluation.video import average_clips, dtssd, evaluate_clips, messddt
from tools import evaluate


def case(seed):
    """Two predictions, two alphas, a flow that also leaves the image, and a region, of 6 x 7 px."""
    rng = np.random.default_rng(seed)
    images = rng.random((4, 6, 7), np.float32)
    return images[:2], images[2:], rng.uniform(-4, 4, (6, 7, 2)).astype(np.float32), rng.random((6, 7)) < 0.6


@pytest.mark.parametrize("seed", range(20))
def test_dtssd_equals_a_naive_loop(seed):
    preds, alphas, _, region = case(seed)
    total = 0.0
    for y, x in np.argwhere(region).tolist():
        change = float(preds[1][y, x]) - float(preds[0][y, x])
        total += (change - (float(alphas[1][y, x]) - float(alphas[0][y, x]))) ** 2
    assert dtssd(preds, alphas, region) == pytest.approx(math.sqrt(total / region.sum()))


@pytest.mark.parametrize("seed", range(20))
def test_messddt_equals_a_naive_loop(seed):
    """Positions in whole 32nds of a pixel: `cv2.remap` rounds to them."""
    preds, alphas, flow, region = case(seed)
    flow = np.round(flow * 32) / 32
    errors = [[[(float(p) - float(a)) ** 2 for p, a in zip(*rows, strict=True)] for rows in zip(*pair, strict=True)]
              for pair in zip(preds, alphas, strict=True)]  # fmt: skip

    def at(y, x):
        return errors[1][min(max(y, 0), 5)][min(max(x, 0), 6)]

    total = 0.0
    for y, x in np.argwhere(region).tolist():
        v, u = y + float(flow[y, x, 1]), x + float(flow[y, x, 0])
        top, left = math.floor(v), math.floor(u)
        upper = (1 - u + left) * at(top, left) + (u - left) * at(top, left + 1)
        lower = (1 - u + left) * at(top + 1, left) + (u - left) * at(top + 1, left + 1)
        total += abs(errors[0][y][x] - ((1 - v + top) * upper + (v - top) * lower))
    assert messddt(preds, alphas, flow, region) == pytest.approx(total / region.sum(), rel=1e-5)


def test_an_empty_region_has_no_flicker():
    preds, alphas, flow, region = case(0)
    none = np.zeros_like(region)
    assert dtssd(preds, alphas, none) == messddt(preds, alphas, flow, none) == 0


@pytest.fixture
def clips(tmp_path):
    """Clip `a` is off by 51 of 255 in frames 2 and 10 alone; clip `b` by 51 everywhere. The frames do not move."""
    image = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    for clip, errors in (("a", {"2": 51, "9": 0, "10": 51}), ("b", {"0": 51, "1": 51})):
        for kind in ("pred", "label", "image"):
            (tmp_path / kind / clip).mkdir(parents=True)
        for name, error in errors.items():
            for kind, values in (("pred", 100 + error), ("label", 100), ("image", image)):
                pixels = values if kind == "image" else np.full((20, 24), values, np.uint8)
                cv2.imwrite(str(tmp_path / kind / clip / f"{name}.png"), pixels)
    return tmp_path


def test_clips_are_measured_in_the_order_of_their_frames(clips):
    """Frames 2, 9, 10: alpha changes by -0.2 and 0.2, its squared error by 0.04 twice."""
    rows = evaluate_clips(clips / "pred", clips / "label", image_dir=clips / "image")
    assert rows["a"]["dtSSD"] == pytest.approx(0.2) and rows["a"]["MESSDdt"] == pytest.approx(0.04)
    assert rows["b"]["dtSSD"] == rows["b"]["MESSDdt"] == 0
    assert rows["a"]["MAD"] == pytest.approx(0.4 / 3) and rows["b"]["MSE"] == pytest.approx(0.04)
    mean = average_clips(rows)
    assert mean["dtSSD"] == pytest.approx(0.1) and mean["frames"] == 5
    assert evaluate_clips(clips / "pred", clips / "label", image_dir=clips / "image", num_workers=2) == rows


def test_clips_of_exr_give_the_same_numbers(clips):
    expected = evaluate_clips(clips / "pred", clips / "label", image_dir=clips / "image")
    for path in [*clips.glob("pred/*/*.png"), *clips.glob("label/b/*.png")]:
        values = {"Y": cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(np.float32) / 255}
        OpenEXR.File({"type": OpenEXR.scanlineimage}, values).write(str(path.with_suffix(".exr")))
        path.unlink()
    assert evaluate_clips(clips / "pred", clips / "label", image_dir=clips / "image") == expected


def test_the_command_prints_a_row_for_each_clip_and_the_mean(clips, capsys):
    folders = [part for kind in ("pred", "label", "image") for part in (f"--{kind}-dir", str(clips / kind))]
    assert evaluate.main(["--video", *folders, "--workers", "1", "--output", str(clips / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Protocol whole: whole image, uint8"
    assert lines[1].split() == ["clip", "SAD/1000", "MSE", "x1e-3", "MAD", "x1e-3", "Grad/1000", "Conn/1000", "dtSSD",
                                "x1e-2", "MESSDdt", "x1e-3", "frames"]  # fmt: skip
    assert [line.split()[0] for line in lines[2:5]] == ["a", "b", "mean"] and lines[2].split()[-3] == "20.000"
    with (clips / "out" / "per_clip.csv").open(newline="") as file:
        assert [row["clip"] for row in csv.DictReader(file)] == ["a", "b"]


def test_what_does_not_belong_together_is_refused(clips):
    (clips / "pred" / "c").mkdir()
    with pytest.raises(DataError, match="c is extra"):
        evaluate_clips(clips / "pred", clips / "label")
    (clips / "pred" / "c").rmdir()
    (clips / "pred" / "b" / "1.png").unlink()
    with pytest.raises(DataError, match="1.* is missing"):
        evaluate_clips(clips / "pred", clips / "label")
    with pytest.raises(DataError, match="holds no folder"):
        evaluate_clips(clips / "pred", clips / "label" / "a")


@pytest.mark.parametrize("option", ["--group", "--allow-missing"])
def test_options_of_single_images_are_refused(clips, option, capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["--video", "--pred-dir", str(clips), "--label-dir", str(clips), option])
    assert "--video averages over clips" in capsys.readouterr().err
