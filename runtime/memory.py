"""Memory of this process that nothing uses any more."""

import ctypes


def release_unused() -> None:
    """Give memory that was freed back to the system, where the C library can (glibc): else it keeps it for later."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
