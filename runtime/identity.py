"""Identify this process: its machine and start time, and the jobs of launchers that it belongs to."""

import os
import socket
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESTART_COUNTS = {"TORCHELASTIC_RUN_ID": "TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_ID": "SLURM_RESTART_COUNT"}
"""Variable that names a job of torchrun or Slurm -> variable that counts its restarts."""


def this_process() -> dict[str, Any]:
    """Describe this process; its id is unique within `host` and `machine`."""
    machine = []
    with suppress(OSError):  # Only Linux has these. A container has its own process ids.
        machine = [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return {
        "host": socket.gethostname(),
        "machine": " ".join(machine),
        "pid": os.getpid(),
        "start": process_start(os.getpid()),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def process_start(pid: int) -> str:
    """Return when a process started, which tells it from a later process with the same id.

    Returns: a text in the system's own format; "" if there is no such process, or the system does not tell.
    """
    if not Path("/proc/self/stat").exists():
        with suppress(OSError):  # there is no ps either
            command = ["ps", "-o", "lstart=", "-p", str(pid)]
            return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        return ""
    try:
        # The name in brackets may contain anything. After it, field 3 of proc(5) is the state, field 22 the start.
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if state in "ZX" else fields[18]  # Z and X are dead processes whose parent has not waited


def find_cluster_jobs(environment: Mapping[str, str] = os.environ) -> dict[str, int]:
    """Map each job that this process belongs to, such as "SLURM_JOB_ID=17", to the number of its restarts."""
    jobs = {}
    for name, count in RESTART_COUNTS.items():
        if job := environment.get(name):
            # A torchrun without an id uses "none". Its process id tells it from others.
            job = f"{socket.gethostname()}:{os.getppid()}" if job == "none" else job
            restarts = environment.get(count, "")
            jobs[f"{name}={job}"] = int(restarts) if restarts.isdecimal() else 0
    return jobs


def is_restart(jobs: Mapping[str, int], before: Mapping[str, int]) -> bool:
    """Tell whether one of the jobs is a restart of an earlier one."""
    return any(restarts > before.get(job, restarts) for job, restarts in jobs.items())
