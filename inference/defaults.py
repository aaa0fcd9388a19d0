"""Settings of the process that would change how a network is built."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def float32_on_cpu() -> Iterator[None]:
    """Build networks in float32 on the CPU, whatever `torch.set_default_dtype` and `set_default_device` were given.

    The default type belongs to the process: other threads see float32 meanwhile.
    """
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)
