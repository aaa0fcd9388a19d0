"""Limit the size and the time of request bodies."""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from tools.serving.errors import RefusedError, TooLargeError

DRAIN_S = 1.0
"""How long the rest of a refused body is received."""


@dataclass(frozen=True)
class BodyLimits:
    """Limits of a request's body.

    Attributes:
        max_bytes: of the body.
        patience_s: time for the first bytes, beyond what `least_bytes_per_s` allows.
        least_bytes_per_s: a body that comes slower is refused.
    """

    max_bytes: int = 200_000_000
    patience_s: float = 20.0
    least_bytes_per_s: float = 16_384.0


class LimitedBody:
    """Receives a body within its limits.

    Attributes:
        refusal: why the body was refused; None as long as it is not.
    """

    def __init__(self, receive: Receive, limits: BodyLimits) -> None:
        self.limits = limits
        self.refusal: RefusedError | None = None
        self._receive = receive
        self._answer: Any = None
        self._num_bytes = 0
        self._is_complete = False
        self._started_s = time.monotonic()

    def check_length(self, headers: Headers) -> None:
        """Refuse a body by its stated length, before it is received.

        Raises:
            TooLargeError: it is too long.
        """
        stated = headers.get("content-length", "0")
        if stated.isdecimal() and int(stated) > self.limits.max_bytes:
            raise self._too_large()

    def answers_with(self, answer: Any) -> None:
        """Name whose `is_dropped` is set if the body is refused: what the application then answers is not sent."""
        self._answer = answer

    async def receive(self) -> Message:
        """Receive the next part. After the body, wait for the client to leave without limit."""
        if self._is_complete:
            return await self._receive()
        allowed_s = self.limits.patience_s + self._num_bytes / self.limits.least_bytes_per_s
        try:
            message = await asyncio.wait_for(self._receive(), max(self._started_s + allowed_s - time.monotonic(), 0))
        except TimeoutError:
            self._refuse(RefusedError(408, "the request comes too slowly"))
        if message["type"] == "http.request":
            self._num_bytes += len(message.get("body", b""))
            self._is_complete = not message.get("more_body", False)
            if self._num_bytes > self.limits.max_bytes:
                self._refuse(self._too_large())
        return message

    async def read(self, max_bytes: int) -> bytes:
        """Receive a short body at once.

        Raises:
            RefusedError: it is longer, or comes too slowly.
        """
        content = b""
        while not self._is_complete:
            message = await self.receive()
            if message["type"] != "http.request":
                break
            content += message.get("body", b"")
            if len(content) > max_bytes:
                raise self._too_large()
        return content

    async def drain(self, headers: Headers) -> None:
        """Throw away what is on its way: a client that still sends would not see why it is refused.

        Not from a client that waits for "100 Continue" before it sends, and not for long.
        """
        if "expect" in headers or self.refusal is not None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while not self._is_complete and (message := await self._receive())["type"] == "http.request":
                    self._is_complete = not message.get("more_body", False)

    def _refuse(self, refusal: RefusedError) -> None:
        """End the application's reading by the error that it knows."""
        self.refusal = refusal
        if self._answer is None:
            raise refusal
        self._answer.is_dropped = True
        raise ClientDisconnect from refusal

    def _too_large(self) -> TooLargeError:
        return TooLargeError(f"the request is longer than {self.limits.max_bytes} bytes, the limit of this server")
