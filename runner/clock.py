"""The host's time, in the forms that the runner needs; one of the edges that tests may fake."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

import anyio

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


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
