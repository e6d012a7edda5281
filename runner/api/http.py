"""HTTP to one origin: TLS, proxy, deadlines, size limits, and an error class for each failure.

The only file that imports httpx. Redirects are not followed, and no URL in a response is requested.

A proxy in front of the orchestrator may refuse in its place while that is being replaced. So a
refusal is the orchestrator's at once only with a JSON `detail`, and never if it is a web page;
401, 403 and the like with anything else are believed once they have lasted for ten minutes.
"""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TypeAlias, final

import anyio
import httpx

from runner import __version__
from runner.api.address import proxy_to, unusable_proxy
from runner.errors import (
    ConfigurationError,
    NoResponse,
    Refused,
    Unauthorised,
    Unavailable,
    Unexplained,
)
from runner.timing import DEFAULT_TIMINGS, Clock, HostClock, Timings

MAX_RESPONSE_BYTES = 1 << 20
"""Of a response that is parsed, and of the explanation of an error. An honest one has kilobytes,
and JSON that is all brackets takes thirty times its length once it is parsed."""
SLOWEST_UPLOAD_BYTES_PER_S = 50_000
"""The deadline of a request grows with its body: by the time that it takes at this speed."""
_BUFFERED_BYTES = 16 << 20
"""What sockets and proxies may still hold of an upload once it is sent."""
_CHUNK_BYTES = 1 << 16
_MAX_DETAIL_CHARS = 300
_MAX_LENGTH = 2**53 - 1
"""The largest integer that JSON has exactly in every language; the journal holds it as well."""
_JSON_TYPE = re.compile(r"(?:application|text)/json|[\w.-]+/[\w.-]+\+json", re.IGNORECASE)
_PAGE_TYPES = frozenset({"text/html", "application/xhtml+xml"})
_RETRYABLE_4XX = frozenset({407, 408, 425, 429})
_VERDICTS = frozenset({401, 403, 404, 409, 410})
"""Status codes by which a key, a task, a file or a report is given up."""
_CREDENTIALS = ("X-API-Key", "X-Registration-Token")
_DECOMPRESSED = frozenset({"gzip", "x-gzip", "deflate"})
_ZLIB_OR_GZIP = 32 + zlib.MAX_WBITS
Subject: TypeAlias = tuple[str | None, ...]
"""What a refusal is about: the method, the path, the task and the credentials of a request."""
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True)
class Upload:
    """A file to send as it is; `size` is in bytes, and all that `blocks` yields."""

    size: int
    blocks: AsyncIterator[bytes]


