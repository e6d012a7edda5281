"""The mark by which a session is known as a task's own, whatever was asked in it.

Every answer of the status reporter has it, and Crush keeps it with the session.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from runner.crush_database import end_of_parts, rows_to_search

if TYPE_CHECKING:
    import sqlite3

_PATTERN = "*victoria-reporter/[A-Za-z0-9]*"
_MARK = re.compile(rb"victoria-reporter/[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_MOST_BYTES = 2_000_000
"""Of a message: an answer of the reporter is far shorter."""


def session_mark(task_id: str) -> str:
    """Give the text that is only in a task's own session: the reporter told it to the agent."""
    return f"victoria-reporter/{task_id}"


def is_mark(found: str | None, mark: str) -> bool:
    """Tell whether a mark is this one, and not only begins alike; it may end a sentence."""
    return found is not None and found.rstrip(".") == mark.rstrip(".")


def first_mark(connection: sqlite3.Connection, session_id: str) -> str | None:
    """Give the mark that came first in a session; None when there is none in it.

    An agent can have met the marks of others by reading what they left; its own comes with the
    first answer of its reporter.
    """
    for row in rows_to_search(connection, session_id, _PATTERN, _MOST_BYTES):
        parts, _ = end_of_parts(connection, row, _MOST_BYTES)
        found = _MARK.search(parts)
        if found is not None:
            return found[0].decode()
    return None
