"""The log: one event, one line, ids as key=value; text for people, JSON for machines."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any


def fields(**values: object) -> dict[str, Any]:
    """Return the `extra=` of a log call that appends the values to the message as key=value."""
    return {"fields": values}


def printable(text: str) -> str:
    """Return a text from outside that can neither break a line nor control a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def readable_size(size: int) -> str:
    """Return a number of bytes for people: 512 MiB, 68.7 GiB."""
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while value >= 1024 and len(units) > 1:  # noqa: PLR2004 - a unit is so many of the one before
        value /= 1024
        units.pop(0)
    return f"{value:.1f}".removesuffix(".0") + f" {units[0]}"


class TextFormatter(logging.Formatter):
    """`2026-01-31T09:26:53.589Z INFO task accepted task_id=…`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line, whatever is in it."""
        parts = [_moment(record), record.levelname, record.getMessage()]
        parts += [f"{key}={_plain(value)}" for key, value in _fields(record).items()]
        if record.exc_info:
            parts.append(f"traceback={json.dumps(self.formatException(record.exc_info))}")
        return printable(" ".join(parts))


class JsonFormatter(logging.Formatter):
    """One JSON object per line: `time`, `level`, `logger`, `message` and the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        event = {
            "time": _moment(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event, default=str)


def set_up_logging(log_format: str, verbosity: int) -> None:
    """Send this process's log to standard error: from INFO on, or DEBUG if verbosity is above 0."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("runner").setLevel(logging.DEBUG if verbosity else logging.INFO)
    # sh logs every command line at INFO, with the task's prompt in it.
    logging.getLogger("sh").setLevel(logging.CRITICAL)


def log_retry(
    what: str, *, level: int = logging.WARNING, **ids: object
) -> Callable[[Exception, float], None]:
    """Return what a `timing.Retry` calls to log each failure of `what`: "cannot fetch a file"."""

    def log_failure(error: Exception, wait_s: float) -> None:
        logging.getLogger("runner.retry").log(
            level,
            "%s, retrying in %.0f s: %s",
            what,
            wait_s,
            error,
            extra=fields(**ids, next_attempt_s=round(wait_s)),
        )

    return log_failure


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
