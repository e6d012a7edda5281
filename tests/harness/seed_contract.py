"""Check requests and responses against the seed's contract, tests/contract/seed_contract.yaml.

Strict about what the contract declares: types, formats, enums, required fields, credentials. Calls,
status codes and fields that only our own contract has may be there as well.
"""

import json
import re
import uuid
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import yaml
from jsonschema import Draft4Validator, FormatChecker

from tests.harness.server import Request

PATH = Path(__file__).parents[1] / "contract" / "seed_contract.yaml"

_JSON_TYPE = "application/json"
_ANY_UUID = str(uuid.UUID(int=0))
_DATE_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)")

_formats = FormatChecker(formats=["uuid"])


class Violation(AssertionError):
    """A request or a response does not fit the seed's contract."""


Message = Request  # a request; or a response, with the method and the target that it responds to


def check_request(message: Message, known_ids: Collection[str] = ()) -> None:
    """Raise Violation if the request does not fit; a call that the seed lacks always does.

    `known_ids` stand for UUIDs: the short ids that a test's own orchestrator has handed out.
    """
    _raise_for(message, "request", _request_problems(message, known_ids))


def check_response(message: Message, status: int) -> None:
    """Raise Violation if the response to this method and target does not fit."""
    _raise_for(message, f"response {status}", _response_problems(message, status))


def declares(method: str, target: str, status: int) -> bool:
    """Return whether the seed declares this response with a body that can be checked."""
    operation, _ = _operation(method, target)
    return bool(operation.get("responses", {}).get(str(status), {}).get("content"))


def _raise_for(message: Message, what: str, problems: Iterator[str]) -> None:
    if text := "; ".join(problems):
        raise Violation(
            f"{message.method} {message.target}: the {what} does not fit the seed's contract: "
            f"{text}; body: {message.body[:1000]!r}"
        )


def _request_problems(message: Message, known_ids: Collection[str]) -> Iterator[str]:
    operation, parameters = _operation(message.method, message.target)
    schemes = _contract()["components"]["securitySchemes"]
    accepted = [
        [schemes[name]["name"].lower() for name in alternative]
        for alternative in operation.get("security", [])
    ]
    if accepted and not any(all(map(message.headers.get, names)) for names in accepted):
        yield f"none of its credentials is there: {accepted}"
    for parameter in operation.get("parameters", []):
        value = parameters.get(parameter["name"])
        if value is not None and value not in known_ids:
            yield from _problems(value, parameter["schema"], parameter["name"])
    content = operation.get("requestBody", {}).get("content", {})
    if _JSON_TYPE in content:
        body = _loaded(message.body)
        if isinstance(body, dict):  # ids stand at the top of every body that a node sends
            for name, value in body.items():
                body[name] = _ANY_UUID if isinstance(value, str) and value in known_ids else value
        yield from _problems(body, content[_JSON_TYPE]["schema"])


def _response_problems(message: Message, status: int) -> Iterator[str]:
    operation, _ = _operation(message.method, message.target)
    content = operation.get("responses", {}).get(str(status), {}).get("content")
    if not content:
        return
    sent = message.headers.get("content-type", "").partition(";")[0]
    if sent not in content:
        yield f"Content-Type is {sent!r}, not one of {list(content)}"
    elif sent == _JSON_TYPE:
        yield from _problems(_loaded(message.body), content[sent]["schema"])


def _problems(value: object, schema: Mapping[str, Any], place: str = "body") -> Iterator[str]:
    for error in Draft4Validator(schema, format_checker=_formats).iter_errors(value):
        # What may be null is one of two schemas: the errors under each say what is wrong.
        for cause in error.context or [error]:
            path = ".".join([place, *map(str, cause.absolute_path)])
            yield f"{path}: {cause.message[:300]}"


def _loaded(body: bytes) -> object:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(body, parse_constant=refuse)
    except ValueError as error:
        raise Violation(f"the body is not JSON: {error}; it is {body[:1000]!r}") from error


def _operation(method: str, target: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the operation and its path's parameters; an empty one for a call the seed lacks."""
    path = urlsplit(target).path
    for pattern, operations in _paths():
        if match := pattern.fullmatch(path):
            values = {name: unquote(value) for name, value in match.groupdict().items()}
            return operations.get(method.lower(), {}), values
    return {}, {}


@cache
def _paths() -> list[tuple[re.Pattern[str], dict[str, Any]]]:
    """Return a pattern for each path, with its operations; those without parameters first."""
    paths = sorted(_contract()["paths"].items(), key=lambda item: item[0].count("{"))
    result = []
    for path, operations in paths:
        shared = operations.get("parameters", [])
        own = {
            method: {**operation, "parameters": shared + operation.get("parameters", [])}
            for method, operation in operations.items()
            if method != "parameters"
        }
        result.append((re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path)), own))
    return result


@cache
def _contract() -> dict[str, Any]:
    document = yaml.safe_load(PATH.read_text(encoding="utf-8"))
    return cast("dict[str, Any]", _resolved(document, document))


def _resolved(part: Any, document: dict[str, Any]) -> Any:  # noqa: ANN401 - any part of a YAML file
    """Return the part with each $ref replaced by what it names, and nullable as JSON Schema has it.

    The contract has no circular references.
    """
    if isinstance(part, list):
        return [_resolved(item, document) for item in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        named: Any = document
        for name in part["$ref"].removeprefix("#/").split("/"):
            named = named[name]
        return _resolved(named, document)
    whole = {name: _resolved(value, document) for name, value in part.items()}
    if whole.pop("nullable", False) is True:
        return {"anyOf": [{"type": "null"}, whole]}
    return whole


def _is_date_time(value: object) -> bool:
    if not isinstance(value, str):
        return True
    if match := _DATE_TIME.fullmatch(value):
        # Python 3.10 reads no Z, and fractions of three or six digits only.
        datetime.fromisoformat(match[1] + match[3].replace("Z", "+00:00"))
    return match is not None


_formats.checks("date-time", raises=ValueError)(_is_date_time)
