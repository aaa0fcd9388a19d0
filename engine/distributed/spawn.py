"""Processes that this one starts: signals reach them, and it ends as they end."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from typing import Any

from engine.interrupts import LostProcess, catch, set_back

GRACE_S = 60.0
"""Time for those that are left to write a checkpoint before they are told to end, and again before they must."""

WATCH_S = 1.0

KILL_S = 5.0
"""Within which a process ends by SIGKILL, unless it is in a system call that no signal ends."""


def run_processes(work: Callable[..., None], arguments: tuple[Any, ...], number: int) -> None:
    """Run `work(i, *arguments)` in processes numbered from 0, and end as they end.

    Raises:
        SystemExit: with the status of one that failed, or for a signal that ended them before they could say anything.
        KeyboardInterrupt: where that was Ctrl-C.
        LostProcess: where a signal ended one that did not come by way of this process.
    """
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(i, *arguments)) for i in range(number)]
    with _forwarded_signals(processes) as received:
        for process in processes:
            process.start()
        for signal_number in [*received]:  # before all were there to be told
            _send(processes, signal_number)
        ended = _join(processes)
    killed = [i for i, status in enumerate(ended) if status < 0]
    if killed and signal.SIGINT in received:
        raise KeyboardInterrupt
    if killed and received:
        sys.exit(128 + received[0])
    if killed:
        name = signal.Signals(-ended[killed[0]]).name
        raise LostProcess(
            f"process {killed[0]} of this machine was ended by {name}. A SIGKILL that nobody sent comes of memory that "
            "ran out: lower dataloader.train.batch_size, num_workers or prefetch_factor"
        )
    # The cause: who has lost another process ends for that one's sake.
    if status := max(ended, key=lambda status: (status != 0) + (status not in (0, LostProcess.status))):
        sys.exit(status)


def _send(processes: list[SpawnProcess], number: signal.Signals) -> None:
    """Send a signal to those that are running; by Ctrl-C they get it twice."""
    for process in processes:
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, number)


@contextmanager
def _forwarded_signals(processes: list[SpawnProcess]) -> Iterator[list[signal.Signals]]:
    """Pass signals on to processes; gives a list that grows by those that came.

    After one the processes end, and this one with them.
    """
    received: list[signal.Signals] = []

    def forward(number: int, _: Any) -> None:
        received.append(signal.Signals(number))
        _send(processes, received[-1])

    before = catch(forward)
    try:
        yield received
    finally:
        set_back(before, is_ending=bool(received))


def _join(processes: list[SpawnProcess]) -> list[int]:
    """Wait for processes; after one failed, the others have some time to end by themselves before they are ended.

    They have none where the first one, who writes the checkpoints, failed for a reason of its own.

    Returns: exit status of each, minus the number of a signal that ended it; 0 of those that this function ended.
    """
    while not any(process.exitcode for process in processes):
        if not (alive := [process.sentinel for process in processes if process.is_alive()]):
            return [0] * len(processes)
        wait(alive)
    ended: list[int] = []
    grace_s = GRACE_S if processes[0].exitcode in (None, 0, LostProcess.status) else 0.0
    for end in (SpawnProcess.terminate, SpawnProcess.kill):
        deadline = time.monotonic() + grace_s
        grace_s = GRACE_S
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        ended = ended or [process.exitcode or 0 for process in processes]
        for process in processes:
            if process.is_alive():
                end(process)
    for process in processes:
        process.join()
    return ended


@contextmanager
def no_children_left() -> Iterator[None]:
    """Kill the processes that were started in the block, a loader's workers for instance, at its end; a decorator too.

    Python would wait for them at its exit, and one that reads from a file system that does not answer never ends.
    """
    before = set(multiprocessing.active_children())
    try:
        yield
    finally:
        left = set(multiprocessing.active_children()) - before
        for child in left:
            child.kill()
        deadline = time.monotonic() + KILL_S
        for child in left:
            child.join(max(0.0, deadline - time.monotonic()))
            if child.is_alive():  # Python knows no other way to let it be
                multiprocessing.process._children.discard(child)  # type: ignore[attr-defined]


def end_with_parent() -> None:
    """From now on, end as by SIGTERM when the process is gone that started this one."""
    started_by = multiprocessing.parent_process()
    parent = os.getppid() if started_by is None else started_by.pid  # which may be gone by now

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
