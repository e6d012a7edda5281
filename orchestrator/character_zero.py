"""ASGI middleware: the character zero is nowhere in an address, since PostgreSQL has none.

So a path with it names nothing, and a query with it asks for nothing that there could be.
"""

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class CharacterZero:
    """Answers such calls; passes on all others."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Look at the address."""
        answer: ASGIApp = self._app
        if scope["type"] == "http" and "\0" in scope["path"]:
            answer = JSONResponse({"detail": "there is no such path"}, 404)
        elif scope["type"] == "http" and b"%00" in scope["query_string"]:
            answer = JSONResponse({"detail": "query: may not have the character zero"}, 422)
        await answer(scope, receive, send)
