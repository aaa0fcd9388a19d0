"""Draw batches in lockstep across ranks and count bad samples."""

import logging
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

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
"""How torch begins the RuntimeError about a wait without a batch. The next wait is for the same batch."""

TIMEOUT_S = 600.0

POLL_S = 5.0
"""Seconds of one wait of torch for a batch."""


class LoaderError(TrainingStopped):
    """A run that cannot continue because it has no samples."""

    status = 3


class Batches:
    """Draw the batches of a loader in lockstep with the other processes.

    A batch is a dict. Under "faults" it may hold messages about bad samples that were replaced; each message is logged
    once. If a batch holds nothing else, no sample could be read.

    Args:
        loader: endless.
        size: samples in a batch, over all processes.
        timeout_s: see `next_batch`.

    Attributes:
        num_faults: bad samples, in completed steps and in a step that a LoaderError ended.
    """

    def __init__(self, loader: DataLoader, size: int, timeout_s: float = TIMEOUT_S) -> None:
        self.num_faults = 0
        self._timeout_s = timeout_s
        self._loader = loader
        self._size = size
        self._iterator: Iterator[dict[str, Any]] | None = None
        self._num_drawn = self._num_new_faults = self._num_uncounted = 0
        self._known_faults: dict[str, None] = {}  # a set in the order of coming

    def draw(self, is_last: bool = True) -> tuple[dict[str, Any], float]:
        """Draw a batch.

        Args:
            is_last: whether it is the last batch of its step. Bad samples of the step are counted with it: if a step is
                cut short, a resume draws all its batches again.

        Returns: the batch without "faults", and the seconds that the slowest process waited for its own.

        Raises:
            StopRequested: a process got a signal.
            LoaderError: a process got no batch, lost a worker, or has one that is stuck; or more than 1 % of the
                samples drawn here so far were bad (10 of the first 1000).
        """
        start = time.perf_counter()
        batch: dict[str, Any] = {}
        failure = stop_signal = ""
        try:
            with interruptible():
                if self._iterator is None:
                    self._iterator = start_workers(self._loader)
                batch = next_batch(self._iterator, "dataloader.train", self._timeout_s)
        except StopRequested as stop:
            stop_signal = stop.name
        except LoaderError as error:
            failure = str(error)
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

    def _judge(self, faults: list[str]) -> str:
        """Log new messages about bad samples of all processes. Return why there are too many since the start, or ""."""
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


def start_workers(loader: DataLoader) -> Iterator[Any]:
    """Start the workers of a loader, if it has any, and return its iterator, for `next_batch`."""
    if getattr(loader, "num_workers", 0):
        loader.timeout = POLL_S
    iterator = iter(loader)
    # Torch's handler raises wherever a worker's death meets this thread, even inside an optimiser step. Without it, the
    # next draw reports the death.
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return iterator


def next_batch(iterator: Iterator[Any], section: str, timeout_s: float) -> Any:
    """Draw this process's next batch.

    Args:
        iterator: what `start_workers` returned.
        section: section of the config, for messages: "dataloader.train".
        timeout_s: seconds without a batch after which a worker counts as stuck, in steps of `POLL_S`. Of the time that
            this process is suspended, one step counts at most. Without workers there is no limit.

    Raises:
        StopIteration: there are no more.
        LoaderError: a worker died or is stuck.
    """
    with _time_limit(iterator, timeout_s) as is_over:
        while True:
            try:
                return next(iterator)
            except (RuntimeError, ConnectionError, EOFError) as error:
                begins = str(error).startswith
                if is_over.is_set():
                    stuck = iterator._task_info[iterator._rcvd_idx][0]  # type: ignore[attr-defined]  # torch has no
                    pid = iterator._workers[stuck].pid  # type: ignore[attr-defined]  # public names for its workers
                    raise LoaderError(
                        f"worker {stuck} (process id {pid}) of the loader of process {comm.get_rank()} has made no "
                        f"batch for {timeout_s:g} s (train.loader_timeout_s). See whether the files of {section} can "
                        "be read: a network file system that does not answer is the usual cause. If a batch may take "
                        "that long, raise the limit"
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


@contextmanager
def _time_limit(iterator: Any, timeout_s: float) -> Iterator[threading.Event]:
    """Kill a loader's workers if the block lasts too long; yield an event that is set then.

    Torch asks the worker of a batch for its memory, and waits without limit for a worker that is stuck by then.
    """
    has_come, is_over = threading.Event(), threading.Event()

    def watch() -> None:
        for _ in range(math.ceil(timeout_s / POLL_S)):
            if has_come.wait(POLL_S):
                return
        is_over.set()
        for worker in iterator._workers:
            worker.kill()

    if hasattr(iterator, "_workers"):
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield is_over
    finally:
        has_come.set()


def all_batches(loader: DataLoader, section: str, timeout_s: float) -> Iterator[Any]:
    """Yield the batches of a loader that ends; arguments and errors as for `next_batch`."""
    iterator = start_workers(loader)
    with suppress(StopIteration):
        while True:
            yield next_batch(iterator, section, timeout_s)


def _as_lines(faults: list[str] | dict[str, None]) -> str:
    """Put each message on a separate line; of many, only the first ones."""
    shown = [*dict.fromkeys(faults)]
    rest = [f"and {len(shown) - NAMES_SHOWN} more, all named in log.txt"] if len(shown) > NAMES_SHOWN else []
    return "".join(f"\n  {line}" for line in [*shown[:NAMES_SHOWN], *rest])
