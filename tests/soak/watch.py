"""The runner's watch: ends it as the schedule says, counts its ends, and restarts it."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.soak.program import Program

TERM_DEADLINE_S = 60.0
LONGEST_PAUSE_S = 0.8


class RunnerWatch:
    """Keeps one runner going over all its ends."""

    def __init__(self, runner: Program, seed: int) -> None:
        """Watch a runner that was not started yet; pauses between its starts follow the seed."""
        self.ends: Counter[str] = Counter()
        """How often it ended, by how."""
        self.own_ends: list[str] = []
        """Its ends that nobody brought about, and TERM without an end."""
        self._runner = runner
        self._dice = random.Random(f"restarts {seed}")  # noqa: S311 - to be the same again
        self._starts_at: float | None = 0.0
        self._term_at: float | None = None
        self._is_killed_by_us = False

    def kill(self) -> None:
        """Do to it what a crash does, if it runs."""
        if self._runner.is_alive:
            self._is_killed_by_us = True
            self._runner.signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Send it TERM, if it runs."""
        if self._runner.is_alive:
            self._term_at = time.monotonic()
            self._runner.signal(signal.SIGTERM)

    def look(self) -> None:
        """Note an end, and start it again when it is time."""
        now = time.monotonic()
        if self._runner.is_alive:
            if self._term_at is not None and now > self._term_at + TERM_DEADLINE_S:
                self.own_ends.append(f"it had to be killed {TERM_DEADLINE_S:g} s after TERM")
                self._runner.signal(signal.SIGKILL)
        elif self._starts_at is None:
            self._note_end()
            self._starts_at = now + self._dice.uniform(0.05, LONGEST_PAUSE_S)
        elif now >= self._starts_at:
            self._starts_at = None
            self._runner.start()

    def _note_end(self) -> None:
        code = self._runner.exit_code
        if code == -signal.SIGKILL and self._is_killed_by_us:
            self.ends["kill -9"] += 1
        elif code == -signal.SIGKILL:
            self.ends["kill -9 at an engine call or a commit"] += 1
        # It may not have listened for signals yet.
        elif code in {0, -signal.SIGTERM} and self._term_at is not None:
            self.ends["TERM"] += 1
        else:
            self.own_ends.append(f"exit code {code}")
        self._term_at, self._is_killed_by_us = None, False
