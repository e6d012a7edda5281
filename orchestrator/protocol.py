"""HTTP on one connection, as uvicorn has it, with limits for clients that are not friendly.

uvicorn takes httptools where it is installed, and h11 elsewhere. What is limited here goes by what
asyncio and httptools call, and by the request that is being answered (`cycle`).
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

    # Python shares the names of up to 30 attributes between objects. uvicorn's class has nearly as
    # many, and thousands of connections are open.
    __slots__ = ("_alarm", "_head_bytes", "_is_in_head", "_last_byte_at")
    stall_timeout_s = 60.0

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - uvicorn's
        super().__init__(*arguments, **options)
        self._is_in_head = False
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

    def on_message_begin(self) -> None:
        """Begin a head. Called by httptools; h11 limits heads itself."""
        self._is_in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """End the head."""
        self._is_in_head = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Count what belongs to an incomplete head."""
        self._last_byte_at = self.loop.time()
        super().data_received(data)
        if not self._is_in_head:
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(_TOO_LARGE)
            self.transport.close()

    def _check(self) -> None:
        silent_s, patience_s = self.loop.time() - self._last_byte_at, self._patience_s()
        if patience_s is not None and silent_s >= patience_s:
            self.transport.close()
            return
        left_s = self.stall_timeout_s - silent_s
        self._alarm = self.loop.call_later(
            left_s if left_s > 0 else self.stall_timeout_s, self._check
        )

    def _patience_s(self) -> float | None:
        """Return how long bytes may be awaited now; None if none are."""
        if self.cycle is None or self._is_in_head:
            return self.stall_timeout_s
        if self.cycle.response_complete:
            # uvicorn closes idle connections, but not where the rest of a refused body is awaited.
            return self.stall_timeout_s + float(self.timeout_keep_alive)
        # Reading is paused while what has come is not used up: then no byte can come.
        is_awaited = self.cycle.more_body and not self.flow.read_paused
        return self.stall_timeout_s if is_awaited else None


def limited_protocol(stall_timeout_s: float) -> type[asyncio.Protocol]:
    """Return a protocol that refuses a head over `MAX_HEAD_BYTES` and closes stalled connections.

    A connection is stalled if the rest of a request, or a first one, is awaited and no byte has
    come for `stall_timeout_s`. A slow upload goes on as long as bytes come.
    """
    return type(
        "Protocol", (LimitedProtocol,), {"__slots__": (), "stall_timeout_s": stall_timeout_s}
    )
