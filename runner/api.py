"""The orchestrator's wire: one method a call, every failure classified, nothing retried here.

The only file that imports httpx. The node key and the registration token go to the configured
origin alone: redirects are not followed, and no URL from an answer is ever asked.
"""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TypeGuard, final
from urllib.parse import quote

import anyio
import httpx

from runner import __version__
from runner.errors import ConfigurationError, Refused, Unauthorised, Unavailable
from runner.settings import Secret

CALL_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 10.0
STALL_TIMEOUT_S = 60.0
MAX_ANSWER_BYTES = 16 << 20
_CHUNK_BYTES = 1 << 16
_MAX_DETAIL_CHARS = 300
_HEADER_SAFE = re.compile(r"[\x21-\x7e]+")
_FINAL = ("success", "error", "cancelled")
_OTHER_PATIENCE = frozenset({408, 425, 429})


@dataclass(frozen=True)
class Identity:
    """Who the runner is to the orchestrator."""

    node_id: str
    api_key: Secret


@dataclass(frozen=True)
class Offer:
    """The answer to a request for work."""

    assignment: object
    """The assignment as it came, unchecked; None when there is no work."""
    was_held: bool
    """The orchestrator held the request, so that it may be asked again at once."""


@dataclass(frozen=True)
class Download:
    """A file on its way: `size` in bytes when the orchestrator has told it."""

    size: int | None
    chunks: AsyncIterator[bytes]


@final
class Orchestrator:
    """A connection to one orchestrator; use it as an async context manager."""

    def __init__(self, url: str, ca_file: Path | None = None) -> None:
        """Prepare to talk to the orchestrator at `url`, checked before.

        Raises:
            ConfigurationError: `url` cannot be asked, or `ca_file` holds no certificate.
        """
        self.url = url
        try:
            base_url = httpx.URL(url + "/")
            base_url.host.encode()  # an international name is decoded here, or fails to be
        except (httpx.InvalidURL, UnicodeError) as error:
            raise ConfigurationError(f"cannot use --orchestrator-url {url!r}: {error}") from error
        self._client = httpx.AsyncClient(
            base_url=base_url,
            verify=_tls(url, ca_file),
            timeout=httpx.Timeout(CALL_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            limits=httpx.Limits(max_connections=16, keepalive_expiry=60.0),
            headers={
                "User-Agent": f"victoria-runner/{__version__}",
                "Accept": "application/json",
                # A compressed answer could grow without bound when it is opened.
                "Accept-Encoding": "identity",
            },
            follow_redirects=False,
        )

    async def __aenter__(self) -> Orchestrator:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._client.__aexit__(kind, error, traceback)

    async def health(self) -> Mapping[str, Any]:
        """Ask how it is; the answer may carry `version` and `timestamp`."""
        return _object(await self._call("GET", "health", {}))

    async def register(self, token: Secret, node: Mapping[str, object]) -> Identity:
        """Make this host a node, described in the API's own field names.

        Raises:
            Unauthorised: the token is wrong.
            Unavailable: as everywhere; `status` is 503 when registration is disabled.
        """
        answer = _object(
            await self._call("POST", "register", {"X-Registration-Token": token.reveal()}, node)
        )
        node_id, api_key = answer.get("id"), answer.get("api_key")
        if not _is_header_safe(node_id) or not _is_header_safe(api_key):
            raise Unavailable("its answer to a registration has no usable id or api_key")
        return Identity(node_id, Secret(api_key))

    async def heartbeat(self, identity: Identity, body: Mapping[str, object]) -> frozenset[str]:
        """Say that the node lives; give the ids of its tasks that were cancelled."""
        answer = await self._call(
            "POST", "nodes/heartbeat", _key(identity), {"node_id": identity.node_id, **body}
        )
        cancelled = answer.get("cancelled_task_ids") if isinstance(answer, Mapping) else None
        if not isinstance(cancelled, list):
            return frozenset()
        return frozenset(task_id for task_id in cancelled if isinstance(task_id, str))

    async def pending(self, identity: Identity, wait_s: int) -> Offer:
        """Ask for work; the orchestrator may hold the request for `wait_s` seconds (RFC 7240)."""
        headers = {**_key(identity), "Prefer": f"wait={wait_s}"}
        async with self._request(
            "GET", "tasks/pending", headers, timeout_s=CALL_TIMEOUT_S + wait_s
        ) as response:
            applied = response.headers.get("Preference-Applied", "")
            return Offer(_decode(await _body(response)), "wait" in applied.lower())

    async def report(self, identity: Identity, path: str, body: Mapping[str, object]) -> str | None:
        """Hand in what is for `status` or `logs`; give the task's standing status if it is told.

        Only `cancelled` is believed of an answer that does not name the task: another word may as
        well say how the request went.
        """
        answer = await self._call("POST", path, _key(identity), body)
        if not isinstance(answer, Mapping):
            return None
        standing = answer.get("status")
        is_named = body.get("task_id") in (answer.get("task_id"), answer.get("job_id"))
        return standing if standing == "cancelled" or (is_named and standing in _FINAL) else None

    @asynccontextmanager
    async def download(self, identity: Identity, name: str) -> AsyncIterator[Download]:
        """Open a file of the task that this node holds; the connection may stall for a minute."""
        path = "files/" + quote(name, safe="")
        async with self._request("GET", path, _key(identity), timeout_s=None) as response:
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise Unavailable("it compressed a file that was asked for as it is")
            length = response.headers.get("Content-Length", "")
            async with aclosing(_chunks(response)) as chunks:
                yield Download(int(length) if length.isdecimal() else None, chunks)

    async def _call(
        self, method: str, path: str, headers: Mapping[str, str], body: object = None
    ) -> object:
        async with self._request(method, path, headers, body) as response:
            return _decode(await _body(response))

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: object = None,
        *,
        timeout_s: float | None = CALL_TIMEOUT_S,
    ) -> AsyncIterator[httpx.Response]:
        """Open an answer that is 2xx; whatever goes wrong until it is read is classified."""
        read_s = STALL_TIMEOUT_S if timeout_s is None else timeout_s
        request = self._client.build_request(
            method,
            path,
            headers=dict(headers),
            json=body,
            timeout=httpx.Timeout(CALL_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, read=read_s),
        )
        with _classified(read_s):
            # Beside httpx's own limits, which a body of one byte a second never reaches.
            with anyio.fail_after(timeout_s):
                response = await self._client.send(request, stream=True)
                try:
                    if not response.is_success:
                        raise _failure(response, _detail(await _body(response)))
                    yield response
                finally:
                    with anyio.CancelScope(shield=True):
                        await response.aclose()