@final
class Response:
    """An open 2xx response; errors while it is read are classified as well."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response

    def header(self, name: str, default: str = "") -> str:
        """Return the text of a header."""
        text: str = self._response.headers.get(name, default)
        return text

    @property
    def is_json(self) -> bool:
        """Whether the Content-Type is one of JSON."""
        return _is_json(self._response)

    async def json(self, max_bytes: int = MAX_RESPONSE_BYTES) -> object:
        """Return the decoded body; None when it is empty.

        Raises:
            Unavailable: it is not JSON, or is longer than `max_bytes`.
        """
        await self.check_json()
        return _decode(await _read_body(self._response, max_bytes)) if self.is_json else None

    async def check_json(self) -> None:
        """Check by the Content-Type that the body is JSON, which is then not read.

        An empty body of any type passes: some orchestrators acknowledge a report with one.

        Raises:
            Unavailable: it is something else, such as the page of a proxy.
        """
        if self.is_json:
            return
        async with aclosing(self.chunks()) as chunks:
            async for chunk in chunks:
                if chunk.strip():
                    content_type = _printable(self.header("Content-Type") or "none", 80)
                    raise Unavailable(
                        f"its response is not JSON (Content-Type: {content_type}); "
                        "is this the orchestrator's address?"
                    )

    async def chunks(self, size: int | None = None) -> AsyncGenerator[bytes, None]:
        """Return the body as it arrives, collected to `size` bytes and never decompressed."""
        async for chunk in self._response.aiter_raw(size):
            yield chunk


@final
class HttpClient:
    """Connections to one origin; use it as an async context manager."""

    def __init__(
        self,
        url: str,
        ca_file: Path | None = None,
        timings: Timings = DEFAULT_TIMINGS,
        clock: Clock | None = None,
    ) -> None:
        """Prepare requests to `url`, as `check_orchestrator_url` returns it.

        Raises:
            ConfigurationError: `url` or the proxy in front of it cannot be used, or `ca_file` does
                not hold a certificate.
        """
        self._timings = timings
        self._refusals = _UnexplainedRefusals(clock or HostClock(), timings)
        try:
            base_url = httpx.URL(url + "/")
            base_url.host.encode()  # an international name is decoded here, or fails to be
            proxy = _proxy(url)
        except (httpx.InvalidURL, ValueError) as error:
            raise ConfigurationError(f"cannot use --orchestrator-url {url!r}: {error}") from error
        self._client = httpx.AsyncClient(
            base_url=base_url,
            verify=_tls_context(url, ca_file),
            timeout=httpx.Timeout(timings.call_timeout_s, connect=timings.connect_timeout_s),
            limits=httpx.Limits(max_connections=16, keepalive_expiry=timings.keepalive_s),
            headers={
                "User-Agent": f"victoria-runner/{__version__}",
                "Accept": "application/json",
                # Some proxies compress all the same: see `_read_body`.
                "Accept-Encoding": "identity",
            },
            follow_redirects=False,
            trust_env=False,  # it would send the keys for a loopback address to a proxy
            proxy=proxy,
        )

    async def __aenter__(self) -> HttpClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    @asynccontextmanager
    async def request(  # noqa: PLR0913 - what a request is made of
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: object = None,
        *,
        hold_s: float = 0.0,
        is_download: bool = False,
        task_id: str | None = None,
    ) -> AsyncIterator[Response]:
        """Send a request and open its response if that is 2xx.

        `body` is sent as JSON, without the fields that are None, or is an `Upload`. `task_id` is
        the task that it is about: a refusal of one task is not one of another.

        The deadline is that of a call, plus `hold_s` seconds for a long poll, plus the time that
        sending the body takes. A download has no deadline, but may not stall.

        Raises:
            Refused: the response is 4xx; Unauthorised for a 401.
            Unavailable: no response in time, one that cannot be understood, or another status;
                Unexplained for a refusal that is not believed yet, NoResponse for a request that
                was sent and not answered.
        """
        timings = self._timings
        content: AsyncIterator[bytes] | None = None
        sent_headers = dict(headers)
        timeout_s = hold_s + (timings.stall_timeout_s if is_download else timings.call_timeout_s)
        if isinstance(body, Upload):
            content = body.blocks
            sent_headers["Content-Type"] = "application/octet-stream"
            sent_headers["Content-Length"] = str(body.size)
            timeout_s += body.size / SLOWEST_UPLOAD_BYTES_PER_S
        elif body is not None:
            encoded = _encode(body)
            content = _chunks_of(encoded)
            sent_headers["Content-Type"] = "application/json"
            sent_headers["Content-Length"] = str(len(encoded))
            timeout_s += len(encoded) / SLOWEST_UPLOAD_BYTES_PER_S
        request = self._client.build_request(method, path, headers=sent_headers, content=content)
        # The last of a body is sent from the socket's buffer while httpx reads.
        read_s, write_s = timeout_s, timeout_s
        if isinstance(body, Upload):
            # The deadline may be hours away, and the task's status waits.
            buffered = min(body.size, _BUFFERED_BYTES)
            read_s = timings.call_timeout_s + buffered / SLOWEST_UPLOAD_BYTES_PER_S
            write_s = timings.stall_timeout_s
        request.extensions["timeout"] = httpx.Timeout(
            timeout_s, connect=timings.connect_timeout_s, read=read_s, write=write_s
        ).as_dict()
        subject = (method, path, task_id, *(headers.get(name) for name in _CREDENTIALS))
        with (
            self._refusals.weigh(subject),
            _classify_errors(timeout_s, timings.connect_timeout_s),
        ):
            # httpx limits each read alone, which a body of one byte a second never reaches.
            with anyio.fail_after(None if is_download else timeout_s):
                response = await self._client.send(request, stream=True)
                try:
                    if not response.is_success:
                        raise await _failure(response)
                    yield Response(response)
                finally:
                    with anyio.CancelScope(shield=True):
                        await response.aclose()


class _UnexplainedRefusals:
    """Since when requests have met nothing but refusals without a reason.

    In memory only: a new runner starts counting again, which takes ten minutes at most.
    """

    def __init__(self, clock: Clock, timings: Timings) -> None:
        self._clock = clock
        self._timings = timings
        self._since_s: dict[Subject, float] = {}

    @contextmanager
    def weigh(self, subject: Subject) -> Iterator[None]:
        """Raise Unexplained in place of a refusal without a reason, until it has lasted."""
        try:
            yield
        except Refused as error:
            if error.detail is None and error.status in _VERDICTS:
                self._doubt(subject, error)
            self._since_s.pop(subject, None)
            raise
        except Unavailable as error:
            # Something is being replaced: what refused before it may be gone after it.
            if error.status != httpx.codes.TOO_MANY_REQUESTS:
                self._since_s.pop(subject, None)
            raise
        self._since_s.pop(subject, None)

    def _doubt(self, subject: Subject, error: Refused) -> None:
        now_s, lasting_s = self._clock.awake_s(), self._timings.unexplained_refusal_s
        is_first = subject not in self._since_s
        if now_s - self._since_s.setdefault(subject, now_s) >= lasting_s:
            return
        raise Unexplained(
            f"{error} without a reason, maybe from a proxy; believed if it lasts "
            f"{lasting_s / 60:.0f} min",
            error.status,
            is_first=is_first,
        ) from error


def _encode(body: object) -> bytearray:
    # Not `encode`: its text takes four bytes a character as soon as one of them is an emoji.
    encoded = bytearray()
    for piece in _ENCODER.iterencode(_without_nulls(body)):
        encoded += piece.encode()
    return encoded


def _without_nulls(body: object) -> object:
    """Return the body without fields that have no value: the API's file allows them no null."""
    if isinstance(body, Mapping):
        return {name: _without_nulls(value) for name, value in body.items() if value is not None}
    return [_without_nulls(value) for value in body] if isinstance(body, list) else body


