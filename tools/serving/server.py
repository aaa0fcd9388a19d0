"""Run the application until a signal ends it."""

import asyncio
import logging
import socket
import time

import uvicorn
from starlette.types import ASGIApp

from tools.serving.prediction_queue import PredictionQueue
from tools.serving.security.connections import LimitedConnection

logger = logging.getLogger(__name__)

ANSWERING_S = 2
"""Time for the last answers; then the page's event streams are cut."""

POLL_S = 0.05


class Server(uvicorn.Server):
    """Serves an application. At the end it refuses new jobs, and lets the running one finish for a while.

    Args:
        app: to serve.
        queue: of its jobs.
        grace_s: how long the running job may go on at the end. It is then answered with status 503.
    """

    def __init__(self, app: ASGIApp, queue: PredictionQueue, grace_s: float = 30.0) -> None:
        config = uvicorn.Config(
            app,
            http=LimitedConnection,
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            timeout_graceful_shutdown=ANSWERING_S,
        )
        super().__init__(config)
        self.queue = queue
        self.grace_s = grace_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End: uvicorn calls this after SIGTERM or SIGINT. A second signal cuts the wait."""
        self.queue.close()
        end_s = time.monotonic() + self.grace_s
        while not self.queue.is_idle() and time.monotonic() < end_s and not self.force_exit:
            await asyncio.sleep(POLL_S)
        self.queue.abandon()
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket.

    Raises:
        OSError: the address is in use, or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise OSError(f"cannot listen at {host}, port {port}: {error.strerror}") from error
