"""Many images in a row: the next is read and the last is written while one is matted, and a bad one stops no other."""

import errno
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import cv2
from numpy.typing import NDArray

from inference.jobs import Job
from runtime.errors import UserError
from runtime.optional_packages import MissingExtraError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)  # the next image would fail too

Pair = tuple[NDArray, NDArray]
T = TypeVar("T")


class Failure(NamedTuple):
    """Why there is nothing of an image: one line, or the traceback of a bug."""

    reason: str


def matte_all(
    jobs: Iterable[Job],
    read: Callable[[Job], Pair],
    matte: Callable[[NDArray, NDArray], NDArray],
    write: Callable[[Job, NDArray, NDArray], None],
    overlaps: bool = True,
) -> Iterator[tuple[Job, Failure | None]]:
    """Run jobs one after the other and tell of each, in order, whether its file is written.

    At most three images are held at a time, or one without overlap. What is begun when the run stops is finished.

    Args:
        jobs: what is to be made.
        read: gives image and trimap; called in a thread of its own.
        matte: gives alpha; called in the caller's thread.
        write: takes image and alpha and writes the file; called in a thread of its own.
        overlaps: whether the next is read and the last written meanwhile; else all is done in turn, in this thread.

    Raises:
        OSError: the disk is full.
    """

    def make(job: Job) -> None:
        image, trimap = read(job)
        write(job, image, matte(image, trimap))

    if not overlaps:
        yield from ((job, attempt(make, job)) for job in jobs)
        return
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:

        def hand_on(job: Job, pair: Future[Pair]) -> Future[None]:
            image, trimap = pair.result()
            return writer.submit(write, job, image, matte(image, trimap))

        writing: deque[tuple[Job, Future[None] | Failure]] = deque()
        for job, pair in ahead(reader, read, jobs):
            writing.append((job, attempt(hand_on, job, pair)))
            if len(writing) > 1:
                yield settle(*writing.popleft())
        while writing:
            yield settle(*writing.popleft())


def ahead(pool: ThreadPoolExecutor, step: Callable[[Job], T], jobs: Iterable[Job]) -> Iterator[tuple[Job, Future[T]]]:
    """Yield each job with what a step makes of it, having begun the next."""
    begun: deque[tuple[Job, Future[T]]] = deque()
    for job in jobs:
        begun.append((job, pool.submit(step, job)))
        if len(begun) > 1:
            yield begun.popleft()
    yield from begun


def settle(job: Job, written: Future[None] | Failure) -> tuple[Job, Failure | None]:
    """Wait for a job's file."""
    return job, written if isinstance(written, Failure) else attempt(written.result)


def attempt(step: Callable[..., T], *arguments: Any) -> T | Failure:
    """Call a step, and turn its error into a failure of its image, so that the other images are still made.

    Raises:
        OSError: the disk is full.
        MissingExtraError: a package is not installed.
    """
    try:
        return step(*arguments)
    except (OSError, UserError) as error:
        is_for_all = isinstance(error, MissingExtraError) or getattr(error, "errno", None) in NO_ROOM
        if is_for_all:
            raise
        return Failure(one_line(error))
    except Exception as error:  # noqa: BLE001  the other images are made all the same
        # torch and OpenCV have no class for it on the CPU
        if isinstance(error, MemoryError | RuntimeError | cv2.error) and "memory" in repr(error).lower():
            return Failure(
                f"out of memory ({one_line(error)[:100]}): set a limit of memory or smaller tiles for the "
                "network, or reduce the image"
            )
        return Failure(f"an unexpected error:\n{traceback.format_exc()}")


def one_line(error: BaseException) -> str:
    """Join an error's lines."""
    return " ".join(str(error).split())
