"""An event loop whose time jumps to the next thing to do when nothing else is going on."""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_GRACE_S = 0.05
"""How long sockets and threads may be silent before time goes on without them."""


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1_000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            return super().select()
        ready = super().select(min(timeout, _GRACE_S))
        if not ready:
            self.now_s += timeout
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    """Waits of half an hour are over at once; what others take is no time at all."""

    def __init__(self) -> None:
        self._clock = _JumpingSelector()
        super().__init__(self._clock)

    def time(self) -> float:
        """Tell seconds, of which only waits are made."""
        return self._clock.now_s


JUMPING: tuple[str, Mapping[str, Any]] = ("asyncio", {"loop_factory": JumpingLoop})
"""The backend for anyio's plugin."""
