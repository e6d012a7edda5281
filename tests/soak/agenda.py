"""What is to be done later in a soak, by one thread."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(order=True)
class _Entry:
    at: float
    number: int
    act: Callable[[], None] = field(compare=False)


class Agenda:
    """Acts and their moments."""

    def __init__(self) -> None:
        """Begin empty."""
        self._entries: list[_Entry] = []
        self._number = 0

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        """Note an act."""
        self._number += 1
        heapq.heappush(self._entries, _Entry(time.monotonic() + seconds, self._number, act))

    def do_what_is_due(self) -> None:
        """Do everything whose moment has come."""
        now = time.monotonic()
        while self._entries and self._entries[0].at <= now:
            heapq.heappop(self._entries).act()

    def clear(self) -> None:
        """Forget what is noted."""
        self._entries.clear()
