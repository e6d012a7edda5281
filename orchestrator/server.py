"""The server from start to end: bind, listen, serve, answer the long polls, stop."""

import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from orchestrator import __version__
from orchestrator.errors import ConfigurationError
from orchestrator.log import fields
from orchestrator.protocol import limited_protocol
from orchestrator.services import services_of

_KEEP_ALIVE_S = 75
_SHUTDOWN_TIMEOUT_S = 5
"""How long a request may go on once the server shuts down; uvicorn then cancels it."""
_BACKLOG = 2048

_RESERVED_FILES = 100
"""For libraries, the database and uploads."""
_CONNECTIONS_PER_NODE = 2
"""One for the long poll, one for all other requests."""
_ENOUGH_FILES = 2000

log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """A uvicorn server that reports when it listens and does not wait for long polls to end."""

    def __init__(
        self, app: FastAPI, listener: socket.socket, on_listening: Callable[[str], None]
    ) -> None:
        """Serve the application on the listener; `on_listening` gets the URL."""
        services = services_of(app)
        proxies = services.settings.trusted_proxies
        super().__init__(
            uvicorn.Config(
                app,
                http=limited_protocol(services.settings.stall_timeout_s),
                # By itself uvicorn trusts whatever runs on the same machine.
                proxy_headers=bool(proxies),
                forwarded_allow_ips=proxies or "",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_SHUTDOWN_TIMEOUT_S,
            )
        )
        self._waiters = services.waiters
        self._listener = listener
        self._on_listening = on_listening
        self._stop_reason = "the program that started it"
        self._began_s = time.monotonic()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note which signal ends the server."""
        self._stop_reason = signal.Signals(sig).name
        super().handle_exit(sig, frame)

    def serve_until_stopped(self) -> None:
        """Serve until a signal, or `should_exit` set by another thread."""
        self.run(sockets=[self._listener])

    @property
    def waiting_count(self) -> int:
        """The number of held polls."""
        return len(self._waiters)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Call `on_listening` once the server listens."""
        await super().startup(sockets)
        if self.started:
            url = url_of(self._listener)
            log.info("server started", extra=fields(version=__version__, url=url))
            self._on_listening(url)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer the long polls first: uvicorn would wait for them."""
        event = {"reason": self._stop_reason, "long_polls": len(self._waiters)}
        log.info("server stopping", extra=fields(**event))
        self._waiters.close()
        await super().shutdown(sockets)
        ran_s = round(time.monotonic() - self._began_s)
        log.info("server stopped", extra=fields(reason=self._stop_reason, ran_s=ran_s))


def bind(host: str, port: int) -> socket.socket:
    """Bind the address; port 0 takes any free one. Raises ConfigurationError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        # socket adds the address to strerror; a name that cannot be resolved has no errno.
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror or str(error)
        raise ConfigurationError(
            f"cannot listen on {host} port {port}: {reason.lower()}"
        ) from error
    # asyncio sets this only on sockets made with a protocol number, which create_server's are not;
    # without it every answer on a kept connection waits 40 ms for the client's delayed ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the address of a listener as a URL."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def open_as_many_as_allowed() -> None:
    """Raise the limit of open files as far as allowed; warn if that is low."""
    _, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))
    if allowed == resource.RLIM_INFINITY or allowed >= _ENOUGH_FILES:
        return
    log.warning(
        "at most %d nodes can be connected: this process may have %d files open; raise the limit"
        " (LimitNOFILE= in its unit, or ulimit -Hn)",
        max(0, allowed - _RESERVED_FILES) // _CONNECTIONS_PER_NODE,
        allowed,
    )
