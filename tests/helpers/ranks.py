"""Threads that stand for ranks, torchrun, and folders to compare."""

import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from runtime.processes import ALONE, Ranks
from tests.helpers.paths import REPOSITORY


class ThreadRanks(Ranks):
    """A rank that is a thread; `meeting` holds a barrier and a list of all values."""

    def all_gather(self, value):
        barrier, values = self.meeting
        values[self.rank] = pickle.dumps(value)
        barrier.wait(60)
        gathered = [pickle.loads(other) for other in values]
        barrier.wait(60)
        return gathered


def in_ranks(work, world_size):
    """What `work(ranks)` gives or raises in each of some threads."""
    meeting = threading.Barrier(world_size), [b""] * world_size

    def start(rank):
        ranks = ThreadRanks(rank, world_size, rank, world_size)
        ranks.meeting = meeting
        return pool.submit(work, ranks if world_size > 1 else ALONE)

    with ThreadPoolExecutor(world_size) as pool:
        futures = [start(rank) for rank in range(world_size)]
    return [future.exception() or future.result() for future in futures]


def torchrun(*command, processes=2, options=()):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *options]
    done = subprocess.run(
        [*start, *map(str, command)], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith(("predict", "evalu", "  /"))]
    return done.returncode, done.stdout, lines


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
