"""Slows guessing: whoever fails too often from one address is not listened to for a while.

It guards the two secrets that an operator may have chosen, the registration token and the admin
key. Other keys are random and cannot be guessed, so nodes are never kept out by it, whatever
others behind the same address do. Each process keeps its own count.
"""

import threading
from datetime import datetime

from orchestrator.errors import TooMany
from orchestrator.rate import pay

_REMEMBERED = 10_000
"""At most so many addresses are kept; the ones that failed longest ago are forgotten first."""


class Throttle:
    """Counts failures by address."""

    def __init__(self, failures_per_minute: int) -> None:
        self._failures_per_minute = failures_per_minute
        self._paid_until: dict[str, datetime] = {}
        self._lock = threading.Lock()

    def check(self, address: str, now: datetime) -> None:
        """Raise TooMany if this address has failed too often lately."""
        with self._lock:
            _, wait = pay(self._paid_until.get(address), now, self._failures_per_minute)
        if wait is not None:
            raise TooMany("too many wrong credentials came from this address", wait)

    def note_failure(self, address: str, now: datetime) -> None:
        """Count one failure."""
        with self._lock:
            paid_until, _ = pay(self._paid_until.pop(address, None), now, self._failures_per_minute)
            self._paid_until[address] = paid_until
            if len(self._paid_until) > _REMEMBERED:
                self._paid_until.pop(next(iter(self._paid_until)))

    def address_count(self) -> int:
        """Say how many addresses are kept."""
        return len(self._paid_until)
