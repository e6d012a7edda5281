"""ASGI middleware: a body is JSON also if its sender forgot to say so.

`curl -d '{…}'` calls every body a form, unless it is told otherwise.
"""

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send

_UNSAID = frozenset({"", "application/x-www-form-urlencoded"})


class JsonBodies:
    """Corrects such calls; no path takes a form of that kind."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Look at what the body is said to be."""
        if scope["type"] == "http" and Headers(scope=scope).get("content-type", "") in _UNSAID:
            scope = {**scope, "headers": list(scope["headers"])}
            MutableHeaders(scope=scope)["content-type"] = "application/json"
        await self._app(scope, receive, send)