async def _chunks_of(encoded: bytearray) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(encoded), _CHUNK_BYTES):
        yield bytes(encoded[start : start + _CHUNK_BYTES])


def _proxy(url: str) -> httpx.Proxy | None:
    proxy = proxy_to(url)
    try:
        return None if proxy is None else httpx.Proxy(proxy)
    except (httpx.InvalidURL, UnicodeError):
        raise unusable_proxy(url) from None  # its text may have the password in it


def _tls_context(url: str, ca_file: Path | None) -> ssl.SSLContext:
    if url.startswith("http://"):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody, and is not used
    context = ssl.create_default_context()
    # Python demands extensions since 3.13 that many a private CA lacks; curl does without them.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"cannot use --ca-file {ca_file}: it does not hold a PEM certificate"
            ) from error
    return context


@contextmanager
def _classify_errors(timeout_s: float, connect_timeout_s: float) -> Iterator[None]:
    try:
        yield
    except httpx.ConnectTimeout as error:
        raise Unavailable(f"no connection within {connect_timeout_s:g} s") from error
    except (TimeoutError, httpx.TimeoutException) as error:
        raise NoResponse(f"no response within {timeout_s:.0f} s") from error
    except (httpx.ReadError, httpx.RemoteProtocolError) as error:
        raise NoResponse(_describe_cause(error)) from error
    except httpx.HTTPError as error:
        raise Unavailable(_describe_cause(error)) from error
    except httpx.InvalidURL as error:
        raise Unavailable("its address cannot be requested") from error


def root_cause(error: BaseException) -> BaseException:
    """Return the error of TLS or of the system in an error's chain; else the error itself."""
    chain: list[BaseException] = [error]
    for link in chain:
        if isinstance(link, OSError) and (isinstance(link, ssl.SSLError) or link.errno is not None):
            return link
        causes = [link.__cause__, link.__context__, *getattr(link, "exceptions", ())]
        chain += [cause for cause in causes if cause is not None and cause not in chain]
    return error


