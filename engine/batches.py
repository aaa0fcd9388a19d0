"""Draw batches in lockstep across ranks and count bad samples."""

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Self

from detectron2.utils import comm
from torch.utils.data import DataLoader

from engine.interrupts import StopRequested, TrainingStopped, interruptible

logger = logging.getLogger(__name__)

MAX_FAULTY_SHARE = 0.01
MIN_SAMPLES_JUDGED = 1000  # a hundredth of fewer would be a handful, and so a matter of luck

NAMES_SHOWN = 50

DEAD_WORKER = ("DataLoader worker", "Pin memory thread")
"""How torch begins the RuntimeErrors about processes and threads that ended."""

TIMED_OUT = "DataLoader timed out"
"""How torch begins the RuntimeError about a wait that was in vain. The next wait is for the same batch."""

TIMEOUT_S = 600.0

POLL_S = 5.0
"""Of one wait, at whose end torch looks for dead workers."""


class LoaderError(TrainingStopped):
    """A training that cannot go on for want of samples."""

    status = 3


class Batches:
    """The batches of a loader, drawn in step with the other processes.

    A batch is a dict. Under "faults" it may hold messages about samples that could not be read and were replaced, of
    which each is logged once; a batch that holds nothing else could not be made.

    Args:
        loader: an endless one.
        size: samples in a batch, over all processes.
        timeout_s: see `next_batch`.

    Attributes:
        num_faults: samples that could not be read, in whole steps and in one that a LoaderError ended.
    """

    def __init__(self, loader: DataLoader, size: int, timeout_s: float = TIMEOUT_S) -> None:
        self.num_faults = 0
        self._timeout_s = timeout_s
        self._loader = loader
        self._size = size
        self._iterator: Iterator[dict[str, Any]] | None = None
        self._num_drawn = self._num_new_faults = self._num_uncounted = 0
        self._known_faults: dict[str, None] = {}  # a set in the order of coming

    def draw(self, stop_signal: str = "", is_last: bool = True) -> tuple[dict[str, Any], float]:
        """Draw a batch.

        Args:
            stop_signal: name of a signal that this process got, for which all of them are to stop.
            is_last: of its step, whose faults are counted with this one: of a step that is cut short a resume draws all
                batches again.

        Returns: it, without "faults", and the seconds that the slowest process waited for its own.

        Raises:
            StopRequested: a process got a signal.
            LoaderError: a process got no batch, lost a worker, or has one that stands still; or more than 1 % of the
                samples drawn here so far, of 1000 where they are fewer, could not be read.
        """
        start = time.perf_counter()
        try:
            with interruptible():
                batch, failure = self._next()
        except StopRequested as stop:
            batch, failure, stop_signal = {}, "", stop.name
        waited_s = time.perf_counter() - start
        faults = batch.pop("faults", [])
        if not (batch or failure or stop_signal):
            failure = f"no batch could be made. Is the data set still whole and in its place?{_as_lines(faults)}"
        reports = comm.all_gather((faults, failure, stop_signal, waited_s))
        all_faults, failures, signals, waits_s = zip(*reports, strict=True)
        if any(signals):  # first, since a signal to all processes of a job ends the loader's workers as well
            raise StopRequested(next(filter(None, signals)))
        self._num_uncounted += sum(map(len, all_faults))
        failure = "\n".join(dict.fromkeys(filter(None, failures)))
        failure = failure or self._judge([fault for faults in all_faults for fault in faults])
        if failure or is_last:
            self.num_faults += self._num_uncounted
            self._num_uncounted = 0
        if failure:
            raise LoaderError(failure)
        return batch, max(waits_s)

    def _next(self) -> tuple[dict[str, Any], str]:
        """Give this process's next batch and "", or an empty one and why there is none."""
        try:
            if self._iterator is None:
                self._iterator = start_workers(self._loader)
            return next_batch(self._iterator, "dataloader.train", self._timeout_s), ""
        except LoaderError as error:
            return {}, str(error)

    def _judge(self, faults: list[str]) -> str:
        """Log faults of all processes that are new; say why they are too many since the start, "" where not."""
        self._num_drawn += self._size
        for fault in faults:
            if fault not in self._known_faults:
                self._known_faults[fault] = None
                logger.warning("Another sample is taken where one cannot be read: %s", fault)
        self._num_new_faults += len(faults)
        if self._num_new_faults <= MAX_FAULTY_SHARE * max(self._num_drawn, MIN_SAMPLES_JUDGED):
            return ""
        return (
            f"{self._num_new_faults} samples could not be read for the {self._num_drawn} drawn since the start; "
            f"{MAX_FAULTY_SHARE:.0%} is borne, of {MIN_SAMPLES_JUDGED} at least. Repair or remove"
            f"{_as_lines(self._known_faults)}"
        )