def _tls(url: str, ca_file: Path | None) -> ssl.SSLContext:
    if url.startswith("http://"):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody, and is not asked
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"cannot use --ca-file {ca_file}: it holds no PEM certificate"
            ) from error
    return context


def _is_header_safe(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and _HEADER_SAFE.fullmatch(value) is not None


def _key(identity: Identity) -> dict[str, str]:
    return {"X-API-Key": identity.api_key.reveal()}


@contextmanager
def _classified(timeout_s: float) -> Iterator[None]:
    try:
        yield
    except httpx.ConnectTimeout as error:
        raise Unavailable(f"no connection within {CONNECT_TIMEOUT_S:g} s") from error
    except (TimeoutError, httpx.TimeoutException) as error:
        raise Unavailable(f"no answer within {timeout_s:g} s") from error
    except httpx.HTTPError as error:
        raise Unavailable(_reason(error)) from error
    except httpx.InvalidURL as error:
        raise Unavailable("its address cannot be asked") from error


def _reason(error: BaseException) -> str:
    """Find the system's own word in the chain of an error, such as "Connection refused"."""
    seen: list[BaseException] = [error]
    for link in seen:
        if isinstance(link, ssl.SSLCertVerificationError):
            return f"its TLS certificate is not trusted: {link.verify_message}"
        if isinstance(link, ssl.SSLError):
            return f"TLS failed: {link.reason or link}"
        if isinstance(link, socket.gaierror):
            return f"cannot resolve its name: {link.strerror}"
        if isinstance(link, OSError) and link.errno is not None:
            return os.strerror(link.errno)  # asyncio puts a sentence of its own into strerror
        linked = [link.__cause__, link.__context__, *getattr(link, "exceptions", ())]
        seen += [other for other in linked if other is not None and other not in seen]
    return str(error) or type(error).__name__


async def _chunks(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    async for chunk in response.aiter_raw():
        yield chunk


async def _body(response: httpx.Response) -> bytes:
    """Read an answer up to a limit, never unpacking it."""
    parts: list[bytes] = []
    size = 0
    async for chunk in response.aiter_raw(_CHUNK_BYTES):
        size += len(chunk)
        if size > MAX_ANSWER_BYTES:
            raise Unavailable(f"its answer is longer than {MAX_ANSWER_BYTES >> 20} MiB")
        parts.append(chunk)
    return b"".join(parts)


def _decode(body: bytes) -> object:
    if not body.strip():
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Unavailable("its answer is no JSON; is this the orchestrator's address?") from error


def _object(answer: object) -> Mapping[str, Any]:
    if not isinstance(answer, Mapping):
        raise Unavailable("its answer is no JSON object; is this the orchestrator's address?")
    return answer


def _detail(body: bytes) -> str | None:
    try:
        answer = _decode(body)
    except Unavailable:
        return None
    detail = answer.get("detail") if isinstance(answer, Mapping) else None
    if detail is None:
        return None
    text = detail if isinstance(detail, str) else json.dumps(detail)
    printable = "".join(c if c.isprintable() else " " for c in text[: 2 * _MAX_DETAIL_CHARS])
    return " ".join(printable.split())[:_MAX_DETAIL_CHARS]


def _failure(response: httpx.Response, detail: str | None) -> Refused | Unavailable:
    status = response.status_code
    said = f"HTTP {status}" + (f": {detail}" if detail else "")
    if status == httpx.codes.UNAUTHORIZED:
        return Unauthorised(said)
    if response.is_client_error and status not in _OTHER_PATIENCE:
        return Refused(said, status)
    if response.is_redirect:
        said += ", a redirect, which is not followed; give its final address as --orchestrator-url"
    return Unavailable(
        said,
        retry_after_s=_retry_after_s(response.headers.get("Retry-After")),
        status=status,
        detail=detail,
    )


def _retry_after_s(value: str | None) -> float | None:
    """Read Retry-After in either of its forms (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return max(0.0, (moment - datetime.now(timezone.utc)).total_seconds())
