"""What the measurements share: processes of their own, the memory of one, ratios."""

import ctypes
import gc
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmark.py"


def run_fresh(*arguments: str) -> dict[str, Any]:
    """Run tools/benchmark.py in a process of its own, whose errors are shown.

    Args:
        arguments: which make it print a JSON object as its last line.

    Returns: the object.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    command = [sys.executable, str(BENCHMARK), *arguments]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


class PeakMemory:
    """Highest memory from here on: resident memory of this process, or what torch has allocated on a CUDA device.

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
            ctypes.CDLL(None).malloc_trim(0)  # otherwise the work would reuse, unseen, what loading has freed
            self.highest_before = _status_bytes("VmHWM")
            Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to VmRSS (man 5 proc)
            self.loaded = _status_bytes("VmRSS")

    def above_gb(self) -> float:
        """Peak above what was held at the start, in 10^9 bytes."""
        return (self._peak() - self.loaded) / 1e9

    def whole_gb(self) -> float:
        """Peak of the process's whole life, loading included; on CUDA the peak of what torch holds of the device."""
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
    """Show the median with the lowest and the highest."""
    return f"{statistics.median(ratios):.{digits}f} ({min(ratios):.{digits}f} to {max(ratios):.{digits}f})"
