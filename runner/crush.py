"""A task's session in Crush's database: which one it is, and what it says.

Crush is the agent in the container. What its database holds was written by an agent: nothing in
it is trusted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from runner.crush_database import BUSY_TIMEOUT_S, ask, check_tables
from runner.crush_log import LOG_LIMIT_BYTES, session_within
from runner.crush_message import clean, read_content

if TYPE_CHECKING:
    import sqlite3

_LONGEST_PROMPT_BYTES = 2_000_000


@dataclass(frozen=True)
class Wanted:
    """What is known of a task's session before it is found."""

    started_at: float
    """When the task's container started, in seconds since the epoch."""
    ended_at: float | None
    """When it ended; None while it runs."""
    prompt: str | None = None
    mark: str | None = None
    """See `session_mark`."""


class Found(NamedTuple):
    """The sessions that can belong to a task, the newest first."""

    ids: list[str]
    are_ours: bool
    """Whether they do; if not, some may be another task's or a user's."""


def session_mark(task_id: str) -> str:
    """Give the text that is only in a task's own session: the reporter told it to the agent."""
    return f"victoria-reporter/{task_id}"


def find_session(
    database: Path, wanted: Wanted, *, busy_timeout_s: float = BUSY_TIMEOUT_S
) -> str | None:
    """Give the id of the newest session that certainly belongs to a task, or None.

    See `find_sessions`.

    Raises:
        CrushError: the database cannot be read.
    """
    found = find_sessions(database, wanted, busy_timeout_s=busy_timeout_s)
    return found.ids[0] if found.are_ours else None


def find_sessions(
    database: Path, wanted: Wanted, *, busy_timeout_s: float = BUSY_TIMEOUT_S
) -> Found:
    """Find the sessions that can belong to a task.

    They were begun while the task's container ran and are no sub-agent's. Where the prompt is
    known, the first user message must be it, or, when none is, contain it; white space does not
    count. When that leaves one, it is the task's. When it does not, those are that have the mark
    somewhere in them.

    Raises:
        CrushError: the database cannot be read.
    """

    def question(connection: sqlite3.Connection) -> Found:
        # Crush keeps whole seconds: what began in the second of our start may be ours.
        window = (
            math.floor(wanted.started_at),
            math.inf if wanted.ended_at is None else wanted.ended_at,
        )
        begun = _begun(connection, window)
        asked = begun if wanted.prompt is None else _asked(connection, begun, wanted.prompt)
        if len(asked) == 1:
            return Found(asked, are_ours=True)
        mark = wanted.mark
        marked = [] if mark is None else _marked(connection, asked or begun, mark)
        return Found(marked or asked, are_ours=bool(marked))

    return ask(database, question, busy_timeout_s) or Found([], are_ours=False)


def read_session(
    database: Path,
    session_id: str,
    *,
    limit_bytes: int = LOG_LIMIT_BYTES,
    busy_timeout_s: float = BUSY_TIMEOUT_S,
) -> dict[str, object] | None:
    """Give a session as `POST /logs` takes it, or None when there is no such session.

    Posted to `/logs` it takes at most `limit_bytes`, for which some 10,000 are the least.
    What was cut is marked: by a first message of the role `system`, and at the head of a content.
    Sessions of sub-agents are left out; what they answered is in the messages of their parent.
    With Python 3.10, SQLite loads a message whole, however long it is, before it is cut.

    Raises:
        CrushError: the database cannot be read.
    """

    def question(connection: sqlite3.Connection) -> dict[str, object] | None:
        return session_within(connection, session_id, limit_bytes)

    if session_id != clean(session_id):
        return None  # SQLite could not even be asked
    return ask(database, question, busy_timeout_s)


def session_of_task(database: Path, wanted: Wanted) -> dict[str, object] | None:
    """Give the session that a task's agent left, as `POST /logs` takes it; None if it left none.

    Raises:
        CrushError: the database cannot be read.
    """
    session_id = find_session(database, wanted)
    return None if session_id is None else read_session(database, session_id)


def _begun(connection: sqlite3.Connection, window: tuple[float, float]) -> list[str]:
    known = check_tables(connection)["sessions"]
    is_root = "coalesce(parent_session_id, '') = ''" if "parent_session_id" in known else "1"
    rows = connection.execute(
        f"SELECT id FROM sessions WHERE created_at BETWEEN ? AND ? AND {is_root} "  # noqa: S608 - one of two constants
        "ORDER BY created_at DESC, rowid DESC",
        window,
    )
    return [session_id for (session_id,) in rows if isinstance(session_id, str)]


def _marked(connection: sqlite3.Connection, session_ids: list[str], mark: str) -> list[str]:
    having = "SELECT 1 FROM messages WHERE session_id = ? AND instr(parts, ?) LIMIT 1"
    return [
        session_id
        for session_id in session_ids
        if connection.execute(having, (session_id, mark)).fetchone()
    ]


def _asked(connection: sqlite3.Connection, session_ids: list[str], prompt: str) -> list[str]:
    """Give the sessions that begin with the prompt, or else those that begin with more than it."""
    wanted = _squeezed(clean(prompt))
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
        if said == wanted:
            alike.append(session_id)
        elif wanted in said:
            containing.append(session_id)
    return alike or containing


def _squeezed(text: str) -> str:
    return " ".join(text.split())
