"""engine.batches on loaders that fail: what is counted, logged and borne, and when all processes stop together."""

import os
import signal
import threading
import time
from itertools import count, islice
from multiprocessing import get_context

import pytest
import torch
from torch import distributed
from torch.utils.data import DataLoader, IterableDataset

from engine import batches as loading
from engine.batches import Batches, LoaderError
from engine.interrupts import StopRequested, StopSignals, uninterrupted
from tests.helpers.toy_training import toy_training


class Scripted(IterableDataset):
    """Batches of one number, with the faults that a script names for some."""

    def __init__(self, script):
        self.script = script

    def __iter__(self):
        for i in count():
            faults = self.script.get(i)
            yield {"x": torch.tensor([i]), **({"faults": faults} if faults else {})}


def batches(script, size=1):
    return Batches(DataLoader(Scripted(script), batch_size=None), size)


def test_faults_are_taken_off_the_batch_counted_and_each_logged_once(caplog):
    drawn = batches({1: ["a"], 2: ["a", "b"], 4: ["b"]})
    counts = []
    for i in range(6):
        batch, waited_s = drawn.draw()
        assert batch == {"x": torch.tensor([i])} and waited_s > 0
        counts.append(drawn.num_faults)
    assert counts == [0, 1, 3, 3, 4, 4]
    assert [record.getMessage().rpartition(" ")[2] for record in caplog.records] == ["a", "b"]


@pytest.mark.parametrize(
    ("first", "period", "stops_at"),
    [
        (0, 1, 10),  # the 11th fault is more than 1 % of 1000
        (0, 99, 990),  # the 11th of 991
        (99, 100, None),  # 1 % to the sample
        (1500, 1, 1515),  # the 16th, where 15.16 are 1 %
    ],
)
def test_more_than_one_percent_stops_with_the_list(first, period, stops_at):
    script = {i: [f"{i}.png"] for i in range(first, 4000, period)}
    drawn = batches(script)
    done = 0
    try:
        for _ in range(4000):
            drawn.draw()
            done += 1
    except LoaderError as error:
        expected = [f"{i}.png" for i in script if i <= done]
        assert str(error).splitlines()[1:] == [f"  {name}" for name in expected]
        assert f"{len(expected)} samples could not be read for the {done + 1} drawn" in str(error)
        assert drawn.num_faults == len(expected)
    assert done == (4000 if stops_at is None else stops_at)


class Unmakeable(IterableDataset):
    """No sample at all."""

    def __iter__(self):
        yield {"faults": ["a.png is gone", "b.png is gone"]}


def test_a_batch_of_faults_alone_stops_at_once():
    drawn = Batches(DataLoader(Unmakeable(), batch_size=None), 1)
    with pytest.raises(LoaderError, match="in its place\\?\n  a.png is gone\n  b.png is gone$"):
        drawn.draw()
    assert drawn.num_faults == 2


class Ended:
    """A loader whose workers a signal to all processes of the job ended as well."""

    def __iter__(self):
        return self

    def __next__(self):
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")


def test_a_signal_is_told_of_before_the_workers_that_it_ended():
    with pytest.raises(LoaderError, match="lost a worker"):
        Batches(Ended(), 1).draw()
    with StopSignals(), uninterrupted(), pytest.raises(StopRequested, match="SIGTERM"):
        os.kill(os.getpid(), signal.SIGTERM)
        Batches(Ended(), 1).draw()


def test_faults_count_with_the_last_batch_of_their_step_or_with_the_error_that_ends_it():
    drawn = batches({0: ["a"], 2: ["b"], 3: ["c", "d"], 4: ["e"]})
    counts = []
    for i in range(4):
        drawn.draw(is_last=i % 2 == 1)
        counts.append(drawn.num_faults)
    assert counts == [0, 1, 1, 4]
    drawn.draw(is_last=False)
    with StopSignals(), uninterrupted(), pytest.raises(StopRequested):
        os.kill(os.getpid(), signal.SIGTERM)
        drawn.draw()
    assert drawn.num_faults == 4  # a resume draws that step's batches again, and counts their faults
    failing = batches({0: ["a"]})
    failing._loader = [*islice(failing._loader, 1), {"faults": ["b"]}]
    failing.draw(is_last=False)
    with pytest.raises(LoaderError):
        failing.draw(is_last=False)
    assert failing.num_faults == 2


class Dying(IterableDataset):
    """Batches of which the worker that makes the fifth is killed."""

    def __iter__(self):
        for i in count():
            if i == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            yield {"x": torch.tensor([i])}


