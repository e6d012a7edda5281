"""ASGI middleware: a body over its path's limit is refused before it is read to its end."""

from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.errors import TooLarge

DEFAULT_LIMIT_BYTES = 1024**2


class BodyLimit:
    """Count what comes in; paths without a limit of their own get the default one."""

    def __init__(self, app: ASGIApp, limits: Mapping[str, int]) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse by the declared length at once, by the real one as the bytes come in."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limits.get(scope["path"], DEFAULT_LIMIT_BYTES)
        sentence = f"body is over the limit of {limit} bytes"
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and int(declared) > limit:
            await JSONResponse({"detail": sentence}, TooLarge.status_code)(scope, receive, send)
            return

        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                # FastAPI lets only this kind through while it reads a body.
                raise HTTPException(TooLarge.status_code, sentence)
            return message

        await self._app(scope, counted, send)
