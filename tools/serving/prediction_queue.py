"""A bounded queue in front of the one thread that predicts."""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any, TypeVar

from runtime.threads import release_unused
from tools.serving.errors import CLIENT_LEFT, RefusedError

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_GUESS_S = 5.0
"""Time of a prediction before the first has ended."""

MEMORY = 0.8
"""Share that the mean of earlier times keeps when a new time comes in."""

ENDING = "the server is ending: try again later"


class PredictionQueue:
    """Runs jobs one at a time, in order, in a thread. A device is then never shared, and memory is that of one job.

    Args:
        max_waiting: jobs that may wait beside the running one, at least 1.
    """

    def __init__(self, max_waiting: int) -> None:
        self.max_waiting = max_waiting
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._running: Future[Any] | None = None
        self._changed = threading.Condition()
        self.is_closed = False
        self._mean_s = FIRST_GUESS_S
        # A daemon, so that a prediction that does not end cannot keep the process alive.
        threading.Thread(target=self._work, daemon=True, name="predictions").start()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Add a job. `cancel()` of its future removes it if it has not begun.

        Raises:
            RefusedError: the queue is full, or closed.
        """
        future: Future[T] = Future()
        with self._changed:
            if self.is_closed:
                raise RefusedError(503, ENDING, retry_after_s=30)
            self._waiting = deque(job for job in self._waiting if not job[0].cancelled())
            if len(self._waiting) >= self.max_waiting:
                wait_s = math.ceil(self._mean_s * (len(self._waiting) + 1))
                raise RefusedError(503, f"{len(self._waiting)} images are waiting already: try again later", wait_s)
            self._waiting.append((future, work))
            self._changed.notify()
        return future

    async def run(self, work: Callable[[], T], client_left: Callable[[], Coroutine[Any, Any, None]]) -> T:
        """Add a job and wait for its result.

        Args:
            work: called in the thread of the queue.
            client_left: returns when nobody waits for the result any more. A job that has not begun is then cancelled.
                One that has begun is waited for, because it still uses the files of the request.

        Raises:
            RefusedError: as `submit`, or the client has left.
        """
        future = self.submit(work)
        done = asyncio.wrap_future(future)
        left = asyncio.ensure_future(client_left())
        either: set[asyncio.Future[Any]] = {done, left}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not done.done() and future.cancel():
                raise RefusedError(CLIENT_LEFT, "the client has left")
            return await done
        finally:
            left.cancel()

    def is_idle(self) -> bool:
        """Tell whether no job runs."""
        return self._running is None

    def num_waiting(self) -> int:
        """Count the jobs that wait."""
        return sum(not future.cancelled() for future, _ in list(self._waiting))

    def close(self) -> None:
        """Refuse new jobs and those that wait. The running one goes on."""
        with self._changed:
            self.is_closed = True
            refused = [future for future, _ in self._waiting]
            self._waiting.clear()
            self._changed.notify()
        for future in refused:
            self._refuse(future)

    def abandon(self) -> None:
        """Refuse the running job: who waits for it waits no longer."""
        if (running := self._running) is not None:
            self._refuse(running)

    def _refuse(self, future: Future[Any]) -> None:
        with suppress(InvalidStateError):  # it has ended in the meantime
            future.set_exception(RefusedError(503, ENDING, retry_after_s=30))

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self.is_closed)
                if not self._waiting:
                    return
                future, work = self._waiting.popleft()
                if not future.set_running_or_notify_cancel():
                    continue
                self._running = future
            self._run(future, work)
            self._running = None
            del future, work  # a result must not live until the next job comes
            release_unused()

    def _run(self, future: Future[Any], work: Callable[[], Any]) -> None:
        started_s = time.monotonic()
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001  who waits for it raises it
            with suppress(InvalidStateError):
                future.set_exception(error)
        else:
            with suppress(InvalidStateError):
                future.set_result(result)
        self._mean_s = MEMORY * self._mean_s + (1 - MEMORY) * (time.monotonic() - started_s)
