"""tools/evaluate.py: its numbers, its words, and all that it refuses at once."""

import csv
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import OpenEXR
import pytest

from data.image_io.images import read_image
from evaluation.metrics import METRICS, PROTOCOLS, average
from evaluation.output import result_folder as results
from evaluation.output.report import CELL_PX, GAP_PX
from runtime.worker_pool import default_workers
from tests.helpers.evaluation import ENVIRONMENT, RULE, add_composites, evaluate_arguments, summary_of, write_test_set
from tests.helpers.paths import REPOSITORY
from tools import evaluate


@pytest.fixture
def test_set(tmp_path: Path) -> Path:
    return write_test_set(tmp_path)


def test_prints_the_numbers_with_units_protocol_and_counts(test_set, capsys):
    """SAD: (100 x 0.2 + 50 x 0.4) / 2 / 1000; MSE: (0.04 + 0.16) / 2; MAD: (0.2 + 0.4) / 2.

    Both alphas are constant: no gradient. The prediction of `a`, 151 / 255 = 0.59, is connected up to 0.3, the last
    threshold that both reach: 1 - 0.29 against 1 (0.392 - 0.3 < 0.15); that of `b`, 0.79, likewise 1 - 0.49.
    Of two images, one in four resamples has one of them twice: the ends of the interval are the images themselves.
    """
    assert evaluate.main(evaluate_arguments(test_set, "--output", test_set / "made" / "out")) == 0
    output = capsys.readouterr()
    assert output.err == "" and output.out.splitlines() == [
        "Protocol dim: unknown region (trimap == 128), uint8",
        f"2 images, 2 foregrounds: {RULE}",
        "                    SAD/1000    MSE x1e-3    MAD x1e-3    Grad/1000    Conn/1000",
        "mean over images       0.020      100.000      300.000        0.000        0.027",
        "95% from               0.020       40.000      200.000        0.000        0.025",
        "95% to                 0.020      160.000      400.000        0.000        0.029",
        f"wrote the results to {test_set / 'made' / 'out'}",
    ]
    summary = summary_of(test_set / "made" / "out")
    assert summary["averages"] == pytest.approx(
        {"SAD": 0.02, "MSE": 0.1, "MAD": 0.3, "Grad": 0, "Conn": (151 / 255 - 0.3 + (202 / 255 - 0.3) / 2) / 20}
    )
    assert summary["per_image"]["b"] == pytest.approx(
        {
            "SAD": 0.02,
            "MSE": 0.16,
            "MAD": 0.4,
            "Grad": 0,
            "Conn": (202 / 255 - 0.3) / 20,
            "pixels": 50,
            "foreground": "b",
        }
    )
    assert summary["intervals"]["MSE"] == pytest.approx([0.04, 0.16])


def test_the_summary_says_what_was_measured(test_set):
    out = test_set / "out"
    assert evaluate.main(evaluate_arguments(test_set, "--protocol", "float", "--output", out)) == 0
    summary = summary_of(out)
    rows = summary.pop("per_image")
    for name in ("averages", "intervals"):
        assert summary.pop(name).keys() == METRICS.keys()
    digest = summary["test_set"].pop("sha256")
    assert len(digest) == 64 and set(digest) <= set("0123456789abcdef")
    assert summary.pop("versions").keys() == {"python", "numpy", "opencv", "pillow"}
    assert summary == {
        "protocol": "float",
        "description": PROTOCOLS["float"].description,
        "test_set": {
            "dataset": None,
            **{f"{kind}_dir": str(test_set / kind) for kind in ("label", "trimap")},
            "image_dir": None,
            "trimap_radius_px": None,
        },
        "predictions": {
            "dir": str(test_set / "pred"),
            **dict.fromkeys(("config_file", "weights", "weights_sha256", "torch")),
        },
        "images": 2,
        "foregrounds": 2,
        "foreground_rule": RULE,
        "empty_regions": 0,
        "missing": [],
        "bootstrap": {"confidence": 0.95, "resamples": 10_000, "seed": 0, "unit": "foreground"},
    }
    with (out / "per_image.csv").open(newline="") as file:
        table = [
            {key: cell if key in ("name", "foreground") else float(cell) for key, cell in row.items()}
            for row in csv.DictReader(file)
        ]
    assert table == [{"name": name, **row} for name, row in rows.items()]


