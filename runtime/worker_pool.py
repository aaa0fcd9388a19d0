"""Divide work among processes, which import only what the work itself imports."""

import contextlib
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import TypeVar

import cv2

from runtime.threads import num_cores

MAX_DEFAULT_WORKERS = 8  # each holds an image of a test set and its intermediate arrays, about 200 MB at 1920 x 1280

Item = TypeVar("Item")
Result = TypeVar("Result")


def default_workers() -> int:
    """Return the number of cores that this process may use, at most `MAX_DEFAULT_WORKERS`."""
    return min(num_cores(), MAX_DEFAULT_WORKERS)


def map_in_workers(work: Callable[[Item], Result], items: Iterable[Item], num_workers: int) -> Iterator[Result]:
    """Apply a function to each item and yield the results in order; OpenCV uses one thread in each process.

    Args:
        work: picklable, such as a function of a module or a `functools.partial` of one.
        items: picklable.
        num_workers: number of spawned processes; 1 works in this process.

    Raises:
        ChildProcessError: a worker was killed. Exceptions of `work` are raised unchanged.
    """
    if num_workers <= 1:
        num_threads = cv2.getNumThreads()
        cv2.setNumThreads(1)
        try:
            yield from map(work, items)
        finally:
            cv2.setNumThreads(num_threads)
        return
    pool = ProcessPoolExecutor(num_workers, get_context("spawn"), _start_worker)
    try:
        # Not `pool.map`: if a worker is killed, it cancels the other items while the pool's thread fails them. In
        # Python 3.11 that thread then dies and leaves the other workers running.
        with _blocked_interrupts():
            results = deque(pool.submit(work, item) for item in items)
        while results:
            yield results.popleft().result()
    except BrokenProcessPool as error:
        raise ChildProcessError(
            f"one of {num_workers} worker processes was killed: if the memory ran out, use fewer; "
            'if this is a script of your own, put what it runs under `if __name__ == "__main__":`'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _blocked_interrupts() -> Iterator[None]:
    """Block Ctrl-C in processes that start here, even while they import; this process handles it at the end.

    Ctrl-C reaches all processes of a terminal, and the main process ends the pool. A process inherits blocked signals,
    but not its parent's handlers. Windows has no signal mask. There a worker ignores Ctrl-C once it has started.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    """Prepare a worker: one thread, since the other cores have their own workers, and an end with the main process."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """End with the main process. If it is killed, it cannot end its workers, which would wait for work for ever."""
    parent = parent_process()
    assert parent is not None, "only workers wait"
    parent.join()
    os._exit(1)
