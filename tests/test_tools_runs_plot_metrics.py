"""tools/runs/plot_metrics.py: what it reads of runs, how it groups them, its tables against numbers worked out here."""

import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy import stats

from data.image_io.images import DataError
from tools.runs.drawing import draw_curves
from tools.runs.plot_metrics import main
from tools.runs.reading import differing_settings, group_by_seed, read_curves, read_run, read_runs
from tools.runs.table import Choice, smoothed, tabulate

SADS = {"base": [[9.0, 5.0, 6.0], [8.0, 6.0, 4.0], [8.5, 7.0, 5.5]], "rope": [[9.0, 6.0, 5.5], [9.0, 5.0, 4.5]]}


def write_run(folder: Path, sads, seed=0, lines=(), **settings) -> Path:
    """Leave what a training leaves: a line each 10 iterations, an evaluation each 20."""
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


def test_lines_of_one_iteration_add_up_and_a_cut_off_line_does_not_count(tmp_path):
    file = tmp_path / "metrics.json"
    file.write_text(
        '{"iteration": 9, "total_loss": NaN}\n{"iteration": 19, "total_loss": 3.0, "lr": 1}\n'
        '{"iteration": 19, "total_loss": 2.5}\n{"iteration": 39, "total_loss": 2}\n{"iteration": 59, "total_l'
    )
    curves, num_spoilt = read_curves(file)
    assert list(curves["total_loss"]) == [9, 19, 39] and math.isnan(curves["total_loss"].pop(9))
    assert curves == {"total_loss": {19: 2.5, 39: 2.0}, "lr": {19: 1.0}} and num_spoilt == 0
    file.write_text('{"iteration": 1{"iteration": 19, "lr": 3.0}\n[1]\n\n{"lr": 2}\n{"iteration": 39, "lr": 1}\n')
    assert read_curves(file) == ({"lr": {39: 1.0}}, 3)


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        ((4, 8), (7, 9, 12), [4]),  # from a checkpoint of the same training, with another logging period
        ((4, 8, 12, 16, 18), (4, 6, 9), []),  # of larger batches, and so fewer: 18 stands beyond the end
        ((4, 8, 12), (13, 19, 23), [4, 8, 12]),  # of smaller batches, and so more
        ((4, 8, 12), (12, 13), [4, 8, 12]),  # an evaluation is made up for at the last line
    ],
)
def test_from_where_a_resume_begins_nothing_of_before_stays(tmp_path, before, after, kept):
    lines = [{"iteration": iteration, "total_loss": 1.0, "matting/SAD": 9.0} for iteration in before]
    lines += [{"iteration": iteration, "ema/SAD": 5.0} for iteration in after]
    (tmp_path / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curves, _ = read_curves(tmp_path / "metrics.json")
    expected = {"total_loss": dict.fromkeys(kept, 1.0), "matting/SAD": dict.fromkeys(kept, 9.0)} if kept else {}
    assert curves == {**expected, "ema/SAD": dict.fromkeys(after, 5.0)}


def test_a_table_of_a_resume_with_fewer_iterations_has_its_last_evaluation(tmp_path, capsys):
    again = [json.dumps({"iteration": iteration, "matting/SAD": 3.0}) + "\n" for iteration in (25, 30)]
    run = write_run(tmp_path / "run", [9.0, 8.0, 7.0], lines=again)
    assert main([str(run), "--table", "--metrics", "matting/SAD"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["run", "0", "30", "3.000"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"loss 3\nloss 2\n", "line 1: JSONDecodeError"),
        (b'{"iteration": 3, "lr": "high"}\n', "line 1: ValueError: could not convert string to float: 'high'"),
        (b"\xff\xfe\x00", "is no text"),
    ],
)
def test_a_file_of_no_use_is_named_with_the_reason(tmp_path, capsys, content, words):
    (tmp_path / "metrics.json").write_bytes(content)
    assert main([str(tmp_path), "--table"]) == 1
    assert f"{tmp_path}/metrics.json" in (told := capsys.readouterr().err) and words in told


def test_every_run_of_no_use_is_named(tmp_path, runs, capsys):
    (runs[0] / "config.yaml").write_text("a: [")
    (runs[1] / "config.yaml").write_text("- a")
    (runs[2] / "metrics.json").write_text("loss 3\n")
    assert main([*map(str, runs), str(tmp_path / "absent"), "--table"]) == 1
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 4 and all(line.startswith("plot_metrics.py: ") for line in told)
    for line, words in zip(told, ("is not YAML", "expected sections", "no line of use", "not exist"), strict=True):
        assert words in line


def test_what_is_no_run_is_skipped_and_named(tmp_path, runs, capsys):
    """As `output/*` finds it: pictures, tables and other folders beside the runs, and one that has just begun."""
    (tmp_path / "demo_pred").mkdir()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "metrics.json").touch()
    (tmp_path / "table.csv").write_text("run,SAD\nbase,3\n")
    Image.new("L", (4, 4)).save(tmp_path / "curves.png")
    everything = sorted(map(str, tmp_path.iterdir()))
    assert len(everything) == len(runs) + 4
    assert main([*map(str, runs), "--table"]) == 0
    expected = capsys.readouterr().out
    assert main([*everything, "--table"]) == 0
    told = capsys.readouterr()
    assert told.out == expected
    lines = told.err.splitlines()
    assert len(lines) == 4 and all(line.startswith("plot_metrics.py: skipped: ") for line in lines)
    for line, name in zip(lines, ("begun", "curves.png", "demo_pred", "table.csv"), strict=True):
        assert str(tmp_path / name) in line


