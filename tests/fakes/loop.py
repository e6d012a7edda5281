"""Event loops whose time is not the machine's: it jumps, is put forward, or hardly passes."""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, TypeAlias

    Backend: TypeAlias = tuple[str, Mapping[str, Any]]

_GRACE_S = 0.05
"""How long sockets and threads may be silent before time goes on without them."""
_LONGEST_JUMP_S = 60.0
"""What is farther away is a test's own deadline: a thread that takes its time is waited for."""
_SLOWNESS = 100.0


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1_000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            return super().select()
        is_jump = timeout <= _LONGEST_JUMP_S
        ready = super().select(min(timeout, _GRACE_S) if is_jump else timeout)
        if not ready:
            self.now_s += timeout
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    """Waits of up to a minute are over at once; what others take is no time at all."""

    def __init__(self) -> None:
        self._clock = _JumpingSelector()
        super().__init__(self._clock)

    def time(self) -> float:
        """Tell seconds, of which only waits are made."""
        return self._clock.now_s


class ForwardLoop(asyncio.SelectorEventLoop):
    """Waits take their time, unless a test puts the time forward."""

    def __init__(self) -> None:
        self._ahead_s = 0.0
        super().__init__()

    def time(self) -> float:
        """Tell seconds."""
        return super().time() + self._ahead_s

    def put_forward(self, seconds: float) -> None:
        """Let so much time have passed."""
        self._ahead_s += seconds


class SlowLoop(asyncio.SelectorEventLoop):
    """What must be over in a second has more than a minute."""

    def time(self) -> float:
        """Tell seconds, which are longer than the machine's."""
        return super().time() / _SLOWNESS


def put_forward(seconds: float) -> None:
    """Let so much time have passed on the loop that runs, which must be one that allows it."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, ForwardLoop)
    loop.put_forward(seconds)


JUMPING: Backend = ("asyncio", {"loop_factory": JumpingLoop})
"""A backend for anyio's plugin; so are those below."""
FORWARD: Backend = ("asyncio", {"loop_factory": ForwardLoop})
SLOW: Backend = ("asyncio", {"loop_factory": SlowLoop})
