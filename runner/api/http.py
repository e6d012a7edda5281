"""One request to one origin: its deadline, its trust, its answer's size, and a class for a failure.

The only file that imports httpx. Redirects are not followed, and no URL from an answer is asked.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import final

import anyio
import httpx

from runner import __version__
from runner.api.address import proxy_to
from runner.errors import ConfigurationError, Refused, Unauthorised, Unavailable
from runner.timing import DEFAULT_TIMINGS, Timings

MAX_ANSWER_BYTES = 16 << 20
SLOWEST_UPLOAD_BYTES_PER_S = 50_000
"""What is sent gets the more time the longer it is: as long as it takes at this speed."""
_CHUNK_BYTES = 1 << 16
_ENOUGH_BYTES = 4 << 10
_MAX_DETAIL_CHARS = 300
_OTHER_PATIENCE = frozenset({408, 425, 429})
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


@final
class Response:
    """An answer that is 2xx, open; what goes wrong while it is read is classified as well."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response

    def header(self, name: str, default: str = "") -> str:
        """Give a header's text."""
        text: str = self._response.headers.get(name, default)
        return text

    async def decoded(self) -> object:
        """Read all of it, as JSON; None when there is nothing."""
        return _decode(await _body(self._response))

    async def check_begins_as_json(self) -> None:
        """See that JSON is what it is, reading no more of it than that takes.

        Raises:
            Unavailable: it is something else, such as the page of a proxy.
        """
        read = bytearray()
        async with aclosing(self.chunks()) as chunks:
            async for chunk in chunks:
                read += chunk
                if len(read) >= _ENOUGH_BYTES and read.lstrip().startswith((b"{", b"[")):
                    return
                if len(read) >= _ENOUGH_BYTES:
                    break
        _decode(bytes(read))

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Give its bytes as they come in, never unpacked."""
        async for chunk in self._response.aiter_raw():
            yield chunk


@final
class HttpClient:
    """A connection to one origin; use it as an async context manager."""

    def __init__(
        self, url: str, ca_file: Path | None = None, timings: Timings = DEFAULT_TIMINGS
    ) -> None:
        """Prepare to ask what lives at `url`, checked before.

        Raises:
            ConfigurationError: `url` or the proxy before it cannot be asked, or `ca_file` holds no
                certificate.
        """
        self._timings = timings
        proxy = proxy_to(url)
        try:
            base_url = httpx.URL(url + "/")
            base_url.host.encode()  # an international name is decoded here, or fails to be
        except (httpx.InvalidURL, UnicodeError) as error:
            raise ConfigurationError(f"cannot use --orchestrator-url {url!r}: {error}") from error
        self._client = httpx.AsyncClient(
            base_url=base_url,
            verify=_tls(url, ca_file),
            timeout=httpx.Timeout(timings.call_timeout_s, connect=timings.connect_timeout_s),
            limits=httpx.Limits(max_connections=16, keepalive_expiry=60.0),
            headers={
                "User-Agent": f"victoria-runner/{__version__}",
                "Accept": "application/json",
                # A compressed answer could grow without bound when it is opened.
                "Accept-Encoding": "identity",
            },
            follow_redirects=False,
            trust_env=False,  # it would send the keys for a loopback address to a proxy
            proxy=proxy,
        )

    async def __aenter__(self) -> HttpClient:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._client.__aexit__(kind, error, traceback)

    @asynccontextmanager
    async def request(  # noqa: PLR0913 - what a request is made of
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: object = None,
        *,
        held_s: float = 0.0,
        is_download: bool = False,
    ) -> AsyncIterator[Response]:
        """Open an answer that is 2xx; whatever goes wrong until it is read is classified.

        It has the time of a call, and beside that `held_s` for a long poll and what sending the
        body takes. A download has no end to its time, but may stall only so long.

        Raises:
            Refused: it answered 4xx; Unauthorised, 401.
            Unavailable: it could not be reached or understood in time, or is in trouble itself.
        """
        size, told = 0, dict(headers)
        if body is not None:
            size = sum(len(piece) for piece in _encoded(body))
            told |= {"Content-Type": "application/json", "Content-Length": str(size)}
        content = _in_chunks(_encoded(body)) if size else None
        request = self._client.build_request(method, path, headers=told, content=content)
        upload_s = size / SLOWEST_UPLOAD_BYTES_PER_S
        timings = self._timings
        within_s = upload_s + held_s
        within_s += timings.stall_timeout_s if is_download else timings.call_timeout_s
        # The last of a body is sent from the socket's buffer while httpx reads.
        request.extensions["timeout"] = httpx.Timeout(
            within_s, connect=timings.connect_timeout_s
        ).as_dict()
        with _classify_errors(within_s, timings.connect_timeout_s):
            # Beside httpx's own limits, which a body of one byte a second never reaches.
            with anyio.fail_after(None if is_download else within_s):
                response = await self._client.send(request, stream=True)
                try:
                    if not response.is_success:
                        raise _failure(response, _detail(await _body(response)))
                    yield Response(response)
                finally:
                    with anyio.CancelScope(shield=True):
                        await response.aclose()


def _encoded(body: object) -> Iterator[bytes]:
    """Encode what is sent piece by piece: of a log, a second copy would be too much."""
    return (piece.encode() for piece in _ENCODER.iterencode(body))


async def _in_chunks(pieces: Iterable[bytes]) -> AsyncGenerator[bytes, None]:
    chunk = bytearray()
    for piece in pieces:
        chunk += piece
        if len(chunk) >= _CHUNK_BYTES:
            yield bytes(chunk)
            chunk.clear()
    yield bytes(chunk)


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


@contextmanager
def _classify_errors(timeout_s: float, connect_timeout_s: float) -> Iterator[None]:
    try:
        yield
    except httpx.ConnectTimeout as error:
        raise Unavailable(f"no connection within {connect_timeout_s:g} s") from error
    except (TimeoutError, httpx.TimeoutException) as error:
        raise Unavailable(f"no answer within {timeout_s:.0f} s") from error
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
        return Unauthorised(said, detail)
    if response.is_client_error and status not in _OTHER_PATIENCE:
        return Refused(said, status, detail)
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
