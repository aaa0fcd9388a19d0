"""engine.interrupts by real signals: where they raise, where they wait, and what two of them do."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from engine.batches import Batches, LoaderError
from engine.interrupts import (
    SAME_S,
    SIGNALS,
    LostProcess,
    OutputError,
    StopRequested,
    StopSignals,
    interruptible,
    uninterrupted,
)
from engine.run import save_on_stop
from engine.trainer import NonFiniteError, Trainer
from tests.helpers.toy_training import Toy, toy_training_with_checkpoints

NAMES = [number.name for number in SIGNALS]


def send(name):
    os.kill(os.getpid(), signal.Signals[name])


def test_each_end_has_a_status_of_its_own():
    kinds = [LoaderError(), NonFiniteError("", []), LostProcess(), OutputError()]
    requests = [StopRequested(name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGINT")]
    assert [request.name for request in requests] == NAMES
    assert [kind.status for kind in (*kinds, *requests)] == [3, 4, 5, 6, *[75] * 5, 130]
    assert [kind.is_shared for kind in (*kinds, *requests)] == [True, True, False, False, *[True] * 6]
    assert os.EX_TEMPFAIL == 75
    assert not any(isinstance(kind, Exception) for kind in (*kinds, *requests))


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_raises_at_once_or_waits_for_a_step(name):
    before = signal.getsignal(signal.Signals[name])
    with StopSignals(), pytest.raises(StopRequested, match=name) as stop:
        send(name)
        time.sleep(5)
    assert not stop.value.is_shared
    with StopSignals() as signals:
        with uninterrupted():
            for other in (name, *NAMES):  # the first counts; a SIGINT as soon as this is its echo
                send(other)
            assert signals.name == name
            with pytest.raises(StopRequested, match=name) as stop, interruptible():
                raise AssertionError("the block is not entered")
            assert not stop.value.is_shared
        with pytest.raises(StopRequested, match=name), uninterrupted():
            pass
    assert signal.getsignal(signal.Signals[name]) is before and StopSignals.current is None


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_that_is_ignored_at_the_start_stays_ignored(name):
    """By nohup, or by the shell of a background job."""
    signal.signal(signal.Signals[name], signal.SIG_IGN)
    with StopSignals() as signals, uninterrupted():
        send(name)
        assert signals.name == "" and signal.getsignal(signal.Signals[name]) is signal.SIG_IGN
    assert signal.getsignal(signal.Signals[name]) is signal.SIG_IGN


def test_a_thread_trains_without_handlers():
    """Python lets the main thread alone set them."""
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: StopSignals().__enter__().name).result() == ""
    assert StopSignals.current is None


def test_a_wait_inside_a_step_is_broken_off_once():
    with StopSignals(), uninterrupted(), pytest.raises(StopRequested), interruptible():
        try:
            send("SIGTERM")
            time.sleep(5)
        finally:
            send("SIGTERM")  # does not raise in the middle of cleaning up


def test_a_second_ctrl_c_ends_at_once(monkeypatch):
    with StopSignals(), uninterrupted():
        send("SIGINT")
        later = time.monotonic() + SAME_S + 0.1
        monkeypatch.setattr(time, "monotonic", lambda: later)
        for other in NAMES[:-1]:  # however often they come
            send(other)
        with pytest.raises(KeyboardInterrupt):
            send("SIGINT")


@pytest.mark.parametrize(("name", "status"), [(name, -signal.SIGTERM * (name == "SIGTERM")) for name in NAMES])
def test_forked_processes_heed_sigterm_alone(name, status):
    with StopSignals():
        child = os.fork()
        if child == 0:
            send(name)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == status


class Slow:
    """A loader whose second batch never comes."""

    num_workers = 0

    def __iter__(self):
        yield {"x": torch.ones(1)}
        send("SIGUSR1")
        time.sleep(30)


def test_a_wait_for_a_batch_is_broken_off():
    drawn = Batches(Slow(), 1)
    with StopSignals(), uninterrupted():
        drawn.draw()
        start = time.monotonic()
        with pytest.raises(StopRequested, match="SIGUSR1") as stop:
            drawn.draw()
    assert time.monotonic() - start < 10 and stop.value.is_shared


@pytest.mark.parametrize("moment", ["forward", "optimizer", "before the first step"])
def test_a_stop_waits_for_the_end_of_the_step_and_a_resume_goes_on_to_the_bit(tmp_path, monkeypatch, moment):
    whole = toy_training_with_checkpoints(tmp_path / "whole")[0]
    whole.train(0, 12)

    trainer, checkpointer, checkpoints = toy_training_with_checkpoints(tmp_path / "stopped")
    stop_at = 0 if moment == "before the first step" else 4
    with StopSignals(), uninterrupted(), monkeypatch.context() as patch:
        if moment == "before the first step":
            send("SIGTERM")
        owner, name = (Toy, "forward") if moment == "forward" else (torch.optim.AdamW, "step")
        original = getattr(owner, name)
        count = iter(range(100))
        patch.setattr(
            owner,
            name,
            lambda self, *args: ((send("SIGTERM") if next(count) == 3 else None), original(self, *args))[1],
        )
        with pytest.raises(StopRequested):
            trainer.train(0, 12)
        assert trainer.next_iteration == stop_at
        checkpoints.save()
    resumed, checkpointer, _ = toy_training_with_checkpoints(tmp_path / "stopped")
    last = checkpointer.find_last()
    assert last.endswith("model_0000003.pth") if stop_at else last == ""
    if last:
        checkpointer.load(last)
    resumed.train(resumed.next_iteration, 12)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


def test_a_stop_between_the_batches_of_a_step_sets_the_statistics_back(tmp_path, monkeypatch):
    trainer = toy_training_with_checkpoints(tmp_path)[0]
    accumulating = Trainer(trainer.model, trainer.data_loader, trainer.optimizer, accumulation=2)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    forward = Toy.forward
    monkeypatch.setattr(Toy, "forward", lambda self, batch: (send("SIGTERM"), forward(self, batch))[1])
    loader, collate = trainer.data_loader, trainer.data_loader.collate_fn
    loader.collate_fn = lambda samples: {**collate(samples), "faults": ["a.png"]}
    with StopSignals(), uninterrupted(), pytest.raises(StopRequested):
        accumulating.train(0, 3)
    assert accumulating.samples_seen == accumulating.faulty_samples == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())


def test_a_resume_with_other_batches_and_accumulation_goes_on_with_the_next_sample(tmp_path):
    asked = []
    for batch_size, accumulation, stop in ((2, 2, 3), (3, 1, 6), (2, 3, 4)):
        trainer, checkpointer, _ = toy_training_with_checkpoints(tmp_path, batch_size=batch_size)
        accumulating = Trainer(trainer.model, trainer.data_loader, trainer.optimizer, accumulation=accumulation)
        checkpointer.checkpointables["trainer"] = accumulating
        if last := checkpointer.find_last():
            checkpointer.load(last)
        accumulating.train(accumulating.next_iteration, stop)
        asked += trainer.data_loader.dataset.asked
        checkpointer.save(f"model_{stop:07d}")
        assert accumulating.samples_seen == stop * batch_size * accumulation
    assert asked == list(range(24))


def stopped_run(folder, stop, num_steps=1):
    """Stop a run after some steps, and return its checkpointer and exit status."""
    trainer, _, checkpoints = toy_training_with_checkpoints(folder)
    trainer.samples_seen = num_steps * trainer.samples_per_iteration
    with pytest.raises(SystemExit) as ended, save_on_stop(trainer, checkpoints, folder):
        raise stop
    return checkpoints, ended.value.code


@pytest.mark.parametrize("is_shared", [True, False])
def test_no_process_exits_before_the_checkpoint_is_written(tmp_path, monkeypatch, is_shared):
    """A launcher ends the others with the first to end. If one is lost, the others are not waited for."""
    waits = []
    monkeypatch.setattr("engine.run.comm.synchronize", lambda: waits.append([*tmp_path.glob("model_0000000.pth")]))
    checkpoints, status = stopped_run(tmp_path, StopRequested("SIGTERM", is_shared))
    assert status == 75 and checkpoints.saved_iterations == 1
    assert len(waits) == is_shared and all(waits)


def test_a_process_that_writes_nothing_reports_no_checkpoint(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("engine.run.comm.is_main_process", lambda: False)
    checkpoints, status = stopped_run(tmp_path, LostProcess("gone"), num_steps=5)
    assert status == 5 and checkpoints.saved_iterations == 0
    assert "gone\nThere is no checkpoint to resume from" in caplog.text


@pytest.mark.parametrize("is_shared", [True, False])
def test_of_a_sharded_network_nothing_is_saved_if_a_process_is_lost(tmp_path, monkeypatch, is_shared):
    """All have to save it: the remaining ones would wait for the one that is gone."""
    monkeypatch.setattr("engine.run.is_sharded", lambda _: True)
    checkpoints, _ = stopped_run(tmp_path, StopRequested("SIGTERM", is_shared))
    assert checkpoints.saved_iterations == int(is_shared)
