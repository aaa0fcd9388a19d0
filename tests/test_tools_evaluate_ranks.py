"""tools/evaluate.py on several ranks: threads stand for them, torchrun starts real ones."""

import json

import cv2
import numpy as np
import pytest

from inference.predictor import Predictor
from runtime.errors import UserError
from runtime.processes import ALONE
from tests.helpers.evaluation import write_test_set
from tests.helpers.ranks import contents, in_ranks, torchrun
from tools import evaluate


def measure(folder, ranks, *more):
    """Run tools/evaluate.py after its command line, in one rank."""
    evaluate.evaluate(evaluate.parse([str(part) for part in more], 1), ranks)


@pytest.mark.parametrize("world_size", [2, 3])
def test_measured_in_shares_the_numbers_are_the_same(tmp_path, world_size, capsys):
    """To the last digit: the files are compared; what the first prints comes once."""
    write_test_set(tmp_path)
    rng = np.random.default_rng(0)
    for name in "cdefg":
        for folder, image in (("pred", rng.integers(0, 256, (30, 20))), ("label", rng.integers(0, 256, (30, 20))),
                                ("trimap", rng.choice([0, 128, 255], (30, 20)))):  # fmt: skip
            cv2.imwrite(str(tmp_path / folder / f"{name}.png"), image.astype(np.uint8))
    options = [part for name in ("pred", "label", "trimap") for part in (f"--{name}-dir", tmp_path / name)]
    measure(tmp_path, ALONE, *options, "--output", tmp_path / "alone")
    printed = capsys.readouterr().out.replace(str(tmp_path / "alone"), str(tmp_path / "out"))
    assert (
        in_ranks(lambda ranks: measure(tmp_path, ranks, *options, "--output", tmp_path / "out"), world_size)
        == [None] * world_size
    )
    assert capsys.readouterr() == (printed, "")
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")

    (tmp_path / "pred" / "d.png").unlink()
    (tmp_path / "pred" / "e.png").write_text("no image")
    raised = in_ranks(lambda ranks: measure(tmp_path, ranks, *options), world_size)
    assert {str(error) for error in raised} == {str(raised[0])} and "2 problems, nothing evaluated" in str(raised[0])
    assert "d.* is missing" in str(raised[0]) and "e.png" in str(raised[0])


@pytest.fixture
def test_folder(image_folders):
    """image/, alpha/ and trimap/ of a test set."""
    (image_folders / "images").rename(image_folders / "image")
    for folder in ("alpha", "trimap"):
        (image_folders / folder).mkdir()
    for path in (image_folders / "trimaps").iterdir():
        grey = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        trimap = np.where((grey > 0) & (grey < 255), 128, grey).astype(np.uint8)
        cv2.imwrite(str(image_folders / "alpha" / f"{path.stem}.png"), grey)
        cv2.imwrite(str(image_folders / "trimap" / f"{path.stem}.png"), trimap)
    return image_folders


def by_network(test_folder, run_folder, name):
    weights = ["--config-file", run_folder / "config.yaml", "--weights", run_folder / "weights.pth", "--device", "cpu"]
    places = ["--pred-dir", test_folder / name, "--output", test_folder / f"{name}_result"]
    return [*weights, "--dataset", test_folder, "--workers", 1, *places]


def results(test_folder, name):
    """Alphas as files, and the summary but for where the alphas lie."""
    summary = json.loads((test_folder / f"{name}_result" / "summary.json").read_text())
    assert summary["predictions"].pop("dir") == str(test_folder / name)
    return contents(test_folder / name), summary


def test_a_network_over_shares_writes_and_measures_the_same(test_folder, run_folder):
    measure(test_folder, ALONE, *by_network(test_folder, run_folder, "alone"))
    in_two = in_ranks(lambda ranks: measure(test_folder, ranks, *by_network(test_folder, run_folder, "shared")), 2)
    assert in_two == [None, None]
    assert results(test_folder, "shared") == results(test_folder, "alone")
    again = in_ranks(lambda ranks: measure(test_folder, ranks, *by_network(test_folder, run_folder, "shared")), 2)
    assert all("rank 0 of 2: " in str(error) and "holds images already" in str(error) for error in again)


def test_a_network_that_one_process_cannot_load_ends_all(test_folder, run_folder, monkeypatch):
    load = Predictor.load

    def broken(source, weights, device, **settings):
        if device == "broken":
            raise UserError("device 'broken' cannot be used")
        return load(source, weights, device, **settings)

    monkeypatch.setattr(Predictor, "load", broken)
    devices = ["cpu", "broken"]
    monkeypatch.setattr("runtime.devices.device_of_rank", lambda name, local_rank, local_size: devices[local_rank])
    raised = in_ranks(lambda ranks: measure(test_folder, ranks, *by_network(test_folder, run_folder, "new")), 2)
    assert {str(error) for error in raised} == {"rank 1 of 2: device 'broken' cannot be used"}
    assert not (test_folder / "new").exists()


@pytest.mark.slow
def test_torchrun_measures_the_same(test_folder, run_folder):
    measure(test_folder, ALONE, *by_network(test_folder, run_folder, "alone"))
    status, output, lines = torchrun("tools/evaluate.py", *by_network(test_folder, run_folder, "shared"), processes=3)
    assert status == 0, lines
    assert output.count("Protocol dim") == 1 and lines == []
    assert results(test_folder, "shared") == results(test_folder, "alone")
