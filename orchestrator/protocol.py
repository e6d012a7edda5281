"""HTTP on one connection, as uvicorn has it, with limits for clients that are not friendly.

uvicorn takes httptools where it is installed, and h11 elsewhere; both are limited here alike, by
what asyncio calls and by the request that is being answered (`cycle`).
"""

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

MAX_HEAD_BYTES = 64 * 1024

_SENTENCE = f"the request line and headers are over the limit of {MAX_HEAD_BYTES} bytes"
_BODY = json.dumps({"detail": _SENTENCE}).encode()
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%s" % (len(_BODY), _BODY)
)


class LimitedProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type] # which of the two is known at run time
    """A connection with limits."""

    stall_timeout_s = 60.0

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - uvicorn's
        super().__init__(*arguments, **options)
        self._head_bytes = 0
        """How much has come of a head that is not complete."""
        self._last_byte_at = self.loop.time()
        self._alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Watch the connection."""
        super().connection_made(transport)
        self._alarm = self.loop.call_later(self.stall_timeout_s, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop watching."""
        if self._alarm is not None:
            self._alarm.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what belongs to an incomplete head."""
        self._last_byte_at = self.loop.time()
        before = self.cycle
        is_body = before is not None and before.more_body and not before.response_complete
        super().data_received(data)
        if is_body or self.cycle is not before:
            self._head_bytes = 0
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            if before is None or before.response_complete:
                self.transport.write(_TOO_LARGE)
            self.transport.close()

    def _check(self) -> None:
        silent_s = self.loop.time() - self._last_byte_at
        if silent_s >= self.stall_timeout_s and self._awaits_bytes():
            self.transport.close()
            return
        left_s = self.stall_timeout_s - silent_s
        self._alarm = self.loop.call_later(
            left_s if left_s > 0 else self.stall_timeout_s, self._check
        )

    def _awaits_bytes(self) -> bool:
        if self.cycle is None:
            return True
        if self.cycle.response_complete:
            # Of a connection between two requests uvicorn itself closes those that stay silent.
            return self._head_bytes > 0
        # Reading is paused while what has come is not used up: then no byte can come.
        return bool(self.cycle.more_body and not self.flow.read_paused)


def limited_protocol(stall_timeout_s: float) -> type[asyncio.Protocol]:
    """Return a protocol that refuses a head over `MAX_HEAD_BYTES` and closes stalled connections.

    A connection is stalled if the rest of a request, or a first one, is awaited and no byte has
    come for `stall_timeout_s`. A slow upload goes on as long as bytes come.
    """
    return type("Protocol", (LimitedProtocol,), {"stall_timeout_s": stall_timeout_s})
