"""JSON bodies: read, counted before they are parsed, and parsed in a thread if they are large.

Parsing and validating a body of megabytes takes up to a second, in which the event loop would
answer nobody. Nearly all of it holds Python's lock, so there is one such body at a time, and how
many values are in one is limited: the time goes by values, not by bytes.
"""

import json
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from anyio import to_thread
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from orchestrator.errors import TooLarge
from orchestrator.schemas.problems import invalid_sentence
from orchestrator.services import services_of

Body = TypeVar("Body", bound=BaseModel)

PARSED_AT_ONCE_BYTES = 64 * 1024
"""A longer body is parsed in a thread. A shorter one has fewer values than are allowed."""
MAX_VALUES = 70_000
"""In one body, for which Python's lock is held some 20 ms at a time. A log cut to 1 MB, as runners
send it after a 413, has fewer: a message is six values and more than 100 bytes.
"""

_MAX_EXPLAINED = 1000
"""To list more errors than that takes too long."""
_UNREADABLE = "There was an error parsing the body"
_UNSTRUCTURED = bytes(set(range(256)) - set(b'"[{,'))


class JsonRoute(APIRoute):
    """Reads a large body as `read_large` does."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, with another way to a large body."""
        handle = super().get_route_handler()
        model = None if self.body_field is None else self.body_field.field_info.annotation
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return handle

        async def handle_large(request: Request) -> Response:
            return await handle(_Request(request, model))

        return handle_large


class _Request(Request):
    """FastAPI validates what `json` returns, and leaves an instance of the model as it is."""

    def __init__(self, request: Request, model: type[BaseModel]) -> None:
        super().__init__(request.scope, request.receive)
        self._model = model

    async def json(self) -> Any:  # noqa: ANN401 - as Starlette has it
        """Return the body, validated if it is large."""
        if len(await self.body()) <= PARSED_AT_ONCE_BYTES:
            return await super().json()
        return await read_large(self, self._model)


async def read_body(request: Request, model: type[Body]) -> Body:
    """Read a JSON body, as FastAPI does for the other calls.

    Raises:
        RequestValidationError: it is no JSON, or not valid.
        HTTPException: it cannot be decoded, or is large and not valid.
    """
    raw = await request.body()
    is_json = _is_json(request)
    try:
        if is_json and len(raw) > PARSED_AT_ONCE_BYTES:
            return await read_large(request, model)
        content = json.loads(raw) if raw and is_json else raw.decode(errors="replace") or None
    except json.JSONDecodeError as error:
        invalid = {"type": "json_invalid", "loc": ("body", error.pos), "msg": error.msg}
        raise RequestValidationError([invalid]) from error
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, _UNREADABLE) from error
    if content is None:
        raise RequestValidationError([{"type": "missing", "loc": ("body",), "msg": "missing"}])
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise RequestValidationError(_errors(error)) from error


async def read_large(request: Request, model: type[Body]) -> Body:
    """Read a large JSON body in a thread, one at a time.

    Raises:
        json.JSONDecodeError: it is no JSON.
        HTTPException: it has too many values, cannot be decoded, or is not valid.
    """
    raw = await request.body()
    parse = partial(_parse, raw, model)
    return await to_thread.run_sync(parse, limiter=services_of(request.app).large_bodies)


def has_more_values(raw: bytes, limit: int) -> bool:
    """Return whether JSON in UTF-8 has more than so many brackets and commas outside of strings.

    What is not JSON is for the parser to refuse.
    """
    if sum(map(raw.count, (b"[", b"{", b","))) <= limit:
        return False
    # Without what is escaped, each quote begins or ends a string.
    marks = raw.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _UNSTRUCTURED)
    # A mark comes before each key and each value in a list; a key and its value have four quotes.
    if marks.count(b'"') > 4 * limit + 4:
        return True
    return sum(map(len, marks.split(b'"')[::2])) > limit


def _parse(raw: bytes, model: type[Body]) -> Body:
    if json.detect_encoding(raw) not in {"utf-8", "utf-8-sig"}:
        raise HTTPException(400, _UNREADABLE)
    if has_more_values(raw, MAX_VALUES):
        raise HTTPException(TooLarge.status_code, f"body has more than {MAX_VALUES} values")
    try:
        content = json.loads(raw)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, _UNREADABLE) from error
    try:
        return model.model_validate(content)
    except ValidationError as error:
        count = error.error_count()
        errors = _errors(error) if count <= _MAX_EXPLAINED else []
        raise HTTPException(422, invalid_sentence(errors, count)) from error


def _errors(error: ValidationError) -> list[dict[str, Any]]:
    errors = error.errors(include_url=False, include_input=False)
    return [{**one, "loc": ("body", *one["loc"])} for one in errors]


def _is_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    main, _, sub = kind.partition("/")
    return main == "application" and (sub == "json" or sub.endswith("+json"))
