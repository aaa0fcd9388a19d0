"""tools/evaluate.py and its workers when one of them is killed or interrupted."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.helpers.evaluation import ENVIRONMENT, evaluate_arguments, write_test_set
from tests.helpers.paths import REPOSITORY


@pytest.fixture
def long_run(tmp_path):
    """The command in a session of its own, once its two workers measure; 400 images, of which each takes a while."""
    write_test_set(tmp_path)
    trimap = np.full((700, 700), 128, np.uint8)
    for folder, image in (("pred", trimap + 1), ("label", trimap), ("trimap", trimap)):
        cv2.imwrite(str(tmp_path / folder / "a.png"), image)
        for i in range(2000):
            os.link(tmp_path / folder / "a.png", tmp_path / folder / f"x{i}.png")
    command = [sys.executable, "tools/evaluate.py", *evaluate_arguments(tmp_path), "--workers", "2"]
    run = subprocess.Popen(
        command, cwd=REPOSITORY, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert wait_for(lambda: len(workers(run.pid)) == 2)
    time.sleep(0.5)
    yield run
    with contextlib.suppress(ProcessLookupError):
        os.killpg(run.pid, signal.SIGKILL)  # workers that were left would keep the pipe open
    run.communicate()


def wait_for(condition, seconds: float = 60) -> bool:
    """Tell whether a condition holds within a time."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def workers(pid: int) -> list[int]:
    """List the spawned workers of a process that have come as far as loading OpenCV."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if "/cv2/" in Path(f"/proc/{child}/maps").read_text()]


def is_alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(") ")[-1][0] != "Z"


linux = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes under /proc")


@linux
def test_a_killed_worker_is_one_line(long_run):
    os.kill(workers(long_run.pid)[0], signal.SIGKILL)
    error = long_run.communicate(timeout=60)[1]
    assert long_run.returncode == 1
    assert error.startswith("evaluate.py: one of 2 worker processes was killed: ") and error.count("\n") == 1, error


@linux
def test_an_interrupt_ends_all_without_a_traceback(long_run):
    pids = workers(long_run.pid)
    os.killpg(long_run.pid, signal.SIGINT)  # as Ctrl-C does
    error = long_run.communicate(timeout=60)[1]
    assert (long_run.returncode, error) == (130, "evaluate.py: interrupted\n")
    assert wait_for(lambda: not any(map(is_alive, pids)), 10)


@linux
def test_workers_end_with_a_killed_command(long_run):
    pids = workers(long_run.pid)
    long_run.kill()
    assert wait_for(lambda: not any(map(is_alive, pids)), 10)
