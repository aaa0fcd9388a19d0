"""One process or several: the one way in, by --num-gpus or by the environment that torchrun sets."""

import argparse
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
from detectron2.engine import create_ddp_model
from detectron2.utils import comm
from torch import distributed, nn

from engine.distributed.spawn import end_with_parent, run_processes
from engine.interrupts import LostProcess
from runtime.devices import check_number
from runtime.dist_env import MEETING_POINT, DistEnv, find_dist_env, meeting_point, read_environment
from runtime.errors import ConfigError
from runtime.threads import num_cores

BACKENDS = {"cpu": "gloo", "cuda": "nccl", "mps": None}
"""Device -> what several processes talk by; None where there can be one alone."""

TIMEOUT_S = 1800

STATUS_OF_WRONG_USAGE = 2

PAUSE_S = 5.0
"""For the first process to end, and its machine's others with it, after it has said why."""

TORCHRUN = "TORCHELASTIC_RUN_ID"
"""Variable that torchrun sets, and no script in its manner, whose processes may outlive it."""


def launch(
    main: Callable[..., None],
    args: argparse.Namespace,
    device: str,
    main_args: tuple[Any, ...],
    timeout_s: float = TIMEOUT_S,
) -> None:
    """Call `main(*main_args)` in as many processes as asked for: here, or in processes started for it.

    Args:
        main: a module's function; each process on this machine calls it.
        args: see `find_dist_env`; dist_url "tcp://HOST:PORT" is where several machines meet.
        device: "cuda" (one process per GPU, NCCL), "cpu" (gloo) or "mps" (one process).
        main_args: must pickle.
        timeout_s: how long processes wait for one another, at the start and in each exchange.

    Raises:
        ConfigError: for another device, more processes than it allows, or a meeting point that cannot be used.
        SystemExit: with the status of a process that ended by itself; it said why.
        LostProcess: another process ended or cannot be reached, and `main` did not care for that.
        KeyboardInterrupt: by Ctrl-C before the processes were ready for it; they have ended.
    """
    dist_env = find_dist_env(args)
    _check_device(device, dist_env)
    if dist_env.world_size == 1:
        main(*main_args)
    elif read_environment():
        if TORCHRUN in os.environ:  # killed, or told by SIGUSR1, torchrun ends without a word to those it started
            end_with_parent()
        _work(main, main_args, dist_env, device, timeout_s)
    else:
        address = meeting_point(args.dist_url, dist_env)
        # Made here, where an error is told once. The main process's machine has the store, until all have ended.
        store = _open_store(*address, is_master=dist_env.rank == 0, timeout_s=timeout_s)
        arguments = main, main_args, dist_env, device, timeout_s, (address[0], store.port)
        run_processes(_start_work, arguments, dist_env.local_size)


def _check_device(device: str, dist_env: DistEnv) -> None:
    """Raise a ConfigError unless this machine has the device for each of its processes."""
    if device not in BACKENDS:
        raise ConfigError(
            f"train.device must be {', '.join([*BACKENDS][:-1])} or {[*BACKENDS][-1]}, got {device!r}; "
            "CUDA_VISIBLE_DEVICES chooses among GPUs"
        )
    try:
        check_number(device, dist_env.local_size)
    except ConfigError as error:
        advice = "--num-gpus or torchrun's --nproc-per-node set the number; train.device=cpu needs none"
        raise ConfigError(f"train.device={device}: {error}. {advice}") from error
    if dist_env.world_size > 1:
        backend = BACKENDS[device]
        if backend is None:
            raise ConfigError(f"train.device={device} takes one process, got {dist_env.world_size}")
        if not distributed.is_backend_available(backend):
            raise ConfigError(f"train.device={device} with several processes needs {backend}, which this torch lacks")


def _open_store(host: str, port: int, is_master: bool, timeout_s: float) -> distributed.TCPStore:
    """Open the store by which processes find one another, or connect to it."""
    try:
        return distributed.TCPStore(host, port, None, is_master, timedelta(seconds=timeout_s))
    except distributed.DistError as error:
        raise _cannot_meet(f"{host}:{port}", error) from error


def _cannot_meet(where: str, error: Exception) -> ConfigError:
    """What to say where processes do not come together."""
    if "EADDRINUSE" in str(error):
        return ConfigError(f"the port of {where} is taken on this machine: give another one, or end who has it")
    return ConfigError(
        f"the processes did not come together at {where} in time (train.timeout_s). Were all started, each with a rank "
        "of its own? Is that the first machine, its port open? Of several networks, GLOO_SOCKET_IFNAME or "
        f"NCCL_SOCKET_IFNAME names the one to use. {_in_one_line(error)}"
    )


def _in_one_line(error: Exception) -> str:
    """What torch says of an error, without where in its sources, its stack of C++ calls and its guesses."""
    text = str(error).partition("\nException raised from")[0].partition(" This is typically caused by")[0]
    return " ".join(re.sub(r"^\[\S*\] ", "", text).split())