def test_paths_without_a_run_are_an_error_that_names_each(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), "--table"]) == 1
    told = capsys.readouterr().err.splitlines()
    assert [f"{tmp_path / name} holds no metrics.json" in line for name, line in zip("ab", told, strict=True)] == [
        True
    ] * 2


def test_groups_are_runs_that_differ_by_their_seed_alone(tmp_path, runs):
    groups = group_by_seed(read_runs([*reversed(runs)])[0])
    assert {name: [run.name for run in members] for name, members in groups.items()} == {
        "rope": ["rope_seed0", "rope_seed1"],
        "base": ["base_seed0", "base_seed1", "base_seed2"],
    }
    other = write_run(tmp_path / "base-s3", [1.0], 3, rope="base", epochs=4)
    found = read_runs([*runs, other])[0]
    assert list(group_by_seed(found))[:4] == ["base_seed0", "base_seed1", "base_seed2", "base-s3"]
    assert differing_settings([run for run in found if run.stem == "base"]) == ["train.epochs"]


def test_the_seed_is_the_configs_not_the_names(tmp_path):
    first = write_run(tmp_path / "a_seed1", [1.0], seed=5)
    second = write_run(tmp_path / "a_seed2", [1.0], seed=5)
    with pytest.raises(DataError, match=r"must differ in their seed, got a_seed1 \(seed 5\), a_seed2 \(seed 5\)"):
        group_by_seed(read_runs([first, second])[0])
    for folder in (first, second):
        (folder / "config.yaml").unlink()
    assert [run.seed for run in group_by_seed(read_runs([first, second])[0])["a"]] == [1, 2]
    with pytest.raises(DataError, match="a_seed1 is given twice"):
        read_runs([first, second, tmp_path / "." / "a_seed1"])


def test_a_table_has_means_over_seeds_and_their_intervals(runs):
    base, rope = tabulate(group_by_seed(read_runs(runs)[0]), ["matting/SAD", "matting/MSE"])
    assert (base.group, base.seeds, base.iterations, rope.seeds) == ("base", [0, 1, 2], [60], [0, 1])
    last = [row[-1] for row in SADS["base"]]
    for metric, unit in (("matting/SAD", 1), ("matting/MSE", 1000)):
        low, high = stats.t.interval(0.95, 2, loc=np.mean(last), scale=stats.sem(last))
        assert base.values[metric].mean * unit == pytest.approx(np.mean(last))
        assert base.values[metric].half_width * unit == pytest.approx((high - low) / 2)


def test_a_single_seed_has_no_interval(runs):
    (base,) = tabulate(group_by_seed(read_runs(runs[:1])[0]), ["matting/SAD"])
    assert base.values["matting/SAD"] == (6.0, None)


@pytest.mark.parametrize(("mode", "choose"), [("min", np.argmin), ("max", np.argmax)])
def test_the_best_evaluation_is_each_runs_own(runs, mode, choose):
    base, _ = tabulate(group_by_seed(read_runs(runs)[0]), ["matting/MSE"], Choice("matting/SAD", mode == "max"))
    places = [int(choose(row)) for row in SADS["base"]]
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
    told = capsys.readouterr().out
    assert "| run | seeds | iteration | matting/SAD/1000 | matting/MSE x1e-3 |" in re.sub(" +", " ", told)
    assert "less base, paired by seed" in told and "Student's t" in told
    assert "5.2 ± 2.6" in told  # 6, 4 and 5.5: two digits of 2.586


def test_a_group_without_a_metric_goes_without_it_and_one_in_part_does_not(tmp_path, runs, capsys):
    lone = write_run(tmp_path / "lone", [], 0)
    assert main([*map(str, runs), str(lone), "--table", "--metrics", "matting/SAD", "total_loss"]) == 0
    assert capsys.readouterr().out.splitlines()[3].split() == [
        "lone",
        "0",
        "59",
        "-",
        "0.02900",
    ]  # mean of 1 / 20 ... 1 / 60
    for path, metric, words in (
        (lone, "matting/SAD", "lone has none of matting/SAD"),
        (lone, "sad", "no run has sad; there are lr, lr/decoder, matting/MSE, matting/SAD, total_loss"),
        (write_run(tmp_path / "rope_seed2", [], 2, rope="rope"), "matting/SAD", "rope_seed2 has no matting/SAD"),
        (
            write_run(tmp_path / "nan", [1.0, math.nan], 2),
            "matting/SAD",
            "nan has the value nan of matting/SAD at iteration 40: leave this run out, or name other --metrics",
        ),
    ):
        assert main([*map(str, runs), str(path), "--table", "--metrics", metric]) == 1
        assert words in capsys.readouterr().err


