"""What the starting process does until the processes that it started have ended, and how it ends then."""

import math
import multiprocessing
import os
import signal
import time

import pytest

from engine.distributed import spawn as children
from engine.interrupts import SIGNALS, LostProcess


class Clock:
    now = 0.0


class Ending:
    """A process that ends at a time by itself with a status, or when it is told to; some only heed SIGKILL."""

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
        if self.is_alive() and self.heeds_sigterm:
            self.end, self.status = self.clock.now, -15

    def kill(self):
        if self.is_alive():
            self.end, self.status = self.clock.now, -9


@pytest.mark.parametrize(
    ("processes", "ended", "seconds"),
    [
        ([(5, 0), (9, 0)], [0, 0], 9),
        ([(2, 0), (99, 1), (100, 5)], [0, 1, 5], 100),  # one that is done is no reason to end the others
        ([(30, 5), (1, 5)], [5, 5], 30),  # those that lost one write a checkpoint
        ([(1, 1), (999, 0)], [1, 0], 1),  # the first writes none any more
        ([(1, 75), (9, 75)], [75, 75], 9),  # a signal reached all, and some take longer
        ([(1, 130), (9, 130)], [130, 130], 9),
        ([(999, 0), (1, -9)], [0, -9], 61),
        ([(999, 0, False), (1, 5)], [0, 5], 121),
    ],
)
def test_remaining_processes_have_time_to_end_by_themselves(processes, ended, seconds, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(children.time, "monotonic", lambda: clock.now)

    def wait(alive):
        clock.now = min(process.end for process in alive)

    monkeypatch.setattr(children, "wait", wait)
    assert children._join([Ending(clock, *process) for process in processes]) == ended
    assert clock.now == seconds


def test_processes_that_end_between_two_looks_keep_their_status():
    class Moving(Clock):
        now = property(lambda clock: next(clock.times))
        times = iter(range(99))

    clock = Moving()
    assert children._join([Ending(clock, 2, 75), Ending(clock, 2, 75)]) == [75, 75]


@pytest.mark.parametrize(
    ("ended", "received", "outcome"),
    [
        ([0, 0], [], None),
        ([5, 1, 5], [], SystemExit(1)),
        ([5, 5], [], SystemExit(5)),
        ([75, 75], [signal.SIGTERM], SystemExit(75)),
        ([0, 0], [signal.SIGTERM], None),
        ([5, -9], [], LostProcess("process 1 of this machine was ended by SIGKILL")),
        ([-15, -15], [signal.SIGTERM], SystemExit(143)),
        ([-2, -2], [signal.SIGINT], KeyboardInterrupt()),
    ],
)
def test_the_starting_process_ends_as_the_others_do(ended, received, outcome, monkeypatch):
    before = [signal.getsignal(number) for number in SIGNALS]
    monkeypatch.setattr(children.SpawnProcess, "start", lambda process: None)

    def join(_):
        for number in received:
            os.kill(os.getpid(), number)
        return ended

    monkeypatch.setattr(children, "_join", join)
    try:
        children.run_processes(print, (), len(ended))
    except (SystemExit, LostProcess, KeyboardInterrupt) as error:
        assert type(error) is type(outcome) and str(error).startswith(str(outcome))
    else:
        assert outcome is None
    if not received:
        assert [signal.getsignal(number) for number in SIGNALS] == before
    else:  # its status is settled: another signal changes nothing
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN


def wait_for_signal(rank, folder):
    """What each process does."""
    signal.signal(signal.SIGUSR1, lambda *_: ((folder / f"got{rank}").touch(), os._exit(75)))
    (folder / f"ready{rank}").touch()
    if rank == 0:
        while not (folder / "ready1").exists():
            time.sleep(0.05)
        os.kill(os.getppid(), signal.SIGUSR1)
    time.sleep(60)


def test_signals_reach_all_processes(tmp_path):
    with pytest.raises(SystemExit) as ended:
        children.run_processes(wait_for_signal, (tmp_path,), 2)
    assert ended.value.code == 75 and {"got0", "got1"} <= {path.name for path in tmp_path.iterdir()}


def test_signals_that_are_ignored_reach_nobody(monkeypatch):
    """Processes that are started inherit it."""
    monkeypatch.setattr(children.SpawnProcess, "start", lambda _: None)
    monkeypatch.setattr(children, "_join", lambda _: (os.kill(os.getpid(), signal.SIGHUP), [0, 0])[1])
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    children.run_processes(print, (), 2)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def ignore_sigterm():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(3600)


def test_no_child_is_left_to_wait_for(monkeypatch):
    """One that ignores SIGTERM is killed; those that no signal ends are waited for together, and then let be."""
    monkeypatch.setattr(children, "KILL_S", 1.0)
    context = multiprocessing.get_context("fork")
    before = context.Process(target=time.sleep, args=(3600,))
    before.start()
    stuck = [context.Process(target=time.sleep, args=(3600,)) for _ in range(3)]
    try:
        with pytest.raises(KeyError), children.no_children_left():
            for process in (deaf := context.Process(target=ignore_sigterm)), *stuck:
                process.start()
            for process in stuck:
                monkeypatch.setattr(process, "kill", lambda: None)
            start = time.monotonic()
            raise KeyError
        assert 1 <= time.monotonic() - start < 2
        assert deaf.exitcode == -signal.SIGKILL
        assert all(process.is_alive() for process in stuck) and multiprocessing.active_children() == [before]
    finally:
        for process in (before, *stuck):
            os.kill(process.pid, signal.SIGKILL)
            process.join()
