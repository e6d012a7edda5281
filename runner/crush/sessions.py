"""A task's session in Crush's database: which one it is, and what it says.

Crush is the agent in the container. What its database holds was written by an agent: nothing in
it is trusted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from runner.crush.database import (
    BUSY_TIMEOUT_S,
    check_tables,
    end_of_parts,
    query_database,
    rows_to_search,
)
from runner.crush.log import LOG_LIMIT_BYTES, read_log
from runner.crush.messages import read_content, to_valid_unicode
from runner.redaction import encoded_forms

if TYPE_CHECKING:
    import sqlite3


_LONGEST_PROMPT_BYTES = 2_000_000
_PATTERN = "*victoria-reporter/[A-Za-z0-9]*"
_MARK = re.compile(rb"victoria-reporter/[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_MOST_BYTES = 2_000_000
"""Of a message: an answer of the reporter is far shorter."""


@dataclass(frozen=True)
class SessionQuery:
    """What is known of a task's session before it is found."""

    started_at: float
    """When the task's container started, in seconds since the epoch."""
    ended_at: float | None
    """When it ended; None while it runs."""
    prompt: str | None = None
    mark: str | None = None
    """See `session_mark`."""
    others: tuple[str | None, ...] = ()
    """The prompts of the tasks that ran beside it in the same home; None where not known."""


class _Asked(NamedTuple):
    session_id: str
    said: str
    """The first message of the user; empty when it does not matter."""


class Candidates(NamedTuple):
    """The sessions that can belong to a task, the newest first."""

    ids: list[str]
    certain: bool
    """Whether they do; if not, some may be another task's or a user's."""


def find_session(
    database: Path, query: SessionQuery, *, busy_timeout_s: float = BUSY_TIMEOUT_S
) -> str | None:
    """Give the id of the newest session that certainly belongs to a task, or None.

    See `find_sessions`.

    Raises:
        CrushError: the database cannot be read.
    """
    found = find_sessions(database, query, busy_timeout_s=busy_timeout_s)
    return found.ids[0] if found.certain else None


def find_sessions(
    database: Path, query: SessionQuery, *, busy_timeout_s: float = BUSY_TIMEOUT_S
) -> Candidates:
    """Find the sessions that can belong to a task.

    They were begun while the task's container ran and are no sub-agent's. Where the prompt is
    known, the first user message must be it, or, when none is, contain it; white space does not
    count. Those whose first mark is the task's are the task's, and those with another's never
    are. Without a mark one is the task's when it is the only one, and cannot have been begun by
    any of the others.

    Raises:
        CrushError: the database cannot be read.
    """

    def question(connection: sqlite3.Connection) -> Candidates:
        # Crush keeps whole seconds: what began in the second of our start may be ours.
        window = (
            math.floor(query.started_at),
            math.inf if query.ended_at is None else query.ended_at,
        )
        begun = _begun(connection, window)
        prompt = None if query.prompt is None else _squeezed(to_valid_unicode(query.prompt))
        asked = _asked(connection, begun, prompt)
        ours, unmarked = _by_mark(connection, [found.session_id for found in asked], query.mark)
        if not ours and not unmarked:
            ours, _ = _by_mark(connection, begun, query.mark)
        if ours:
            return Candidates(ours, certain=True)
        others = [
            other if other is None else _squeezed(to_valid_unicode(other)) for other in query.others
        ]
        certain = [
            found.session_id
            for found in asked
            if found.session_id in unmarked and not _may_be_anothers(found.said, prompt, others)
        ]
        is_certain = len(certain) == 1
        return Candidates(certain if is_certain else unmarked, certain=is_certain)

    return query_database(database, question, busy_timeout_s) or Candidates([], certain=False)


def read_session(
    database: Path,
    session_id: str,
    *,
    secrets: Collection[str] = (),
    limit_bytes: int = LOG_LIMIT_BYTES,
    busy_timeout_s: float = BUSY_TIMEOUT_S,
) -> dict[str, object] | None:
    """Give a session as `POST /logs` takes it, or None when there is no such session.

    Posted to `/logs` it takes at most `limit_bytes`, for which some 10,000 are the least.
    What was cut is marked: by a first message of the role `system`, and at the head of a content.
    The secrets are blanked, in whatever text they are, before it is cut.
    Sessions of sub-agents are left out; what they answered is in the messages of their parent.
    With Python 3.10, SQLite loads a message whole, however long it is, before it is cut.

    Raises:
        CrushError: the database cannot be read.
    """

    def question(connection: sqlite3.Connection) -> dict[str, object] | None:
        return read_log(connection, session_id, limit_bytes, encoded_forms(secrets))

    if session_id != to_valid_unicode(session_id):
        return None  # SQLite could not even be asked
    return query_database(database, question, busy_timeout_s)


def session_of_task(
    database: Path, query: SessionQuery, secrets: Collection[str] = ()
) -> dict[str, object] | None:
    """Give the session that a task's agent left, as `POST /logs` takes it; None if it left none.

    Raises:
        CrushError: the database cannot be read.
    """
    session_id = find_session(database, query)
    return None if session_id is None else read_session(database, session_id, secrets=secrets)


def _begun(connection: sqlite3.Connection, window: tuple[float, float]) -> list[str]:
    known = check_tables(connection)["sessions"]
    is_root = "coalesce(parent_session_id, '') = ''" if "parent_session_id" in known else "1"
    rows = connection.execute(
        f"SELECT id FROM sessions WHERE created_at BETWEEN ? AND ? AND {is_root} "  # noqa: S608 - one of two constants
        "ORDER BY created_at DESC, rowid DESC",
        window,
    )
    return [session_id for (session_id,) in rows if isinstance(session_id, str)]


def _by_mark(
    connection: sqlite3.Connection, session_ids: list[str], mark: str | None
) -> tuple[list[str], list[str]]:
    """Give the sessions with our mark and those with none; not those with another's."""
    if mark is None:
        return [], session_ids
    ours, unmarked = [], []
    for session_id in session_ids:
        found = first_mark(connection, session_id)
        if found is None:
            unmarked.append(session_id)
        elif is_mark(found, mark):
            ours.append(session_id)
    return ours, unmarked


def _asked(
    connection: sqlite3.Connection, session_ids: list[str], prompt: str | None
) -> list[_Asked]:
    """Give the sessions that begin with the prompt, or else those that begin with more than it."""
    if prompt is None:
        return [_Asked(session_id, "") for session_id in session_ids]
    # In the order of their writing, which the index has: by time, each message would be read.
    alike, containing = [], []
    for session_id in session_ids:
        row = connection.execute(
            "SELECT rowid FROM messages WHERE session_id = ? AND role = 'user' "
            "ORDER BY rowid LIMIT 1",
            (session_id,),
        ).fetchone()
        said = (
            _squeezed(read_content(connection, row[0], _LONGEST_PROMPT_BYTES).text) if row else ""
        )
        if said == prompt:
            alike.append(_Asked(session_id, said))
        elif prompt in said:
            containing.append(_Asked(session_id, said))
    return alike or containing


def _may_be_anothers(said: str, prompt: str | None, others: list[str | None]) -> bool:
    """Tell whether a session that has no mark can have been begun by one of the other tasks.

    One whose prompt is a part of ours would have said less.
    """
    if prompt is None:
        return bool(others)
    return any(
        said != prompt
        if other is None
        else other in said and (other == prompt or other not in prompt)
        for other in others
    )


def _squeezed(text: str) -> str:
    return " ".join(text.split())


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
