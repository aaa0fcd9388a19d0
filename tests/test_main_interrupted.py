"""main.py that is told to end, or cannot write: its status, what it says, and that a resume loses nothing."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import main
from engine import run as training
from engine.checkpoint.file import read_checkpoint
from engine.distributed.padded_eval import evaluate
from engine.hooks.metrics import WriteMetrics
from engine.interrupts import OutputError
from tests.helpers.main_command import at_iteration, refusal, same_weights, stopped
from tests.helpers.paths import DEMO, REPOSITORY
from tests.helpers.training import metrics, overrides

pytestmark = pytest.mark.usefixtures("no_log_handlers_left")


def send(name):
    os.kill(os.getpid(), signal.Signals[name])


@pytest.mark.parametrize(
    ("name", "status"),
    [("SIGTERM", 75), *(pytest.param(*case, marks=pytest.mark.slow) for case in (("SIGUSR1", 75), ("SIGINT", 130)))],
)
def test_a_signal_saves_and_a_resume_ends_as_if_there_had_been_none(
    trained,
    data,
    tmp_path,
    monkeypatch,
    capsys,
    name,
    status,
):
    changes = overrides(data, tmp_path, **{"train.checkpointer.period": 4, "train.eval_period": 3})
    with monkeypatch.context() as patch:
        at_iteration(patch, 1, lambda _: send(name))
        assert stopped(*changes) == status
    if status == 75:  # while the process ends, another one does not change that
        send(name)
    lines = capsys.readouterr().out.splitlines()
    assert f"Stopped: {name} asked for the end of the run" in lines[-2]
    assert lines[-1] == "--resume goes on from iteration 1"
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000000.pth"
    main.main(["--config-file", DEMO, "--resume", *changes])
    assert same_weights(tmp_path, trained)


def test_a_signal_ends_an_evaluation_which_a_resume_makes_up_for(
    trained,
    data,
    tmp_path,
    monkeypatch,
):
    def told_to_end(*args):
        send("SIGTERM")
        return evaluate(*args)

    changes = overrides(data, tmp_path, **{"train.checkpointer.period": 5, "train.eval_period": 3})
    with monkeypatch.context() as patch:
        patch.setattr("engine.hooks.evaluation.evaluate", told_to_end)
        assert stopped(*changes) == 75
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"
    assert not any("matting/SAD" in row for row in metrics(tmp_path).values())
    main.main(["--config-file", DEMO, "--resume", *changes])
    assert same_weights(tmp_path, trained)
    assert metrics(tmp_path)[2]["matting/SAD"] == metrics(trained)[2]["matting/SAD"]


def test_a_signal_keeps_its_status_if_the_last_metrics_cannot_be_written(data, tmp_path, monkeypatch, capsys):
    def send_and_fail(_):
        send("SIGTERM")
        monkeypatch.setattr("engine.hooks.metrics.WriteMetrics.write", fail)

    def fail(_):
        raise OutputError("cannot write metrics.json")

    at_iteration(monkeypatch, 1, send_and_fail)
    assert stopped(*overrides(data, tmp_path)) == 75
    assert "Stopped: SIGTERM" in capsys.readouterr().out
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000000.pth"


def test_a_signal_before_the_first_step_leaves_nothing_to_resume(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "build_data", lambda _: send("SIGTERM"))
    assert stopped(*overrides(data, tmp_path)) == 75
    assert "SIGTERM asked for the end" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "last_checkpoint").exists()


def test_resumes_tell_of_changes_and_of_a_damaged_checkpoint(trained, data, tmp_path, capsys):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    for name in ("model_final.pth", "model_0000005.pth"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-99])
    (tmp_path / "model_0000002.pth.unfinished").touch()
    changes = {"train.seed": 0, "train.checkpointer.max_to_keep": 2, "dataloader.train.num_workers": 1}
    main.main(["--config-file", DEMO, "--resume", *overrides(data, tmp_path, **changes)])
    output = capsys.readouterr().out
    start = output.index("The config is not that of")
    assert output[start:].splitlines()[1:5][:-1] == [
        "  dataloader.train.num_workers: 0 -> 1",
        "  train.checkpointer.max_to_keep: 5 -> 2",
        f"  train.output_dir: '{trained}' -> '{tmp_path}'",
    ]
    for name in ("model_final.pth", "model_0000005.pth"):
        assert f"Not resumed from the last checkpoint: {tmp_path / name} is no checkpoint" in output
    assert "Starting training from iteration 3" in output and not (tmp_path / "model_0000002.pth.unfinished").exists()
    assert same_weights(tmp_path, trained)


def test_no_resume_takes_what_an_earlier_training_left(trained, data, tmp_path, monkeypatch, capsys):
    for path in trained.glob("*"):
        if path.is_file():
            shutil.copy(path, tmp_path)
    changes = overrides(data, tmp_path, **{"train.seed": 7, "train.epochs": 1})

    class Kill(BaseException):
        pass

    def kill(_):
        raise Kill

    with monkeypatch.context() as patch, pytest.raises(Kill):
        at_iteration(patch, 1, kill)
        main.main(["--config-file", DEMO, *changes])
    assert not [*tmp_path.glob("last_checkpoint"), *tmp_path.glob("model_0*2.pth"), *tmp_path.glob("model_final.pth")]
    for name in ("model_0000002", "model_final"):
        assert (tmp_path / f"{name}_of_earlier_training_1.pth").read_bytes() == (trained / f"{name}.pth").read_bytes()
    capsys.readouterr()
    main.main(["--config-file", DEMO, "--resume", *changes])
    assert "Starting training from iteration 0" in capsys.readouterr().out
    assert read_checkpoint(tmp_path / "model_final.pth")["trainer"]["samples_seen"] == 6


def test_a_tracker_that_does_not_start_leaves_the_folder_as_it_was(trained, data, tmp_path, monkeypatch, capsys):
    def refuse(**_):
        raise ValueError("1 validation error for Settings\nmode")

    fake = SimpleNamespace(init=refuse, Settings=lambda **_: None, errors=SimpleNamespace(Error=KeyError))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    folder = shutil.copytree(trained, tmp_path / "trained")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "log.txt"}
    message = refusal(2, capsys, *overrides(data, folder, **{"train.wandb": "matting", "train.seed": 7}))
    assert "does not start (1 validation error for Settings mode)" in message and message.count("\n") == 1
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "log.txt"}
    assert after.keys() - before.keys() == {"wandb_id"} and before.items() <= after.items()


def test_a_folder_of_damaged_checkpoints_is_no_start_from_scratch(trained, data, tmp_path, capsys):
    (tmp_path / "model_0000002.pth").write_bytes((trained / "model_0000002.pth").read_bytes()[:-99])
    (tmp_path / "last_checkpoint").write_text("model_0000002.pth")
    message = refusal(1, capsys, "--resume", *overrides(data, tmp_path))
    assert f": no checkpoint in {tmp_path} is whole: " in message and "leave out --resume" in message


def test_a_disk_that_is_full_is_told_of_and_the_checkpoint_before_stays(
    trained,
    data,
    tmp_path,
    monkeypatch,
    capsys,
):
    """Under a limit of the size of files below that of a checkpoint, above that of the rest."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    changes = overrides(data, tmp_path, **{"train.checkpointer.period": 2})
    limit = (20_000, before[1])
    try:
        with monkeypatch.context() as patch:
            at_iteration(patch, 3, lambda _: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
            assert stopped(*changes) == OutputError.status
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    output, errors = capsys.readouterr()
    assert "Traceback" not in output + errors
    assert f"cannot write {tmp_path / 'model_0000003.pth'}: File too large" in output
    assert output.splitlines()[-1] == "--resume goes on from iteration 2"
    assert [path.name for path in tmp_path.glob("model_0*")] == ["model_0000001.pth"]
    main.main(["--config-file", DEMO, "--resume", *changes])
    assert same_weights(tmp_path, trained)


def test_logs_and_metrics_that_cannot_be_written_end_in_words(data, tmp_path, monkeypatch, capsys):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with monkeypatch.context() as patch:
            at_iteration(patch, 2, lambda _: resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1])))
            assert stopped(*overrides(data, tmp_path, **{"dataloader.test": "null"})) == OutputError.status
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    output, errors = capsys.readouterr()
    assert output.count(f"Nothing more is written to {tmp_path / 'log.txt'}: File too large") == 1
    assert "Traceback" not in output + errors
    assert "There is no checkpoint to resume from" in output.splitlines()[-1]
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()[:2]]
    assert [row["iteration"] for row in rows] == [0, 1]


