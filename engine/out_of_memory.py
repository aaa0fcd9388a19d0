"""Out of memory in a training run: how it is recognised, and which settings lower it."""

import errno
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from detectron2.utils import comm

from engine.interrupts import TrainingStopped
from runtime.errors import UserError

WORDS = ("out of memory", "can't allocate memory", "alloc_failed", "bad_alloc", "insufficient memory")
"""Lower-case parts of messages by allocators that have no exception class: torch on the CPU, cuBLAS, C++, OpenCV."""

STEP_ADVICE = (
    "Lower dataloader.train.batch_size (raise train.accumulation as much, and a step keeps its samples) or "
    "dataloader.train.dataset.crop_px, or set model.backbone.use_activation_checkpointing=true and "
    "model.decoder.use_activation_checkpointing=true"
)

MAX_SHOWN = 300
"""Characters of an allocator's message."""


class OutOfMemory(TrainingStopped):
    """A process that ran out of memory. Each process raises it by itself.

    Attributes:
        has_whole_steps: False inside an optimiser step, some of whose weights have moved and others not.
    """

    status = 7
    is_shared = False

    def __init__(self, message: str, has_whole_steps: bool = True) -> None:
        super().__init__(message)
        self.has_whole_steps = has_whole_steps


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an exception means that memory could not be allocated, on the CPU or on a GPU."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # A UserError may quote anything, of a file for instance.
    return isinstance(error, MemoryError) or (not isinstance(error, UserError) and bool(_lines_of_allocators(error)))


@contextmanager
def stop_on_out_of_memory(advice: str = STEP_ADVICE, has_whole_steps: bool = True) -> Iterator[None]:
    """Turn errors of allocators in the block into `OutOfMemory`; a decorator as well.

    Args:
        advice: what to do, at the end of the message.
        has_whole_steps: see `OutOfMemory`.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        lines = _lines_of_allocators(error) or str(error).strip().splitlines()[-1:] or [type(error).__name__]
        message = f"process {comm.get_rank()} is out of memory ({lines[0].strip()[:MAX_SHOWN]}). {advice}"
        traceback.clear_frames(error.__traceback__)  # they hold the tensors that filled the memory
        raise OutOfMemory(message, has_whole_steps) from None


def _lines_of_allocators(error: Exception) -> list[str]:
    """List the lines of an error's text that hold words of an allocator."""
    return [line for line in str(error).splitlines() if any(words in line.lower() for words in WORDS)]
