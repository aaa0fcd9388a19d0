"""Run measurements in new processes; measure the memory of a process; show ratios."""

import gc
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import cv2
import torch

from runtime.threads import release_unused

Result = TypeVar("Result")


def run_fresh(function: Callable[..., Result], *arguments: object) -> Result:
    """Call a function in a new process, which no earlier measurement has changed.

    Args:
        function: of the top level of a module.
        arguments: of the function; they are pickled, like its result.

    Raises:
        BrokenProcessPool: the process was killed.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this process to one core, and OpenCV to one thread."""
    cores, threads = os.sched_getaffinity(0), cv2.getNumThreads()
    os.sched_setaffinity(0, {min(cores)})
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        cv2.setNumThreads(threads)


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep some cores busy with other work."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


class PeakMemory:
    """Measure the highest memory from here on: resident memory of this process, or what torch allocates on CUDA.

    Args:
        device: on which the work runs, "cpu" or "cuda" ...

    Raises:
        OSError: on the CPU, without Linux's /proc.
    """

    def __init__(self, device: str) -> None:
        self.device, self.is_cuda = device, device.startswith("cuda")
        gc.collect()
        if self.is_cuda:
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            self.loaded = torch.cuda.memory_allocated(device)
        else:
            release_unused()  # otherwise the work would reuse, unseen, what loading has freed
            self.highest_before = _status_bytes("VmHWM")
            Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to VmRSS (man 5 proc)
            self.loaded = _status_bytes("VmRSS")

    def above_gb(self) -> float:
        """Return the peak above the memory at the start, in 10^9 bytes."""
        return (self._peak() - self.loaded) / 1e9

    def whole_gb(self) -> float:
        """Return the peak of the process's whole life, loading included; on CUDA the peak that torch has reserved."""
        whole = torch.cuda.max_memory_reserved(self.device) if self.is_cuda else max(self.highest_before, self._peak())
        return whole / 1e9

    def _peak(self) -> int:
        return torch.cuda.max_memory_allocated(self.device) if self.is_cuda else _status_bytes("VmHWM")


def _status_bytes(name: str) -> int:
    """Read a size from /proc/self/status, which counts in KiB."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/self/status has no {name}: on the CPU, memory is measured on Linux alone")
    return int(found[1]) * 1024


def with_range(ratios: Sequence[float], digits: int) -> str:
    """Format the median with the lowest and the highest."""
    return f"{statistics.median(ratios):.{digits}f} ({min(ratios):.{digits}f} to {max(ratios):.{digits}f})"
