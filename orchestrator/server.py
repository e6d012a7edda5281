"""The server's story: bind, say where it listens, serve, send the waiting home, stop."""

import asyncio
import os
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from orchestrator.errors import ConfigurationError
from orchestrator.services import services_of

_KEEP_ALIVE_S = 75
_STOP_WITHIN_S = 5
"""How long a download may go on once the server is to stop; after twice that uvicorn cancels."""
_TURNS_UNTIL_MET = 10
"""Of the event loop: whoever was accepted is known to uvicorn by then."""
_BACKLOG = 2048


class Server(uvicorn.Server):
    """A uvicorn server that tells when it listens and does not wait for those who wait for work."""

    def __init__(
        self, app: FastAPI, listener: socket.socket, on_listening: Callable[[str], None]
    ) -> None:
        """Serve the application on the listener; `on_listening` gets the URL."""
        services = services_of(app)
        proxies = services.settings.trusted_proxies
        super().__init__(
            uvicorn.Config(
                app,
                # By itself uvicorn trusts whatever runs on the same machine.
                proxy_headers=bool(proxies),
                forwarded_allow_ips=proxies or "",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=2 * _STOP_WITHIN_S,
            )
        )
        self._waiters = services.waiters
        self._listener = listener
        self._on_listening = on_listening

    def serve_until_stopped(self) -> None:
        """Serve until a signal, or `should_exit` set by another thread."""
        self.run(sockets=[self._listener])

    @property
    def waiting_count(self) -> int:
        """How many requests for work are held right now."""
        return len(self._waiters)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say where the server listens once it does."""
        await super().startup(sockets)
        if self.started:
            self._on_listening(url_of(self._listener))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer the held requests first: uvicorn would wait for them. Cut off the slow ones."""
        loop = asyncio.get_running_loop()
        # asyncio forgets to close who was accepted by a server that has closed since.
        for server in self.servers:
            for listener in server.sockets:
                loop.remove_reader(listener.fileno())
        for _ in range(_TURNS_UNTIL_MET):
            await asyncio.sleep(0)
        self._waiters.close()
        # A download whose client is gone ends by itself; a cancelled one leaves its file open.
        due = loop.call_later(_STOP_WITHIN_S, self._cut_off)
        await super().shutdown(sockets)
        due.cancel()
        self._cut_off()
        await asyncio.sleep(0)  # the loop closes them in its next turn

    def _cut_off(self) -> None:
        for connection in list(self.server_state.connections):
            if isinstance(connection.transport, asyncio.WriteTransport):
                connection.transport.abort()


def bind(host: str, port: int) -> socket.socket:
    """Take the address; port 0 takes any free one. Raises ConfigurationError."""
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
    """Give the address that a listener took, as a URL."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
