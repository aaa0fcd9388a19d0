"""inference/batch.py: order, overlap, and which errors stop a run."""

import errno
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data.image_io.images import DataError
from inference.batch import Failure, matte_all
from inference.jobs import Job
from runtime.optional_packages import MissingExtraError

JOBS = [Job(Path(f"{number}.png"), Path(f"out/{number}.png")) for number in range(5)]
DONE = [(job, None) for job in JOBS]


def number_of(job):
    return int(job.image.stem)


def run(jobs=JOBS, overlaps=True, **failing):
    """Outcomes, and what was written: number -> 3 times it. `failing` maps a step to (number, error to raise there)."""
    written = {}

    def check(step, number):
        at, error = failing.get(step, (None, None))
        if number == at:
            raise error

    def read(job):
        check("read", number_of(job))
        return np.full(1, number_of(job)), np.full(1, 2)

    def matte(image, trimap):
        check("matte", image[0])
        return image * trimap

    def write(job, image, trimap, alpha):
        check("write", number_of(job))
        written[number_of(job)] = int(image[0] + alpha[0])

    return matte_all(jobs, read, matte, write, overlaps), written


@pytest.mark.parametrize("overlaps", [True, False])
@pytest.mark.parametrize("num_jobs", range(len(JOBS) + 1))
def test_every_job_is_done_in_order(num_jobs, overlaps):
    outcomes, written = run(JOBS[:num_jobs], overlaps)
    assert list(outcomes) == DONE[:num_jobs]
    assert written == {number: 3 * number for number in range(num_jobs)}


def test_without_overlap_one_image_is_held_at_a_time():
    steps = []
    done = matte_all(
        JOBS[:2],
        read=lambda job: (steps.append(("read", job)), (np.zeros(1), np.zeros(1)))[1],
        matte=lambda image, trimap: (steps.append("matte"), image)[1],
        write=lambda job, image, trimap, alpha: steps.append(("write", job)),
        overlaps=False,
    )
    assert next(done) == (JOBS[0], None)
    assert steps == [("read", JOBS[0]), "matte", ("write", JOBS[0])]
    list(done)
    assert steps[3:] == [("read", JOBS[1]), "matte", ("write", JOBS[1])]


@pytest.mark.parametrize("overlaps", [True, False])
@pytest.mark.parametrize("step", ["read", "matte", "write"])
@pytest.mark.parametrize("number", [0, 2, 4])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DataError("not an\n  image"), "not an image"),
        (FileNotFoundError("no such file"), "no such file"),
        (PermissionError(errno.EACCES, "Permission denied", "1.png"), "[Errno 13] Permission denied: '1.png'"),
    ],
)
def test_a_bad_image_stops_no_other(step, number, error, reason, overlaps):
    outcomes, written = run(overlaps=overlaps, **{step: (number, error)})
    expected = [(job, Failure(reason) if job == JOBS[number] else None) for job in JOBS]
    assert list(outcomes) == expected
    assert written == {other: 3 * other for other in range(5) if other != number}


def torch_out_of_memory():
    torch.empty(2**50)


def numpy_out_of_memory():
    np.empty(2**50)


@pytest.mark.parametrize(
    "exhaust",
    [
        torch_out_of_memory,
        numpy_out_of_memory,
        lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")),
        lambda: (_ for _ in ()).throw(cv2.error("Failed to allocate 9 bytes: Insufficient memory")),
        lambda: (_ for _ in ()).throw(MemoryError()),
    ],
)
def test_no_memory_for_an_image_is_its_failure_with_advice(exhaust):
    with pytest.raises((MemoryError, RuntimeError, cv2.error)) as raised:
        exhaust()
    outcomes, written = run(matte=(1, raised.value))
    failures = {job: failure for job, failure in outcomes if failure}
    assert list(failures) == [JOBS[1]] and len(written) == 4
    reason = failures[JOBS[1]].reason
    assert reason.startswith("out of memory") and "smaller tiles" in reason


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "out/1.png"),
        OSError(errno.EDQUOT, "Disk quota exceeded", "out/1.png"),
        MissingExtraError("closed-form matting needs the optional package pymatting"),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("step", ["read", "matte", "write"])
def test_what_would_fail_for_all_stops_the_run(error, step):
    """What was matted before is written; no job is begun after the next but one."""
    outcomes, written = run(**{step: (1, error)})
    with pytest.raises(type(error)) as raised:
        list(outcomes)
    assert raised.value is error
    assert {0} <= written.keys() <= {0, 2} and (step == "write" or 2 not in written)


@pytest.mark.parametrize("overlaps", [True, False])
@pytest.mark.parametrize("step", ["read", "matte", "write"])
@pytest.mark.parametrize("kind", [ValueError, RuntimeError, KeyError, TypeError, cv2.error])
def test_an_unexpected_error_shows_its_traceback_and_stops_no_other_image(step, kind, overlaps):
    outcomes, written = run(overlaps=overlaps, **{step: (1, kind("a slip of ours"))})
    failures = {job: failure.reason for job, failure in outcomes if failure}
    assert list(failures) == [JOBS[1]] and len(written) == 4
    assert "Traceback (most recent call last)" in failures[JOBS[1]] and "a slip of ours" in failures[JOBS[1]]


def test_reading_and_writing_go_on_while_one_is_matted():
    """Image 1 is matted only when 2 is read and 0 is being written, which ends when 1 is matted: impossible in turn."""
    events = {name: threading.Event() for name in ("2 read", "0 begun", "1 matted")}
    in_time = []

    def read(job):
        if number_of(job) == 2:
            events["2 read"].set()
        return np.full(1, number_of(job)), np.zeros(1)

    def matte(image, trimap):
        if image[0] == 1:
            in_time.extend(events[name].wait(10) for name in ("2 read", "0 begun"))
            events["1 matted"].set()
        return image

    def write(job, image, trimap, alpha):
        if number_of(job) == 0:
            events["0 begun"].set()
            in_time.append(events["1 matted"].wait(10))

    assert list(matte_all(JOBS, read, matte, write)) == DONE
    assert in_time == [True] * 3


def test_few_images_are_held_at_a_time():
    """No third image is read before the first is being matted, however slow matting is."""
    num_read, most = 0, 0

    def read(job):
        nonlocal num_read
        num_read += 1
        return np.full(1, number_of(job)), np.zeros(1)

    def matte(image, trimap):
        nonlocal most
        threading.Event().wait(0.05)
        most = max(most, num_read - int(image[0]))
        return image

    assert list(matte_all(JOBS, read, matte, lambda *_: None)) == DONE
    assert most == 2