def test_a_worker_that_dies_is_told_of_by_the_next_draw_and_nowhere_else():
    drawn = Batches(DataLoader(Dying(), batch_size=None, num_workers=1, prefetch_factor=4), 1)
    drawn.draw()
    # Wait for the death without taking note of it: torch's own handler would raise in here.
    os.waitid(os.P_PID, drawn._iterator._workers[0].pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(LoaderError, match="lost a worker of its loader .*num_workers or prefetch_factor"):
        for _ in range(5):
            drawn.draw()


class Slow(IterableDataset):
    """Batches of which the second takes some seconds, as from a network file system."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __iter__(self):
        for i in count():
            time.sleep(self.seconds * (i == 1))
            yield {"x": torch.tensor([i])}


def test_a_worker_that_is_stuck_is_named_after_the_time_limit(monkeypatch):
    monkeypatch.setattr(loading, "POLL_S", 0.5)
    drawn = Batches(DataLoader(Slow(3600), batch_size=None, num_workers=1, prefetch_factor=1), 1, timeout_s=1)
    drawn.draw()
    start = time.monotonic()
    with pytest.raises(LoaderError, match=r"worker 0 \(process id .*no batch for 1 s .*loader_timeo"):
        drawn.draw()
    assert 1 <= time.monotonic() - start < 10
    drawn._iterator._workers[0].kill()


def test_a_worker_that_is_stuck_after_it_queued_a_batch_meets_the_limit_as_well(monkeypatch):
    monkeypatch.setattr(loading, "POLL_S", 0.5)
    drawn = Batches(DataLoader(Slow(0), batch_size=None, num_workers=1, prefetch_factor=2), 1, timeout_s=1)
    drawn.draw()
    worker = drawn._iterator._workers[0]
    time.sleep(1)  # for the next batches to be queued
    os.kill(worker.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, worker.pid, os.WSTOPPED | os.WNOWAIT)  # until then its other threads still serve memory
    reviver = threading.Timer(10, worker.kill)  # so that a wait without limit fails here rather than hangs
    reviver.start()
    start = time.monotonic()
    with pytest.raises(LoaderError, match=r"worker 0 \(process id .*no batch for 1 s .*loader_timeo"):
        drawn.draw()
    assert 1 <= time.monotonic() - start < 10
    reviver.cancel()


def test_a_worker_that_goes_on_within_the_limit_gives_its_batches(monkeypatch):
    monkeypatch.setattr(loading, "POLL_S", 0.2)
    drawn = Batches(DataLoader(Slow(1), batch_size=None, num_workers=1, prefetch_factor=1), 1, timeout_s=60)
    assert [drawn.draw()[0]["x"].item() for _ in range(5)] == [*range(5)]


class Buggy(IterableDataset):
    """An error of the code, not of the data."""

    def __iter__(self):
        raise RuntimeError("shapes do not fit")
        yield


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_of_the_code_comes_through(num_workers):
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        Batches(DataLoader(Buggy(), batch_size=None, num_workers=num_workers), 1).draw()


def stop_in_one_process(rank, folder):
    """What each of two processes does: draw until the second one has a batch that cannot be made."""
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    drawn = batches({2: [f"of {rank}"], 5: ["of both"]}, size=2)
    if rank == 1:
        drawn._loader = [*islice(drawn._loader, 7), {"faults": ["c.png"]}]
    done = 0
    try:
        for _ in range(20):
            drawn.draw()
            done += 1
    except LoaderError as error:
        torch.save({"done": done, "error": str(error), "faults": drawn.num_faults}, folder / f"rank{rank}.pth")


def test_processes_count_and_stop_together(tmp_path):
    ranks = [get_context("fork").Process(target=stop_in_one_process, args=(rank, tmp_path)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    first, second = (torch.load(tmp_path / f"rank{rank}.pth", weights_only=True) for rank in (0, 1))
    assert first == second
    assert (first["done"], first["faults"]) == (7, 5) and first["error"].endswith("\n  c.png")


def test_the_count_goes_into_the_metrics_and_through_a_checkpoint(tmp_path):
    def training(folder):
        trainer, checkpointer, losses = toy_training(folder)
        loader, collate = trainer.data_loader, trainer.data_loader.collate_fn
        loader.collate_fn = lambda samples: {**collate(samples), "faults": ["a.png"]}
        return trainer, checkpointer

    trainer, checkpointer = training(tmp_path)
    trainer.train(0, 8)
    assert trainer.storage.latest()["faulty_samples"] == (8, 7)
    resumed, checkpointer = training(tmp_path)
    checkpointer.load(str(tmp_path / "model_0000005.pth"))
    resumed.train(resumed.next_iteration, 9)
    assert resumed.storage.latest()["faulty_samples"] == (9, 8)
    earlier = {name: value for name, value in resumed.state_dict().items() if name != "faulty_samples"}
    resumed.load_state_dict(earlier)
    assert resumed.state_dict()["faulty_samples"] == 0
