"""One process or several: the one way in, and what several processes share."""

import argparse
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from detectron2.engine import create_ddp_model
from detectron2.engine import launch as spawn
from detectron2.utils import comm
from torch import nn
from torch.multiprocessing.spawn import ProcessExitedException

from engine.config import ConfigError

DEVICES = ("cpu", "cuda")


def launch(main: Callable[..., None], args: argparse.Namespace, device: str, main_args: tuple[Any, ...]) -> None:
    """Call `main(*main_args)` in as many processes as the command line asks for.

    Args:
        main: a module's function; each process on this machine calls it.
        args: of detectron2's argument parser: num_gpus, num_machines, machine_rank, dist_url.
        device: "cuda" (one process per GPU, NCCL) or "cpu" (gloo).
        main_args: must pickle.

    Raises:
        ConfigError: for another device, or where this machine has fewer GPUs than asked for.
        SystemExit: with the status of a process that ended by itself; it said why.
        KeyboardInterrupt: by Ctrl-C, when the other processes have ended.
    """
    if device not in DEVICES:
        raise ConfigError(
            f"train.device must be {' or '.join(DEVICES)}, got {device!r}; CUDA_VISIBLE_DEVICES chooses among GPUs"
        )
    if device == "cuda" and args.num_gpus > torch.cuda.device_count():
        raise ConfigError(
            f"--num-gpus {args.num_gpus}, but torch finds {torch.cuda.device_count()} CUDA devices; "
            "train.device=cpu runs without"
        )
    try:
        with hidden_gpus() if device == "cpu" else nullcontext():
            processes = args.num_gpus, args.num_machines, args.machine_rank, args.dist_url
            spawn(leave_together, *processes, (main, *main_args))
    except ProcessExitedException as error:
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        for process in multiprocessing.active_children():  # the signal may have come to this one alone
            process.terminate()
        raise


def leave_together(main: Callable[..., None], *main_args: Any) -> None:
    """Call `main(*main_args)` and close this process's connections to the others.

    Left open, gloo's threads abort the process ("terminate called without an active exception", status -6) where it
    ends before the others do.
    """
    if multiprocessing.parent_process() is not None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches all, and one line about it is enough
    is_done = False
    try:
        main(*main_args)
        comm.synchronize()
        is_done = True
    finally:
        # After an error only gloo's: closing those of NCCL may wait for processes that do not come.
        if comm.get_world_size() > 1 and (is_done or torch.distributed.get_backend() == "gloo"):
            torch.distributed.destroy_process_group()


@contextmanager
def hidden_gpus() -> Iterator[None]:
    """Start processes that see no GPU: detectron2 chooses NCCL wherever it sees one, and NCCL has no CPU tensors."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        yield
    finally:
        if visible is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = visible


def distribute(model: nn.Module) -> nn.Module:
    """Wrap a model for gradient averaging where there are several processes."""
    is_on_cpu = next(model.parameters()).device.type == "cpu"
    return create_ddp_model(model, **({"device_ids": None} if is_on_cpu else {}))


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
