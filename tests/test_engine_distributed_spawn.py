"""What the starting process does until the others end; its own end is in test_engine_distributed_launch.py."""

import math
import multiprocessing
import os
import signal
import time

import pytest

from engine.distributed import spawn as children
from engine.interrupts import SIGNALS


def test_signals_reach_processes_that_were_not_there_yet_and_none_come_after(monkeypatch):
    started, sent = [], []

    def start(process):
        started.append(process)
        if len(started) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(children.SpawnProcess, "start", start)
    monkeypatch.setattr(children, "_send", lambda _, number: sent.append((len(started), number)))
    monkeypatch.setattr(children, "_join", lambda _: (os.kill(os.getpid(), signal.SIGUSR1), [75, 75])[1])
    interrupt = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit, match="75"):
        children.run_processes(print, (), 2)
    assert sent == [(1, signal.SIGTERM), (2, signal.SIGTERM), (2, signal.SIGUSR1)]
    # Its status is settled: what comes while it ends changes nothing.
    handlers = [signal.getsignal(number) for number in SIGNALS]
    assert handlers == [*[signal.SIG_IGN] * (len(SIGNALS) - 1), interrupt]


def test_without_signals_handlers_are_what_they_were(monkeypatch):
    monkeypatch.setattr(children.SpawnProcess, "start", lambda _: None)
    monkeypatch.setattr(children, "_join", lambda _: [1, 0])
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(SystemExit, match="1"):
        children.run_processes(print, (), 2)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_signals_that_are_ignored_reach_nobody(monkeypatch):
    """Processes that are started inherit it."""
    monkeypatch.setattr(children.SpawnProcess, "start", lambda _: None)
    monkeypatch.setattr(children, "_send", lambda _, number: pytest.fail(f"{number} was sent"))
    monkeypatch.setattr(children, "_join", lambda _: (os.kill(os.getpid(), signal.SIGHUP), [0, 0])[1])
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    children.run_processes(print, (), 2)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


class Clock:
    now = 0.0


class Ending:
    """A process that ends at a time by itself with a status, or when it is told; some heed only SIGKILL."""

    def __init__(self, clock, end, status, heeds_sigterm=True):
        self.clock, self.end, self.status, self.heeds_sigterm = clock, end, status, heeds_sigterm
        self.sentinel = self

    @property
    def exitcode(self):
        return self.status if self.clock.now >= self.end else None

    def is_alive(self):
        return self.exitcode is None

    def join(self, timeout=math.inf):
        self.clock.now = max(self.clock.now, min(self.clock.now + timeout, self.end))

    def terminate(self):
        if self.heeds_sigterm:
            self.end, self.status = self.clock.now, -15

    def kill(self):
        self.end, self.status = self.clock.now, -9


@pytest.mark.parametrize(
    ("processes", "ended", "seconds"),
    [
        ([(5, 0), (9, 0)], [0, 0], 9),
        ([(2, 0), (99, 1), (100, 5)], [0, 1, 5], 100),  # one that is done is no reason to end the others
        ([(30, 5), (1, 5)], [5, 5], 30),  # those that lost one write a checkpoint
        ([(1, 1), (999, 0)], [1, 0], 1),  # the first writes none any more
        ([(999, 0), (1, -9)], [0, -9], 61),
        ([(999, 0, False), (1, 5)], [0, 5], 121),
    ],
)
def test_those_that_are_left_have_time_to_end_by_themselves(processes, ended, seconds, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(children, "SpawnProcess", Ending)
    monkeypatch.setattr(children.time, "monotonic", lambda: clock.now)

    def wait(alive):
        clock.now = min(process.end for process in alive)

    monkeypatch.setattr(children, "wait", wait)
    assert children.GRACE_S == 60
    assert children._join([Ending(clock, *process) for process in processes]) == ended
    assert clock.now == seconds


def test_no_child_is_left_to_wait_for(monkeypatch):
    """One that ignores SIGTERM is killed; one that no signal ends is let be."""
    monkeypatch.setattr(children, "KILL_S", 0.5)
    context = multiprocessing.get_context("fork")
    before = context.Process(target=time.sleep, args=(3600,))
    before.start()
    stuck = context.Process(target=time.sleep, args=(3600,))
    with pytest.raises(KeyError), children.no_children_left():
        for process in (deaf := context.Process(target=ignore_sigterm)), stuck:
            process.start()
        monkeypatch.setattr(stuck, "kill", lambda: None)
        raise KeyError
    try:
        assert deaf.exitcode == -signal.SIGKILL
        assert stuck.is_alive() and multiprocessing.active_children() == [before]
    finally:
        for process in (before, stuck):
            os.kill(process.pid, signal.SIGKILL)
            process.join()


def ignore_sigterm():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(3600)
