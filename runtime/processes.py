"""One command run by the processes that torchrun starts, which share its images and give one result."""

import io
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from functools import partial
from threading import Thread
from typing import Any, TypeVar

import cv2

from runtime.dist_env import MEETING_POINT, DistEnv, join_processes, read_environment
from runtime.errors import ConfigError, UserError, torch_reason
from runtime.threads import num_cores

MAX_START = timedelta(minutes=5)
"""Time for the processes to find each other."""

MAX_WAIT = timedelta(hours=12)
"""Time that a process waits for the slowest share of the images."""

TOLD_ERRORS = (OSError, UserError)
"""Errors of files and settings, which the other processes report. Any other error is a bug."""

T = TypeVar("T")


class RanksError(UserError):
    """Processes lost each other, or some of them met an error; the message names these."""


class RanksStartError(RanksError):
    """The environment is wrong, or the processes do not find each other."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: torchrun sends it to the other processes when one was killed."""


class Ranks(DistEnv):
    """The processes of one command, as one of them sees them.

    All must call the collectives (`all_gather`, `broadcast`, `join`, `together`), in the same order.
    """

    def share(self, items: Sequence[T]) -> list[T]:
        """Take this rank's shard of a list: of n ranks, every n-th item."""
        return list(items[self.rank :: self.world_size])

    def all_gather(self, value: T) -> list[T]:
        """Give every rank the values of all, in the order of ranks.

        Raises:
            RanksError: another rank has ended, or does not answer for `MAX_WAIT`.
        """
        if self.world_size == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.world_size
        try:
            in_thread(lambda: distributed.all_gather_object(values, value))
        except RuntimeError as error:
            raise RanksError(
                f"rank {self.rank} of {self.world_size} lost another rank, which ended or does not answer: "
                f"{torch_reason(error)}"
            ) from error
        return values

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise in all ranks what some of them raise in the block.

        Raises:
            RanksError: some ranks met one of `TOLD_ERRORS`. If all met the same one, it comes as it is.
        """
        met: Exception | None = None
        try:
            yield
        except TOLD_ERRORS as error:
            met = error
        reasons = self.all_gather("" if met is None else str(met))
        if met is not None and len(set(reasons)) == 1:
            raise met
        if any(reasons):
            raise RanksError("\n".join(self.attribute(reasons))) from met

    def broadcast(self, work: Callable[[], T]) -> T:
        """Call in the first rank and return in all what it gave there; errors as of `together`."""
        value: Any = None
        with self.together():
            value = work() if self.rank == 0 else None
        return self.all_gather(value)[0]

    def join(self, results: Iterable[T]) -> list[T]:
        """Combine the results of all shards in the order of the shared list; errors as of `together`."""
        own: list[T] = []
        with self.together():
            own = list(results)
        parts = self.all_gather(own)
        joined: list[Any] = [None] * sum(map(len, parts))
        for rank, part in enumerate(parts):
            joined[rank :: self.world_size] = part
        return joined

    def attribute(self, reasons: Sequence[str]) -> list[str]:
        """List each reason once with the ranks that met it; `reasons` has one per rank, "" where all is well."""
        return [
            f"rank {', '.join(str(rank) for rank, other in enumerate(reasons) if other == reason)} of "
            f"{self.world_size}: {reason}"
            for reason in dict.fromkeys(filter(None, reasons))
        ]

    @contextmanager
    def first_speaks(self) -> Iterator[None]:
        """Drop what other ranks than the first print in the block: all would print the same."""
        if self.rank == 0:
            yield
            return
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield


ALONE = Ranks(rank=0, world_size=1, local_rank=0, local_size=1)
"""One process by itself."""


def in_thread(call: Callable[[], T]) -> T:
    """Call in another thread and wait, so that signals reach this one; torch's own waits keep them back."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(call())
        except BaseException as error:  # noqa: BLE001  it is raised in the calling thread
            done.set_exception(error)

    Thread(target=run, daemon=True).start()  # a daemon, so that the process can end while it waits
    return done.result()


@contextmanager
def find_ranks() -> Iterator[Ranks]:
    """Join the processes that torchrun started with this one; without torchrun, this one is alone.

    With others, SIGTERM raises `Terminated` from now on, and the ranks of a machine divide its cores.

    Raises:
        RanksStartError: the environment is incomplete or contradicts itself, or the others cannot be reached.
    """
    try:
        dist_env = read_environment()
    except ConfigError as error:
        raise RanksStartError(str(error)) from error
    if dist_env is None or dist_env.world_size == 1:
        yield ALONE
        return
    import torch
    from torch import distributed

    ranks = Ranks(*dist_env)
    try:
        in_thread(partial(join_processes, "gloo", MAX_START, MAX_WAIT))
    except (RuntimeError, ValueError) as error:
        where = ":".join(os.environ[name] for name in MEETING_POINT)
        raise RanksStartError(
            f"rank {ranks.rank} of {ranks.world_size} cannot reach the others at {where}: {torch_reason(error)}. "
            "Of several networks, GLOO_SOCKET_IFNAME names the one to use"
        ) from error
    signal.signal(signal.SIGTERM, _terminate)
    num_threads = max(1, num_cores() // ranks.local_size)
    torch.set_num_threads(num_threads)
    cv2.setNumThreads(num_threads)
    try:
        yield ranks
    finally:
        if not isinstance(sys.exc_info()[1], KeyboardInterrupt):  # then a thread may still wait for the others
            distributed.destroy_process_group()


def _terminate(number: int, frame: Any) -> None:
    """Handle SIGTERM."""
    raise Terminated
