"""The log: one event, one line, ids as key=value; text for people, JSON for machines.

The form is the runner's (runner/log.py), so that one search serves the logs of a whole fleet. Under
systemd each line is one entry of the journal, with its priority. journald adds the time.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, TextIO

from sqlalchemy import event
from sqlalchemy.orm import Session

_LOGGED_EVERY = timedelta(minutes=1)
_KINDS_A_MINUTE = 100
_REMINDED_EVERY_S = 600.0
_JOURNAL_VARIABLE = "JOURNAL_STREAM"
_MAX_LINE_BYTES = 40_000
"""journald splits a line of more than 48 KiB into several entries (LineMax=, journald.conf(5))."""
_MAX_SHORTENED_CHARS = 400
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG_PRIORITY = 7
_PRINTED_ERROR = 3


def fields(**values: object) -> dict[str, Any]:
    """Return the `extra=` of a log call that appends the values to the message as key=value."""
    return {"fields": values}


def log_on_commit(
    session: Session,
    log: logging.Logger,
    message: str,
    ids: Mapping[str, object],
    level: int = logging.INFO,
) -> None:
    """Log an event once the transaction that it is part of is committed, and never on rollback."""

    def write(_: Session) -> None:
        log.log(level, message, extra=fields(**ids))

    event.listen(session, "after_commit", write, once=True)


def printable(text: str) -> str:
    """Return a text from outside that can neither break a line nor control a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


class TextFormatter(logging.Formatter):
    """`2026-01-31T09:26:53.589Z INFO task created task_id=…`."""

    def __init__(self, *, has_time: bool = True) -> None:
        """Write the time in each line, unless journald adds it."""
        super().__init__()
        self._has_time = has_time

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line, whatever is in it."""
        parts = [_moment(record)] if self._has_time else []
        parts += [record.levelname, record.getMessage()]
        parts += [f"{key}={_plain(value)}" for key, value in _fields(record).items()]
        if record.exc_info:
            parts.append(f"traceback={json.dumps(self.formatException(record.exc_info))}")
        return printable(" ".join(parts))


class JsonFormatter(logging.Formatter):
    """One JSON object per line: `time`, `level`, `logger`, `message` and the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        logged = {
            "time": _moment(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            logged["traceback"] = self.formatException(record.exc_info)
        line = json.dumps(logged, default=str)
        if len(line) <= _MAX_LINE_BYTES:
            return line
        return json.dumps(
            {name: _shorten(str(value), _MAX_SHORTENED_CHARS) for name, value in logged.items()}
        )


class JournalFormatter(logging.Formatter):
    """The lines of another formatter, with the prefix that journald reads (sd-daemon(3))."""

    def __init__(self, lines: logging.Formatter) -> None:
        """Prefix the lines of this formatter."""
        super().__init__()
        self._lines = lines

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one entry: `<3>ERROR …`."""
        priorities = (number for level, number in _PRIORITIES if record.levelno >= level)
        return as_journal_entry(self._lines.format(record), next(priorities, _DEBUG_PRIORITY))


def as_journal_entry(text: str, priority: int = _PRINTED_ERROR) -> str:
    """Return a text as one line with the prefix of its priority, short enough for one entry."""
    line = printable(text)
    if len(line.encode()) > _MAX_LINE_BYTES:
        line = _shorten(line, _MAX_LINE_BYTES // 4)
    return f"<{priority}>{line}"


def is_journal(stream: TextIO, variables: Mapping[str, str] = os.environ) -> bool:
    """Return whether a stream leads to journald, as JOURNAL_STREAM says (systemd.exec(5)).

    A terminal or a file inherits the variable too, so it must name this very stream.
    """
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return variables.get(_JOURNAL_VARIABLE) == f"{status.st_dev}:{status.st_ino}"


def print_error(text: str) -> None:
    """Print why the process ends, to standard error; in the journal it is one entry, an error."""
    print(as_journal_entry(text) if is_journal(sys.stderr) else text, file=sys.stderr)  # noqa: T201 - for its operator


def set_up_logging(log_format: str, level: str) -> None:
    """Send this process's log to standard error; libraries' only from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    is_in_journal = is_journal(sys.stderr)
    lines = JsonFormatter() if log_format == "json" else TextFormatter(has_time=not is_in_journal)
    handler.setFormatter(JournalFormatter(lines) if is_in_journal else lines)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("orchestrator").setLevel(level.upper())


class Outage:
    """What fails for a while: logged as it begins, every ten minutes, and when it is over."""

    def __init__(
        self, log: logging.Logger, over: str, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        """Log to `log`; `over` is the event at the end."""
        self._log = log
        self._over = over
        self._now_s = now_s
        self._failing: set[str] = set()
        self._began_s: float | None = None
        self._began_at = ""
        self._logged_at_s = 0.0
        self._failures = 0

    @property
    def is_open(self) -> bool:
        """Whether something fails now."""
        return self._began_s is not None

    def note(
        self, call: str, event: str, next_attempt_s: float, *, error: Exception | None = None
    ) -> None:
        """Log that a call failed, with the traceback of `error`; most of many at DEBUG."""
        now_s = self._now_s()
        if self._began_s is None:
            self._began_s, self._failures = now_s, 0
            self._began_at = f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
        is_due = not self._failures or now_s - self._logged_at_s >= _REMINDED_EVERY_S
        self._failing.add(call)
        self._failures += 1
        if is_due:
            self._logged_at_s = now_s
        level = logging.ERROR if is_due else logging.DEBUG
        facts = fields(**self._facts(self._began_s), next_attempt_s=next_attempt_s)
        self._log.log(level, "%s", event, exc_info=error if is_due else None, extra=facts)

    def end(self, call: str) -> None:
        """Note that a call succeeds; if none fails any more, log the end."""
        self._failing.discard(call)
        if self._began_s is not None and not self._failing:
            self._log.info(self._over, extra=fields(**self._facts(self._began_s)))
            self._began_s = None

    def _facts(self, began_s: float) -> dict[str, object]:
        lasted_s = round(self._now_s() - began_s)
        return {"since": self._began_at, "lasted_s": lasted_s, "failures": self._failures}


class Sampler:
    """Decides which of many similar events are logged, so that a flood cannot fill the disk.

    One a minute of each kind, and of all kinds together at most a hundred a minute.
    """

    def __init__(self) -> None:
        self._minute_ends: datetime | None = None
        self._kinds: set[tuple[object, ...]] = set()
        self._omitted = 0
        self._lock = threading.Lock()

    def take(self, kind: tuple[object, ...], now: datetime) -> int | None:
        """Return None if this event is not logged, else how many were not since the last line."""
        with self._lock:
            if self._minute_ends is None or now >= self._minute_ends:
                self._minute_ends = now + _LOGGED_EVERY
                self._kinds.clear()
            if kind in self._kinds or len(self._kinds) >= _KINDS_A_MINUTE:
                self._omitted += 1
                return None
            self._kinds.add(kind)
            omitted, self._omitted = self._omitted, 0
            return omitted


def _moment(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> dict[str, object]:
    values: dict[str, object] = getattr(record, "fields", {})
    return values


def _shorten(text: str, max_chars: int) -> str:
    """Return the text, or its beginning and its end: a traceback ends with its reason."""
    half = max_chars // 2
    return text if len(text) <= max_chars else f"{text[:half]} … {text[-half:]}"


def _plain(value: object) -> str:
    text = str(value)
    is_plain = text.isprintable() and not any(c in text for c in ' "=')
    return text if text and is_plain else json.dumps(text)
