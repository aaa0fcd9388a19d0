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

from engine.interrupts import LostProcess, StopRequested, catch, set_back

GRACE_S = 60.0
"""Time for the remaining processes to write a checkpoint before SIGTERM, and again before SIGKILL."""

KILL_S = 5.0
"""Time in which a process ends by SIGKILL, unless a system call never returns."""

WATCH_S = 1.0

NO_FAULT = (None, 0, LostProcess.status, StopRequested.status, 128 + signal.SIGINT)
"""Exit statuses after which the other processes get time: it runs, is done, lost another, or was asked to end."""


def run_processes(work: Callable[..., None], arguments: tuple[Any, ...], number: int) -> None:
    """Run `work(i, *arguments)` in processes numbered from 0, and end as they end.

    Raises:
        SystemExit: with the status of a process that failed, or for a signal that ended them before they handled it.
        KeyboardInterrupt: as SystemExit, for Ctrl-C.
        LostProcess: a signal that did not come through this process ended one.
    """
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(i, *arguments)) for i in range(number)]
    received: list[int] = []

    def forward(signal_number: int, _: Any = None) -> None:
        received.append(signal_number)
        for process in processes:
            if process.is_alive():
                os.kill(process.pid or 0, signal_number)

    before = catch(forward)
    try:
        for process in processes:
            process.start()
        for signal_number in [*received]:  # before all processes had started
            forward(signal_number)
        statuses = _join(processes)
    finally:
        set_back(before, is_ending=bool(received))
    killed = [i for i, status in enumerate(statuses) if status < 0]
    if killed and signal.SIGINT in received:
        raise KeyboardInterrupt
    if killed and received:
        sys.exit(128 + received[0])
    if killed:
        raise LostProcess(
            f"process {killed[0]} of this machine was ended by {signal.Signals(-statuses[killed[0]]).name}. A SIGKILL "
            "that nobody sent comes of memory that ran out: lower dataloader.train.batch_size, num_workers or "
            "prefetch_factor"
        )
    # The cause of the end: other processes lost the one that failed.
    if status := max(statuses, key=lambda status: (status != 0) + (status not in (0, LostProcess.status))):
        sys.exit(status)


def _join(processes: list[SpawnProcess]) -> list[int]:
    """Wait for processes. If one fails, the others get some time to end by themselves before they are ended.

    They get none if process 0, which writes the checkpoints, failed for a reason of its own.

    Returns: exit status of each process, minus the signal that ended it; 0 for those that this function ended.
    """
    while not any(process.exitcode for process in processes):
        if not (alive := [process.sentinel for process in processes if process.is_alive()]):
            return [process.exitcode or 0 for process in processes]  # they may have ended since the last look
        wait(alive)
    grace_s = GRACE_S if processes[0].exitcode in NO_FAULT else 0.0
    _wait(processes, grace_s)
    statuses = [process.exitcode or 0 for process in processes]
    for process in processes:
        process.terminate()
    _wait(processes, GRACE_S)
    for process in processes:
        process.kill()
        process.join()
    return statuses


def _wait(processes: list[SpawnProcess], timeout_s: float) -> None:
    """Wait until all processes have ended, for a limited time."""
    deadline = time.monotonic() + timeout_s
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))


@contextmanager
def no_children_left() -> Iterator[None]:
    """Kill the processes that were started in the block at its end, such as a loader's workers.

    Python would wait for them at its exit, and a worker that reads from a file system without an answer never ends.
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
            if child.is_alive():  # Python's exit would wait for it
                multiprocessing.process._children.discard(child)  # type: ignore[attr-defined]


def end_with_parent() -> None:
    """From now on, end as by SIGTERM when the process that started this one is gone."""
    started_by, parent = multiprocessing.parent_process(), os.getppid()

    def watch() -> None:
        while os.getppid() == parent if started_by is None else started_by.is_alive():
            time.sleep(WATCH_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
