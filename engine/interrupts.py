"""Stop a run between two steps, with a message, a checkpoint and an exit status."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, Protocol, Self

from runtime.atomic_write import WriteError, atomic_write

_NAMES = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGINT")

SIGNALS = tuple(signal.Signals[name] for name in _NAMES if name in signal.Signals.__members__)
"""Signals that ask for the end of a run, those of them that this platform has."""

SAME_S = 1.0
"""A second SIGINT ends at once, but for one that comes so soon: launchers repeat to each process what all have got."""


class TrainingStopped(BaseException):
    """A training that cannot go on; its weights are those of the last whole step.

    It is no `Exception`, as `KeyboardInterrupt` is none: of those detectron2 logs the traceback, which says less than
    the message.

    Attributes:
        status: the command's exit status.
        is_shared: whether all processes raise it in the same step.
    """

    status = 1
    is_shared = True


def first_stop(stop: TrainingStopped) -> TrainingStopped:
    """Give the stop that came first, where writing what was left to write failed on the way out."""
    first: TrainingStopped = stop
    error: BaseException | None = stop
    while error is not None:
        if isinstance(error, TrainingStopped):
            first = error
        error = error.__context__
    return first


class StopRequested(TrainingStopped):
    """A signal asked for the end: 130 for SIGINT, else 75, EX_TEMPFAIL of sysexits.h, for which a scheduler requeues.

    Args:
        name: of the signal, such as "SIGTERM".
        is_shared: whether all processes know of it.
    """

    status = 75

    def __init__(self, name: str, is_shared: bool = True) -> None:
        super().__init__(f"{name} asked for the end of the training")
        self.name = name
        self.is_shared = is_shared
        if name == signal.SIGINT.name:
            self.status = 130


class LostProcess(TrainingStopped):
    """Another process of the training ended or cannot be reached: each that is left raises it by itself."""

    status = 5
    is_shared = False


class OutputError(TrainingStopped):
    """The output folder cannot be written: the disk is full, or the folder is gone or read-only.

    The main process raises it, by itself; of a sharded checkpoint all do.
    """

    status = 6
    is_shared = False


@contextmanager
def output_file(path: Path) -> Iterator[Path]:
    """Write a file of a run by `atomic_write`; a failure ends the run.

    Yields: the path to write to.

    Raises:
        OutputError: the folder cannot be written.
    """
    try:
        with atomic_write(path) as unfinished:
            yield unfinished
    except WriteError as error:
        raise OutputError(str(error)) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file of a run, see `output_file`."""
    with output_file(path) as unfinished:
        unfinished.write_text(text)


class Stoppable(Protocol):
    """What looks at `stop_signal` between two steps."""

    stop_signal: str


def catch(handle: Callable[[int, FrameType | None], None]) -> dict[signal.Signals, Any]:
    """Have a function handle `SIGNALS`, but for those that nohup, or the shell of a background job, has ignored.

    Returns: the handlers before, for `set_back`.
    """
    # None is a handler that is not Python's, which could not be set back.
    caught = [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    return {number: signal.signal(number, handle) for number in caught}


def set_back(handlers: Mapping[signal.Signals, Any], is_ending: bool) -> None:
    """Set signals' handlers back; where the process ends, what asks for that is ignored: its status is settled."""
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_IGN if is_ending and number != signal.SIGINT else handler)


class StopSignals:
    """While it is entered, `SIGNALS` ask for the end of a run instead of ending the process.

    They raise StopRequested where they meet the main thread, or in `kept_for` are written down for the next step. The
    first signal counts; a SIGINT after it is a KeyboardInterrupt. After a SystemExit all but SIGINT are ignored.
    Processes forked meanwhile heed SIGTERM alone: the one that forked them ends them.

    Attributes:
        name: of the first signal that came, or "".
    """

    current: ClassVar["StopSignals | None"] = None

    def __init__(self) -> None:
        self.name = ""
        self._came_at = 0.0
        self._listener: Stoppable | None = None
        self._process_id = os.getpid()
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers, nor needs them
            self._handlers = catch(self._handle)
            StopSignals.current = self
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        StopSignals.current = None
        set_back(self._handlers, is_ending=kind is SystemExit)

    @contextmanager
    def kept_for(self, listener: Stoppable) -> Iterator[None]:
        """In the block a signal sets the listener's `stop_signal`, and nothing else.

        Raises:
            StopRequested: at the start, where a signal has come before.
        """
        self._check()
        self._listener = listener
        try:
            yield
        finally:
            self._listener = None

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """In the block, inside `kept_for`, a signal raises after all: nothing there is half done.

        Raises:
            StopRequested: at the start, too, where a signal has come before.
        """
        listener, self._listener = self._listener, None
        try:
            self._check()
            yield
        finally:
            self._listener = listener

    def _check(self) -> None:
        if self.name:
            raise StopRequested(self.name, is_shared=False)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process_id:
            if number == signal.SIGTERM:  # by which pools of processes end theirs
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
        elif not self.name:
            self.name = signal.Signals(number).name
            self._came_at = time.monotonic()
            if self._listener is None:
                raise StopRequested(self.name, is_shared=False)
            self._listener.stop_signal = self.name
        elif number == signal.SIGINT and time.monotonic() > self._came_at + SAME_S:
            raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[None]:
    """Let a signal to this process raise StopRequested in the block, if the run handles signals."""
    if StopSignals.current is None:
        yield
    else:
        with StopSignals.current.at_once():
            yield
