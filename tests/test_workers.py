"""Work shared out to processes gives what a loop gives, and says when a worker is gone."""

import os
from operator import methodcaller

import cv2
import pytest

from data.workers import map_in_workers


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
