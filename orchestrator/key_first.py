"""ASGI middleware: a large body is for those alone who show a key that is known here.

FastAPI reads and parses a body before it asks whose it is. With ten megabytes that would let
everybody take up memory by the hundred megabytes, and hold up all others meanwhile.
"""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from orchestrator.errors import Refused


class KeyFirst:
    """Looks at the key of calls to these paths; passes on all others."""

    def __init__(
        self, app: ASGIApp, paths: frozenset[str], check: Callable[[Request], Awaitable[None]]
    ) -> None:
        self._app = app
        self._paths = paths
        self._check = check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse before anything of the body is kept."""
        is_large = scope["type"] == "http" and scope["path"] in self._paths
        if not is_large or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        try:
            await self._check(Request(scope))
        except Refused as error:
            # Read to its end, so that the caller gets to hear the answer.
            while (message := await receive())["type"] == "http.request":
                if not message.get("more_body", False):
                    break
            answer = JSONResponse({"detail": str(error)}, error.status_code, headers=error.headers)
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)
