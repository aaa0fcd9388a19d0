"""Work on pictures shared out to processes that hold nothing but what the work itself imports."""

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

MAX_DEFAULT_WORKERS = 8  # each holds an image of a test set and what is made of it, some 200 MB at 1920 x 1280

Item = TypeVar("Item")
Result = TypeVar("Result")


def default_workers() -> int:
    """Count the cores that this process may use, up to a limit."""
    return min(num_cores(), MAX_DEFAULT_WORKERS)


def map_in_workers(work: Callable[[Item], Result], items: Iterable[Item], num_workers: int) -> Iterator[Result]:
    """Apply to each item, giving the results in order; OpenCV has one thread, for any number of workers.

    Args:
        work: picklable, such as a function of a module or a `functools.partial` of one.
        items: picklable.
        num_workers: processes, spawned; 1 works in this process.

    Raises:
        ChildProcessError: a worker was killed. What `work` raises comes through as it is.
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
        # Not by `pool.map`: where a worker is killed it cancels what is left while the pool's own thread settles the
        # same, and in Python 3.11 that thread then dies and leaves the other workers.
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
    """Start processes that never see Ctrl-C, not even while they import; in this process it waits until the end.

    Ctrl-C reaches all processes of a terminal, and the main one ends the pool. A process inherits what is blocked,
    but not what its parent handles. Windows has no such mask: there a worker ignores Ctrl-C once it has started.
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
    """Prepare a worker: one thread, since the other cores have work of their own, and an end with the main process."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Wait for the main process: killed, it cannot tell its workers, which would wait for work for ever."""
    parent = parent_process()
    assert parent is not None, "only workers wait"
    parent.join()
    os._exit(1)
