"""A proxy between runner and orchestrator that loses, delays and garbles what passes through it.

    with FaultProxy(orchestrator.url) as proxy:
        proxy.plan("POST", "/status", Fault(Kind.DROP_ANSWER))
        chance = Chance(seed=1, share=0.1, faults=(Fault(Kind.DROP_REQUEST),))
        proxy.by_chance(chance)
        ...  # the runner is given proxy.url

What is planned for a request comes first, one fault a request and in order; then chance decides,
by the seed and how many such requests there were before: so a seed does the same again, whatever
else was asked in between. `counts` has what was done, by kind.

It runs in a thread of its own, over real sockets. Every request has a connection of its own to
the orchestrator; the runner's connections are kept open, as a proxy in the field does it.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from typing_extensions import Self

from tests.harness.ports import kept_port

if TYPE_CHECKING:
    from tests.faults.certificates import Certificate

MAX_HEAD_BYTES = 1 << 16
HTML = b"<!DOCTYPE html><html><body><h1>Welcome to the guest network</h1></body></html>"
_CALL_DEADLINE_S = 60.0

T = TypeVar("T")


class Kind(str, Enum):
    """What can be done to a request."""

    DROP_REQUEST = "drop-request"
    """Cut the connection; the orchestrator never hears of it."""
    DROP_ANSWER = "drop-answer"
    """Let the orchestrator do it, then cut the connection."""
    DELAY = "delay"
    """Pass it on after a while."""
    HALF_BODY = "half-body"
    """Cut the connection in the middle of the answer's body."""
    STATUS = "status"
    """Answer with an error of our own; the orchestrator never hears of it."""
    HTML = "html"
    """Answer with a page of HTML; the orchestrator never hears of it."""
    HOLD_REQUEST = "hold-request"
    """Keep the connection open for ever; the orchestrator never hears of it."""
    HOLD_ANSWER = "hold-answer"
    """Let the orchestrator do it, then keep the connection open for ever."""


@dataclass(frozen=True)
class Fault:
    """One thing to do to one request.

    With `request_has` or `answer_has` it waits for a request whose body, or answer's body, has
    that in it; others pass meanwhile. `answer_has` is for faults that let the orchestrator answer.
    """

    kind: Kind
    seconds: float = 0.0
    status: int = 200
    retry_after: str | None = None
    request_has: bytes = b""
    answer_has: bytes = b""


@dataclass(frozen=True)
class Chance:
    """Faults by chance: a share of all requests, each meeting one of the faults."""

    seed: int
    share: float
    faults: tuple[Fault, ...]
    paths: tuple[str, ...] = ("*",)

    def decide(self, method: str, path: str, number: int) -> Fault | None:
        """Decide about the request of that number among those with its method and path."""
        if not any(fnmatchcase(path, pattern) for pattern in self.paths):
            return None
        dice = random.Random(f"{self.seed} {method} {path} {number}")  # noqa: S311 - to be the same again
        return dice.choice(self.faults) if dice.random() < self.share else None


@dataclass
class Exchange:
    """A request that came through; `at` is the monotonic moment."""

    method: str
    path: str
    at: float
    request: bytes = b""
    fault: Fault | None = None
    reached: bool = False
    """Whether the orchestrator has responded: what it did is done."""


@dataclass
class _Planned:
    method: str
    pattern: str
    fault: Fault


_TURNS_UNTIL_SERVED = 10
"""Of the event loop: one that was accepted just now is in nobody's hands before."""


