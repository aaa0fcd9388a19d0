"""tools/runs/plot_metrics.py: reading and grouping runs, tables against numbers computed here, curves."""

import csv
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy import stats

from data.image_io.images import DataError
from tools.runs.plot_metrics import main
from tools.runs.reading import Run, differing_settings, group_by_seed, read_curves, read_runs
from tools.runs.table import smoothed, tabulate

SADS = {"base": [[9.0, 5.0, 6.0], [8.0, 6.0, 4.0], [8.5, 7.0, 5.5]], "rope": [[9.0, 6.0, 5.5], [9.0, 5.0, 4.5]]}


def write_run(folder: Path, sads, seed=0, lines=(), **settings) -> Path:
    """Write the files of a run: a line each 10 iterations, an evaluation each 20."""
    folder.mkdir(parents=True)
    rows = [{"iteration": i, "total_loss": 1 / (i + 1), "lr": 0.01, "lr/decoder": 0.05} for i in range(9, 60, 10)]
    rows += [{"iteration": 20 * n, "matting/SAD": sad, "matting/MSE": sad / 1000} for n, sad in enumerate(sads, 1)]
    rows.sort(key=lambda row: row["iteration"])
    (folder / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows) + "".join(lines))
    train = {"seed": seed, "output_dir": str(folder), "epochs": 3, **settings}
    (folder / "config.yaml").write_text(yaml.safe_dump({"train": train, "model": {"depth": "${train.epochs}"}}))
    return folder


@pytest.fixture()
def runs(tmp_path: Path) -> list[Path]:
    """Three seeds of one setting and two of another."""
    return [
        write_run(tmp_path / f"{name}_seed{seed}", sads, seed, rope=name)
        for name, rows in SADS.items()
        for seed, sads in enumerate(rows)
    ]


def grouped(paths: Sequence[Path]) -> dict[str, list[Run]]:
    return group_by_seed(read_runs(paths)[0])


def test_lines_of_one_iteration_are_merged_and_bad_lines_are_counted(tmp_path):
    file = tmp_path / "metrics.json"
    file.write_text(
        '{"iteration": 9, "total_loss": NaN}\n{"iteration": 19, "total_loss": 3.0, "lr": 1}\n'
        '{"iteration": 19, "total_loss": 2.5}\n{"iteration": 39, "total_loss": 2}\n{"iteration": 59, "total_l'
    )
    curves, num_bad_lines = read_curves(file)
    assert list(curves["total_loss"]) == [9, 19, 39] and math.isnan(curves["total_loss"].pop(9))
    assert curves == {"total_loss": {19: 2.5, 39: 2.0}, "lr": {19: 1.0}} and num_bad_lines == 0
    file.write_text('{"iteration": 1{"iteration": 19, "lr": 3.0}\n[1]\n\n{"lr": 2}\n{"iteration": 39, "lr": 1}\n')
    assert read_curves(file) == ({"lr": {39: 1.0}}, 3)


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        ((4, 8), (7, 9, 12), [4]),  # another logging period
        ((4, 8, 12, 16, 18), (4, 6, 9), []),  # larger batches, so fewer iterations
        ((4, 8, 12), (13, 19, 23), [4, 8, 12]),  # smaller batches, so more iterations
        ((4, 8, 12), (12, 13), [4, 8, 12]),  # the resume runs the missing evaluation first
    ],
)
def test_a_resume_replaces_the_lines_from_its_first_iteration_on(tmp_path, before, after, kept):
    lines = [{"iteration": iteration, "total_loss": 1.0, "matting/SAD": 9.0} for iteration in before]
    lines += [{"iteration": iteration, "ema/SAD": 5.0} for iteration in after]
    (tmp_path / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curves, _ = read_curves(tmp_path / "metrics.json")
    expected = {"total_loss": dict.fromkeys(kept, 1.0), "matting/SAD": dict.fromkeys(kept, 9.0)} if kept else {}
    assert curves == {**expected, "ema/SAD": dict.fromkeys(after, 5.0)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"loss 3\nloss 2\n", "line 1: JSONDecodeError"),
        (b'{"iteration": 3, "lr": "high"}\n', "line 1: ValueError: could not convert string to float: 'high'"),
        (b"\xff\xfe\x00", "is no text"),
    ],
)
def test_an_unusable_file_is_named_with_the_reason(tmp_path, capsys, content, words):
    (tmp_path / "metrics.json").write_bytes(content)
    assert main([str(tmp_path), "--table"]) == 1
    assert f"{tmp_path}/metrics.json" in (error := capsys.readouterr().err) and words in error


def test_every_unusable_run_is_named(tmp_path, runs, capsys):
    (runs[0] / "config.yaml").write_text("a: [")
    (runs[1] / "config.yaml").write_text("- a")
    (runs[2] / "metrics.json").write_text("loss 3\n")
    assert main([*map(str, runs), str(tmp_path / "absent"), "--table"]) == 1
    lines = capsys.readouterr().err.splitlines()
    for line, words in zip(lines, ("is not YAML", "expected sections", "no line of use", "not exist"), strict=True):
        assert line.startswith("plot_metrics.py: ") and words in line


