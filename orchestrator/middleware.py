"""ASGI middleware: what is decided about a request before FastAPI reads it."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.errors import Refused, TooLarge

DEFAULT_LIMIT_BYTES = 1024**2
_WITHOUT_BODY = frozenset({"GET", "HEAD"})
"""No call with these reads one."""


class BodyLimit:
    """Refuses a body over the limit of its path, before it is read to its end."""

    def __init__(self, app: ASGIApp, limits: Mapping[str, int], put_limit: int) -> None:
        """Limit bodies by their path, and all that are sent by PUT to `put_limit` bytes."""
        self._app = app
        self._limits = limits
        self._put_limit = put_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse by Content-Length at once, otherwise as the bytes come in."""
        if scope["type"] != "http" or scope["method"] in _WITHOUT_BODY:
            await self._app(scope, receive, send)
            return
        limit = self._limits.get(scope["path"], DEFAULT_LIMIT_BYTES)
        if scope["method"] == "PUT":
            limit = self._put_limit
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and int(declared) > limit:
            await _refuse_large(limit)(scope, receive, send)
            return

        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise _OverLimit(limit)
            return message

        try:
            await self._app(scope, counted, send)
        except _OverLimit:
            # Another middleware was reading, and nothing is answered yet.
            await _refuse_large(limit)(scope, receive, send)


class _OverLimit(HTTPException):
    """FastAPI lets only HTTPExceptions through while it reads a body."""

    def __init__(self, limit: int) -> None:
        super().__init__(TooLarge.status_code, _over_limit(limit))


def _over_limit(limit: int) -> str:
    return f"body is over the limit of {limit} bytes"


def _refuse_large(limit: int) -> JSONResponse:
    return JSONResponse({"detail": _over_limit(limit)}, TooLarge.status_code)


_NOT_DECLARED = frozenset({"", "application/x-www-form-urlencoded"})


class PlainRequests:
    """Refuses what the database cannot hold, and reads a body without a declared type as JSON.

    PostgreSQL's text cannot hold the character NUL. `curl -d '{…}'` declares a form, which no path
    here takes.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check path and query, and correct the Content-Type."""
        response: ASGIApp = self._app
        if scope["type"] == "http":
            if "\0" in scope["path"]:
                response = JSONResponse({"detail": "there is no such path"}, 404)
            elif b"%00" in scope["query_string"]:
                response = JSONResponse({"detail": "query: may not have the character zero"}, 422)
            elif scope["method"] not in _WITHOUT_BODY and _is_undeclared(scope):
                scope = {**scope, "headers": list(scope["headers"])}
                MutableHeaders(scope=scope)["content-type"] = "application/json"
        await response(scope, receive, send)


def _is_undeclared(scope: Scope) -> bool:
    return Headers(scope=scope).get("content-type", "") in _NOT_DECLARED


Check = Callable[[Request], Awaitable[AbstractContextManager[object]]]
"""Raises Refused if a request does not carry what its path asks for; what it returns is held while
the request is answered.
"""


class RequireKeyBeforeBody:
    """Checks the credential before a body is read.

    FastAPI reads and parses a body before it checks the key. That would let anybody use memory and
    block all other requests meanwhile.
    """

    def __init__(self, app: ASGIApp, check_of: Callable[[str, str], Check | None]) -> None:
        """Check what `check_of` returns for a method and a path; None leaves it to the handler."""
        self._app = app
        self._check_of = check_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse before anything of the body is stored."""
        check = None
        if scope["type"] == "http" and scope["method"] not in _WITHOUT_BODY:
            check = self._check_of(scope["method"], scope["path"])
        if check is None:
            await self._app(scope, receive, send)
            return
        try:
            held = await check(Request(scope))
        except Refused as error:
            # Read to its end: a client that is still sending would miss the response.
            while (message := await receive())["type"] == "http.request":
                if not message.get("more_body", False):
                    break
            response = JSONResponse(
                {"detail": str(error)}, error.status_code, headers=error.headers
            )
            await response(scope, receive, send)
            return
        with held:
            await self._app(scope, receive, send)
