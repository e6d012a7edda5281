"""The log: one event, one line, ids as key=value; text for people, JSON for machines.

Under systemd each line is one entry of the journal, with its priority. journald adds the time.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, TextIO

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


def printable(text: str) -> str:
    """Return a text from outside that can neither break a line nor control a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


class TextFormatter(logging.Formatter):
    """`2026-01-31T09:26:53.589Z INFO task accepted task_id=…`."""

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
        event = {
            "time": _moment(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        line = json.dumps(event, default=str)
        if len(line) <= _MAX_LINE_BYTES:
            return line
        return json.dumps(
            {name: _shorten(str(value), _MAX_SHORTENED_CHARS) for name, value in event.items()}
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


def set_up_logging(log_format: str, verbosity: int) -> None:
    """Send this process's log to standard error: from INFO on, or DEBUG if verbosity is above 0."""
    handler = logging.StreamHandler(sys.stderr)
    is_in_journal = is_journal(sys.stderr)
    lines = JsonFormatter() if log_format == "json" else TextFormatter(has_time=not is_in_journal)
    handler.setFormatter(JournalFormatter(lines) if is_in_journal else lines)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("runner").setLevel(logging.DEBUG if verbosity else logging.INFO)
    # sh logs every command line at INFO, with the task's prompt in it.
    logging.getLogger("sh").setLevel(logging.CRITICAL)


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