def test_other_paths_are_skipped_and_named(tmp_path, runs, capsys):
    """`output/*` also has images, tables, other folders, and runs that have just begun."""
    (tmp_path / "demo_pred").mkdir()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "metrics.json").touch()
    (tmp_path / "table.csv").write_text("run,SAD\nbase,3\n")
    Image.new("L", (4, 4)).save(tmp_path / "curves.png")
    others = [tmp_path / name for name in ("begun", "curves.png", "demo_pred", "table.csv")]
    assert main([*map(str, runs), "--table"]) == 0
    expected = capsys.readouterr().out
    assert main([*map(str, [*others, *runs]), "--table"]) == 0
    printed = capsys.readouterr()
    assert printed.out == expected
    for line, path in zip(printed.err.splitlines(), others, strict=True):
        assert line.startswith("plot_metrics.py: skipped: ") and str(path) in line
    assert main([*map(str, others), "--table"]) == 1
    error = capsys.readouterr().err
    assert all(str(path) in error for path in others)


def test_runs_that_differ_only_in_the_seed_are_a_group(tmp_path, runs):
    assert {name: [run.name for run in members] for name, members in grouped(runs[::-1]).items()} == {
        "rope": ["rope_seed0", "rope_seed1"],
        "base": ["base_seed0", "base_seed1", "base_seed2"],
    }
    other = write_run(tmp_path / "base-s3", [1.0], 3, rope="base", epochs=4)
    found = read_runs([*runs, other])[0]
    assert list(group_by_seed(found))[:4] == ["base_seed0", "base_seed1", "base_seed2", "base-s3"]
    assert differing_settings([run for run in found if run.stem == "base"]) == ["train.epochs"]


def test_the_seed_comes_from_the_config_and_else_from_the_name(tmp_path):
    first = write_run(tmp_path / "a_seed1", [1.0], seed=5)
    second = write_run(tmp_path / "a_seed2", [1.0], seed=5)
    with pytest.raises(DataError, match=r"a_seed1 \(seed 5\), a_seed2 \(seed 5\)"):
        grouped([first, second])
    for folder in (first, second):
        (folder / "config.yaml").unlink()
    assert [run.seed for run in grouped([first, second])["a"]] == [1, 2]
    with pytest.raises(DataError, match="a_seed1 is given twice"):
        read_runs([first, second, tmp_path / "." / "a_seed1"])


def test_a_table_has_means_over_seeds_and_their_intervals(runs):
    base, rope = tabulate(grouped(runs), ["matting/SAD", "matting/MSE"])
    assert (base.group, base.seeds, base.iterations, rope.seeds) == ("base", [0, 1, 2], [60], [0, 1])
    last = [row[-1] for row in SADS["base"]]
    for metric, unit in (("matting/SAD", 1), ("matting/MSE", 1000)):
        low, high = stats.t.interval(0.95, 2, loc=np.mean(last), scale=stats.sem(last))
        assert base.values[metric].mean * unit == pytest.approx(np.mean(last))
        assert base.values[metric].half_width * unit == pytest.approx((high - low) / 2)


def test_a_single_seed_has_no_interval(runs):
    (base,) = tabulate(grouped(runs[:1]), ["matting/SAD"])
    assert base.values["matting/SAD"] == (6.0, None)


def test_the_best_evaluation_is_each_runs_own(runs):
    base, _ = tabulate(grouped(runs), ["matting/MSE"], best="matting/SAD")
    places = [int(np.argmin(row)) for row in SADS["base"]]
    assert base.iterations == sorted({20 * (place + 1) for place in places})
    expected = np.mean([row[place] for row, place in zip(SADS["base"], places, strict=True)]) / 1000
    assert base.values["matting/MSE"].mean == pytest.approx(expected)


def test_differences_are_paired_by_seed(runs, capsys, tmp_path):
    path = tmp_path / "table.csv"
    assert main([*map(str, runs), "--table", "--baseline", "base", "--format", "markdown", "--csv", str(path)]) == 0
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["base", "rope", "rope - base"]
    differences = [SADS["rope"][seed][-1] - SADS["base"][seed][-1] for seed in range(2)]
    assert float(rows[2]["matting/SAD"]) == pytest.approx(np.mean(differences))
    half_width = stats.t.ppf(0.975, 1) * stats.sem(differences)
    assert float(rows[2]["matting/SAD half width"]) == pytest.approx(half_width)
    assert rows[2]["seeds"] == "0, 1"
    printed = capsys.readouterr().out
    assert "| run | seeds | iteration | matting/SAD/1000 | matting/MSE x1e-3 |" in re.sub(" +", " ", printed)
    assert "less base, paired by seed" in printed
    assert "5.2 ± 2.6" in printed  # 6, 4 and 5.5: two digits of 2.586


