"""A clock that stands still until a test moves it."""

from __future__ import annotations

import time

import anyio
import anyio.lowlevel

_SETTLES_WITHIN_S = 90.0


class FakeClock:
    """The host's time. Who sleeps on it wakes when it has been moved far enough.

    `boot_id` may be changed while no runner is at work; that is a restart of the host.
    """

    def __init__(self) -> None:
        """Begin now, on a host that has been up for a day."""
        self.boot_id = "boot-1"
        self._wall_s = time.time()
        self._awake_s = 80_000.0
        self._suspended_s = 6_400.0
        self._sleepers: dict[anyio.Event, float] = {}
        self._change = anyio.Event()
        self._failure: Exception | None = None

    # What the runner asks of it

    def wall_s(self) -> float:
        """Tell seconds since the epoch."""
        return self._wall_s

    def uptime_s(self) -> float:
        """Tell seconds since the boot."""
        return self._awake_s + self._suspended_s

    def awake_s(self) -> float:
        """Tell seconds since the boot, without those that the host was suspended."""
        return self._awake_s

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock has been moved that far."""
        if seconds <= 0:
            await anyio.lowlevel.checkpoint()
            return
        wake = anyio.Event()
        self._sleepers[wake] = self._awake_s + seconds
        self._tell()
        try:
            await wake.wait()
        finally:
            self._sleepers.pop(wake, None)

    # What tests do to it

    def set_wall(self, by_s: float) -> None:
        """Set the wall clock forth or back, as NTP or an operator would."""
        self._wall_s += by_s

    def suspend(self, for_s: float) -> None:
        """Suspend the host and wake it up: who sleeps does not notice."""
        self._wall_s += for_s
        self._suspended_s += for_s

    def fail(self, error: Exception) -> None:
        """Tell whoever waits for sleepers that there will be none, and why."""
        self._failure = error
        self._tell()

    async def settle(self, asleep: int) -> None:
        """Return when at least so many sleep: then everybody else waits for something else.

        Raises:
            TimeoutError: it does not come to that.
        """
        with anyio.fail_after(_SETTLES_WITHIN_S):
            while len(self._sleepers) < asleep:
                if self._failure is not None:
                    raise self._failure
                await self._change.wait()

    async def advance(self, seconds: float, *, asleep: int) -> None:
        """Let time go by, sleeper by sleeper; at each, `asleep` must have come to sleep again."""
        end_s = self._awake_s + seconds
        while True:
            await self.settle(asleep)
            due_s = min(self._sleepers.values(), default=end_s)
            if due_s > end_s:
                break
            self._move_to(due_s)
            await anyio.lowlevel.checkpoint()
            if due_s == end_s:
                break
        self._move_to(end_s)
        await self.settle(asleep)

    def _move_to(self, awake_s: float) -> None:
        self._wall_s += awake_s - self._awake_s
        self._awake_s = awake_s
        for wake, due_s in list(self._sleepers.items()):
            if due_s <= awake_s:
                del self._sleepers[wake]
                wake.set()

    def _tell(self) -> None:
        self._change.set()
        self._change = anyio.Event()
