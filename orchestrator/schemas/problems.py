"""How error answers look, for the handlers to name in the schema that the server shows."""

from typing import Any

from pydantic import BaseModel

SENTENCES = {
    400: ("The body cannot be read.", "there was an error parsing the body"),
    401: ("No credential was shown, or one that does not hold.", "X-API-Key is not known here"),
    403: ("The caller is known and may not do this.", "a node key may not do this"),
    404: ("What the call names is not here, or not for this caller.", "there is no such task"),
    409: (
        "The thing is in a state in which this cannot be done.",
        "cannot make the task cancelled: it is success already",
    ),
    410: (
        "No node has the key that the call carries beside the registration token.",
        "no node has the key in X-API-Key: register without it, as a new node",
    ),
    413: ("The body is over its limit.", "body is over the limit of 1048576 bytes"),
    422: ("Something in the call does not fit.", "prompt: field required"),
    429: ("The caller asks too often.", "the key is limited to 60 calls a minute"),
    503: (
        "Switched off by the operator, or the database does not answer.",
        "the database does not answer: try again",
    ),
    507: ("The disk has no room.", "the server's disk has no room for the file"),
}
"""For each status, what it means everywhere, and a detail as an example."""

_RETRY_AFTER = {
    "description": "In how many seconds to try again.",
    "schema": {"type": "integer", "minimum": 1},
}


class Problem(BaseModel):
    """Every error's body."""

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
