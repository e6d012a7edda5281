"""The calls of the API, one file a resource."""

import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Path
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute

from orchestrator.schemas.types import Id

Body = TypeVar("Body", bound=BaseModel)

NodeId = Annotated[Id, Path(description="The node's id.")]
TaskId = Annotated[Id, Path(description="The task's id.")]
KeyId = Annotated[Id, Path(description="The key's id.")]
TokenId = Annotated[Id, Path(description="The registration token's id.")]


def _forbid_storing(response: Response) -> None:
    response.headers["Cache-Control"] = "no-store"


NO_STORE = Depends(_forbid_storing)
"""For calls whose response has a secret."""


class Route(APIRoute):
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


async def read_body(request: Request, model: type[Body]) -> Body:
    """Read a JSON body, as FastAPI does for the other calls.

    Raises:
        RequestValidationError: it is no JSON, or not valid.
        HTTPException: it cannot be decoded.
    """
    raw = await request.body()
    try:
        content = (
            json.loads(raw) if raw and _is_json(request) else raw.decode(errors="replace") or None
        )
    except json.JSONDecodeError as error:
        invalid = {"type": "json_invalid", "loc": ("body", error.pos), "msg": error.msg}
        raise RequestValidationError([invalid]) from error
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "There was an error parsing the body") from error
    if content is None:
        raise RequestValidationError([{"type": "missing", "loc": ("body",), "msg": "missing"}])
    try:
        return model.model_validate(content)
    except ValidationError as error:
        errors = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        raise RequestValidationError(errors) from error


def _is_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    main, _, sub = kind.partition("/")
    return main == "application" and (sub == "json" or sub.endswith("+json"))
