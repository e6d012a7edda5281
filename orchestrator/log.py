"""The log: one event, one line, ids as key=value; text for people, JSON for machines.

The form is the runner's (runner/log.py), so that one search serves the logs of a whole fleet.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Session

_LOGGED_EVERY = timedelta(minutes=1)
_KINDS_A_MINUTE = 100


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


class TextFormatter(logging.Formatter):
    """`2026-01-31T09:26:53.589Z INFO task created task_id=…`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line, whatever is in it."""
        parts = [_moment(record), record.levelname, record.getMessage()]
        parts += [f"{key}={_plain(value)}" for key, value in _fields(record).items()]
        if record.exc_info:
            parts.append(f"traceback={json.dumps(self.formatException(record.exc_info))}")
        # Text from outside must not break the line or control the operator's terminal.
        return "".join(c if c.isprintable() else " " for c in " ".join(parts))


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
        return json.dumps(logged, default=str)


def set_up_logging(log_format: str, level: str) -> None:
    """Send this process's log to standard error; libraries' only from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("orchestrator").setLevel(level.upper())


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


def _plain(value: object) -> str:
    text = str(value)
    is_plain = text.isprintable() and not any(c in text for c in ' "=')
    return text if text and is_plain else json.dumps(text)
