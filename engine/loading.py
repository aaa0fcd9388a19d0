"""Batches for all processes of a training or for none of them, and a count of what could not be read for them."""

import logging
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from detectron2.utils import comm
from torch.utils.data import DataLoader

from engine.stopping import StopRequested, TrainingStopped, interruptible

logger = logging.getLogger(__name__)

MAX_FAULTY_SHARE = 0.01
MIN_SAMPLES_JUDGED = 1000  # a hundredth of fewer would be a handful, and so a matter of luck

NAMES_SHOWN = 50

DEAD_WORKER = ("DataLoader worker", "Pin memory thread")
"""How torch begins the RuntimeErrors about processes and threads that ended."""


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

    Attributes:
        num_faults: samples that could not be read, in whole steps and in one that a LoaderError ended.
    """

    def __init__(self, loader: DataLoader, size: int) -> None:
        self.num_faults = 0
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
            LoaderError: a process got no batch or lost a worker; or more than 1 % of the samples drawn here so far, of
                1000 where they are fewer, could not be read.
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
                self._iterator = iter(self._loader)
                # Torch's handler raises wherever a worker's death meets this thread, the middle of an optimizer's step
                # too. Without it, the next draw tells of the death.
                if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD"):
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return next(self._iterator), ""
        except (RuntimeError, ConnectionError, EOFError) as error:
            if isinstance(error, RuntimeError) and not str(error).startswith(DEAD_WORKER):
                raise
            return {}, (
                f"process {comm.get_rank()} lost a worker of its loader ({error}). If memory ran out, that of /dev/shm "
                "included, lower dataloader.train.num_workers or prefetch_factor; a mapped file that was cut off "
                "or went away ends a worker as well"
            )

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


def _as_lines(faults: list[str] | dict[str, None]) -> str:
    """Put each message on a line of its own, the first ones where they are many."""
    shown = [*dict.fromkeys(faults)]
    rest = [f"and {len(shown) - NAMES_SHOWN} more, all named in log.txt"] if len(shown) > NAMES_SHOWN else []
    return "".join(f"\n  {line}" for line in [*shown[:NAMES_SHOWN], *rest])
