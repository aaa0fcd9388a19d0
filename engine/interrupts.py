"""Stop a run between two steps, with a message, a checkpoint and an exit status."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, Self

from runtime.atomic_write import WriteError, atomic_write

_NAMES = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGINT")

SIGNALS = tuple(signal.Signals[name] for name in _NAMES if name in signal.Signals.__members__)
"""Signals that ask for the end of a run, if this platform has them."""

SAME_S = 1.0
"""A second SIGINT within this time is the same Ctrl-C: launchers repeat to each process what all have received."""


class TrainingStopped(BaseException):
    """A run that cannot continue; its weights are those of the last completed step.

    Like `KeyboardInterrupt` it is no `Exception`, so that handlers of errors let it pass.

    Attributes:
        status: the command's exit status.
        is_shared: whether all processes raise it in the same step.
    """

    status = 1
    is_shared = True


class StopRequested(TrainingStopped):
    """A signal asked for the end. Status 130 for SIGINT, else 75: EX_TEMPFAIL of sysexits.h, for schedulers to requeue.

    Args:
        name: name of the signal, such as "SIGTERM".
        is_shared: whether all processes know of it.
    """

    status = 75

    def __init__(self, name: str, is_shared: bool = True) -> None:
        super().__init__(f"{name} asked for the end of the run")
        self.name = name
        self.is_shared = is_shared
        if name == signal.SIGINT.name:
            self.status = 130


class LostProcess(TrainingStopped):
    """Another process of the run ended or cannot be reached. Each remaining process raises it by itself."""

    status = 5
    is_shared = False


class OutputError(TrainingStopped):
    """The output folder cannot be written: the disk is full, or the folder is gone or read-only.

    The main process raises it alone; all processes do for a sharded checkpoint.
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


def catch(handle: Callable[[int, FrameType | None], None]) -> dict[signal.Signals, Any]:
    """Handle `SIGNALS` by a function, except those that nohup or the shell of a background job ignores.

    Returns: the handlers before, for `set_back`.
    """
    # None is a handler that is not Python's: it could not be set back.
    caught = [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    return {number: signal.signal(number, handle) for number in caught}


def set_back(handlers: Mapping[signal.Signals, Any], is_ending: bool) -> None:
    """Restore signal handlers. If the process is ending, ignore all but SIGINT: its exit status is settled."""
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_IGN if is_ending and number != signal.SIGINT else handler)


class StopSignals:
    """In this context, `SIGNALS` ask for the end of a run instead of ending the process.

    A signal raises StopRequested in the main thread. In `uninterrupted` it waits for the next `interruptible` block.
    The first signal counts. A later SIGINT is a KeyboardInterrupt. If an error leaves the context, all other signals
    are ignored from then on. Forked processes only react to SIGTERM, by which their parent ends them.

    Attributes:
        name: name of the first signal, or "".
        is_deferred: whether a signal waits.
    """

    current: ClassVar["StopSignals | None"] = None

    def __init__(self) -> None:
        self.name = ""
        self.is_deferred = False
        self._came_at = 0.0
        self._process_id = os.getpid()
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread set handlers
            self._handlers = catch(self._handle)
            StopSignals.current = self
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        StopSignals.current = None
        set_back(self._handlers, is_ending=kind is not None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process_id:
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
        elif not self.name:
            self.name = signal.Signals(number).name
            self._came_at = time.monotonic()
            if not self.is_deferred:
                raise StopRequested(self.name, is_shared=False)
        elif number == signal.SIGINT and time.monotonic() > self._came_at + SAME_S:
            raise KeyboardInterrupt


@contextmanager
def _deferring(is_deferred: bool) -> Iterator[None]:
    """Let signals wait in the block, or raise StopRequested there; at its start, if one has come before."""
    if (signals := StopSignals.current) is None:
        yield
        return
    before, signals.is_deferred = signals.is_deferred, is_deferred
    try:
        if signals.name:
            raise StopRequested(signals.name, is_shared=False)
        yield
    finally:
        signals.is_deferred = before


uninterrupted = partial(_deferring, True)
"""Context of the steps of a run: a signal waits until the running step is completed."""

interruptible = partial(_deferring, False)
"""Context of waits and evaluations inside `uninterrupted`: a signal aborts them."""