class Watch:
    """While it is entered, counts the seconds that a loader's batch is awaited, and kills its workers at a limit.

    A worker that stands still would hold up this process in three ways: no batch comes; a batch comes, and its memory
    is asked of the worker; Python waits for the worker at its exit.

    Args:
        iterator: of the loader; one without workers is not watched.
        timeout_s: the limit. While this process is suspended, `POLL_S` of it pass at most.

    Attributes:
        stuck: who was awaited at the limit, "" before.
    """

    def __init__(self, iterator: Any, timeout_s: float) -> None:
        self._workers = iterator  # torch has no public names for its workers
        self._timeout_s = timeout_s
        self._has_come = threading.Event()
        self.stuck = ""

    def __enter__(self) -> Self:
        if hasattr(self._workers, "_workers"):
            threading.Thread(target=self._count, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._has_come.set()

    def _count(self) -> None:
        waited_s, poll_s = 0.0, min(POLL_S, self._timeout_s)
        while not self._has_come.wait(poll_s):
            waited_s += poll_s
            awaited = self._workers._task_info.get(self._workers._rcvd_idx)
            if waited_s >= self._timeout_s and awaited:
                number = awaited[0]
                self.stuck = f"worker {number} (process id {self._workers._workers[number].pid})"
                for worker in self._workers._workers:
                    worker.kill()
                return


def start_workers(loader: DataLoader) -> Iterator[Any]:
    """Start the workers of a loader, if it has any, and return its iterator, for `next_batch`."""
    if getattr(loader, "num_workers", 0):
        loader.timeout = POLL_S  # at whose end it is seen whether `Watch` has given up
    iterator = iter(loader)
    # Torch's handler raises wherever a worker's death meets this thread, the middle of an optimizer's step too.
    # Without it, the next draw tells of the death.
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return iterator


def next_batch(iterator: Iterator[Any], section: str, timeout_s: float) -> Any:
    """Draw this process's next batch.

    Args:
        iterator: what `start_workers` returned.
        section: of the config, for messages: "dataloader.train".
        timeout_s: seconds without a batch after which a worker counts as standing still. Without workers there is no
            limit.

    Raises:
        StopIteration: there are no more.
        LoaderError: a worker died or stands still.
    """
    with Watch(iterator, timeout_s) as watch:
        while True:
            try:
                return next(iterator)
            except (RuntimeError, ConnectionError, EOFError) as error:
                begins = str(error).startswith
                if watch.stuck:
                    raise LoaderError(
                        f"{watch.stuck} of the loader of process {comm.get_rank()} has made no batch for {timeout_s:g} "
                        f"s (train.loader_timeout_s). See whether the files of {section} can be read: a network file "
                        "system that does not answer is the usual cause. If a batch may take that long, raise the limit"
                    ) from error
                if isinstance(error, RuntimeError) and begins(TIMED_OUT):
                    continue
                if isinstance(error, RuntimeError) and not begins(DEAD_WORKER):
                    raise
                raise LoaderError(
                    f"process {comm.get_rank()} lost a worker of its loader ({error}). If memory ran out, that of "
                    f"/dev/shm included, lower {section}.num_workers or prefetch_factor; a mapped file that was cut "
                    "off or went away ends a worker as well"
                ) from error


def all_batches(loader: DataLoader, section: str, timeout_s: float) -> Iterator[Any]:
    """Yield the batches of a loader that ends; arguments and errors as for `next_batch`."""
    iterator = start_workers(loader)
    with suppress(StopIteration):
        while True:
            yield next_batch(iterator, section, timeout_s)


def _as_lines(faults: list[str] | dict[str, None]) -> str:
    """Put each message on a line of its own, the first ones where they are many."""
    shown = [*dict.fromkeys(faults)]
    rest = [f"and {len(shown) - NAMES_SHOWN} more, all named in log.txt"] if len(shown) > NAMES_SHOWN else []
    return "".join(f"\n  {line}" for line in [*shown[:NAMES_SHOWN], *rest])
