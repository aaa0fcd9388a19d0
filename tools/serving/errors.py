"""Which HTTP status and which words an error gets."""

import errno
from uuid import uuid4

from inference.batch import NO_ROOM, is_out_of_memory
from inference.memory import MemoryLimitError
from runtime.errors import UserError, one_line
from runtime.optional_packages import MissingExtraError

CLIENT_LEFT = 499
"""Status of a request whose client has left; nobody reads it."""


class RefusedError(UserError):
    """A request that is refused.

    Args:
        status: of HTTP.
        reason: what is wrong and what to do.
        retry_after_s: when to come back, for status 503.
    """

    def __init__(self, status: int, reason: str, retry_after_s: int | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.retry_after_s = retry_after_s


class TooLargeError(RefusedError):
    """An image of more pixels, or a request of more bytes, than the server takes."""

    def __init__(self, reason: str) -> None:
        super().__init__(413, reason)


def describe(error: BaseException) -> tuple[int, str]:
    """Choose the status of an error, and the words that a client may read.

    Returns: the status, and one line. Of a bug, the line has an id that the caller logs with the traceback.
    """
    if isinstance(error, RefusedError):
        return error.status, one_line(error)
    if isinstance(error, OSError) and error.errno in (*NO_ROOM, errno.EFBIG):
        return 507, "the server's disk for temporary files is full: try again later, or send a smaller image"
    if isinstance(error, MissingExtraError):
        return 501, one_line(error)
    if isinstance(error, MemoryLimitError):
        return 413, one_line(error)
    if isinstance(error, UserError):
        return 422, one_line(error)
    if is_out_of_memory(error):
        return 413, "the server has not enough memory for this image: reduce the image"
    return 500, f"an error of the server; its log has the details under {uuid4().hex[:12]}"
