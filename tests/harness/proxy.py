"""A proxy between runner and orchestrator that loses, delays and garbles what passes through it.

    with FaultProxy(orchestrator.url) as proxy:
        proxy.plan("POST", "/status", Fault(Kind.DROP_ANSWER))
        proxy.by_chance(Chance(seed=1, share=0.1, faults=(Fault(Kind.DROP_REQUEST),)))
        ...  # the runner is given proxy.url

What is planned for a request comes first, one fault a request and in order; then chance decides,
by the seed and how many such requests there were before: so a seed does the same again, whatever
else was asked in between. `counts` has what was done, by kind.

It runs in threads, over real sockets. Every request has a connection of its own to the
orchestrator; the runner's connections are kept open, as a proxy in the field does it.
"""

import random
import select
import socket
import ssl
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from typing import BinaryIO
from urllib.parse import urlsplit

from typing_extensions import Self

from tests.faults.certificates import Certificate
from tests.harness.ports import kept_port

HTML = b"<!DOCTYPE html><html><body><h1>Welcome to the guest network</h1></body></html>"
JSON = b'{"detail": "the proxy says so"}'
_DEADLINE_S = 60.0


class Kind(str, Enum):
    """What can be done to a request."""

    DROP_REQUEST = "drop-request"  # cut the connection; the orchestrator never hears of it
    DROP_ANSWER = "drop-answer"  # let the orchestrator do it, then cut the connection
    DELAY = "delay"  # pass it on after a while
    HALF_BODY = "half-body"  # cut the connection in the middle of the response's body
    STATUS = "status"  # respond with an error of our own; the orchestrator never hears of it
    HTML = "html"  # respond with a page of HTML; the orchestrator never hears of it
    HOLD_REQUEST = "hold-request"  # keep it open for ever; the orchestrator never hears of it
    HOLD_ANSWER = "hold-answer"  # let the orchestrator do it, then keep the connection open


