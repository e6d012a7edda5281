"""Failures that last: one line as they begin, one every ten minutes, and one when they are over.

While the orchestrator is away, many calls to it fail: they are one outage. A call that fails though
the orchestrator responds to others is logged by itself.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from runner.errors import Refused, Unavailable
from runner.log import fields
from runner.timing import ChangeSignal, Clock, Timings

log = logging.getLogger(__name__)
_AWAY = frozenset({None, 502, 503, 504})
"""Status codes of an orchestrator that is away: no response, or one of a proxy before it."""


@dataclass
class Span:
    """The time for which something fails."""

    began_s: float
    began_wall_s: float
    failures: int = 0
    logged_at_s: float = float("-inf")
    logged_error: str = ""

    @property
    def began(self) -> str:
        """The moment in UTC, as in ISO 8601."""
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.began_wall_s))

    def facts(self, now_s: float) -> dict[str, object]:
        """Return what a log line has of it."""
        lasted_s = round(now_s - self.began_s)
        return {"since": self.began, "lasted_s": lasted_s, "failures": self.failures}


class Outage:
    """The orchestrator is away: from the first call that fails until the vital ones succeed."""

    def __init__(self, clock: Clock) -> None:
        self.changes = ChangeSignal()
        """Notified when the outage begins, has another cause or ends, and of a registration."""
        self._clock = clock
        self._span: Span | None = None
        self._error = ""
        self._failing: set[str] = set()
        """The vital calls that failed last."""

    @property
    def sentence(self) -> str | None:
        """Since when, and why; None if there is no outage."""
        if self._span is None:
            return None
        return f"outage of the orchestrator since {self._span.began}: {self._error}"

    def join(self, call: str, error: Exception, *, is_vital: bool, opens: bool) -> Span | None:
        """Return the span of the outage that a failed call is part of; None if it is of none."""
        if self._span is None and opens:
            self._span = Span(self._clock.awake_s(), self._clock.wall_s())
        if self._span is not None and self._error != str(error):
            self._error = str(error)
            self.changes.notify()
        if is_vital:
            self._failing.add(call)
        return self._span

    def drop(self, call: str) -> None:
        """Note that a vital call is not made for now: the outage is over when another succeeds."""
        self._failing.discard(call)

    def end_for(self, call: str) -> None:
        """Note that a call succeeded."""
        self._failing.discard(call)
        if self._span is None or self._failing:
            return
        facts = self._span.facts(self._clock.awake_s())
        log.info("the orchestrator responds again", extra=fields(**facts))
        self._span, self._error = None, ""
        self.changes.notify()


class FailureLog:
    """Logs a call that is retried: its first failure, one every ten minutes, and its success.

    All other failures are logged at DEBUG.
    """

    def __init__(  # noqa: PLR0913 - what is logged, with what, and by which clock
        self,
        what: str,
        clock: Clock,
        timings: Timings,
        ids: Mapping[str, object] | None = None,
        outage: Outage | None = None,
        *,
        is_vital: bool = False,
    ) -> None:
        """Log the failures of `what`, such as "fetch a file", with these ids.

        `outage` is for calls to the orchestrator. A vital one is made for as long as the runner
        runs.
        """
        self._what = what
        self._clock = clock
        self._timings = timings
        self._outage = outage
        self._is_vital = is_vital
        self._ids = ids or {}
        self._span: Span | None = None
        self._has_own_line = False

    def note(
        self,
        error: Exception,
        wait_s: float,
        sentence: str | None = None,
        level: int = logging.WARNING,
    ) -> None:
        """Log a failure, or an ERROR that is another one than before; `wait_s` is to follow."""
        now_s = self._clock.awake_s()
        own = self._span = self._span or Span(now_s, self._clock.wall_s())
        span = (self._join(error) if level > logging.DEBUG else None) or own
        own.failures += 1
        if span is not own:
            span.failures += 1
        sentence = sentence or f"cannot {self._what}, retrying in {wait_s:.0f} s: {error}"
        is_due = now_s - span.logged_at_s >= self._timings.outage_reminder_s
        if not is_due and not (level >= logging.ERROR and sentence != own.logged_error):
            level = logging.DEBUG
        if level > logging.DEBUG:
            span.logged_at_s = now_s
            self._has_own_line = self._has_own_line or span is own
        own.logged_at_s = max(own.logged_at_s, span.logged_at_s)
        if level >= logging.ERROR:
            own.logged_error = sentence
        facts = {**span.facts(now_s), "next_attempt_s": round(wait_s)}
        log.log(level, "%s", sentence, extra=fields(**self._ids, **facts))

    def end(self) -> None:
        """Log that the call succeeded, if its failures were."""
        span, has_own_line = self._span, self._has_own_line
        self._span, self._has_own_line = None, False
        if span is not None and has_own_line:
            facts = span.facts(self._clock.awake_s())
            log.info("retry succeeded: %s", self._what, extra=fields(**self._ids, **facts))
        if self._outage is not None:
            self._outage.end_for(self._what)

    def _join(self, error: Exception) -> Span | None:
        if self._outage is None:
            return None
        # A page in place of a response comes from a proxy before the orchestrator.
        is_page = isinstance(error, Refused) and error.detail is None
        if self._is_vital and (is_page or isinstance(error, Unavailable)):
            return self._outage.join(self._what, error, is_vital=True, opens=True)
        if isinstance(error, Unavailable) and error.status in _AWAY:
            # One that has failed before may be the only one that fails.
            is_first = self._span is None or not self._span.failures
            return self._outage.join(self._what, error, is_vital=False, opens=is_first)
        return None
