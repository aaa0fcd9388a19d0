"""Many images in a row: the next is read and the last is written while one is matted, and a bad one stops no other."""

import errno
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import cv2
from numpy.typing import NDArray

from inference.jobs import Job
from runtime.errors import UserError, one_line
from runtime.optional_packages import MissingExtraError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)  # the next image would fail too

OUT_OF_MEMORY = "out of memory"
"""First words of the reason if memory ran out."""

T = TypeVar("T")


class Failure(NamedTuple):
    """Why an image has no result: one line, or the traceback of a bug."""

    reason: str


def matte_all(
    jobs: Iterable[Job],
    read: Callable[[Job], tuple[NDArray, NDArray]],
    matte: Callable[[NDArray, NDArray], NDArray],
    write: Callable[[Job, NDArray, NDArray, NDArray], None],
    overlaps: bool = True,
) -> Iterator[tuple[Job, Failure | None]]:
    """Run jobs one after the other and yield each in order, with its failure if its file is not written.

    At most three images are held at a time, or one without overlap. Jobs that have begun when the run stops are
    finished.

    Args:
        jobs: what to make.
        read: returns image and trimap; called in a separate thread.
        matte: returns alpha; called in the caller's thread.
        write: takes image, trimap and alpha and writes the file; called in a separate thread.
        overlaps: read the next image and write the last one while one is matted.

    Raises:
        OSError: the disk is full.
        MissingExtraError: a package is not installed.
    """

    def make(job: Job) -> None:
        image, trimap = read(job)
        write(job, image, trimap, matte(image, trimap))

    def finish(job: Job, pair: Any, alpha: Any) -> Failure | None:
        return alpha if isinstance(alpha, Failure) else attempt(write, job, *pair, alpha)

    if not overlaps:
        yield from ((job, attempt(make, job)) for job in jobs)
        return
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        writing: deque[tuple[Job, Future[Failure | None]]] = deque()
        for job, reading in ahead((job, reader.submit(attempt, read, job)) for job in jobs):
            pair = reading.result()
            alpha = pair if isinstance(pair, Failure) else attempt(matte, *pair)
            writing.append((job, writer.submit(finish, job, pair, alpha)))
            if len(writing) > 1:
                job, written = writing.popleft()
                yield job, written.result()
        for job, written in writing:
            yield job, written.result()


def ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield each item after the next one was made, so that its work has begun."""
    iterator = iter(items)
    held = deque(islice(iterator, 1))
    for item in iterator:
        held.append(item)
        yield held.popleft()
    yield from held


def attempt(step: Callable[..., T], *arguments: Any) -> T | Failure:
    """Call a step, and return its error as a failure of its image, so that the other images are still made.

    Raises:
        OSError: the disk is full.
        MissingExtraError: a package is not installed.
    """
    try:
        return step(*arguments)
    except (OSError, UserError) as error:
        if isinstance(error, MissingExtraError) or getattr(error, "errno", None) in NO_ROOM:
            raise
        return Failure(one_line(error))
    except Exception as error:  # noqa: BLE001  the other images are made all the same
        if is_out_of_memory(error):
            return Failure(
                f"{OUT_OF_MEMORY} ({one_line(error)[:100]}): set a limit of memory or smaller tiles for the "
                "network, or reduce the image"
            )
        return Failure(f"an unexpected error:\n{traceback.format_exc()}")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory ran out; torch and OpenCV have no class for it on the CPU."""
    return isinstance(error, MemoryError | RuntimeError | cv2.error) and "memory" in repr(error).lower()
