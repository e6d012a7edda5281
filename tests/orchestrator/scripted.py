"""A small server whose routes a test scripts, for calls that the orchestrator may not have."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Reply:
    """A response; without a length the connection's end is its end."""

    body: object = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    kind: str = "application/json"
    breaks_off: bool = False

    @property
    def raw(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@dataclass(frozen=True)
class Asked:
    """A request as it came."""

    call: str
    """Method and path, still encoded."""
    query: str
    headers: Mapping[str, str]


@dataclass
class Scripted:
    """The replies by call, of which the last is repeated; what has none is answered with 404."""

    url: str = ""
    replies: dict[str, list[Reply]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    def on(self, call: str, *replies: Reply) -> None:
        self.replies[call] = list(replies)

    def calls(self) -> list[str]:
        return [one.call for one in self.asked]

    def reply(self, call: str) -> Reply:
        replies = self.replies.get(call)
        if replies is None:
            return Reply({"detail": "there is no such path"}, 404)
        return replies.pop(0) if len(replies) > 1 else replies[0]


@contextmanager
def scripted() -> Iterator[Scripted]:
    script = Scripted()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            parts = urlsplit(self.path)
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            call = f"{self.command} {parts.path}"
            script.asked.append(Asked(call, parts.query, dict(self.headers)))
            reply = script.reply(call)
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.kind)
            length = len(reply.raw) + (10 if reply.breaks_off else 0)
            if reply.kind != "text/event-stream":
                self.send_header("Content-Length", str(length))
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.raw)

        do_GET = do_POST = do_DELETE = do_PUT = _answer  # noqa: N815 - http.server's names

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield script
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