def test_an_output_folder_that_is_a_file_is_one_line(data, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert stopped(*overrides(data, tmp_path / "file")) == OutputError.status
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and f"train.output_dir={tmp_path / 'file'} cannot be written" in message


KILLED = """
import os, signal, sys
import main
from engine.hooks.checkpoint import PeriodicCheckpointer

save = PeriodicCheckpointer.after_step

def save_and_die(hook):
    save(hook)
    if hook.trainer.iter == 2:
        os.kill(os.getpid(), signal.SIGKILL)

PeriodicCheckpointer.after_step = save_and_die
main.main(sys.argv[1:])
"""
"""A training that is killed after its checkpoint of iteration 2, before anything else of that step."""


@pytest.mark.slow
def test_a_kill_after_the_next_checkpoint_loses_no_evaluation(data, tmp_path):
    """No line of the log was due in between; a resume from the later checkpoint makes no earlier evaluation again.

    All run in processes of their own: after other tests, this one may round otherwise than a fresh one.
    """
    periods = {"train.eval_period": 2, "train.checkpointer.period": 1, "train.log_period": 4, "train.device": "cpu"}

    def run(program, folder, *more):
        command = [sys.executable, "-W", "ignore", *program, "--config-file", DEMO, *more]
        return subprocess.run([*command, *overrides(data, folder, **periods)], cwd=REPOSITORY).returncode

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    assert run(["-c", KILLED], killed) == -signal.SIGKILL
    assert (killed / "last_checkpoint").read_text() == "model_0000002.pth"
    assert run(["main.py"], killed, "--resume") == run(["main.py"], whole) == 0
    assert [i for i, row in sorted(metrics(killed).items()) if "matting/SAD" in row] == [1, 3, 6]
    assert same_weights(killed, whole)


@pytest.mark.slow
def test_metrics_of_an_evaluation_are_written_before_its_record(data, tmp_path, monkeypatch):
    """Else a kill between the two would lose them: a resume does not make a recorded evaluation again."""
    write = WriteMetrics.write
    seen = []

    def look(self):
        seen.append((self.trainer.iter, (tmp_path / "last_evaluation").exists()))
        write(self)
        seen.append((self.trainer.iter, any("matting/SAD" in row for row in metrics(tmp_path).values())))

    monkeypatch.setattr(WriteMetrics, "write", look)
    main.main(["--config-file", DEMO, *overrides(data, tmp_path, **{"train.max_iter": 3, "train.eval_period": 2})])
    assert seen[:4] == [(0, False), (0, False), (1, False), (1, True)] and (tmp_path / "last_evaluation").exists()
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"] == 2
