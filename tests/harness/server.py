"""A server on loopback that responds as a test has scripted, byte by byte, and keeps requests."""

import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import anyio
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.tls import TLSListener

from tests.harness.ports import kept_port

Answer: TypeAlias = Callable[[ByteStream], Awaitable[None]]

JSON = {"Content-Type": "application/json"}
PLAIN_400 = b"HTTP/1.1 400 Bad Request\r\n\r\n"

_LONGEST_HEAD = 1 << 20
_BLOCK = bytes(1 << 16)
_GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)


@dataclass(frozen=True)
class Request:
    """A request as it came: `target` still encoded, names of headers in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> object:
        return json.loads(self.body)


@dataclass
class ScriptedServer:
    """The requests so far, and the responses to come; the last one is repeated."""

    port: int
    scheme: str = "http"
    requests: list[Request] = field(default_factory=list)
    script: list[Answer] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def answer(self, *answers: Answer) -> None:
        self.script[:] = answers

    async def serve(self, stream: ByteStream) -> None:
        """Answer one request and close the connection."""
        async with stream:
            try:
                self.requests.append(await _read_request(stream))
                answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
                await answer(stream)
            except (*_GONE, anyio.IncompleteRead):
                return  # the client has gone; that is its right


@asynccontextmanager
async def serving(tls: ssl.SSLContext | None = None) -> AsyncIterator[ScriptedServer]:
    tcp = await anyio.create_tcp_listener(local_host="127.0.0.1")
    server = ScriptedServer(tcp.extra(SocketAttribute.local_port), "https" if tls else "http")  # noqa: S610 - anyio's, no SQL
    listener = TLSListener(tcp, tls, standard_compatible=False) if tls else tcp
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, server.serve)
        yield server
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def serving_at_once(response: bytes) -> AsyncIterator[int]:
    """Send the response to whatever comes, be it no request; yield the port."""

    async def serve(stream: ByteStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(response)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield listener.extra(SocketAttribute.local_port)  # noqa: S610 - anyio's, no SQL
        tasks.cancel_scope.cancel()


@contextmanager
def nobody_listening() -> Iterator[int]:
    keeper, port = kept_port()
    with keeper:
        yield port


def raw(*parts: bytes) -> Answer:
    async def send(stream: ByteStream) -> None:
        for part in parts:
            await stream.send(part)

    return send


def http(status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
    return raw(_head(status, {"Content-Length": str(len(body)), **(headers or {})}), body)


def json_response(
    value: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Answer:
    return http(status, json.dumps(value).encode(), {**JSON, **(headers or {})})


def zeros(size: int, promised: int | None = None) -> Answer:
    """Send `size` zero bytes in blocks, whatever length was promised."""
    blocks, rest = divmod(size, len(_BLOCK))
    head = _head(200, {"Content-Length": str(promised or size)})
    return raw(head, *[_BLOCK] * blocks, _BLOCK[:rest])


def endless(headers: Mapping[str, str] | None = None, first: bytes = b"") -> Answer:
    return _repeating(_head(200, headers or {}) + first, _BLOCK)


def trickle() -> Answer:
    return _repeating(_head(200, {}), b" ", pause_s=0.1)


def _repeating(first: bytes, block: bytes, pause_s: float = 0.0) -> Answer:
    async def send(stream: ByteStream) -> None:
        await stream.send(first)
        while True:
            await stream.send(block)
            await anyio.sleep(pause_s)

    return send


def stalled(first: bytes, headers: Mapping[str, str] | None = None) -> Answer:
    """Send the first bytes of a response and then nothing until the client goes."""

    async def send(stream: ByteStream) -> None:
        await stream.send(_head(200, headers or {}) + first)
        await stream.receive()

    return send


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Scripted", *(f"{name}: {text}" for name, text in headers.items())]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1")


async def _read_request(stream: ByteStream) -> Request:
    buffered = BufferedByteReceiveStream(stream)
    head = await buffered.receive_until(b"\r\n\r\n", _LONGEST_HEAD)
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    fields = (line.partition(":") for line in lines)
    headers = {name.lower(): text.strip() for name, _, text in fields}
    size = int(headers.get("content-length", "0"))
    return Request(method, target, headers, await buffered.receive_exactly(size) if size else b"")
