"""Work shared out to processes gives what a loop gives, and says when a worker is gone."""

import os
import signal
import subprocess
import sys
from operator import methodcaller
from pathlib import Path

import cv2
import pytest

from runtime.worker_pool import default_workers, map_in_workers


@pytest.mark.parametrize("num_workers", [1, 2])
def test_results_come_in_order_from_processes_as_asked_for(num_workers):
    assert list(map_in_workers(abs, range(-20, 0), num_workers)) == list(range(20, 0, -1))
    processes = set(map_in_workers(methodcaller("__call__"), [os.getpid] * 3, num_workers))
    assert (os.getpid() in processes) == (num_workers == 1)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_opencv_has_one_thread_in_each(num_workers):
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    try:
        assert list(map_in_workers(methodcaller("__call__"), [cv2.getNumThreads] * 2, num_workers)) == [1, 1]
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(before)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_errors_of_the_work_come_through(num_workers):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list(map_in_workers(os.stat, [".", "nowhere"], num_workers))


def test_a_worker_that_dies_is_an_error_and_not_an_endless_wait():
    with pytest.raises(ChildProcessError, match="one of 2 worker processes was killed"):
        list(map_in_workers(os._exit, [9], 2))


def test_a_script_without_a_guard_is_told_of_it(tmp_path):
    """Each spawned worker runs the script again, and may not spawn its own."""
    (tmp_path / "mine.py").write_text(
        "from runtime.worker_pool import map_in_workers\nprint(*map_in_workers(abs, [-1], 2))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, tmp_path / "mine.py"], env=environment, capture_output=True, text=True)
    assert run.returncode == 1 and 'under `if __name__ == "__main__":`' in run.stderr.splitlines()[-1]


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs signal masks, which Windows does not have")
def test_an_interrupt_while_workers_start_reaches_the_main_process_alone(tmp_path):
    """Ctrl-C goes to all processes of a terminal, and a worker that imports its modules has no handler of ours yet."""
    (tmp_path / "mine.py").write_text(
        "import time\nfrom runtime.worker_pool import map_in_workers\n"
        "if __name__ == '__main__':\n"
        "    try:\n        list(map_in_workers(abs, [-1, -2], 2))\n"
        "    except KeyboardInterrupt:\n        print('interrupted')\n"
        "else:\n    print('starts\\n', end='', flush=True)\n    time.sleep(1)\n"  # one write, even unbuffered
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent), "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(
        [sys.executable, tmp_path / "mine.py"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert run.stdout.readline() == "starts\n"
    os.killpg(run.pid, signal.SIGINT)
    output, error = run.communicate(timeout=60)
    assert (output.split()[-1], error) == ("interrupted", "")


def test_the_default_is_the_cores_of_this_process_up_to_a_limit(monkeypatch):
    for num_cores, num_workers in ((1, 1), (3, 3), (8, 8), (100, 8)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, n=num_cores: set(range(n)), raising=False)
        monkeypatch.setattr(os, "cpu_count", lambda: 99)
        assert default_workers() == num_workers
    monkeypatch.delattr(os, "sched_getaffinity")
    for num_cores, num_workers in ((5, 5), (99, 8), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda n=num_cores: n)
        assert default_workers() == num_workers
