"""main.py on data that break while it trains: what is replaced, what stops, and that a resume loses nothing."""

import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from itertools import islice

import pytest
import torch
from detectron2.config import instantiate
from torch.utils.data import get_worker_info

import main
from data.datasets.composition import CompositionDataset, MattingFolder
from data.image_io.images import DataError
from data.loader.bad_samples import MAX_IN_A_ROW
from engine.config.config import apply_overrides, load_config
from engine.hooks import loader_speed as pace
from tests.helpers.main_command import at_iteration, same_weights, stopped
from tests.helpers.paths import DEMO
from tests.helpers.training import metrics, overrides

pytestmark = pytest.mark.usefixtures("no_log_handlers_left")


@pytest.fixture
def own_data(data, tmp_path):
    """A copy of the data that a test may break."""
    return shutil.copytree(data, tmp_path / "data")


def loader_of(changes):
    cfg = load_config(DEMO)
    apply_overrides(cfg, changes)
    return instantiate(cfg.dataloader.train)


def count_faults(loader, number):
    """How many of the first samples of the stream cannot be read, each tried by itself; the first can."""
    count = 0
    for position, key in enumerate(islice(loader.sampler, number)):
        try:
            loader.dataset[key]
        except DataError:
            assert position > 0
            count += 1
    return count


def break_one(folder, changes, number):
    """Cut off a foreground that the first sample does not need."""
    for path in sorted((folder / "rgba").iterdir()):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        try:
            if count := count_faults(loader_of(changes), number):
                return path, count
        except AssertionError:
            pass
        path.write_bytes(content)
    raise AssertionError("every foreground is in the first sample")


@pytest.mark.slow
def test_a_broken_image_is_replaced_named_once_and_counted_for_any_number_of_workers(own_data, tmp_path):
    changes = {"dataloader.test": "null"}
    path, count = break_one(own_data, overrides(own_data, tmp_path, **changes), 12)
    for num_workers in (0, 2):
        output = tmp_path / f"{num_workers}"
        arguments = overrides(own_data, output, **changes, **{"dataloader.train.num_workers": num_workers})
        main.main(["--config-file", DEMO, *arguments])
        log = (output / "log.txt").read_text()  # which later runs of the process go on with
        assert log.count(f"cannot read {path}") == 1
        assert metrics(output)[5]["faulty_samples"] >= count  # replacements may be faulty as well
    assert metrics(tmp_path / "0")[5]["faulty_samples"] == metrics(tmp_path / "2")[5]["faulty_samples"]
    assert same_weights(tmp_path / "0", tmp_path / "2")


def test_raise_stops_at_the_broken_image(own_data, tmp_path, capsys):
    changes = {"dataloader.test": "null", "dataloader.train.on_fault": "raise"}
    path, _ = break_one(own_data, overrides(own_data, tmp_path, **changes), 12)
    assert stopped(*overrides(own_data, tmp_path / "out", **changes)) == 3
    output = capsys.readouterr().out
    assert f"\n  cannot read {path}" in output and "Traceback" not in output


def kill_worker(trainer):
    os.kill(trainer._batches._iterator._workers[0].pid, signal.SIGKILL)


@pytest.mark.parametrize("what", ["vanished data", "dead worker"])
def test_a_stop_leaves_a_checkpoint_from_which_a_resume_loses_nothing(
    trained,
    own_data,
    tmp_path,
    monkeypatch,
    capsys,
    what,
):
    away = tmp_path / "away"
    action = (lambda _: (own_data / "rgba").rename(away)) if what == "vanished data" else kill_worker
    num_workers = {"dataloader.train.num_workers": int(what == "dead worker")}
    changes = overrides(own_data, tmp_path / "out", **num_workers, **{"train.epochs_per_checkpoint": 2})
    with monkeypatch.context() as patch:
        at_iteration(patch, 4, action)
        assert stopped(*changes) == 3
    output = capsys.readouterr().out
    words = f"'{own_data}/rgba/1.png'" if what == "vanished data" else "lost a worker of its loader"
    assert words in output and "Traceback" not in output
    assert "--resume goes on from iteration" in output.splitlines()[-1]
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.json").read_text().splitlines()]
    last = int((tmp_path / "out" / "last_checkpoint").read_text()[len("model_") :][:7])
    num_faults = MAX_IN_A_ROW if what == "vanished data" else 0
    assert rows[-1] == {"faulty_samples": num_faults, "iteration": last + 1}
    assert [row["iteration"] for row in rows if "total_loss" in row] == list(range(last + 1))
    if away.exists():
        away.rename(own_data / "rgba")
    main.main(["--config-file", DEMO, "--resume", *changes])
    assert same_weights(tmp_path / "out", trained)
    assert metrics(tmp_path / "out")[5]["faulty_samples"] == num_faults


