"""tools/evaluate.py --compare: paired differences of two results, and what forbids them."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from evaluation.metrics import METRICS, PROTOCOLS
from tests.helpers.evaluation import RULE, add_composites, evaluate_arguments, summary_of, write_test_set
from tools import evaluate


@pytest.fixture
def results(tmp_path):
    """Folders A and B of two methods on five images; B is better on a and b, worse on f_0, equal on f_1 and f_2."""
    write_test_set(tmp_path)
    add_composites(tmp_path, {"f_0": 20, "f_1": 51, "f_2": 102})
    assert evaluate.main(evaluate_arguments(tmp_path, "--output", tmp_path / "A")) == 0
    for name, size, value in (("a", (20, 10), 110), ("b", (20, 10), 130), ("f_0", (4, 5), 125)):
        cv2.imwrite(str(tmp_path / "pred" / f"{name}.png"), np.full(size, value, np.uint8))
    assert evaluate.main(evaluate_arguments(tmp_path, "--output", tmp_path / "B")) == 0
    return tmp_path


def comparison(folder: Path) -> list[str]:
    return ["--compare", str(folder / "A" / "summary.json"), str(folder / "B" / "summary.json")]


def test_two_results_are_compared_image_by_image(results, capsys):
    capsys.readouterr()
    assert evaluate.main(comparison(results)) == 0
    protocol, a, b, counts, _, *rows = capsys.readouterr().out.splitlines()
    assert protocol == f"Protocol {PROTOCOLS['dim'].description}" and counts == f"5 images, 3 foregrounds: {RULE}"
    assert (a, b) == (f"A {results}/A/summary.json", f"B {results}/B/summary.json")
    found = {row[:14].strip(): row[14:].split() for row in rows}
    sums = {name: summary_of(results / name)["averages"] for name in "AB"}
    for i, (name, metric) in enumerate(METRICS.items()):
        factor = metric.shown_factor
        for key, value in (
            ("A", sums["A"][name]),
            ("B", sums["B"][name]),
            ("B - A", sums["B"][name] - sums["A"][name]),
        ):
            assert float(found[key][i]) == pytest.approx(value * factor, abs=6e-4)
    assert float(found["95% from"][1]) < float(found["B - A"][1]) < float(found["95% to"][1])
    counts = {name.split()[1]: found[name][:3] for name in found if name.startswith("images")}
    assert counts == {"better": ["2"] * 3, "worse": ["1"] * 3, "equal": ["2"] * 3}
    assert [found[f"images {word}"][3] for word in ("better", "worse", "equal")] == ["0", "0", "5"], "Grad is 0"


def test_the_paired_interval_is_that_of_the_differences(results, capsys):
    """Against a loop that draws foregrounds and averages B - A over their images."""
    a, b = (summary_of(results / name)["per_image"] for name in "AB")
    groups = [["a"], ["b"], ["f_0", "f_1", "f_2"]]
    rng = np.random.default_rng(0)
    means = []
    for _ in range(10_000):
        drawn = [name for index in rng.integers(3, size=3) for name in groups[index]]
        means.append(np.mean([b[name]["MSE"] - a[name]["MSE"] for name in drawn]))
    capsys.readouterr()
    evaluate.main(comparison(results))
    rows = {line[:14].strip(): line[14:].split() for line in capsys.readouterr().out.splitlines()}
    ends = [float(rows[f"95% {word}"][1]) for word in ("from", "to")]
    assert ends == pytest.approx(np.percentile(means, [2.5, 97.5]) * 1000, abs=6e-4)


def test_what_cannot_be_compared_says_how(results, capsys):
    label = results / "label" / "a.png"
    cv2.imwrite(str(label), cv2.imread(str(label), 0) + 1)
    more = ("--protocol", "whole", "--allow-missing", "--output", results / "B")
    (results / "pred" / "b.png").unlink()
    assert evaluate.main(evaluate_arguments(results, *more)) == 0
    capsys.readouterr()
    assert evaluate.main(comparison(results)) == 1
    output = capsys.readouterr()
    assert output.out == "" and output.err.splitlines() == [
        "evaluate.py: these two cannot be compared:",
        "  protocol: A has dim, B has whole",
        "  images: 1 of A are not in B: b",
        "  test set: the pixels of ground truth or trimaps differ",
    ]


def test_two_incomplete_results_compare_and_say_so(results, capsys):
    (results / "pred" / "f_1.png").unlink()
    for name in "AB":
        evaluate.main(evaluate_arguments(results, "--allow-missing", "--output", results / name))
    capsys.readouterr()
    assert evaluate.main(comparison(results)) == 0
    assert "1 images of the test set are missing in both: f_1" in capsys.readouterr().out.splitlines()


def test_the_folders_of_results_are_enough(results, capsys):
    capsys.readouterr()
    evaluate.main(comparison(results))
    by_files = capsys.readouterr().out
    assert evaluate.main(["--compare", str(results / "A"), str(results / "B")]) == 0
    assert capsys.readouterr().out == by_files.replace("/summary.json", "")


def test_the_stored_foregrounds_count_and_not_the_names(results, capsys):
    """All five images are of one foreground by the pattern: no interval, where the names alone would give one."""
    for folder in ("pred", "label", "trimap"):
        for name in ("a", "b"):
            (results / folder / f"{name}.png").rename(results / folder / f"f_{name}.png")
    for name in "AB":
        assert evaluate.main(evaluate_arguments(results, "--foreground", "^f", "--output", results / name)) == 0
    capsys.readouterr()
    assert evaluate.main(comparison(results)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].startswith("5 images, 1 foregrounds: names in which '^f' finds")
    assert [line.split()[2:] for line in lines if line.startswith("95%")] == [["-"] * 5] * 2


def test_other_foregrounds_cannot_be_compared(results, capsys):
    assert evaluate.main(evaluate_arguments(results, "--foreground", "^[ab]|f_.", "--output", results / "B")) == 0
    capsys.readouterr()
    assert evaluate.main(comparison(results)) == 1
    assert capsys.readouterr().err.splitlines()[1:] == [
        "  foregrounds: of 3 images they differ: evaluate both with one rule for foregrounds"
    ]


NO_SUMMARY = {
    "empty": "",
    "a list": "[]",
    "no test set": '{"per_image": {}}',
    "other rows": '{"per_image": {"a": {"SAD": "1"}}}',
    "NaN": '{"per_image": {"a": {"SAD": NaN, "MSE": 0, "MAD": 0, "Grad": 0, "Conn": 0}}}',
    "no file": None,
    "too large a number": '{"per_image": {"a": {"SAD": 1%s}}}' % ("0" * 400),
    "too deep": "[" * 100_000,
}


@pytest.mark.parametrize(
    "edit",
    [
        lambda summary: summary["per_image"]["a"].pop("foreground"),
        lambda summary: summary["per_image"]["a"].update(foreground=["a"]),
        lambda summary: summary["test_set"].pop("sha256"),
        lambda summary: summary.update(missing=3),
    ],
    ids=["no foreground", "a list as foreground", "no digest", "a number as missing"],
)
def test_an_edited_summary_is_one_line(results, capsys, edit):
    summary = summary_of(results / "B")
    edit(summary)
    test_what_is_no_summary_is_one_line(results, capsys, json.dumps(summary))


@pytest.mark.parametrize("content", NO_SUMMARY.values(), ids=NO_SUMMARY)
def test_what_is_no_summary_is_one_line(results, capsys, content):
    path = results / "B" / "summary.json"
    path.unlink() if content is None else path.write_text(content)
    capsys.readouterr()
    assert evaluate.main(comparison(results)) == 1
    error = capsys.readouterr().err
    assert str(path) in error and error.count("\n") == 1
    assert content is None or "is not a summary" in error
