"""The application: its parts wired together, and every error answered as one sentence."""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from orchestrator import __version__, files, logs, nodes, pending, status, system, tasks
from orchestrator.body_limit import BodyLimit
from orchestrator.database import Database
from orchestrator.errors import ConfigurationError, Refused
from orchestrator.services import Services
from orchestrator.settings import Settings
from orchestrator.waiters import Waiters

DATABASE_NAME = "orchestrator.db"

_SENTENCES = {404: "there is no such path", 405: "the path does not take this method"}

log = logging.getLogger(__name__)


def create_app(settings: Settings) -> FastAPI:
    """Open the data folder and build the application; `app.state.services` holds its parts.

    Raises ConfigurationError when the data folder cannot be used.
    """
    try:
        files.prepare_folder(settings.data_dir)
    except OSError as error:
        reason = error.strerror
        raise ConfigurationError(f"cannot use data folder {settings.data_dir}: {reason}") from error
    services = Services(settings, Database(settings.data_dir / DATABASE_NAME), Waiters())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        services.database.close()

    app = FastAPI(
        title="Victoria reference orchestrator",
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.services = services
    app.add_middleware(
        BodyLimit,
        limits={
            "/logs": logs.MAX_LOG_BYTES,
            "/upload": settings.max_upload_bytes + files.MULTIPART_OVERHEAD_BYTES,
        },
    )
    # pending comes before tasks: /tasks/pending is not the task named "pending".
    for module in (system, nodes, pending, tasks, files, status, logs):
        app.include_router(module.router)
    app.add_exception_handler(Refused, _answer_refusal)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)
    app.add_exception_handler(Exception, _answer_defect)
    return app


async def _answer_refusal(_: Request, error: Exception) -> JSONResponse:
    code = error.status_code if isinstance(error, Refused) else Refused.status_code
    return JSONResponse({"detail": str(error)}, code)


async def _answer_http_error(_: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        raise error
    detail = _SENTENCES.get(error.status_code, error.detail)
    return JSONResponse({"detail": detail}, error.status_code, headers=error.headers)


async def _answer_invalid(_: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestValidationError):
        raise error
    return JSONResponse({"detail": "; ".join(map(_sentence, error.errors()))}, 422)


async def _answer_nobody(_: Request, error: Exception) -> Response:
    log.debug("client hung up while it sent its body: %s", type(error).__name__)
    return Response(status_code=400)


async def _answer_defect(_: Request, error: Exception) -> JSONResponse:
    # The server logs the traceback; the caller gets none of it.
    del error
    return JSONResponse({"detail": "the server failed to answer; its log says why"}, 500)


def _sentence(error: dict[str, Any]) -> str:
    # The input itself is not repeated: it may hold a secret.
    place: Sequence[str | int] = error["loc"]
    if error["type"] == "json_invalid":
        return "body is not valid JSON"
    field = ".".join(str(step) for step in place[1:]) or str(place[0])
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{field}: {message[:1].lower()}{message[1:]}"