class FaultProxy:
    """Listens on loopback from `start` to `stop`; a context manager does both."""

    def __init__(self, upstream: str, certificate: Certificate | None = None) -> None:
        """Pass requests on to the orchestrator at that URL; with a certificate speak TLS."""
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "", parts.port or 80)
        self._certificate = certificate
        self._keeper: socket.socket | None = None
        self._port = 0
        self._lock = threading.Lock()
        self._plans: deque[_Planned] = deque()
        self._chance: Chance | None = None
        self._numbers: Counter[tuple[str, str]] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._held: set[asyncio.Event] = set()
        self.counts: Counter[str] = Counter()
        """What was done, by kind; `refuse` counts the times that the listener was closed."""
        self.exchanges: list[Exchange] = []
        """Every request, the oldest first."""

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    @property
    def url(self) -> str:
        """Where the runner finds it; stays the same while it refuses connections."""
        return f"{'https' if self._certificate else 'http'}://127.0.0.1:{self._port}"

    # Being there and not being there

    def start(self) -> None:
        """Begin to listen."""
        self._keeper, self._port = kept_port()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._call(self._listen())

    def stop(self) -> None:
        """Cut every connection and end."""
        if self._thread is None:
            return
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CALL_DEADLINE_S)
        self._loop.close()
        self._thread = None
        if self._keeper is not None:
            self._keeper.close()

    def refuse(self) -> None:
        """Close the listener and cut what is open: connections are refused until `accept`."""
        self.counts["refuse"] += 1
        self._call(self._close())

    def accept(self) -> None:
        """Listen again, on the same port."""
        self._call(self._listen())

    def present(self, certificate: Certificate) -> None:
        """Show another certificate from now on, to new connections; old ones are cut."""
        self._certificate = certificate
        self._call(self._close())
        self._call(self._listen())

    def release(self) -> None:
        """Cut the connections that are held for ever."""
        self._call(self._release())

    # What is to go wrong

    def plan(self, method: str, path: str, *faults: Fault) -> None:
        """Have the next requests of this kind meet these faults, one each; * stands for any."""
        with self._lock:
            self._plans.extend(_Planned(method, path, fault) for fault in faults)

    def by_chance(self, chance: Chance | None) -> None:
        """Have chance decide about what is not planned; None ends it."""
        with self._lock:
            self._chance = chance

    def clear(self) -> None:
        """Take back what is planned, and chance; connections that are held stay held."""
        with self._lock:
            self._plans.clear()
            self._chance = None

    @property
    def unused(self) -> int:
        """How many planned faults have met no request yet."""
        with self._lock:
            return len(self._plans)

    def requests(self, method: str, path: str) -> list[Exchange]:
        """Return the requests of one kind so far; * stands for any text in the path."""
        return [
            exchange
            for exchange in list(self.exchanges)
            if exchange.method == method and fnmatchcase(exchange.path, path)
        ]

    # In its own thread

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        done: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return done.result(_CALL_DEADLINE_S)

    async def _listen(self) -> None:
        if self._server is not None:
            return
        context = None
        if self._certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._certificate.chain, self._certificate.key)
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self._port, ssl=context, limit=MAX_HEAD_BYTES
        )

    async def _close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            # In this order: asyncio forgets to close who was accepted by a server that has closed.
            for listener in server.sockets:
                self._loop.remove_reader(listener.fileno())
            for _ in range(_TURNS_UNTIL_SERVED):
                await asyncio.sleep(0)
            server.close()
        open_now = [task for task in self._connections if task is not asyncio.current_task()]
        for task in open_now:
            task.cancel()
        await asyncio.gather(*open_now, return_exceptions=True)

    async def _release(self) -> None:
        for held in self._held:
            held.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while await self._one(reader, writer):
                pass
        except (OSError, EOFError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass  # either side went away, or this one is closed
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Handle one request; return whether the connection stays."""
        head = await reader.readuntil(b"\r\n\r\n")
        line, *lines = head[:-4].split(b"\r\n")
        method, target = (word.decode() for word in line.split(b" ")[:2])
        body = await reader.readexactly(_length_of(lines) or 0)
        exchange = Exchange(method, urlsplit(target).path, time.monotonic(), body)
        exchange.fault = self._fault_for(exchange)
        self.exchanges.append(exchange)
        kept = [line, *(text for text in lines if not _is(text, b"connection"))]
        request = b"\r\n".join([*kept, b"connection: close", b"", b""]) + body
        # A runner that is killed hangs up; the server must learn that.
        hung_up = asyncio.ensure_future(_hung_up(reader))
        answering = asyncio.ensure_future(self._answer(exchange, request, writer))
        try:
            await asyncio.wait({hung_up, answering}, return_when=asyncio.FIRST_COMPLETED)
            return answering.done() and await answering
        finally:
            for task in (hung_up, answering):
                task.cancel()
                with suppress(asyncio.CancelledError, OSError, EOFError):
                    await task

    def _fault_for(self, exchange: Exchange) -> Fault | None:
        with self._lock:
            key = (exchange.method, exchange.path)
            number = self._numbers[key]
            self._numbers[key] += 1
            for planned in self._plans:
                if _meets(planned, exchange):
                    if not planned.fault.answer_has:
                        self._plans.remove(planned)
                        self.counts[planned.fault.kind.value] += 1
                    return planned.fault
            fault = self._chance.decide(*key, number) if self._chance else None
            if fault is not None:
                self.counts[fault.kind.value] += 1
            return fault

    def _is_due(self, exchange: Exchange, fault: Fault, body: bytes) -> bool:
        """Return whether the fault waits for this response; it is used up then."""
        if not fault.answer_has:
            return True
        with self._lock:
            planned = next((plan for plan in self._plans if plan.fault is fault), None)
            if planned is None or fault.answer_has not in body:
                exchange.fault = None
                return False
            self._plans.remove(planned)
            self.counts[fault.kind.value] += 1
            return True

    async def _answer(
        self, exchange: Exchange, request: bytes, writer: asyncio.StreamWriter
    ) -> bool:
        """Let the fault happen, or pass the request on; return whether the connection stays."""
        fault = exchange.fault
        kind = None if fault is None else fault.kind
        if fault is not None and kind in {Kind.STATUS, Kind.HTML}:
            return await _send(_own_response(fault), writer)
        if kind is Kind.DROP_REQUEST:
            return False
        if kind is Kind.HOLD_REQUEST:
            return await self._hold()
        if fault is not None and kind is Kind.DELAY:
            await asyncio.sleep(fault.seconds)
        head, body = await self._ask(exchange, request)
        if fault is None or kind is Kind.DELAY or not self._is_due(exchange, fault, body):
            await _send(head + body, writer)
            return _length_of(head.split(b"\r\n")) is not None
        if kind is Kind.HOLD_ANSWER:
            return await self._hold()
        if kind is Kind.HALF_BODY:
            writer.write(head + body[: len(body) // 2])
            await writer.drain()
            # Aborting would throw away what is not sent yet; closing sends it first.
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        return False

    async def _hold(self) -> bool:
        held = asyncio.Event()
        self._held.add(held)
        try:
            await held.wait()
        finally:
            self._held.discard(held)
        return False

    async def _ask(self, exchange: Exchange, request: bytes) -> tuple[bytes, bytes]:
        """Ask the orchestrator; return its response's head, ready to be passed on, and body."""
        reader, writer = await asyncio.open_connection(*self._upstream, limit=MAX_HEAD_BYTES)
        try:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            line, *lines = head[:-4].split(b"\r\n")
            length = _length_of(lines)
            body = await (reader.read() if length is None else reader.readexactly(length))
            exchange.reached = True
        finally:
            writer.transport.abort()
        kept = [line, *(text for text in lines if not _is(text, b"connection"))]
        return b"\r\n".join([*kept, b"", b""]), body


async def _send(response: bytes, writer: asyncio.StreamWriter) -> bool:
    writer.write(response)
    await writer.drain()
    return True


def _meets(planned: _Planned, exchange: Exchange) -> bool:
    return (
        planned.method in {"*", exchange.method}
        and fnmatchcase(exchange.path, planned.pattern)
        and planned.fault.request_has in exchange.request
    )


def _own_response(fault: Fault) -> bytes:
    body = HTML if fault.kind is Kind.HTML else b'{"detail": "the proxy says so"}'
    content = "text/html" if fault.kind is Kind.HTML else "application/json"
    lines = [f"HTTP/1.1 {fault.status} Fault", f"content-type: {content}"]
    if fault.retry_after is not None:
        lines.append(f"retry-after: {fault.retry_after}")
    lines += [f"content-length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def _is(line: bytes, name: bytes) -> bool:
    return line.partition(b":")[0].strip().lower() == name


def _length_of(lines: list[bytes]) -> int | None:
    """Read Content-Length; None where the body ends with the connection or comes in chunks."""
    for line in lines:
        if _is(line, b"content-length"):
            return int(line.partition(b":")[2])
    return None


async def _hung_up(reader: asyncio.StreamReader) -> None:
    """Return when the other side closes its end. It sends nothing while it waits for an answer."""
    while not reader.at_eof():  # noqa: ASYNC110 - a reader has no event for its end
        await asyncio.sleep(0.02)