@dataclass(frozen=True)
class Fault:
    """One thing to do to one request.

    With `request_has` or `answer_has` it waits for a request whose body, or response's body, has
    that in it; others pass meanwhile. `answer_has` is for faults that let the orchestrator respond.
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

    def decide(self, method: str, path: str, number: int) -> Fault | None:
        dice = random.Random(f"{self.seed} {method} {path} {number}")  # noqa: S311 - to be the same again
        return dice.choice(self.faults) if dice.random() < self.share else None


@dataclass
class Exchange:
    """A request that came through."""

    method: str
    path: str
    request: bytes
    reached: bool = False  # whether the orchestrator has responded: what it did is done

    def fits(self, method: str, pattern: str) -> bool:
        """Return whether it is of this kind; * stands for any method, or any text in the path."""
        return method in {"*", self.method} and fnmatchcase(self.path, pattern)


class FaultProxy:
    """Listens on loopback while its context lasts."""

    def __init__(self, upstream: str, certificate: Certificate | None = None) -> None:
        """Pass requests on to the orchestrator at that URL; with a certificate speak TLS."""
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "", parts.port or 80)
        self._certificate = certificate
        self._keeper, self._port = kept_port()
        self._listening: tuple[socket.socket, threading.Thread] | None = None
        self._clients: dict[threading.Thread, socket.socket] = {}
        self._held: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._plans: list[tuple[str, str, Fault]] = []
        self._chance: Chance | None = None
        self._numbers: Counter[tuple[str, str]] = Counter()
        self.counts: Counter[str] = Counter()
        """What was done, by kind; `refuse` counts the times that the listener was closed."""
        self.exchanges: list[Exchange] = []  # every request, the oldest first

    def __enter__(self) -> Self:
        self.accept()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self._keeper.close()

    @property
    def url(self) -> str:
        """Where the runner finds it; stays the same while it refuses connections."""
        return f"{'https' if self._certificate else 'http'}://127.0.0.1:{self._port}"

    def refuse(self) -> None:
        """Close the listener and cut what is open: connections are refused until `accept`."""
        self.counts["refuse"] += 1
        self._close()

    def accept(self) -> None:
        if self._listening is None:
            listener = socket.create_server(("127.0.0.1", self._port))
            self._listening = listener, threading.Thread(target=self._accept, args=(listener,))
            self._listening[1].start()

    def present(self, certificate: Certificate) -> None:
        """Show another certificate from now on, to new connections; old ones are cut."""
        self._certificate = certificate
        self._close()
        self.accept()

    def release(self) -> None:
        for client in list(self._held):
            _cut(client)

    def _close(self) -> None:
        if self._listening is None:
            return
        listener, accepting = self._listening
        self._listening = None
        _cut(listener)
        accepting.join(_DEADLINE_S)
        listener.close()
        for thread, client in list(self._clients.items()):
            _cut(client)
            thread.join(_DEADLINE_S)

    def plan(self, method: str, path: str, *faults: Fault) -> None:
        """Let the next requests of this kind meet these faults, one each; * stands for any."""
        with self._lock:
            self._plans.extend((method, path, fault) for fault in faults)

    def by_chance(self, chance: Chance) -> None:
        self._chance = chance

    def clear(self) -> None:
        """Take back what is planned, and chance; connections that are held stay held."""
        with self._lock:
            self._plans.clear()
            self._chance = None

    @property
    def unused(self) -> int:
        return len(self._plans)

    def requests(self, method: str, path: str) -> list[Exchange]:
        """Return the requests of one kind so far; * stands for any text in the path."""
        return [exchange for exchange in list(self.exchanges) if exchange.fits(method, path)]

    def _accept(self, listener: socket.socket) -> None:
        context = None
        if self._certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._certificate.chain, self._certificate.key)
        with suppress(OSError):  # the listener is closed
            while True:
                client, _ = listener.accept()
                thread = threading.Thread(target=self._serve, args=(client, context))
                self._clients[thread] = client
                thread.start()

    def _serve(self, connection: socket.socket, context: ssl.SSLContext | None) -> None:
        try:
            # `connection` stays a plain socket, which `_cut` reaches also during a handshake.
            with connection, connection.dup() as plain:
                client = context.wrap_socket(plain, server_side=True) if context else plain
                with client, client.makefile("rb") as requests:
                    while self._handle(client, requests):
                        pass
        except (OSError, EOFError):
            pass  # either side went away, or this one is closed
        finally:
            del self._clients[threading.current_thread()]

    def _handle(self, client: socket.socket, requests: BinaryIO) -> bool:
        """Handle one request; return whether the connection stays."""
        line, headers = _read_head(requests)
        method, target = (word.decode() for word in line.split(b" ")[:2])
        body = _read_exactly(requests, _length_of(headers) or 0)
        exchange = Exchange(method, urlsplit(target).path, body)
        fault = self._fault_for(exchange)
        self.exchanges.append(exchange)
        if fault is not None:
            if fault.kind in {Kind.STATUS, Kind.HTML}:
                client.sendall(_own_response(fault))
                return True
            if fault.kind is Kind.DROP_REQUEST:
                return False
            if fault.kind is Kind.HOLD_REQUEST:
                return self._hold(client)
            if fault.kind is Kind.DELAY and _hangs_up(client, fault.seconds):
                return False
        request = b"".join([line, *headers, b"connection: close\r\n\r\n", body])
        return self._ask(client, request, exchange, fault)

    def _ask(
        self, client: socket.socket, request: bytes, exchange: Exchange, fault: Fault | None
    ) -> bool:
        """Pass a request on, and its response unless the fault is of that; return as `_handle`."""
        with (
            socket.create_connection(self._upstream, _DEADLINE_S) as upstream,
            upstream.makefile("rb") as responses,
        ):
            upstream.sendall(request)
            # A runner that is killed hangs up; the server must learn that.
            if upstream not in select.select([client, upstream], [], [])[0]:
                raise EOFError
            line, headers = _read_head(responses)
            length = _length_of(headers)
            body = responses.read() if length is None else _read_exactly(responses, length)
        exchange.reached = True
        head = b"".join([line, *headers, b"\r\n"])
        if fault is None or fault.kind is Kind.DELAY or not self._is_due(exchange, fault, body):
            client.sendall(head + body)
            return length is not None
        if fault.kind is Kind.HOLD_ANSWER:
            return self._hold(client)
        if fault.kind is Kind.HALF_BODY:
            client.sendall(head + body[: len(body) // 2])
        return False

    def _fault_for(self, exchange: Exchange) -> Fault | None:
        with self._lock:
            key = (exchange.method, exchange.path)
            number = self._numbers[key]
            self._numbers[key] += 1
            for method, pattern, fault in self._plans:
                if exchange.fits(method, pattern) and fault.request_has in exchange.request:
                    if not fault.answer_has:
                        self._use(exchange, fault)
                    return fault
            chosen = self._chance.decide(*key, number) if self._chance else None
            if chosen is not None:
                self.counts[chosen.kind.value] += 1
            return chosen

    def _is_due(self, exchange: Exchange, fault: Fault, body: bytes) -> bool:
        """Return whether the fault waits for this response; it is used up then."""
        with self._lock:
            is_met = fault.answer_has in body
            return not fault.answer_has or (is_met and self._use(exchange, fault))

    def _use(self, exchange: Exchange, fault: Fault) -> bool:
        """Take a fault from the plan; return whether it was there."""
        for index, (method, pattern, planned) in enumerate(self._plans):
            if planned is fault and exchange.fits(method, pattern):
                del self._plans[index]
                self.counts[fault.kind.value] += 1
                return True
        return False

    def _hold(self, client: socket.socket) -> bool:
        self._held.add(client)
        _hangs_up(client)
        self._held.discard(client)
        return False


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):  # it is closed already
        connection.shutdown(socket.SHUT_RDWR)


def _hangs_up(client: socket.socket, within_s: float | None = None) -> bool:
    """Wait for the client to close its end; it sends nothing while it waits for a response."""
    return bool(select.select([client], [], [], within_s)[0])


def _own_response(fault: Fault) -> bytes:
    is_html = fault.kind is Kind.HTML
    body = HTML if is_html else JSON
    later = "" if fault.retry_after is None else f"retry-after: {fault.retry_after}\r\n"
    head = (
        f"HTTP/1.1 {fault.status} Fault\r\n{later}content-length: {len(body)}\r\n"
        f"content-type: {'text/html' if is_html else 'application/json'}\r\n\r\n"
    )
    return head.encode() + body


def _read_head(stream: BinaryIO) -> tuple[bytes, list[bytes]]:
    """Return the first line, and those of the headers but `connection`, each with its end."""
    lines = []
    while (line := stream.readline()) != b"\r\n":
        if not line:
            raise EOFError
        lines.append(line)
    return lines[0], [line for line in lines[1:] if not _is(line, b"connection")]


def _read_exactly(stream: BinaryIO, size: int) -> bytes:
    body = stream.read(size)
    if len(body) < size:
        raise EOFError
    return body


def _is(line: bytes, name: bytes) -> bool:
    return line.partition(b":")[0].strip().lower() == name


def _length_of(headers: list[bytes]) -> int | None:
    """Read Content-Length; None where the body ends with the connection or comes in chunks."""
    lengths = [line for line in headers if _is(line, b"content-length")]
    return int(lengths[0].partition(b":")[2]) if lengths else None
