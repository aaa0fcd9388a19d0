"""One command run by the processes that torchrun starts, which share its images and give one result."""

import io
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from typing import Any, TypeVar

import cv2

from runtime.dist_env import MEETING_POINT, read_environment
from runtime.errors import ConfigError, UserError, first_line
from runtime.threads import num_cores

MAX_START = timedelta(minutes=5)
"""That the processes may take to find each other."""

POLL_S = 0.05

MAX_WAIT = timedelta(hours=12)
"""That one process may take more than another between two exchanges: what is killed without torchrun is silent."""

MAX_LEAVE = timedelta(minutes=1)
"""That the first process waits at its end for the others to have read what it told them."""

TOLD_ERRORS = (OSError, UserError)
"""Errors of files and settings, which the other processes report. Any other error is a bug."""

T = TypeVar("T")


class RanksError(UserError):
    """Processes that cannot work together, or an error of some of them; the message names these."""


class RanksStartError(RanksError):
    """Processes that do not find each other: the environment says what cannot be, or a part of them is not there."""


class Terminated(KeyboardInterrupt):
    """This process shall end: torchrun says so where another one was killed."""


class Ranks:
    """The processes of one command, as this one sees them. The first one speaks and writes for all.

    What has results in common (`each`, `of_first`, `join`, `exchange`) must be called by all, in the same order.

    Args:
        rank: number of this process, from 0 on.
        world_size: how many there are.
        local_rank: number among those of this machine.
        local_world_size: how many this machine has.
        store: a `torch.distributed.Store` that all share; None for one process alone.
    """

    def __init__(
        self, rank: int = 0, world_size: int = 1, local_rank: int = 0, local_world_size: int = 1, store: Any = None
    ) -> None:
        self.rank, self.world_size = rank, world_size
        self.local_rank, self.local_world_size = local_rank, local_world_size
        self._store = store
        self._num_exchanges = 0

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        return self.world_size == 1

    def share(self, items: Sequence[T]) -> list[T]:
        """Take this process's part of a list that all of them have: of n processes, every n-th item."""
        return list(items[self.rank :: self.world_size])

    def join(self, results: Iterable[T]) -> list[T]:
        """Put together what the processes made of their shares, in the order of the shared list; errors as `each`.

        An error of one is told when the others are through with their shares.
        """
        own = self.each(lambda: list(results))
        parts = self.exchange(own)
        joined: list[Any] = [None] * sum(map(len, parts))
        for rank, part in enumerate(parts):
            joined[rank :: self.world_size] = part
        return joined

    def each(self, work: Callable[[], T]) -> T:
        """Call in each process and return what it gave there.

        Raises:
            RanksError: some processes met one of `TOLD_ERRORS`. Where all met the same it comes as it is.
        """
        try:
            value, error = work(), None
        except TOLD_ERRORS as caught:
            if self.is_alone:
                raise
            value, error = None, caught
        reasons = self.exchange("" if error is None else str(error))
        if error is not None and len(set(reasons)) == 1:
            raise error
        if any(reasons):
            raise RanksError("\n".join(self.attribute(reasons))) from error
        return value  # type: ignore[return-value]  # None only after an error

    def of_first(self, work: Callable[[], T]) -> T:
        """Call in the first process and return in all what it gave there; errors as `each`."""
        value = self.each(work if self.is_first else lambda: None)
        return self.exchange(value)[0]  # type: ignore[return-value]

    def exchange(self, value: T) -> list[T]:
        """Give every process the values of all, in the order of ranks.

        Raises:
            RanksError: the others are gone, or one says nothing for `MAX_WAIT`.
        """
        if self.is_alone:
            return [value]
        self._num_exchanges += 1
        try:
            self._store.set(f"{self._num_exchanges}/{self.rank}", pickle.dumps(value))
            return [pickle.loads(self._wait(rank)) for rank in range(self.world_size)]
        except RuntimeError as error:
            reason = first_line(error)
            raise RanksError(f"rank {self.rank} of {self.world_size} lost the others: {reason}") from error

    def _wait(self, rank: int) -> bytes:
        """Wait for what a process gives; unlike by `Store.wait`, a signal gets through."""
        key = f"{self._num_exchanges}/{rank}"
        deadline = time.monotonic() + MAX_WAIT.total_seconds()
        while not self._store.check([key]):
            if time.monotonic() > deadline:
                raise RanksError(f"rank {rank} of {self.world_size} has said nothing for {MAX_WAIT}: was it killed?")
            time.sleep(POLL_S)
        return self._store.get(key)

    def leave(self) -> None:
        """Say that this process needs the others no more; the first one, with which the store may go, waits for all."""
        if self.is_alone:
            return
        with suppress(RuntimeError):  # they are gone
            self._store.set(f"left/{self.rank}", b"")
            keys = [f"left/{rank}" for rank in range(self.world_size)]
            deadline = time.monotonic() + MAX_LEAVE.total_seconds()
            while self.is_first and not self._store.check(keys) and time.monotonic() < deadline:
                time.sleep(POLL_S)

    def attribute(self, reasons: Sequence[str]) -> list[str]:
        """Say once what several processes met, and which ones.

        Args:
            reasons: one of each process; "" where all was well.
        """
        numbers: dict[str, list[str]] = {}
        for rank, reason in enumerate(reasons):
            if reason:
                numbers.setdefault(reason, []).append(str(rank))
        if self.is_alone:
            return list(numbers)
        return [f"rank {', '.join(of)} of {self.world_size}: {reason}" for reason, of in numbers.items()]

    def device(self, name: str) -> str:
        """Name the device of this process: of "auto" and "cuda" the GPU whose number is the local rank.

        Raises:
            RanksError: there are fewer GPUs than processes on this machine.
        """
        import torch

        if self.is_alone or name not in ("auto", "cuda") or not torch.cuda.is_available():
            return name
        if self.local_world_size > torch.cuda.device_count():
            raise RanksError(
                f"{self.local_world_size} processes on a machine with {torch.cuda.device_count()} CUDA devices: start "
                "as many as there are, or name a device that they share"
            )
        return f"cuda:{self.local_rank}"

    def limit_threads(self) -> None:
        """Share the cores of this machine out to its processes; one alone keeps what it has."""
        if self.is_alone:
            return
        import torch

        num_threads = max(1, num_cores() // self.local_world_size)
        torch.set_num_threads(num_threads)
        cv2.setNumThreads(num_threads)

    @contextmanager
    def first_speaks(self) -> Iterator[None]:
        """Drop what other processes than the first print meanwhile: all would say the same."""
        if self.is_first:
            yield
            return
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield


ALONE = Ranks()
"""One process by itself."""


@contextmanager
def find_ranks(environment: Mapping[str, str] = os.environ) -> Iterator[Ranks]:
    """Find the processes that torchrun started with this one; without it, this one is alone.

    With others, SIGTERM raises `Terminated` from now on. At the end of the block, and where one of `TOLD_ERRORS` or
    SystemExit leaves it, the process leaves the others; what else leaves it does not wait for them.

    Raises:
        RanksStartError: the environment is half of torchrun's, or says what cannot be; or the others are not to be
            reached.
    """
    ranks = _find_ranks(environment)
    try:
        yield ranks
    except (*TOLD_ERRORS, SystemExit):
        ranks.leave()
        raise
    ranks.leave()


def _find_ranks(environment: Mapping[str, str]) -> Ranks:
    """Find the processes as `find_ranks`."""
    try:
        dist_env = read_environment(environment)
    except ConfigError as error:
        raise RanksStartError(str(error)) from error
    if dist_env is None or dist_env.world_size == 1:
        return ALONE
    from torch.distributed import PrefixStore, rendezvous

    try:
        store, _, _ = next(rendezvous("env://", timeout=MAX_START))
    except (RuntimeError, ValueError) as error:
        reason = first_line(error)
        where = ":".join(environment[name] for name in MEETING_POINT)
        raise RanksStartError(
            f"rank {dist_env.rank} of {dist_env.world_size} cannot reach the others at {where}: {reason}"
        ) from error
    signal.signal(signal.SIGTERM, _terminate)
    restarts = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    return Ranks(*dist_env, PrefixStore(f"pictures/{restarts}", store))


def _terminate(number: int, frame: Any) -> None:
    """Handle SIGTERM."""
    raise Terminated
