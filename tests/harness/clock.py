"""The runner's clock in tests: it stands still until a test moves it."""

import time

import anyio
import anyio.lowlevel

from tests.harness.loop import running_loop
from tests.harness.until import DEADLINE_S


class VirtualClock:
    """The host's time. Its sleepers wake when it has been moved far enough.

    `boot_id` may be changed while no runner is at work; that is a restart of the host.
    """

    def __init__(self) -> None:
        self.boot_id = "boot-1"
        self._wall_s = time.time()
        self._awake_s, self._suspended_s = 80_000.0, 6_400.0
        self._sleepers: dict[anyio.Event, float] = {}
        self._failure: Exception | None = None

    def wall_s(self) -> float:
        return self._wall_s

    def uptime_s(self) -> float:
        return self._awake_s + self._suspended_s

    def awake_s(self) -> float:
        """Return seconds since the boot, without those that the host was suspended."""
        return self._awake_s

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await anyio.lowlevel.checkpoint()
            return
        wake = anyio.Event()
        self._sleepers[wake] = self._awake_s + seconds
        try:
            await wake.wait()
        finally:
            self._sleepers.pop(wake, None)

    def set_wall(self, by_s: float) -> None:
        """Set the wall clock forward or back, as NTP or an operator would."""
        self._wall_s += by_s

    def suspend(self, for_s: float) -> None:
        self._wall_s += for_s
        self._suspended_s += for_s

    def move(self, seconds: float) -> None:
        """Move on at once: what is due wakes, and nothing is waited for."""
        self._move_to(self._awake_s + seconds)

    def fail(self, error: Exception) -> None:
        """Raise this error in the test that waits for rest, or will: the runner has crashed."""
        self._failure = error

    async def settle(self) -> None:
        """Wait until nothing is at work: what happens next needs time, or the test."""
        with anyio.fail_after(DEADLINE_S):
            await running_loop().rest()
        if self._failure is not None:
            raise self._failure

    async def advance(self, seconds: float) -> None:
        """Let time pass, sleeper by sleeper; after each, all that it began comes to rest."""
        end_s = self._awake_s + seconds
        await self.settle()
        while (due_s := min(self._sleepers.values(), default=end_s)) < end_s:
            self._move_to(due_s)
            await self.settle()
        self._move_to(end_s)
        await self.settle()

    def _move_to(self, awake_s: float) -> None:
        self._wall_s += awake_s - self._awake_s
        self._awake_s = awake_s
        for wake in [wake for wake, due_s in self._sleepers.items() if due_s <= awake_s]:
            del self._sleepers[wake]
            wake.set()


class PassingClock(VirtualClock):
    """A clock on which every sleep is over at once, and has taken its time."""

    async def sleep(self, seconds: float) -> None:
        await anyio.lowlevel.checkpoint()
        self.move(seconds)