def test_a_cell_is_empty_if_a_run_of_the_group_lacks_the_metric(tmp_path, runs, capsys):
    started = write_run(tmp_path / "lone", [])  # stopped before its first evaluation
    partly = write_run(tmp_path / "rope_seed2", [], 2, rope="rope")
    diverged = write_run(tmp_path / "nan", [1.0, math.nan])
    options = ["--table", "--metrics", "matting/SAD", "total_loss", "--csv", str(tmp_path / "table.csv")]
    assert main([*map(str, (*runs, started, partly, diverged)), *options]) == 0
    base, rope, lone, nan = (line.split() for line in capsys.readouterr().out.splitlines()[1:5])
    assert rope[:5] == ["rope", "0,", "1,", "2", "59,"] and rope[6] == "-"
    assert lone == ["lone", "0", "59", "-", "0.02900"]  # the mean of 1 / 20 ... 1 / 60
    assert nan[3] == "nan" and base[5] != "-"
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["matting/SAD"]) for row in rows] == [True, False, False, True]


def test_the_best_of_a_run_without_an_evaluation_is_empty(tmp_path, runs, capsys):
    paths = [*map(str, runs), str(write_run(tmp_path / "lone", []))]
    assert main([*paths, "--table", "--best", "matting/SAD", "--baseline", "base"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["lone", "0", "-", "-", "-"] in lines
    assert lines[-3] == ["lone", "0", "-", "-", "-"]  # its difference from the baseline


def test_runs_of_a_group_that_end_early_are_named(tmp_path, runs, capsys):
    stopped = write_run(tmp_path / "rope_seed2", [9.0, 8.0], 2, rope="rope")
    paths = [*map(str, runs), str(stopped)]
    # Its last line is at 59 like the others', but its last evaluation is earlier.
    for arguments, is_named in (
        ([], True),
        (["--metrics", "total_loss", "matting/SAD"], True),
        (["--metrics", "total_loss"], False),
        (["--best", "matting/SAD"], False),
    ):
        assert main([*paths, "--table", *arguments]) == 0
        assert ("rope_seed2 ends at 40" in capsys.readouterr().err) == is_named


@pytest.mark.parametrize("options", [["--output", "a.png", "--metrics", "lr", "sad"], ["--table", "--best", "sad"]])
def test_an_unknown_metric_is_an_error(runs, tmp_path, monkeypatch, capsys, options):
    monkeypatch.chdir(tmp_path)
    assert main([*map(str, runs), *options]) == 1
    printed = capsys.readouterr()
    assert "no run has sad; there are lr, lr/decoder, matting/MSE, matting/SAD, total_loss" in printed.err
    assert not printed.out and not Path("a.png").exists()


def test_default_curves_leave_out_metrics_that_no_run_has(tmp_path, capsys):
    file = tmp_path / "metrics.json"
    file.write_text('{"iteration": 9, "lr": 1}\n')
    assert main([str(file), "--output", str(tmp_path / "a.png")]) == 0
    file.write_text('{"iteration": 9, "time": 1}\n')
    assert main([str(file), "--output", str(tmp_path / "b.png")]) == 1
    assert "there are time" in capsys.readouterr().err


def test_smoothing_is_a_mean_of_the_last_lines():
    values = np.random.default_rng(0).random(20)
    found = smoothed(dict(enumerate(values.tolist())), 5)
    padded = [np.mean(values[max(0, end - 5) : end]) for end in range(1, 21)]
    assert list(found) == list(range(20)) and list(found.values()) == pytest.approx(padded)


def test_an_image_shows_every_run(runs, tmp_path):
    images = {}
    for name, paths in (("all", runs), ("some", runs[:3])):
        file = tmp_path / f"{name}.png"
        assert main([*map(str, paths), "--output", str(file)]) == 0
        images[name] = np.asarray(Image.open(file).convert("RGB"))
    # Four panels, in two rows of up to three. Only the first image has the second group, in orange.
    assert images["all"].shape[1] > images["all"].shape[0]
    num_orange = {name: (image == [0xD5, 0x5E, 0x00]).all(-1).sum() for name, image in images.items()}
    assert num_orange["all"] > 100 and num_orange["some"] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--smooth", "0"], "--smooth: must be at least 1, got 0"),
        (["--format", "text"], "belong to --table"),
        (["--table", "--baseline", "nothing"], "--baseline must be one of base, rope, got 'nothing'"),
        (["--output", "image.xyz"], "xyz"),
        (["--output", "/proc/none/x.png"], "there is no folder /proc/none"),
        (["--table", "--csv", "/proc/none/x.csv"], "there is no folder /proc/none"),
    ],
)
def test_wrong_options_are_refused(runs, capsys, arguments, words):
    try:
        status = main([*map(str, runs), *arguments])
    except SystemExit as stop:
        status = stop.code
    assert status == (1 if "nothing" in arguments else 2)
    printed = capsys.readouterr()
    assert words in printed.err and not printed.out
