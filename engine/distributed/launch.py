"""Call a function in one process or several, started by --num-gpus or by torchrun."""

import argparse
import os
import signal
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from detectron2.engine import create_ddp_model
from detectron2.utils import comm
from torch import distributed, nn

from engine.distributed.fsdp import is_sharded
from engine.distributed.spawn import end_with_parent, run_processes
from engine.stops import as_stop, exit_on_error
from runtime.devices import check_num_devices
from runtime.dist_env import (
    MEETING_POINT,
    RANKS,
    DistEnv,
    find_dist_env,
    join_processes,
    meeting_point,
    read_environment,
)
from runtime.errors import ConfigError, torch_reason
from runtime.threads import num_cores

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl", "mps": ""}
"""Device -> backend of several processes, "" for none. With NCCL alone, detectron2 would open a group of its own for
objects, with another time limit.
"""

TIMEOUT_S = 1800

TORCHRUN = "TORCHELASTIC_RUN_ID"
"""Variable that torchrun sets. Other scripts that set ranks do not, and their processes may outlive them."""


def launch(
    main: Callable[..., None],
    args: argparse.Namespace,
    device: str,
    main_args: tuple[Any, ...],
    timeout_s: float = TIMEOUT_S,
) -> None:
    """Call `main(*main_args)` in as many processes as asked for: in this one, or in processes started for it.

    torch's `elastic_launch` is not used: it kills processes 30 s after a signal, while they may write a checkpoint.

    Args:
        main: function of a module; each process on this machine calls it.
        args: see `find_dist_env`; dist_url "tcp://HOST:PORT" is where several machines meet.
        device: "cuda" (one process per GPU, NCCL), "cpu" (gloo) or "mps" (one process).
        main_args: must pickle.
        timeout_s: how long processes wait for each other, at the start and in each exchange.

    Raises:
        ConfigError: unknown device, more processes than it allows, or processes that do not meet.
        SystemExit: with the status of a started process that ended by itself; it printed why.
        LostProcess: another process ended or cannot be reached, and `main` did not handle that.
        KeyboardInterrupt: Ctrl-C before the started processes were ready for it; they have ended.
    """
    dist_env = find_dist_env(args)
    _check_device(device, dist_env)
    if dist_env.world_size == 1:
        main(*main_args)
        return
    if read_environment():
        if TORCHRUN in os.environ:  # if torchrun is killed, it does not end the processes that it started
            end_with_parent()
        _work(main, main_args, dist_env, device, timeout_s)
        return
    host, port = meeting_point(args.dist_url, dist_env)
    if dist_env.rank == 0:  # the first machine's starting process has the store until all have ended
        try:
            store = distributed.TCPStore(host, port, None, True, timedelta(seconds=timeout_s), False)
        except distributed.DistError as error:
            raise _cannot_meet(f"{host}:{port}", error) from error
        port = store.port
    arguments = main, main_args, dist_env, device, timeout_s, (host, str(port))
    run_processes(_start_work, arguments, dist_env.local_size)


def _check_device(device: str, dist_env: DistEnv) -> None:
    """Raise a ConfigError unless this machine has the device for each of its processes."""
    if device not in BACKENDS:
        raise ConfigError(
            f"train.device must be cpu, cuda or mps, got {device!r}; CUDA_VISIBLE_DEVICES chooses among GPUs"
        )
    try:
        check_num_devices(device, dist_env.local_size)
    except ConfigError as error:
        advice = "--num-gpus or torchrun's --nproc-per-node set the number; train.device=cpu needs none"
        raise ConfigError(f"train.device={device}: {error}. {advice}") from error
    if dist_env.world_size > 1 and not BACKENDS[device]:
        raise ConfigError(f"train.device={device} takes one process, got {dist_env.world_size}")


def _start_work(
    i: int,
    main: Callable[..., None],
    main_args: tuple[Any, ...],
    first: DistEnv,
    device: str,
    timeout_s: float,
    address: tuple[str, str],
) -> None:
    """Run process number `i` of those that `launch` has started on this machine, as if torchrun had started it."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches all, and one line about it is enough
    end_with_parent()
    dist_env = first._replace(rank=first.rank + i, local_rank=i)
    os.environ |= dict(zip((*RANKS, *MEETING_POINT), (*map(str, dist_env), *address), strict=True))
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # the store exists: rank 0 need not open one
    if "OMP_NUM_THREADS" not in os.environ:  # torchrun sets it to 1 if it is absent
        torch.set_num_threads(max(1, num_cores() // dist_env.local_size))
    with exit_on_error():
        _work(main, main_args, dist_env, device, timeout_s)


def _work(
    main: Callable[..., None], main_args: tuple[Any, ...], dist_env: DistEnv, device: str, timeout_s: float
) -> None:
    """Join the other processes, call `main(*main_args)`, and close this process's connections.

    If they stay open, gloo's threads abort a process that ends before the others ("terminate called without an active
    exception", status -6).
    """
    if device == "cuda":
        torch.cuda.set_device(dist_env.local_rank)
    timeout = timedelta(seconds=timeout_s)
    try:
        join_processes(BACKENDS[device], timeout, timeout)
        comm.create_local_process_group(dist_env.local_size)
        comm.synchronize()
    except (RuntimeError, ValueError) as error:
        raise _cannot_meet(":".join(os.environ[name] for name in MEETING_POINT), error) from error
    is_done = False
    try:
        main(*main_args)
        comm.synchronize()
        is_done = True
    except RuntimeError as error:
        if (stop := as_stop(error)) is None:
            raise
        raise stop from error
    finally:
        # After an error only gloo's: closing those of NCCL may wait for processes that do not come.
        if is_done or device == "cpu":
            distributed.destroy_process_group()


def _cannot_meet(where: str, error: Exception) -> ConfigError:
    """Return the error to raise if processes do not come together."""
    if "EADDRINUSE" in str(error):
        return ConfigError(f"the port of {where} is taken on this machine: give another one, or end who has it")
    return ConfigError(
        f"the processes did not come together at {where} in time (train.timeout_s). Were all started, each with a rank "
        "of its own? Is that the first machine, its port open? Of several networks, GLOO_SOCKET_IFNAME or "
        f"NCCL_SOCKET_IFNAME names the one to use. {torch_reason(error)}"
    )


def distribute(model: nn.Module) -> nn.Module:
    """Wrap a model for gradient averaging if there are several processes and it is not sharded."""
    if is_sharded(model):
        return model
    is_on_cpu = next(model.parameters()).device.type == "cpu"
    devices = {"device_ids": None} if is_on_cpu else {}
    return create_ddp_model(model, gradient_as_bucket_view=True, **devices)


def share_buffers(model: nn.Module) -> None:
    """Give every process the main process's buffers, as a checkpoint holds them.

    BatchNorm's running statistics differ between processes after a training step. Without this, each rank would
    evaluate its shard of the test set with another network.

    Args:
        model: bare, not wrapped.
    """
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)
