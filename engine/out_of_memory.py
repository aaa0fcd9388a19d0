"""Out of memory in a run: how it is recognised, and which settings lower it."""

import errno

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
    """A process that ran out of memory. Each process raises it by itself."""

    status = 7
    is_shared = False


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception means that memory could not be allocated, on the CPU or on a GPU."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, UserError):  # it may quote anything, such as a file name
        return False
    return isinstance(error, MemoryError) or (isinstance(error, Exception) and bool(allocator_lines(error)))


def allocator_lines(error: BaseException) -> list[str]:
    """List the lines of an error's text that hold words of an allocator."""
    return [line for line in str(error).splitlines() if any(words in line.lower() for words in WORDS)]