def test_a_mean_of_runs_that_end_apart_is_told_of(tmp_path, runs, capsys):
    stopped = write_run(tmp_path / "rope_seed2", [9.0, 8.0], 2, rope="rope")
    paths = [*map(str, runs), str(stopped)]
    assert main([*paths, "--table"]) == 0
    told = capsys.readouterr()
    assert told.err == (
        "plot_metrics.py: rope averages matting/SAD of unequal iterations: rope_seed2 ends at 40, the others at 60\n"
    )
    assert told.out.splitlines()[2].split()[:6] == ["rope", "0,", "1,", "2", "40,", "60"]
    # Its last line is at 59 like theirs: the evaluation, which is older, counts all the same.
    for arguments, is_told in (
        (["--metrics", "total_loss", "matting/SAD"], True),
        (["--metrics", "total_loss"], False),
        (["--best", "matting/SAD"], False),
    ):
        assert main([*paths, "--table", *arguments]) == 0
        assert ("rope_seed2 ends at 40" in capsys.readouterr().err) == is_told


@pytest.mark.parametrize("metrics", [["--metrics", "sad"], ["--metrics", "total_loss", "sad"]])
def test_an_unknown_metric_is_one_error_for_tables_and_curves(runs, tmp_path, capsys, metrics):
    words = "plot_metrics.py: no run has sad; there are lr, lr/decoder, matting/MSE, matting/SAD, total_loss\n"
    picture = tmp_path / "a.png"
    for arguments in (["--output", str(picture), *metrics], ["--table", *metrics], ["--table", "--best", "sad"]):
        assert main([*map(str, runs), *arguments]) == 1
        told = capsys.readouterr()
        assert told.err == words and not told.out and not picture.exists()


def test_what_is_usually_drawn_is_left_out_where_no_run_has_it(tmp_path, capsys):
    file = tmp_path / "metrics.json"
    file.write_text('{"iteration": 9, "lr": 1}\n')
    assert main([str(file), "--output", str(tmp_path / "a.png")]) == 0
    file.write_text('{"iteration": 9, "time": 1}\n')
    assert main([str(file), "--output", str(tmp_path / "b.png")]) == 1
    assert "no run has total_loss; there are time" in capsys.readouterr().err


def test_smoothing_is_a_mean_of_the_last_lines():
    values = np.random.default_rng(0).random(20)
    found = smoothed(dict(enumerate(values.tolist())), 5)
    padded = [np.mean(values[max(0, end - 5) : end]) for end in range(1, 21)]
    assert list(found) == list(range(20)) and list(found.values()) == pytest.approx(padded)


def test_a_picture_shows_every_run(runs, tmp_path, capsys):
    assert main([*map(str, runs), "--output", str(tmp_path / "curves.png")]) == 0
    assert "drew 5 runs" in capsys.readouterr().out
    whole = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB"))
    assert main([*map(str, runs[:3]), "--output", str(tmp_path / "some.png")]) == 0
    # Four panels, in two rows of up to three, and the second group's orange in the first picture alone.
    assert whole.shape[1] > whole.shape[0]
    orange = np.array([0xD5, 0x5E, 0x00])
    part = np.asarray(Image.open(tmp_path / "some.png").convert("RGB"))
    assert (whole == orange).all(-1).sum() > 100 and not (part == orange).all(-1).any()
    with pytest.raises(DataError, match="no run has x"):
        draw_curves({"a": [read_run(runs[0])]}, ["x"], 1, tmp_path / "a.png")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--smooth", "0"], "--smooth: must be at least 1, got 0"),
        (["--baseline", "a"], "belong to --table"),
        (["--format", "text"], "--best, --baseline, --format and --csv belong to --table"),
        (["--table", "--mode", "min"], "--mode belongs to --best"),
        (["--table", "--baseline", "nothing"], "--baseline must be one of base, rope, got 'nothing'"),
        (["--output", "picture.xyz"], "xyz"),
        (
            ["--output", "/proc/none/x.png"],
            "/proc/none/x.png cannot be written: there is no folder /proc/none; make the folder",
        ),
        (["--table", "--csv", "/proc/none/x.csv"], "/proc/none/x.csv cannot be written: there is no folder /proc/none"),
    ],
)
def test_what_cannot_be_used_is_told(runs, capsys, arguments, words):
    try:
        status = main([*map(str, runs), *arguments])
    except SystemExit as ended:
        status = ended.code
    assert status == (1 if "nothing" in arguments else 2)
    told = capsys.readouterr()
    assert words in told.err and not told.out
