"""Error responses, for handlers to declare in the OpenAPI schema."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from orchestrator.schemas.types import (
    PLAIN,
    PLAIN_WITH_SOMETHING_IN_IT,
    WITH_SOMETHING_IN_IT,
)

SENTENCES = {
    400: ("The body cannot be read.", "there was an error parsing the body"),
    401: ("The credential is missing, unknown or expired.", "unknown or expired API key"),
    403: ("The credential does not permit this call.", "a node key may not do this"),
    404: ("There is no such thing, or not for this caller.", "there is no such task"),
    409: (
        "The state of the task or the key does not permit this.",
        "cannot make the task cancelled: it is success already",
    ),
    410: (
        "No node has the key that was sent beside the registration token.",
        "no node has the key in X-API-Key: register without it, as a new node",
    ),
    413: ("The body is too large.", "body is over the limit of 1048576 bytes"),
    422: ("The request is not valid.", "prompt is missing"),
    429: ("There are too many requests.", "the key is limited to 60 calls a minute"),
    503: (
        "The operator has disabled this, or the database does not respond.",
        "the database does not answer: try again",
    ),
    507: ("The disk is full, or nearly.", "the server's disk has no room for the file"),
}
"""For each status code, what it means, and an example of its detail."""

_MESSAGES = {
    "missing": "is missing",
    "string_type": "must be a string",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "must be a smaller number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a number",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "extra_forbidden": "is not a parameter of this list",
    "too_short": "must have at least {min_length} items",
}
"""By pydantic's type of the error, what to say after the field's name."""

_RETRY_AFTER = {
    "description": "After how many seconds to retry.",
    "schema": {"type": "integer", "minimum": 1},
}


class Problem(BaseModel):
    """The body of every error."""

    detail: str


def problems(*status_codes: int) -> dict[int | str, dict[str, Any]]:
    """Describe error answers to FastAPI's schema."""
    return {code: {"model": Problem} for code in status_codes}


def described_problem(code: int) -> dict[str, Any]:
    """Describe an error's answer in OpenAPI's words."""
    description, detail = SENTENCES[code]
    schema = {"$ref": f"#/components/schemas/{Problem.__name__}"}
    content = {"application/json": {"schema": schema, "example": {"detail": detail}}}
    described: dict[str, Any] = {"description": description, "content": content}
    if code in {429, 503}:
        described["headers"] = {"Retry-After": _RETRY_AFTER}
    return described


_MAX_LISTED = 10
"""Errors of one request that its response names."""


def invalid_sentence(errors: Sequence[Mapping[str, Any]], count: int) -> str:
    """Return one sentence for an invalid request with so many errors: the first ten of them."""
    if not errors:
        return f"body has {count} errors"
    listed = [validation_sentence(error) for error in errors[:_MAX_LISTED]]
    if count > len(listed):
        listed.append(f"and {count - len(listed)} more")
    return "; ".join(listed)


def validation_sentence(error: Mapping[str, Any]) -> str:
    """Return one sentence for an error of pydantic's, without the input, which may be a secret."""
    kind, place = error["type"], error["loc"]
    if kind == "json_invalid":
        return "body is not valid JSON"
    message = _message(kind, str(error["msg"]), error.get("ctx", {}))
    if len(place) == 1 and kind == "value_error":
        # Of several fields; the sentence names them.
        return message
    return f"{_field(place)} {message}"


def _message(kind: str, message: str, context: Mapping[str, Any]) -> str:
    if kind in _MESSAGES:
        return _MESSAGES[kind].format(**context)
    if kind in {"enum", "literal_error"}:
        # Pydantic quotes the values; of an enum's members it shows the repr, with the value in it.
        values = re.findall(r"'([^']*)'", str(context["expected"]))
        return f"must be one of {', '.join(values)}"
    if kind == "string_pattern_mismatch":
        if context["pattern"] in {PLAIN, PLAIN_WITH_SOMETHING_IN_IT}:
            return "must not contain control characters or ones that change the text's direction"
        is_blank_refused = context["pattern"] == WITH_SOMETHING_IN_IT
        return f"must not {'be blank or ' if is_blank_refused else ''}contain the character NUL"
    if kind.startswith("datetime_"):
        return "must be a date and time in ISO 8601"
    text = message.removeprefix("Value error, ")
    text = re.sub(r"^(Input|Value|String|List) should ", "must ", text)
    return f"{text[:1].lower()}{text[1:]}"


def _field(place: Sequence[str | int]) -> str:
    return ".".join(str(step) for step in place[1:]) or str(place[0])