def test_the_whole_image_needs_no_trimap(test_set, capsys):
    """All of 20 x 10 pixels are off."""
    parts = ["--pred-dir", str(test_set / "pred"), "--label-dir", str(test_set / "label")]
    assert evaluate.main([*parts, "--protocol", "whole", "--workers", "1", "--output", str(test_set / "out")]) == 0
    assert capsys.readouterr().out.startswith(f"Protocol {PROTOCOLS['whole'].description}\n")
    summary = summary_of(test_set / "out")
    assert summary["averages"]["SAD"] == pytest.approx(200 * 0.3 / 1000) and summary["test_set"]["trimap_dir"] is None
    sheet = read_image(test_set / "out" / "worst.png")
    assert sheet.shape[1] == 3 * CELL_PX + 2 * GAP_PX, "prediction, ground truth, error"


def test_composites_are_grouped_by_foreground(test_set, capsys):
    """Foregrounds of 1, 1 and 3 images: means over images and over foregrounds differ."""
    add_composites(test_set, {"f_0": 0, "f_1": 51, "f_2": 102})
    assert evaluate.main(evaluate_arguments(test_set, "--group", "--output", test_set / "out")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"5 images, 3 foregrounds: {RULE}"
    assert [line.split()[:4] for line in lines[2:6]] == [
        ["foreground", "images", "SAD/1000", "MSE"],
        ["a", "1", "0.020", "40.000"],
        ["b", "1", "0.020", "160.000"],
        ["f", "3", "0.004", "66.667"],
    ]
    assert lines[6] == "" and lines[7].split()[:2] == ["SAD/1000", "MSE"]
    assert lines[8].split()[:5] == ["mean", "over", "images", "0.010", "80.000"]
    assert lines[11].split()[:5] == ["mean", "over", "foregrounds", "0.015", "88.889"]
    assert [line.split()[:2] for line in (*lines[9:11], *lines[12:14])] == [["95%", "from"], ["95%", "to"]] * 2
    summary = summary_of(test_set / "out")
    rows = summary["per_image"]
    groups = {"a": ["a"], "b": ["b"], "f": ["f_0", "f_1", "f_2"]}
    expected = {name: average(rows[image] for image in images) for name, images in groups.items()}
    assert summary["per_foreground"] == {n: {"images": len(groups[n]), **row} for n, row in expected.items()}
    assert summary["averages_over_foregrounds"] == average(expected.values())
    low, high = summary["intervals_over_foregrounds"]["SAD"]
    assert low < summary["averages_over_foregrounds"]["SAD"] < high
    with (test_set / "out" / "per_foreground.csv").open(newline="") as file:
        assert [(row["foreground"], float(row["SAD"])) for row in csv.DictReader(file)] == [
            (name, row["SAD"]) for name, row in expected.items()
        ]
    assert evaluate.main(evaluate_arguments(test_set, "--output", test_set / "out", "--num-worst", "0")) == 0
    left = {path.name for path in (test_set / "out").iterdir()}
    assert left == {"summary.json", "per_image.csv"}, "of the run before, nothing stays"


def test_one_foreground_has_no_interval(test_set, capsys):
    for folder in ("pred", "label", "trimap"):
        for old, new in (("a", "x_0"), ("b", "x_1")):
            (test_set / folder / f"{old}.png").rename(test_set / folder / f"{new}.png")
    assert evaluate.main(evaluate_arguments(test_set, "--output", test_set / "out")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[4:6]] == [["95%", "from", *"-----"], ["95%", "to", *"-----"]]
    assert lines[6] == "No interval: it takes two foregrounds; --foreground says which images are of one"
    assert summary_of(test_set / "out")["intervals"] is None


def test_the_sheet_shows_the_worst_first(test_set):
    """Grey cells tell which image a row shows, 0 where no pixel counts; the image column is there where it is given."""
    add_composites(test_set, {"c": 150, "d": 10})
    for name, size in {"a": (20, 10), "b": (20, 10), "c": (4, 5), "d": (4, 5)}.items():
        (test_set / "image").mkdir(exist_ok=True)
        cv2.imwrite(str(test_set / "image" / f"{name}.png"), np.full((*size, 3), (0, 0, 255), np.uint8))
    more = ("--image-dir", test_set / "image", "--num-worst", "3", "--output", test_set / "out")
    assert evaluate.main(evaluate_arguments(test_set, *more)) == 0
    sheet = read_image(test_set / "out" / "worst.png")
    columns = sheet[:, CELL_PX // 4 :: CELL_PX + GAP_PX]
    assert columns.shape[1] == 5
    error = columns[:, 4, 0]
    steps = [value for value, before in zip(error[1:], error[:-1], strict=True) if value != before and value < 0.9]
    expected = [51 / 255, 0, 102 / 255, 0, 150 / 255]
    assert steps == pytest.approx(expected, abs=1e-6), "a and b have SAD 0.02, c 0.012"
    last = [[1, 0, 0], *([value / 255] * 3 for value in (128, 250, 100, 150))]
    assert columns[-1] == pytest.approx(np.array(last), abs=1e-6)


def test_files_of_other_formats_give_the_same_numbers(test_set, capsys):
    evaluate.main(evaluate_arguments(test_set))
    expected = capsys.readouterr().out
    pred, label, trimap = (test_set / folder / "a.png" for folder in ("pred", "label", "trimap"))
    cv2.imwrite(str(pred), cv2.imread(str(pred), 0).astype(np.uint16) * 257)
    cv2.imwrite(str(label), cv2.cvtColor(cv2.imread(str(label), 0), cv2.COLOR_GRAY2BGR))
    cv2.imwrite(str(trimap.with_suffix(".bmp")), cv2.imread(str(trimap), 0))
    trimap.unlink()
    for folder in ("pred", "label"):
        path = test_set / folder / "b.png"
        values = {"A": cv2.imread(str(path), 0).astype(np.float32) / 255}
        OpenEXR.File({"type": OpenEXR.scanlineimage}, values).write(str(path.with_suffix(".exr")))
        path.unlink()
    assert evaluate.main(evaluate_arguments(test_set)) == 0
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
    for folder, level in (("pred", 1.5), ("label", 1.0), ("trimap", 0.5)):
        values = {"A": np.full((20, 10), level, np.float32)}
        OpenEXR.File({"type": OpenEXR.scanlineimage}, values).write(str(test_set / folder / "light.exr"))

    assert evaluate.main([*evaluate_arguments(test_set), "--output", str(test_set / "out")]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    head, *problems = output.err.splitlines()
    assert head == "evaluate.py: 10 problems, nothing evaluated:"
    for start, words in (
        ("pred/two.png", "two.jpg have one name"),
        ("pred/missing.*", "is missing"),
        ("trimap/missing.*", "is missing"),
        ("pred/extra.png", "is extra"),
        ("pred/narrow.png", "is 9 x 20 px, but"),
        ("trimap/grey_trimap.png", "got 127 too"),
        ("pred/broken.png", "cannot read"),
        ("label/coloured.png", "is coloured"),
        ("pred/light.exr", "in [0, 1], got 1.5 to 1.5"),
        ("trimap/light.*", "is missing"),
    ):
        assert [line for line in problems if str(test_set / start) in line and words in line], (start, problems)
    assert not any((test_set / "out").iterdir())


@pytest.mark.parametrize("folder", ["pred", "label", "trimap"])
def test_a_missing_folder_is_one_problem(test_set, capsys, folder):
    (test_set / folder).rename(test_set / "elsewhere")
    assert evaluate.main(evaluate_arguments(test_set)) == 1
    assert capsys.readouterr().err.splitlines() == [
        "evaluate.py: 1 problem, nothing evaluated:", f"no such folder: {test_set / folder}"
    ]  # fmt: skip


def test_a_set_without_any_unknown_pixel_has_no_score(test_set, capsys):
    known = np.full((20, 10), 255, np.uint8)
    cv2.imwrite(str(test_set / "trimap" / "b.png"), known)
    assert evaluate.main(evaluate_arguments(test_set)) == 0  # a still has some
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "1 of the images have no pixel that counts: 0 in each metric"
    assert lines[4].split()[3:6] == ["0.010", "20.000", "100.000"]
    cv2.imwrite(str(test_set / "trimap" / "a.png"), known)
    assert evaluate.main(evaluate_arguments(test_set)) == 1
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1 and "has an unknown pixel (128)" in output.err


@pytest.mark.parametrize("output", ["pred/a.png", "pred/a.png/out"], ids=["a file", "below a file"])
def test_an_output_that_cannot_be_written_is_one_line(test_set, capsys, output):
    assert evaluate.main(evaluate_arguments(test_set, "--output", test_set / output)) == 1
    output = capsys.readouterr()
    assert output.err.startswith("evaluate.py: the results cannot be written: ") and output.err.count("\n") == 1
    assert output.out == ""


def test_missing_predictions_are_said(test_set, capsys):
    add_composites(test_set, {"c": 51})
    (test_set / "pred" / "b.png").unlink()
    (test_set / "pred" / "c.png").unlink()
    assert evaluate.main(evaluate_arguments(test_set)) == 1
    assert "2 problems" in capsys.readouterr().err
    assert evaluate.main(evaluate_arguments(test_set, "--allow-missing", "--output", test_set / "out")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == [
        f"1 images, 1 foregrounds: {RULE}", "2 predictions are missing, the averages are over the rest: b, c"
    ]  # fmt: skip
    summary = summary_of(test_set / "out")
    assert summary["missing"] == ["b", "c"] and list(summary["per_image"]) == ["a"]
    assert summary["averages"]["SAD"] == pytest.approx(0.02)


def test_a_missing_composite_leaves_the_others_together(test_set):
    add_composites(test_set, {"f_0": 0, "f_1": 51, "f_2": 102})
    (test_set / "pred" / "f_1.png").unlink()
    assert evaluate.main(evaluate_arguments(test_set, "--allow-missing", "--group", "--output", test_set / "out")) == 0
    summary = summary_of(test_set / "out")
    assert (summary["images"], summary["foregrounds"]) == (4, 3)
    assert summary["per_foreground"]["f"] == {"images": 2, **average(summary["per_image"][n] for n in ("f_0", "f_2"))}


def test_the_foreground_can_be_named_by_a_pattern(test_set, capsys):
    """Four composites numbered from 1: as many foregrounds by the default rule, one by the pattern."""
    add_composites(test_set, {"f_1": 0, "f_2": 51, "f_3": 102, "f_05": 20})
    counts = []
    for pattern in ((), ("--foreground", r"^(.+)_\d+$")):
        assert evaluate.main(evaluate_arguments(test_set, *pattern, "--group", "--output", test_set / "out")) == 0
        summary = summary_of(test_set / "out")
        counts.append(summary["foregrounds"])
        lines = capsys.readouterr().out.splitlines()
        assert lines[1] == f"6 images, {counts[-1]} foregrounds: {summary['foreground_rule']}"
    assert counts == [6, 3] and r"^(.+)_\d+$" in summary["foreground_rule"]
    foregrounds = {"a": "a", "b": "b", **dict.fromkeys(("f_05", "f_1", "f_2", "f_3"), "f")}
    assert {name: row["foreground"] for name, row in summary["per_image"].items()} == foregrounds
    with (test_set / "out" / "per_image.csv").open(newline="") as file:
        assert {row["name"]: row["foreground"] for row in csv.DictReader(file)} == foregrounds
    assert summary["per_foreground"]["f"]["images"] == 4


def test_a_refused_evaluation_leaves_no_older_result(test_set):
    out = test_set / "out"
    assert evaluate.main(evaluate_arguments(test_set, "--group", "--output", out)) == 0
    (out / "notes.txt").write_text("mine")
    assert len(list(out.iterdir())) == 5
    (test_set / "pred" / "a.png").unlink()
    assert evaluate.main(evaluate_arguments(test_set, "--output", out)) == 1
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("kind", ["pred", "label", "trimap"])
def test_results_never_go_among_the_images(test_set, capsys, kind):
    assert evaluate.main(evaluate_arguments(test_set, "--output", test_set / "x" / ".." / kind)) == 1
    assert f"{kind} holds images" in capsys.readouterr().err
    assert {path.name for path in (test_set / kind).iterdir()} == {"a.png", "b.png"}


def test_the_sheet_names_its_rows_in_one_line(test_set, monkeypatch):
    """SAD first, since long names are cut off."""
    add_composites(test_set, {"c\nd": 150})
    drawn = {}
    monkeypatch.setattr(results, "image_sheet", lambda rows, path: drawn.update(rows))
    assert evaluate.main(evaluate_arguments(test_set, "--output", test_set / "out")) == 0
    assert list(drawn) == ["SAD/1000 0.020   a", "SAD/1000 0.020   b", "SAD/1000 0.012   c d"]


@pytest.mark.parametrize(("protocol", "known"), [("dim", 0), ("float", 0), ("whole", 51 / 255)])
def test_the_sheet_shows_the_error_of_the_pixels_that_count(test_set, monkeypatch, protocol, known):
    drawn = {}
    monkeypatch.setattr(results, "image_sheet", lambda rows, path: drawn.update(rows))
    assert evaluate.main(evaluate_arguments(test_set, "--protocol", protocol, "--output", test_set / "out")) == 0
    (error,) = (row["error"] for label, row in drawn.items() if label.endswith(" a"))
    assert (error[0, 0, 0], error[-1, 0, 0]) == pytest.approx((51 / 255, known))


@pytest.mark.parametrize("way", [["tools/evaluate.py"], ["-m", "tools.evaluate"]], ids=["as a file", "as a module"])
def test_runs_both_ways_with_workers(test_set, way):
    command = [sys.executable, *way, *evaluate_arguments(test_set), "--workers", "2"]
    done = subprocess.run(command, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Protocol dim")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--pred-dir x", "either --label-dir or --dataset"),
        ("--label-dir x --trimap-dir x", "give --pred-dir"),
        ("--pred-dir x --dataset x --trimap-dir x", "--dataset knows its trimaps"),
        ("--pred-dir x --label-dir x", "--protocol dim counts unknown pixels: give --trimap-dir"),
        ("--pred-dir x --dataset x --weights x", "belong together"),
        ("--pred-dir x --label-dir x --trimap-dir x --config-file x --weights x", "runs on a --dataset"),
        ("--pred-dir x --dataset x --device cpu", "--backbone-px and --tta are for the network"),
        ("--pred-dir x --dataset x --model x --tta flip", "argument --tta: expected flips, rotations and scales"),
        ("--pred-dir x --dataset x --workers 0", "--workers: must be at least 1"),
        ("--pred-dir x --dataset x --model x --config-file x --weights x", "or --model"),
        ("--pred-dir x --dataset x --foreground (", "( is no regular expression: "),
        ("--pred-dir x --dataset x --foreground a{99999999999}", "is no regular expression: "),
        ("--compare a b --group", "no other option"),
        (f"--compare a b --workers {default_workers()}", "no other option"),
    ],
)
def test_wrong_usage_is_status_2(capsys, options, words):
    with pytest.raises(SystemExit) as stop:
        evaluate.main(options.split())
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_values_on_the_reference_folders(metric_reference, tmp_path):
    """The averages of reference_values.csv over its four cases."""
    folders = {"--pred-dir": "pred", "--label-dir": "alpha", "--trimap-dir": "trimap"}
    parts = [part for key, value in folders.items() for part in (key, str(metric_reference / value))]
    assert evaluate.main([*parts, "--workers", "1", "--output", str(tmp_path)]) == 0
    cases = [dict(pair.split("=") for pair in line.split(",")[1:])
             for line in (metric_reference / "reference_values.csv").read_text().split()]  # fmt: skip
    averages = summary_of(tmp_path)["averages"]
    for name in ("SAD", "MSE", "Grad", "Conn"):
        assert averages[name] == pytest.approx(np.mean([float(case[name.upper()]) for case in cases]), rel=1e-6), name