@pytest.mark.slow
@pytest.mark.parametrize("what", ["a limit", "a signal"])
def test_a_worker_that_stands_still_does_not_hold_up_the_end(data, tmp_path, monkeypatch, capsys, what):
    """Neither after the time limit, nor after a signal of somebody who does not wait for it."""

    read = CompositionDataset.__getitem__
    monkeypatch.setattr(
        CompositionDataset,
        "__getitem__",
        lambda *key: (get_worker_info() and (tmp_path / "stuck").exists() and time.sleep(3600), read(*key))[1],
    )

    def get_stuck(_):
        (tmp_path / "stuck").touch()
        if what == "a signal":
            threading.Timer(3.0, os.kill, (os.getpid(), signal.SIGTERM)).start()

    at_iteration(monkeypatch, 2, get_stuck)
    limit = {"train.loader_timeout_s": 2 if what == "a limit" else 600}
    more = {"dataloader.test": "null", "dataloader.train.num_workers": 1, "dataloader.train.prefetch_factor": 1}
    assert stopped(*overrides(data, tmp_path, **more, **limit)) == (3 if what == "a limit" else 75)
    assert not multiprocessing.active_children()  # for which Python would wait
    output = capsys.readouterr().out
    assert "--resume goes on from iteration" in output and "Traceback" not in output
    if what == "a limit":
        assert "worker 0 (process id " in output and "train.loader_timeout_s" in output and "dataloader.train" in output


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ["--eval-only"]], ids=["train", "eval-only"])
def test_a_worker_of_the_test_set_that_stands_still_is_named(
    trained,
    data,
    tmp_path,
    monkeypatch,
    capsys,
    arguments,
):
    read = MattingFolder.__getitem__
    monkeypatch.setattr(
        MattingFolder, "__getitem__", lambda *key: (get_worker_info() and time.sleep(3600), read(*key))[1]
    )
    changes = {"train.loader_timeout_s": 2, "dataloader.test.num_workers": 1, "train.eval_period": 1}
    weights = {"train.init_checkpoint": trained / "model_final.pth"} if arguments else {}
    assert stopped(*arguments, *overrides(data, tmp_path, **changes, **weights)) == 3
    assert not multiprocessing.active_children()
    message = "".join(capsys.readouterr())
    assert "train.loader_timeout_s" in message and "the files of dataloader.test can" in message


def test_data_gone_before_the_first_step_leave_no_checkpoint(own_data, tmp_path, monkeypatch, capsys):
    at_iteration(monkeypatch, 0, lambda _: shutil.rmtree(own_data / "backgrounds"))
    assert stopped(*overrides(own_data, tmp_path / "out", **{"dataloader.test": "null"})) == 3
    assert "No step was done yet" in capsys.readouterr().out.splitlines()[-1]
    assert not (tmp_path / "out" / "last_checkpoint").exists()
    assert metrics(tmp_path / "out") == {0: {"faulty_samples": MAX_IN_A_ROW, "iteration": 0}}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_test_set_that_changes_stops_at_its_evaluation_and_a_resume_makes_up_for_it(
    trained,
    own_data,
    tmp_path,
    monkeypatch,
    capsys,
    num_workers,
):
    image = own_data / "image" / "1.png"
    content = image.read_bytes()
    settings = {"dataloader.test.num_workers": num_workers, "train.checkpointer.period": 5, "train.eval_period": 3}
    changes = overrides(own_data, tmp_path / "out", **settings)
    with monkeypatch.context() as patch:
        at_iteration(patch, 2, lambda _: image.write_bytes(content[:-100]))
        assert stopped(*changes) == 3
    lines = capsys.readouterr().out.splitlines()
    assert "Stopped: the evaluation failed: " in lines[-2] and f"cannot read {image}" in lines[-2]
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_0000002.pth"
    image.write_bytes(content)
    main.main(["--config-file", DEMO, "--resume", *changes])
    assert set(metrics(tmp_path / "out")) >= {3, 4, 5, 6}
    assert same_weights(tmp_path / "out", trained)
    best = [torch.load(folder / "model_best.pth", weights_only=True)["value"] for folder in (tmp_path / "out", trained)]
    assert best[0] == best[1]


def test_a_loader_that_sets_the_pace_is_warned_of(data, tmp_path, monkeypatch):
    for name, value in {"STEPS_JUDGED": 2, "WARM_UP_STEPS": 1, "MAX_WAITING_SHARE": 0.0}.items():
        monkeypatch.setattr(pace, name, value)
    main.main(["--config-file", DEMO, *overrides(data, tmp_path, **{"dataloader.test": "null"})])
    assert (tmp_path / "log.txt").read_text().count("The loader sets the pace: ") == 1
