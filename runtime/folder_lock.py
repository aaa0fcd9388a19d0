"""Lock a folder, so that one run at a time writes there."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from runtime.errors import UserError
from runtime.identity import is_restart, process_start, this_process

LOCK_NAME = "run.lock"

BEAT_S = 30.0
"""Interval at which a run renews the time of its lock, to show that it is alive."""

STALE_S = 300.0
"""Age at which the lock of a run on another machine counts as stale."""

CLAIM_STALE_S, CLAIM_WAIT_S = 10.0, 0.01
"""Age at which a claim on a lock counts as left by a killed process; time between two checks of a claim."""


class FolderInUseError(UserError):
    """Another run writes to the folder; the message names the run, since when it runs, and what to do."""


class _Seen(NamedTuple):
    """Content and time of a lock; it compares equal until its run renews it."""

    content: bytes
    time_ns: int

    @property
    def holder(self) -> dict[str, Any]:
        """The lock's description of its process; empty if it is damaged, or not written yet."""
        try:
            holder = json.loads(self.content)
        except ValueError:
            return {}
        return holder if isinstance(holder, dict) and {*this_process(), "jobs"} <= {*holder} else {}


@contextmanager
def hold_folder(folder: Path, jobs: Mapping[str, int], on_loss: Callable[[], None]) -> Iterator[None]:
    """Keep other runs out of a folder while the block runs; a missing folder is made.

    The lock of a process that has ended is taken over. On this machine, its id and start time show that it has ended.
    On another machine, the age of the lock shows it, because a run renews its lock.

    Args:
        folder: folder to hold.
        jobs: jobs of this process, see `find_cluster_jobs`. A restart takes over the lock of the attempt before it.
        on_loss: called by a thread when another run has taken the lock over, for example after a long suspension.

    Raises:
        FolderInUseError: another run holds the folder.
        OSError: the folder cannot be written.
    """
    lock = folder / LOCK_NAME
    own = json.dumps({**this_process(), "jobs": dict(jobs)}, indent=2).encode()
    folder.mkdir(parents=True, exist_ok=True)
    while not (_create(lock, own) or _take_over(lock, own, jobs)):
        pass
    is_done = threading.Event()
    threading.Thread(target=_renew, args=(lock, own, is_done, on_loss), daemon=True).start()
    try:
        yield
    finally:
        is_done.set()
        with suppress(OSError):  # the folder may be gone
            if lock.read_bytes() == own:
                lock.unlink()


def _create(lock: Path, content: bytes) -> bool:
    """Create a lock unless there is one; only one of several processes succeeds."""
    try:
        file = lock.open("xb")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(content)
    except OSError:
        with suppress(OSError):
            lock.unlink()
        raise
    return True


def _take_over(lock: Path, own: bytes, jobs: Mapping[str, int]) -> bool:
    """Replace the lock of a process that has ended, or of an earlier attempt of this run.

    A claim on exactly the lock that was seen lets only one process replace it. The lock is never removed, because a
    third process could create one in between.

    Returns: whether the lock was replaced; else it has changed, or another process has the claim.

    Raises:
        FolderInUseError: the lock's process is alive.
    """
    try:
        seen = _see(lock)
        if not is_restart(jobs, seen.holder.get("jobs", {})):
            _check_stale(lock, seen)
        claim = lock.with_name(f"{sha256(seen.content + str(seen.time_ns).encode()).hexdigest()}.unfinished")
        if not _create(claim, own):
            time.sleep(CLAIM_WAIT_S)
            if _now(lock.parent) - claim.stat().st_mtime > CLAIM_STALE_S:  # its process was killed meanwhile
                claim.unlink()
            return False
        if _see(lock) == seen:
            claim.replace(lock)
            return True
        claim.unlink()
    except FileNotFoundError:  # the run has ended just now, or the claim is settled
        pass
    return False


def _see(lock: Path) -> _Seen:
    return _Seen(lock.read_bytes(), lock.stat().st_mtime_ns)


def _check_stale(lock: Path, seen: _Seen) -> None:
    """Raise a FolderInUseError unless the process of a lock has ended."""
    holder, here = seen.holder, this_process()
    who = "{pid} on {host} since {since}".format_map(holder) if holder else "that its run.lock does not tell"
    in_use = f"{lock.parent} is in use by process {who}"
    if holder.get("start") and all(holder[key] == here[key] for key in ("host", "machine")):
        if process_start(holder["pid"]) == holder["start"]:
            raise FolderInUseError(f"{in_use}: wait until that ends, or take another folder")
    elif (age_s := _now(lock.parent) - seen.time_ns / 1e9) < STALE_S:
        raise FolderInUseError(
            f"{in_use}, which was alive {max(0.0, age_s):.0f} s ago: wait until that ends, or take another folder. If "
            f"it was killed, start again in {STALE_S - age_s:.0f} s, or remove {lock} first"
        )


def _now(folder: Path) -> float:
    """Return the time of the clock that dates a folder's files, which may be a file server's."""
    probe = folder / f"{uuid4().hex}.unfinished"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()


def _renew(lock: Path, own: bytes, is_done: threading.Event, on_loss: Callable[[], None]) -> None:
    """Renew the time of a lock until its run ends or loses it."""
    while not is_done.wait(BEAT_S):
        with suppress(OSError):  # a file server may be away for a while
            if lock.read_bytes() == own:
                os.utime(lock)
            elif not is_done.is_set():
                on_loss()
                return
