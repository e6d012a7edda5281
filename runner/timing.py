"""Time and waiting: the clock, waits before a retry, and changes that can be waited for."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Protocol

import anyio

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
FIRST_S = 1.0
SHORTEST_S = 0.5
LONGEST_ASKED_S = 3600.0
CEILING_S = 60.0


class Clock(Protocol):
    """What the runner asks of time."""

    @property
    def boot_id(self) -> str:
        """Tell this boot of the host from any other."""

    def wall_s(self) -> float:
        """Tell seconds since the epoch: for people and reports, never for deadlines."""

    def uptime_s(self) -> float:
        """Tell seconds since the boot, suspended time included: for deadlines.

        It is the same for every process of one boot, so that a deadline written down by one runner
        holds for the next, and setting the host's clock does not move it.
        """

    def awake_s(self) -> float:
        """Tell seconds since the boot, suspended time left out: for what a sleep is held against.

        A host that was suspended for a night has waited as little as its sleeps have.
        """

    async def sleep(self, seconds: float) -> None:
        """Wait that long, by the same measure."""


class HostClock:
    """The real thing."""

    def __init__(self) -> None:
        self.boot_id = _BOOT_ID.read_text(encoding="ascii").strip()

    def wall_s(self) -> float:
        """Tell seconds since the epoch."""
        return time.time()

    def uptime_s(self) -> float:
        """Tell seconds since the boot."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def awake_s(self) -> float:
        """Tell seconds since the boot without those that the host was suspended."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait that long."""
        await anyio.sleep(seconds)


def delay_s(attempts: int, *, ceiling_s: float = CEILING_S, at_least_s: float = 0.0) -> float:
    """Choose the wait in seconds after `attempts` failures (1 for the first).

    `at_least_s` is what the other side asked for (Retry-After); it is obeyed up to an hour and
    spread by a tenth.
    """
    widest = min(ceiling_s, FIRST_S * 2.0 ** min(attempts, 30))
    asked = min(at_least_s, LONGEST_ASKED_S)
    spread = random.uniform(SHORTEST_S, max(widest, SHORTEST_S))  # noqa: S311 - spreading load needs no secrecy
    if asked <= 0:
        return spread
    return max(asked * random.uniform(1.0, 1.1), spread)  # noqa: S311 - as above


def jittered_s(interval_s: float) -> float:
    """Spread a regular wait by a tenth to either side."""
    return interval_s * random.uniform(0.9, 1.1)  # noqa: S311 - as above


class ChangeSignal:
    """A counter that can be waited on: no change is missed between looking and waiting."""

    def __init__(self) -> None:
        self.count = 0
        self._next = anyio.Event()

    def notify(self) -> None:
        """Count a change and wake whoever waits for one."""
        self.count += 1
        self._next.set()
        self._next = anyio.Event()

    async def after(self, count: int) -> None:
        """Return as soon as more than `count` changes have been counted."""
        while self.count <= count:
            await self._next.wait()

    async def after_or(self, count: int, seconds: float, clock: Clock) -> None:
        """Return as soon as `after` would, or when so many seconds have passed."""
        async with anyio.create_task_group() as group:
            group.start_soon(_cancel_after, seconds, clock, group.cancel_scope)
            await self.after(count)
            group.cancel_scope.cancel()


async def _cancel_after(seconds: float, clock: Clock, scope: anyio.CancelScope) -> None:
    await clock.sleep(seconds)
    scope.cancel()
