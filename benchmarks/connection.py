"""A kept connection, with as much of HTTP/1.1 as the orchestrator speaks.

One process drives thousands of them beside the server that is measured, on the same cores; a client
library would take more of those than the server does.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

import anyio

_OK = 200
_REFUSALS = range(400, 500)
_OVER_S = 90.0
"""An answer that takes longer than that, the held ones included, does not come."""


def _json(body: object) -> bytes:
    return json.dumps(body).encode()


class CallFailed(Exception):
    """The server could not be reached, went away, or answered anything but 200."""


class Refused(CallFailed):
    """The server answered 4xx: asking again would be answered the same."""


class Connection:
    """Calls one of several servers, one call at a time, and the next when that one fails."""

    def __init__(self, urls: Sequence[str], first: int, headers: Mapping[str, str]) -> None:
        """Prepare calls with these headers, at the first server first; nothing is connected yet."""
        self._urls = urls
        self._at = first
        told = {"Content-Type": "application/json", **headers}
        self._told = "".join(f"{name}: {value}\r\n" for name, value in told.items())
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def call(self, method: str, path: str, body: object = None, *, wait_s: int = 0) -> object:
        """Return the response, decoded; a body of bytes is sent as it is. Raises CallFailed."""
        try:
            with anyio.fail_after(_OVER_S):
                status, content = await self._exchange(method, path, body, wait_s)
        except (OSError, EOFError, TimeoutError) as error:
            self.close()
            self._at += 1
            raise CallFailed(f"{method} {path}: {type(error).__name__}") from error
        if status != _OK:
            kind = Refused if status in _REFUSALS else CallFailed
            raise kind(f"{method} {path}: {status} {content[:200].decode()}")
        return json.loads(content)

    def close(self) -> None:
        """Hang up; the next call connects again."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _exchange(
        self, method: str, path: str, body: object, wait_s: int
    ) -> tuple[int, bytes]:
        address = urlsplit(self._urls[self._at % len(self._urls)])
        if self._streams is None:
            self._streams = await asyncio.open_connection(address.hostname, address.port)
        reader, writer = self._streams
        payload = body if isinstance(body, bytes) else b"" if body is None else _json(body)
        prefer = f"Prefer: wait={wait_s}\r\n" if wait_s else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: {address.netloc}\r\n{self._told}{prefer}"
        writer.write(f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload)
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines if line)
        content = await reader.readexactly(int(fields["content-length"]))
        if fields.get("connection") == "close":
            self.close()
        return int(status.split()[1]), content
