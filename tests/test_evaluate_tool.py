"""tools/evaluate.py: its numbers, its words, and all that it refuses at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tools import evaluate

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def test_set(tmp_path: Path) -> Path:
    """Two images: `a` off by 51 of 255 on 100 unknown pixels, `b` off by 102 on 50."""
    for name, error, unknown_rows in (("a", 51, 10), ("b", 102, 5)):
        trimap = np.full((20, 10), 255, np.uint8)
        trimap[:unknown_rows] = 128
        trimap[-2:] = 0
        pictures = {"label": np.full_like(trimap, 100), "pred": np.full_like(trimap, 100 + error), "trimap": trimap}
        for folder, picture in pictures.items():
            (tmp_path / folder).mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / folder / f"{name}.png"), picture)
    return tmp_path


def arguments(folder: Path) -> list[str]:
    return [part for name in ("pred", "label", "trimap") for part in (f"--{name}-dir", str(folder / name))]


def test_prints_the_numbers_with_units_protocol_and_count(test_set, capsys):
    """SAD: (100 x 0.2 + 50 x 0.4) / 2 / 1000; MSE: (0.04 + 0.16) / 2; MAD: (0.2 + 0.4) / 2."""
    assert evaluate.main([*arguments(test_set), "--output", str(test_set / "made" / "result.json")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Protocol dim: unknown region (trimap == 128), uint8, SAD/1000, MSE x1e-3",
        "images  SAD/1000  MSE x1e-3  MAD x1e-3",
        "     2     0.020    100.000    300.000",
    ]
    result = json.loads((test_set / "made" / "result.json").read_text())
    assert result["averages"] == pytest.approx({"SAD": 0.02, "MSE": 0.1, "MAD": 0.3})
    assert result["per_image"]["b"] == pytest.approx({"SAD": 0.02, "MSE": 0.16, "MAD": 0.4})


def test_files_of_other_formats_give_the_same_numbers(test_set, capsys):
    evaluate.main(arguments(test_set))
    expected = capsys.readouterr().out
    pred, label, trimap = (test_set / folder / "a.png" for folder in ("pred", "label", "trimap"))
    cv2.imwrite(str(pred), cv2.imread(str(pred), 0).astype(np.uint16) * 257)
    cv2.imwrite(str(label), cv2.cvtColor(cv2.imread(str(label), 0), cv2.COLOR_GRAY2BGR))
    cv2.imwrite(str(trimap.with_suffix(".bmp")), cv2.imread(str(trimap), 0))
    trimap.unlink()
    assert evaluate.main(arguments(test_set)) == 0
    assert capsys.readouterr().out == expected


def test_all_that_is_wrong_is_listed_at_once(test_set, capsys):
    grey = np.full((20, 10), 128, np.uint8)
    for folder in ("label", "pred", "trimap"):
        for name in ("narrow", "grey_trimap", "broken", "missing", "coloured", "two"):
            cv2.imwrite(str(test_set / folder / f"{name}.png"), grey)
    cv2.imwrite(str(test_set / "pred" / "narrow.png"), grey[:, 1:])
    cv2.imwrite(str(test_set / "trimap" / "grey_trimap.png"), grey - 1)
    (test_set / "pred" / "broken.png").write_bytes((test_set / "pred" / "b.png").read_bytes()[:40])
    (test_set / "pred" / "missing.png").unlink()
    (test_set / "trimap" / "missing.png").unlink()
    cv2.imwrite(str(test_set / "label" / "coloured.png"), np.dstack([grey, grey, grey + 1]))
    cv2.imwrite(str(test_set / "pred" / "extra.png"), grey)
    cv2.imwrite(str(test_set / "pred" / "two.jpg"), grey)

    assert evaluate.main([*arguments(test_set), "--output", str(test_set / "result.json")]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    head, *problems = output.err.splitlines()
    assert head == "8 problems, nothing evaluated:"
    for start, words in (
        ("pred/two.png", "two.jpg have one name"),
        ("pred/missing.*", "is missing"),
        ("trimap/missing.*", "is missing"),
        ("pred/extra.png", "is extra"),
        ("pred/narrow.png", "is 9 x 20 px, but"),
        ("trimap/grey_trimap.png", "got 127 too"),
        ("pred/broken.png", "cannot read"),
        ("label/coloured.png", "is coloured"),
    ):
        assert [line for line in problems if str(test_set / start) in line and words in line], (start, problems)
    assert not (test_set / "result.json").exists()


@pytest.mark.parametrize("folder", ["pred", "label", "trimap"])
def test_a_missing_folder_is_one_problem(test_set, capsys, folder):
    (test_set / folder).rename(test_set / "elsewhere")
    assert evaluate.main(arguments(test_set)) == 1
    assert capsys.readouterr().err.splitlines() == [
        "1 problems, nothing evaluated:", f"no such folder: {test_set / folder}"
    ]  # fmt: skip


def test_a_set_without_any_unknown_pixel_has_no_score(test_set, capsys):
    known = np.full((20, 10), 255, np.uint8)
    cv2.imwrite(str(test_set / "trimap" / "b.png"), known)
    assert evaluate.main(arguments(test_set)) == 0  # a still has some
    assert capsys.readouterr().out.splitlines()[-1].split() == ["2", "0.010", "20.000", "100.000"]
    cv2.imwrite(str(test_set / "trimap" / "a.png"), known)
    assert evaluate.main(arguments(test_set)) == 1
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1 and "has an unknown pixel (128)" in output.err


@pytest.mark.parametrize("output", ["pred", "pred/a.png/result.json"], ids=["a folder", "below a file"])
def test_an_output_that_cannot_be_written_is_one_line(test_set, capsys, output):
    assert evaluate.main([*arguments(test_set), "--output", str(test_set / output)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("evaluate.py: cannot write --output: ") and error.count("\n") == 1


@pytest.mark.parametrize("way", [["tools/evaluate.py"], ["-m", "tools.evaluate"]], ids=["as a file", "as a module"])
def test_runs_both_ways(test_set, way):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *way, *arguments(test_set)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Protocol dim")


def test_wrong_usage_is_status_2(capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["--pred-dir", "x"])
    assert stop.value.code == 2
    assert "--label-dir" in capsys.readouterr().err


def test_values_on_the_reference_folders(metric_reference, capsys, tmp_path):
    """The averages of reference_values.csv over its four cases."""
    folders = {"--pred-dir": "pred", "--label-dir": "alpha", "--trimap-dir": "trimap"}
    parts = [part for key, value in folders.items() for part in (key, str(metric_reference / value))]
    assert evaluate.main([*parts, "--output", str(tmp_path / "result.json")]) == 0
    rows = [line.split(",") for line in (metric_reference / "reference_values.csv").read_text().split()]
    averages = json.loads((tmp_path / "result.json").read_text())["averages"]
    for column, name in enumerate(("SAD", "MSE"), start=1):
        expected = np.mean([float(row[column].removeprefix(f"{name}=")) for row in rows])
        assert averages[name] == pytest.approx(expected, rel=1e-6)
