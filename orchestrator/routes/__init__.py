"""The calls of the API, one file a resource."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import Depends, Path
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute

from orchestrator.routes.bodies import JsonRoute
from orchestrator.schemas.types import Id

NodeId = Annotated[Id, Path(description="The node's id.")]
TaskId = Annotated[Id, Path(description="The task's id.")]
KeyId = Annotated[Id, Path(description="The key's id.")]
TokenId = Annotated[Id, Path(description="The registration token's id.")]


def _forbid_storing(response: Response) -> None:
    response.headers["Cache-Control"] = "no-store"


NO_STORE = Depends(_forbid_storing)
"""For calls whose response has a secret."""


class Route(JsonRoute):
    """Leaves fields without a value out of its responses."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - all of APIRoute's
        super().__init__(*args, **{**options, "response_model_exclude_none": True})


def plain_route(
    path: str, method: str, answer: Callable[[Request], Awaitable[Response]]
) -> StarletteRoute:
    """Return a route of Starlette's own, for a call that a fleet makes all the time.

    FastAPI's routing and dependencies take several times as long as such a call itself. What the
    contract says of it is declared as for any other call, in a function that is never called.
    """
    route = StarletteRoute(path, answer, methods=[method])
    # Starlette adds HEAD to GET, but a poll is no question that may be asked twice.
    route.methods = {method}
    return route
