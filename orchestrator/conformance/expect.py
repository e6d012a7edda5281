"""What rules expect of responses, and the errors that they raise otherwise."""

from typing import Any

import httpx

Json = dict[str, Any]

_OK = 200


class Broken(Exception):
    """The orchestrator breaks a rule; the sentence says how."""


class Absent(Exception):
    """The orchestrator does not have an extension, which it need not have."""


class Skipped(Exception):
    """The rule cannot be tried here; the sentence says why."""


class Stopped(Exception):
    """No rule can be tried: the orchestrator cannot be reached, or refuses a credential."""

    def __init__(self, sentence: str, exit_code: int) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


def call_of(response: httpx.Response) -> str:
    """Return the method and the path that a response belongs to."""
    return f"{response.request.method} {response.request.url.path}"


def json_of(response: httpx.Response) -> Any:  # noqa: ANN401 - any JSON
    """Return the JSON of a response that has to be 200."""
    expect_accepted(call_of(response), response)
    try:
        return response.json()
    except ValueError:
        raise Broken(f"the body of the response to {call_of(response)} is not JSON") from None


def fields_of(response: httpx.Response, *names: str) -> Json:
    """Return the object of a response that has to be 200 and to have these fields."""
    body = json_of(response)
    if not isinstance(body, dict):
        raise Broken(f"the response to {call_of(response)} is not an object")
    expect_fields(f"the response to {call_of(response)}", body, *names)
    return body


def expect_accepted(what: str, response: httpx.Response) -> None:
    """Raise Broken if a call is not answered with 200."""
    if response.status_code != _OK:
        raise Broken(f"{what} is answered with {response.status_code}, not 200")


def expect_refusal(what: str, response: httpx.Response, *codes: int) -> None:
    """Raise Broken if a call is not refused with one of these codes and a `detail`."""
    if response.status_code not in codes:
        expected = " or ".join(map(str, codes))
        raise Broken(f"{what} is answered with {response.status_code}, not {expected}")
    if detail_of(response) is None:
        raise Broken(f"{what} is refused without a detail")


def expect_fields(what: str, body: Json, *names: str) -> None:
    """Raise Broken if something lacks one of these fields."""
    missing = [name for name in names if name not in body]
    if missing:
        raise Broken(f"{what} lacks {', '.join(missing)}")


def expect_equal(what: str, actual: object, expected: object) -> None:
    """Raise Broken if something differs from what is expected."""
    if actual != expected:
        raise Broken(f"{what} is {actual!r}, not {expected!r}")


def detail_of(response: httpx.Response) -> str | None:
    """Return the sentence of a refusal, or None if it has none."""
    try:
        body = response.json()
    except ValueError:
        return None
    return str(body["detail"]) if isinstance(body, dict) and "detail" in body else None
