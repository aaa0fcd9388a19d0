"""What the routes of the service share."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from fastapi import Request, Response
from starlette.datastructures import UploadFile

from tools.serving.matting import Answer, Matter
from tools.serving.prediction_queue import PredictionQueue
from tools.serving.security.bodies import BodyLimits


@dataclass(frozen=True)
class Service:
    """The service of one process.

    Attributes:
        matter: mattes, in the thread of the queue.
        queue: of predictions.
        model: what predicts, for people.
        device: where it runs, for people.
        body: limits of a request's body.
    """

    matter: Matter
    queue: PredictionQueue
    model: str
    device: str
    body: BodyLimits

    async def respond(
        self,
        request: Request,
        work: Callable[..., Answer],
        uploads: Mapping[str, UploadFile | None],
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Response:
        """Run a job on the queue and answer with its result.

        Args:
            request: that asks; if its client leaves, a job that has not begun is cancelled.
            work: a method of the matter.
            uploads: part -> file; without a file the part is left out.
            headers: of the answer, beside those of the result.
            options: of `work`.

        Raises:
            RefusedError: the queue is full, the client has left, or the input cannot be used.
        """
        files: dict[str, BinaryIO] = {part: upload.file for part, upload in uploads.items() if upload is not None}
        answer = await self.queue.run(lambda: work(files, **options), lambda: client_left(request))
        return Response(answer.content, media_type=answer.media_type, headers={**answer.headers(), **(headers or {})})


async def client_left(request: Request) -> None:
    """Wait until the client of a request, whose body has been read, leaves."""
    while (await request.receive())["type"] != "http.disconnect":
        await asyncio.sleep(0)
