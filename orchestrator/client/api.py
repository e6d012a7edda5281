"""Calls of an orchestrator. A refusal, or a missing response, is an error with one sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, cast
from urllib.parse import parse_qsl, quote, urlsplit

import httpx

from orchestrator.client.access import Access
from orchestrator.client.errors import KeyRefused, KeyUnknown, Missing, Refused, Unavailable
from orchestrator.client.text import one_line

Json = dict[str, Any]
Parameters = Mapping[str, Any]

CALL_TIMEOUT_S = 60.0
"""Until a response begins; a list of many tasks, or a file on a slow disk, takes its time."""
CONNECT_TIMEOUT_S = 10.0
PAGE_LENGTH = 1000
_MAX_DETAIL = 2000
_TOO_MANY = 429


class Api:
    """An orchestrator, called with a key."""

    def __init__(self, access: Access) -> None:
        """Call with this URL and key; proxies of the environment are used, but not for loopback."""
        self.url = access.url
        self.http = httpx.Client(
            base_url=access.url,
            headers={"X-API-Key": access.key},
            timeout=httpx.Timeout(CALL_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, write=None),
            trust_env=not access.is_loopback,
            # httpx loads the certificates of the CAs for every client, also for http.
            verify=access.url.startswith("https:"),
        )

    def call(
        self,
        what: str,
        method: str,
        path: str,
        params: Parameters | None = None,
        **request: Any,  # noqa: ANN401 - httpx's own: json, files, headers
    ) -> httpx.Response:
        """Return the response of a call; `what` completes "cannot …". Raises ClientError."""
        with self.reaching(what):
            response = self.http.request(method, path, params=_present(params), **request)
        self.require_success(what, response)
        return response

    def json(
        self,
        what: str,
        method: str,
        path: str,
        params: Parameters | None = None,
        **request: Any,  # noqa: ANN401 - httpx's own
    ) -> Json:
        """Return the object that a call responds with. Raises ClientError."""
        body = self.parsed(what, self.call(what, method, path, params, **request))
        if not isinstance(body, dict):
            self._fail_unreadable(what)
        return body

    def rows(
        self, what: str, path: str, params: Parameters | None = None, limit: int | None = None
    ) -> list[Json]:
        """Return a list, or so many of its entries, following its pages. Raises ClientError."""
        params = {**(params or {}), "limit": limit or PAGE_LENGTH}
        rows: list[Json] = []
        while True:
            response = self.call(what, "GET", path, params)
            page = self._rows_of(what, response)
            rows += page
            following = response.links.get("next", {}).get("url")
            if limit is None and following is None and len(page) == len(rows) == PAGE_LENGTH:
                # Without pages there may be more, and without a limit there is all.
                response = self.call(what, "GET", path, {**params, "limit": None})
                return self._rows_of(what, response)
            if following is None or not page or (limit is not None and len(rows) >= limit):
                return rows[:limit]
            # Only its parameters: the key must not follow a link to another host.
            params = _parsed(following)

    def extension(
        self,
        what: str,
        method: str,
        path: str,
        parent: str,
        **request: Any,  # noqa: ANN401 - httpx's own
    ) -> httpx.Response:
        """Return the response of a call that not every orchestrator has. Raises ClientError.

        `parent` is the path of the task or the node: if that is there, the call is what is missing.
        """
        try:
            return self.call(what, method, path, **request)
        except Missing:
            self.require_extension(what, parent)
            raise

    def extension_json(self, what: str, method: str, path: str, parent: str) -> Json:
        """Return the object that such a call responds with. Raises ClientError."""
        body = self.parsed(what, self.extension(what, method, path, parent))
        if not isinstance(body, dict):
            self._fail_unreadable(what)
        return body

    def require_extension(self, what: str, parent: str) -> None:
        """Raise Missing for a call that was answered with 404 or 405: with the reason for that."""
        with self.reaching(what):
            response = self.http.get(parent)
        if response.is_success:
            raise Missing(f"cannot {what}: this orchestrator does not have that call") from None
        self.require_success(what, response)

    @contextmanager
    def reaching(self, what: str) -> Iterator[None]:
        """Raise Unavailable for what goes wrong on the way to the orchestrator and back."""
        try:
            yield
        except httpx.TimeoutException as error:
            hint = "check the URL and the network"
            if not isinstance(error, httpx.ConnectTimeout):
                hint = "it may have been carried out all the same"
            raise Unavailable(f"cannot {what}: {self.url} does not respond; {hint}") from error
        except httpx.ConnectError as error:
            reason = one_line(str(error))
            hint = "check the URL, and that it runs"
            if "CERTIFICATE_VERIFY_FAILED" in reason:
                hint = "name its CA in SSL_CERT_FILE if it is a private one"
            raise Unavailable(f"cannot reach {self.url}: {reason}; {hint}") from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            reason = one_line(str(error)) or type(error).__name__
            raise Unavailable(
                f"cannot {what}: the connection failed: {reason}; try again"
            ) from error

    def require_success(self, what: str, response: httpx.Response) -> None:
        """Raise ClientError unless the response is a success."""
        if response.is_success:
            return
        status = response.status_code
        if response.is_redirect:
            target = one_line(response.headers.get("location", ""))
            raise Unavailable(f"cannot {what}: {self.url} redirects to {target}; use that URL")
        detail = _detail(response) or f"HTTP {status}"
        if status in {httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED}:
            raise Missing(f"cannot {what}: {detail}")
        if status == httpx.codes.UNAUTHORIZED:
            hint = "run 'victoria-orchestrator login' with another key"
            raise KeyUnknown(f"cannot {what}: {detail}; {hint}")
        if status == httpx.codes.FORBIDDEN:
            raise KeyRefused(f"cannot {what}: {detail}")
        is_full = status == httpx.codes.INSUFFICIENT_STORAGE
        if status == _TOO_MANY or (status >= httpx.codes.INTERNAL_SERVER_ERROR and not is_full):
            seconds = one_line(response.headers.get("retry-after", ""))
            hint = f"try again in {seconds} s" if seconds else "try again later"
            raise Unavailable(f"cannot {what}: {detail}; {hint}")
        raise Refused(f"cannot {what}: {detail}")

    def parsed(self, what: str, response: httpx.Response) -> object:
        """Return what the JSON of a response says. Raises Unavailable."""
        try:
            return cast("object", response.json())
        except ValueError:
            self._fail_unreadable(what)

    def _rows_of(self, what: str, response: httpx.Response) -> list[Json]:
        rows = self.parsed(what, response)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            self._fail_unreadable(what)
        return rows

    def _fail_unreadable(self, what: str) -> NoReturn:
        hint = "check the URL"
        raise Unavailable(f"cannot {what}: {self.url} responds as no orchestrator does; {hint}")


def task_path(task_id: str, *below: str) -> str:
    """Return the path of a task, or of what is below it."""
    return "/".join(["/tasks", *(quote(part, safe="") for part in (task_id, *below))])


def node_path(node_id: str, *below: str) -> str:
    """Return the path of a node, or of what is below it."""
    return "/".join(["/nodes", *(quote(part, safe="") for part in (node_id, *below))])


def node_names(api: Api) -> dict[str, str]:
    """Return the names of the nodes by id; of none if the key may not list them."""
    try:
        nodes = api.rows("list the nodes", "/nodes")
    except (KeyRefused, Refused):
        return {}
    return {str(node.get("id")): str(node.get("name")) for node in nodes}


def each(ids: tuple[str, ...]) -> Iterator[str]:
    """Yield each id once, in order."""
    yield from dict.fromkeys(ids)


def _present(params: Parameters | None) -> Json:
    return {name: value for name, value in (params or {}).items() if value is not None}


def _parsed(link: str) -> Json:
    params: Json = {}
    for name, value in parse_qsl(urlsplit(link).query, keep_blank_values=True):
        params.setdefault(name, []).append(value)
    return params


def _detail(response: httpx.Response) -> str | None:
    try:
        response.read()
        body = response.json()
    except (ValueError, httpx.StreamError):
        return None
    detail = body.get("detail") if isinstance(body, dict) else None
    return None if detail is None else one_line(str(detail))[:_MAX_DETAIL]
