"""From what ends a process to its one line and its exit status."""

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from detectron2.utils import comm
from torch import distributed

from engine.interrupts import LostProcess, StopRequested, TrainingStopped
from engine.out_of_memory import MAX_SHOWN, STEP_ADVICE, OutOfMemory, allocator_lines, is_out_of_memory
from runtime.errors import ConfigError, UserError, torch_reason

STATUS_OF_WRONG_USAGE = 2

PAUSE_S = 5.0
"""Time for the first process to report the error, which ends the other processes of its machine."""


def as_stop(error: BaseException, memory_advice: str = STEP_ADVICE) -> TrainingStopped | None:
    """Return what an error means for a run: itself if it is a stop, a lost process, out of memory, or None.

    gloo raises RuntimeErrors that name a file of its sources. Errors of NCCL and of the store have a class. After one
    of them, no exchange between the processes can succeed.

    Args:
        error: any error. Tensors of the frames that it came through are freed if memory ran out.
        memory_advice: end of the message for out of memory: what to do.
    """
    if isinstance(error, TrainingStopped):
        return error
    if is_out_of_memory(error):
        lines = allocator_lines(error) or str(error).strip().splitlines()[-1:] or [type(error).__name__]
        traceback.clear_frames(error.__traceback__)  # they hold the tensors that filled the memory
        return OutOfMemory(
            f"process {comm.get_rank()} is out of memory ({lines[0].strip()[:MAX_SHOWN]}). {memory_advice}"
        )
    if isinstance(error, RuntimeError) and (isinstance(error, distributed.DistError) or "gloo/" in str(error)):
        return LostProcess(
            f"process {comm.get_rank()} of {comm.get_world_size()} has lost another one, which ended, hangs or cannot "
            f"be reached ({torch_reason(error)}). What that one says last is the cause; where it says nothing, see "
            "whether its machine is up, its memory ran out, or one step took it longer than train.timeout_s"
        )
    return None


def first_stop(error: BaseException) -> TrainingStopped | None:
    """Return the stop that an error means, or the stop that came first, if saving failed on the way out of that one."""
    first = as_stop(error)
    while first is not None and error.__context__ is not None:
        error = error.__context__
        first = as_stop(error) or first
    return first


@contextmanager
def exit_on_error() -> Iterator[None]:
    """End the process with one line and the status of `main.py`, if a stop or a user's error leaves the block.

    Any other error is a bug: it leaves the block as it is.
    """
    try:
        yield
    except ConfigError as error:  # the first process has it, if any has
        exit_with(str(error), STATUS_OF_WRONG_USAGE)
    except (FileNotFoundError, PermissionError, UserError) as error:
        exit_with(str(error), 1, is_own=True)
    except BaseException as error:
        if (stop := as_stop(error)) is None:
            raise
        is_own = not stop.is_shared and not isinstance(stop, StopRequested | LostProcess)
        exit_with(str(stop), stop.status, is_own)


def exit_with(message: str, status: int, is_own: bool = False) -> NoReturn:
    """End this process. Of the processes on a machine, only the first prints the message.

    Args:
        message: one line.
        status: exit status.
        is_own: whether the first process may not have this error. Then others print it too, unless the first process
            ends them before.
    """
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    # torchrun ends all processes with the first to end, and `run_processes` with process 0: that one shall speak.
    if not is_first and (is_own or multiprocessing.parent_process() is None):
        time.sleep(PAUSE_S)
    if is_first or is_own:
        sys.stderr.write(f"{Path(sys.argv[0]).name}: {message}\n")
    sys.exit(status)