def _describe_cause(error: BaseException) -> str:
    """Return the system's own text for an error, such as "Connection refused"."""
    cause = root_cause(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its TLS certificate is not trusted: {cause.verify_message}"
    if isinstance(cause, ssl.SSLError):
        return f"TLS failed: {cause.reason or cause}"
    if isinstance(cause, socket.gaierror):
        return f"cannot resolve its name: {cause.strerror}"
    if isinstance(cause, OSError) and cause.errno is not None:
        return os.strerror(cause.errno)  # asyncio puts a sentence of its own into strerror
    return str(error) or type(error).__name__


def _media_type(response: httpx.Response) -> str:
    content_type: str = response.headers.get("Content-Type", "")
    return content_type.partition(";")[0].strip().lower()


def _is_json(response: httpx.Response) -> bool:
    return _JSON_TYPE.fullmatch(_media_type(response)) is not None


async def _read_body(response: httpx.Response, max_bytes: int) -> bytes:
    """Return the body, decompressed if it was compressed although that was not asked for.

    Raises:
        Unavailable: it is longer than `max_bytes`, or cannot be decompressed.
    """
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in {*_DECOMPRESSED, "identity"}:
        shown = _printable(encoding, 80)
        raise Unavailable(
            f"its response is compressed ({shown}), which was not asked for; "
            "switch that off in the proxy in front of it"
        )
    inflating = zlib.decompressobj(_ZLIB_OR_GZIP) if encoding in _DECOMPRESSED else None
    body = bytearray()
    async for chunk in response.aiter_raw():
        # One byte more than is taken: a short body can become endless.
        room = max_bytes + 1 - len(body)
        body += chunk if inflating is None else _inflate(inflating, chunk, room)
        if len(body) > max_bytes:
            raise Unavailable(f"its response is longer than {max_bytes >> 20} MiB")
    return bytes(body)


def _inflate(inflating: zlib._Decompress, chunk: bytes, max_bytes: int) -> bytes:
    try:
        return inflating.decompress(chunk, max_bytes)
    except zlib.error as error:
        raise Unavailable("its compressed response is damaged") from error


def _decode(body: bytes) -> object:
    if not body.strip():
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Unavailable("its response is not valid JSON") from error


async def _failure(response: httpx.Response) -> Refused | Unavailable:
    """Return the error for a response that is not 2xx, with the orchestrator's own explanation."""
    problem = await _read_problem(response)
    detail, status = _detail_of(problem), response.status_code
    message = f"HTTP {status}" + (f": {detail}" if detail else "")
    is_refusal = response.is_client_error and status not in _RETRYABLE_4XX
    if is_refusal and _media_type(response) in _PAGE_TYPES:
        message += " with a web page: a proxy responds in place of the orchestrator"
    elif status == httpx.codes.UNAUTHORIZED:
        return Unauthorised(message, detail)
    elif is_refusal:
        return Refused(message, status, detail, _length_of(problem))
    elif response.has_redirect_location:
        message += f", a redirect to {_redirect_target(response)}, which is not followed; "
        message += "give the orchestrator's final address as --orchestrator-url"
    elif status == httpx.codes.NOT_MODIFIED:
        message += ", from a cache; switch caching off in what is in front of the orchestrator"
    return Unavailable(
        message,
        retry_after_s=_retry_after_s(response.headers.get("Retry-After")),
        status=status,
        detail=detail,
    )


def _redirect_target(response: httpx.Response) -> str:
    """Return where a redirect leads to, without user, password, query and fragment."""
    url = httpx.URL() if response.next_request is None else response.next_request.url
    target = f"{url.scheme}://{url.netloc.decode('ascii')}{url.path}"
    return _printable(target, _MAX_DETAIL_CHARS)


async def _read_problem(response: httpx.Response) -> Mapping[str, object]:
    """Return the JSON object that explains a failure; an empty one if there is none."""
    if not _is_json(response):
        return {}
    body = await _read_body(response, MAX_RESPONSE_BYTES)
    try:
        problem = _decode(body)
    except Unavailable:
        return {}
    return problem if isinstance(problem, Mapping) else {}


def _length_of(problem: Mapping[str, object]) -> int | None:
    length = problem.get("length")
    return length if type(length) is int and 0 <= length <= _MAX_LENGTH else None


def _detail_of(problem: Mapping[str, object]) -> str | None:
    detail = problem.get("detail")
    if detail is None:
        return None
    text = detail if isinstance(detail, str) else json.dumps(detail)
    return _printable(text, _MAX_DETAIL_CHARS)


def _printable(text: str, max_chars: int) -> str:
    """Return the text as one line of at most so many characters, without control characters."""
    line = "".join(c if c.isprintable() else " " for c in text[: 2 * max_chars])
    return " ".join(line.split())[:max_chars]


def _retry_after_s(value: str | None) -> float | None:
    """Parse Retry-After in either of its forms (RFC 9110, 10.2.3)."""
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