def _start_work(
    i: int,
    main: Callable[..., None],
    main_args: tuple[Any, ...],
    first: DistEnv,
    device: str,
    timeout_s: float,
    address: tuple[str, int],
) -> None:
    """What a process does that was started here as number `i` of its machine."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches all, and one line about it is enough
    os.environ["LOCAL_RANK"] = str(i)  # as torchrun has it, for `exit_with`
    end_with_parent()
    dist_env = first._replace(rank=first.rank + i, local_rank=i)
    if "OMP_NUM_THREADS" not in os.environ:  # torchrun sets it to 1 where it is absent
        torch.set_num_threads(max(1, num_cores() // dist_env.local_size))
    try:
        store = _open_store(*address, is_master=False, timeout_s=timeout_s)
        _work(main, main_args, dist_env, device, timeout_s, store)
    except ConfigError as error:
        exit_with(str(error), STATUS_OF_WRONG_USAGE)
    except LostProcess as error:
        exit_with(str(error), error.status)


def exit_with(message: str, status: int, is_own: bool = False) -> NoReturn:
    """End this process; of those on a machine, the first alone says why.

    Args:
        message: one line.
        status: of the exit.
        is_own: the first may not have it to say: speak where that does not end and take this process with it.
    """
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    # torchrun ends the others with the first to end, and `run_processes` with the first process: that one shall speak.
    if not is_first and (is_own or multiprocessing.parent_process() is None):
        time.sleep(PAUSE_S)
    if is_first or is_own:
        sys.stderr.write(f"{Path(sys.argv[0]).name}: {message}\n")
    sys.exit(status)


def _work(
    main: Callable[..., None],
    main_args: tuple[Any, ...],
    dist_env: DistEnv,
    device: str,
    timeout_s: float,
    store: distributed.Store | None = None,
) -> None:
    """Join the other processes, call `main(*main_args)`, and close this process's connections.

    Left open, gloo's threads abort the process ("terminate called without an active exception", status -6) where it
    ends before the others do.
    """
    if device == "cuda":
        torch.cuda.set_device(dist_env.local_rank)
    timeout = timedelta(seconds=timeout_s)
    backend = BACKENDS[device]
    where = "--dist-url" if store else ":".join(os.environ[name] for name in MEETING_POINT)
    try:
        store = store or _store_of_attempt(timeout)
        # Beside NCCL alone, detectron2 would open a group of its own for objects, with another time limit.
        backends = "cpu:gloo,cuda:nccl" if backend == "nccl" else backend
        distributed.init_process_group(backends, None, timeout, dist_env.world_size, dist_env.rank, store)
        comm.create_local_process_group(dist_env.local_size)
        comm.synchronize()
    except (RuntimeError, ValueError) as error:  # ValueError: a port out of range
        raise _cannot_meet(where, error) from error
    is_done = False
    try:
        with raise_on_lost_peer():
            main(*main_args)
            comm.synchronize()
        is_done = True
    finally:
        # After an error only gloo's: closing those of NCCL may wait for processes that do not come.
        if is_done or backend == "gloo":
            distributed.destroy_process_group()


def _store_of_attempt(timeout: timedelta) -> distributed.Store:
    """Connect to the store that the environment names, by keys of this attempt alone.

    torchrun keeps its store over restarts, and the keys of before lead to processes that are gone.
    """
    store, _, _ = next(distributed.rendezvous("env://", timeout=timeout))
    return distributed.PrefixStore(f"attempt/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


@contextmanager
def raise_on_lost_peer() -> Iterator[None]:
    """Turn errors of exchanges with other processes into `LostProcess`; a decorator as well.

    gloo's are RuntimeErrors that name a file of its sources, those of NCCL and of the store have a class. After one of
    them, no exchange can succeed.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, distributed.DistError) or "gloo/" in str(error)):
            raise
        raise LostProcess(
            f"process {comm.get_rank()} of {comm.get_world_size()} has lost another one, which ended, hangs or cannot "
            f"be reached ({_in_one_line(error)}). What that one says last is the cause; where it says nothing, see "
            "whether its machine is up, its memory ran out, or one step took it longer than train.timeout_s"
        ) from error


def distribute(model: nn.Module) -> nn.Module:
    """Wrap a model for gradient averaging where there are several processes."""
    is_on_cpu = next(model.parameters()).device.type == "cpu"
    devices = {"device_ids": None} if is_on_cpu else {}
    return create_ddp_model(model, gradient_as_bucket_view=True, **devices)


def share_buffers(model: nn.Module) -> None:
    """Give every process the main process's buffers, as a checkpoint holds them.

    BatchNorm's running statistics differ between processes after a training step; without this, each process would
    evaluate its part of the test set with another network.

    Args:
        model: bare, not wrapped.
    """
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)
