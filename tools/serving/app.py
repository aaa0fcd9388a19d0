"""The application: routes, words for errors, OpenAPI page."""

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from runtime.errors import UserError
from tools.serving.api import API_VERSION, make_router
from tools.serving.errors import describe
from tools.serving.rembg_api import describe_faults, make_rembg_router
from tools.serving.service import Service

logger = logging.getLogger(__name__)

DESCRIPTION = "Cut a subject out of a photograph. See docs/serve.md for a client in Python."


def make_app(service: Service) -> FastAPI:
    """Make the application of a service, without the page.

    The OpenAPI page is at /docs; its script and style come from this server.
    """
    app = FastAPIOffline(
        title="Matting", version=API_VERSION, description=DESCRIPTION, redoc_url=None, favicon_url="data:,"
    )
    app.include_router(make_router(service))
    app.include_router(make_rembg_router(service))
    app.add_exception_handler(RequestValidationError, _validation_error)
    for kind in (HTTPException, UserError, OSError, Exception):
        app.add_exception_handler(kind, _error)
    return app


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return _json(request, 422, describe_faults(error.errors()))


async def _error(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, HTTPException):
        # A full disk ends the reading of a form.
        if isinstance(error.__cause__, OSError):
            return _json(request, *describe(error.__cause__))
        return _json(request, error.status_code, str(error.detail))
    status, words = describe(error)
    if status == 500:
        logger.error("%s %r: %s", request.method, request.url.path, words, exc_info=error)
    return _json(request, status, words, getattr(error, "retry_after_s", None))


def _json(request: Request, status: int, words: str, retry_after_s: int | None = None) -> JSONResponse:
    logger.info("%s %r: %s %s", request.method, request.url.path, status, words)
    headers = {"Retry-After": str(retry_after_s)} if retry_after_s else {}
    return JSONResponse({"error": words}, status, headers)
