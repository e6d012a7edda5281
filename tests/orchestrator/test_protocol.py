"""Clients that send too much before a request begins, or nothing at all."""

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.orchestrator.serving import DEADLINE_S, RunningOrchestrator, serve

_STALL_S = 2.0
_HEAD = b"POST /register HTTP/1.1\r\nHost: here\r\n"
_BODY = _HEAD + b"Content-Length: 9000\r\n\r\n{"


@pytest.fixture(scope="module")
def orchestrator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningOrchestrator]:
    with serve(tmp_path_factory.mktemp("data"), stall_timeout_s=_STALL_S) as running:
        yield running


def _connect(orchestrator: RunningOrchestrator) -> socket.socket:
    address = urlsplit(orchestrator.url)
    return socket.create_connection((str(address.hostname), address.port or 0), DEADLINE_S)


def _received(client: socket.socket) -> bytes:
    """Return all that comes until the server closes the connection."""
    received = b""
    while True:
        try:
            part = client.recv(65536)
        except ConnectionResetError:
            return received
        if not part:
            return received
        received += part


@pytest.mark.parametrize(
    "head",
    [_HEAD + b"X-Large: " + b"x" * 70_000, b"GET /" + b"y" * 70_000, b"x: y\r\n" * 20_000],
    ids=["header", "path", "no request"],
)
def test_head_over_64_kb_is_refused(orchestrator: RunningOrchestrator, head: bytes) -> None:
    with _connect(orchestrator) as client:
        with contextlib.suppress(OSError):  # it is refused before all of it is sent
            client.sendall(head)
        assert _received(client)[:12] in {b"HTTP/1.1 431", b"HTTP/1.1 400", b""}


@pytest.mark.parametrize("sent", [b"", _HEAD, _BODY], ids=["nothing", "half a head", "no body"])
def test_connection_on_which_nothing_comes_is_closed(
    orchestrator: RunningOrchestrator, sent: bytes
) -> None:
    with _connect(orchestrator) as client:
        client.sendall(sent)
        assert b"HTTP/1.1 2" not in _received(client)


def test_slow_body_is_received(orchestrator: RunningOrchestrator) -> None:
    token = str(orchestrator.registration_token).encode()
    body = b'{"hostname": "h", "os_type": "l"}'
    head = b"X-Registration-Token: %s\r\nContent-Length: %d\r\n\r\n" % (token, len(body))
    with _connect(orchestrator) as client:
        client.sendall(_HEAD + head)
        for start in range(0, len(body), 5):
            time.sleep(_STALL_S / 4)
            client.sendall(body[start : start + 5])
        assert client.recv(65536).startswith(b"HTTP/1.1 200")


def test_large_body_arrives(orchestrator: RunningOrchestrator) -> None:
    body = b'{"hostname": "%s"}' % (b"h" * 300_000)
    head = b"X-Registration-Token: %s\r\n" % str(orchestrator.registration_token).encode()
    with _connect(orchestrator) as client:
        client.sendall(_HEAD + head + b"Content-Length: %d\r\n\r\n" % len(body))
        time.sleep(0.1)  # the last piece alone is over the limit of a head
        client.sendall(body)
        assert client.recv(65536).startswith(b"HTTP/1.1 422")


def test_head_is_limited_after_a_request_that_was_refused_before_its_body(
    orchestrator: RunningOrchestrator,
) -> None:
    with _connect(orchestrator) as client:
        client.sendall(b"POST /nodes/heartbeat HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 401")
        client.sendall(b"123456789")
        with contextlib.suppress(OSError):
            client.sendall(b"GET / HTTP/1.1\r\nX-Large: " + b"x" * 8_000_000)
        assert b"HTTP/1.1 3" not in _received(client)


def test_held_poll_outlives_the_patience(tmp_path: Path) -> None:
    with serve(tmp_path, stall_timeout_s=0.2) as orchestrator:
        assert orchestrator.register().poll(wait_s=2) is None
