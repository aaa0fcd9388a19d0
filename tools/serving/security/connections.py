"""Limit how many connections are open, and how long each waits for a request."""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 20.0
"""How long a connection may take for the head of its first or next request."""

MAX_CONNECTIONS = 256
"""Open at a time. The guard lets fewer requests run."""


class LimitedConnection(H11Protocol):
    """A connection that is closed if the head of a request does not come in time; uvicorn waits without limit.

    If too many connections are open, the one that has waited longest for a request is closed. Clients that send nothing
    therefore cannot keep others out.
    """

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Wait for the first head."""
        super().connection_made(transport)
        self._watch_head()
        if len(self.connections) > MAX_CONNECTIONS:
            timers = {
                one._head_timer.when(): one
                for one in self.connections
                if isinstance(one, LimitedConnection) and one._head_timer and not one.transport.is_closing()
            }
            timers[min(timers)].timeout_keep_alive_handler()

    def handle_events(self) -> None:
        """Handle what was received; uvicorn calls this after each part and each answer."""
        super().handle_events()
        self._watch_head()

    def _watch_head(self) -> None:
        is_awaited = self.conn.their_state is h11.IDLE
        if is_awaited and self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_S, self.timeout_keep_alive_handler)
        elif not is_awaited and self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
