"""Rank and world size of this process, from the command line or from torchrun's environment."""

import argparse
import os
from collections.abc import Mapping
from datetime import timedelta
from typing import NamedTuple
from urllib.parse import urlsplit

from runtime.errors import ConfigError

RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
MEETING_POINT = ("MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets for each process that it starts."""

TASK_COUNTS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
"""By what Slurm and MPI tell the number of tasks that they have started."""


class DistEnv(NamedTuple):
    """A process among all of a run; `local` is of its machine."""

    rank: int
    world_size: int
    local_rank: int
    local_size: int


def find_dist_env(args: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> DistEnv:
    """Give rank and world size of this process, or of the first one that it starts on this machine.

    Args:
        args: num_gpus, num_machines, machine_rank, dist_url of `argument_parser`, None where not given.
        environment: with RANK and its like where torchrun, or a script in its manner, starts each process.

    Raises:
        ConfigError: where numbers are out of range, variables are missing, or the two disagree.
    """
    if dist_env := read_environment(environment):
        _check_options(args, dist_env, environment)
        return dist_env
    num_gpus, num_machines, machine_rank = args.num_gpus or 1, args.num_machines or 1, args.machine_rank or 0
    for option, number in (("--num-gpus", args.num_gpus), ("--num-machines", args.num_machines)):
        if number is not None and number < 1:
            raise ConfigError(f"{option} must be at least 1, got {number}; train.device=cpu trains without a GPU")
    if not 0 <= machine_rank < num_machines:
        raise ConfigError(
            f"--machine-rank must be below --num-machines {num_machines} and not negative, got {machine_rank}"
        )
    return DistEnv(machine_rank * num_gpus, num_machines * num_gpus, 0, num_gpus)


def read_environment(environment: Mapping[str, str] = os.environ) -> DistEnv | None:
    """Read rank and world size that torchrun, or a script in its manner, sets; None without them.

    Raises:
        ConfigError: variables are missing or contradict each other.
    """
    given = {name: environment.get(name, "") for name in (*RANKS, *MEETING_POINT)}
    there = [name for name in RANKS if given[name]]
    if not there:
        return None
    *ranks, port = (int(given[name]) if given[name].isdecimal() else -1 for name in (*RANKS, "MASTER_PORT"))
    dist_env = DistEnv(*ranks)
    if missing := [name for name, value in given.items() if not value]:
        fault = f"without {', '.join(missing)}"
    elif min(*ranks, port) < 0:
        fault = "where whole numbers are expected"
    elif not 0 < port < 2**16:
        fault = "where MASTER_PORT must be 1 to 65535"
    elif not (dist_env.rank < dist_env.world_size and dist_env.local_rank < dist_env.local_size):
        fault = "where ranks must be below their world sizes"
    elif dist_env.world_size % dist_env.local_size:
        fault = "where each machine must have the same number of processes"
    else:
        return dist_env
    shown = " ".join(f"{name}={value}" for name, value in given.items() if value)
    raise ConfigError(
        f"the environment has {shown}, {fault}. Start the processes by torchrun, or unset {', '.join(there)}"
    )


def _check_options(args: argparse.Namespace, dist_env: DistEnv, environment: Mapping[str, str]) -> None:
    """Raise a ConfigError if the command line contradicts torchrun's environment."""
    options: tuple[tuple[str, int | str | None, int | str], ...] = (
        ("--num-gpus", args.num_gpus, dist_env.local_size),
        ("--num-machines", args.num_machines, dist_env.world_size // dist_env.local_size),
        ("--machine-rank", args.machine_rank, dist_env.rank // dist_env.local_size),
        ("--dist-url", args.dist_url, f"tcp://{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"),
    )
    for option, given, found in options:
        if given not in (None, found):
            raise ConfigError(f"{option} is {given}, but torchrun's environment says {found}: leave the option out")


def meeting_point(dist_url: str | None, dist_env: DistEnv) -> tuple[str, int]:
    """Give host and port where processes meet that are started by the command line; port 0 is any that is free.

    Args:
        dist_url: "tcp://HOST:PORT", or None or "auto" on one machine.
        dist_env: of a process.

    Raises:
        ConfigError: for another address, and where several machines have none.
    """
    if dist_url is None or dist_url == "auto":
        if dist_env.world_size > dist_env.local_size:
            raise ConfigError("several machines need --dist-url tcp://HOST:PORT, the same on all, HOST the first one's")
        return "127.0.0.1", 0
    try:
        url = urlsplit(dist_url)
        is_usable = url.scheme == "tcp" and url.hostname and url.port
    except ValueError:  # a port that is no number, or out of range
        is_usable = None
    if not is_usable:
        raise ConfigError(f"--dist-url must be auto or tcp://HOST:PORT with a port from 1 to 65535, got {dist_url!r}")
    return str(url.hostname), int(url.port or 0)


def describe_tasks(environment: Mapping[str, str] = os.environ) -> str:
    """Say that Slurm or MPI started several tasks, of which each is a run by itself; "" where nothing tells so."""
    counts = {name: environment.get(name, "") for name in TASK_COUNTS}
    told = [f"{name}={count}" for name, count in counts.items() if count.isdecimal() and int(count) > 1]
    if not told or environment.get("WORLD_SIZE"):
        return ""
    return (
        f"{', '.join(told)} says that several tasks were started, but without {', '.join(RANKS)} each of them is "
        "a run by itself. See Slurm in docs/launch.md for tasks that train together"
    )


def join_processes(backend: str, max_start: timedelta, max_wait: timedelta) -> None:
    """Open torch's process group with the processes that the environment names.

    Args:
        backend: of torch.distributed, such as "gloo".
        max_start: time limit to find the others.
        max_wait: time limit of each exchange.

    Raises:
        RuntimeError, ValueError: the others cannot be reached; ValueError: a port out of range.
    """
    from torch import distributed

    store, rank, world_size = next(distributed.rendezvous("env://", timeout=max_start))
    # torchrun keeps its store over restarts. Keys of an earlier attempt lead to processes that are gone.
    store = distributed.PrefixStore(f"attempt/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    distributed.init_process_group(backend, None, max_wait, world_size, rank, store)
