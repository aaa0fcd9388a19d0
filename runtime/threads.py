"""How many threads a process may use, whether it may use any, and memory that they have freed."""

import ctypes
import os
import sys

from runtime.errors import UserError


def num_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_threads() -> int:
    """Count the threads that a library other than torch should use: as many as torch.

    Where torch is not loaded, they are what torch would take: `OMP_NUM_THREADS`, or else one for each core.
    """
    if "torch" in sys.modules:
        return sys.modules["torch"].get_num_threads()
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(given) if given.isdecimal() and int(given) else num_cores()


_threads_started_in: int | None = None
"""Id of the process where `check_not_forked` was first called; a forked child has its parent's."""


def check_not_forked(num_threads: int) -> None:
    """Refuse to compute where OpenMP's threads would never answer; call this before each computation by torch or numba.

    A forked process has none of its parent's threads. torch waits for them for ever, and numba ends the process.
    onnxruntime and OpenCV do the work in the calling thread and need no check.

    Args:
        num_threads: that the computation takes; one needs no others.

    Raises:
        UserError: an earlier call was in the process that this one was forked from.
    """
    global _threads_started_in
    if num_threads == 1:
        return
    if _threads_started_in is None:
        _threads_started_in = os.getpid()
    if _threads_started_in != os.getpid():
        raise UserError(
            f"process {os.getpid()} was forked from one that had computed with several threads, and would wait for "
            "them for ever: start worker processes before the first prediction and load the network in each, or start "
            "them by multiprocessing's 'spawn', or set OMP_NUM_THREADS=1"
        )


def release_unused() -> None:
    """Give memory that was freed back to the system; glibc keeps it for the thread that had it."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
