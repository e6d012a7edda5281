"""A task's session in Crush's database: which one it is, and what it says.

Crush is the agent in the container. What its database holds was written by an agent: nothing in
it is trusted.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from runner.crush_database import BUSY_TIMEOUT_S, ask, check_tables
from runner.crush_log import LOG_LIMIT_BYTES, session_within
from runner.crush_message import clean, read_content

if TYPE_CHECKING:
    import sqlite3

_LONGEST_PROMPT_BYTES = 2_000_000


def find_session(
    database: Path,
    *,
    started_at: float,
    ended_at: float | None,
    prompt: str | None = None,
    busy_timeout_s: float = BUSY_TIMEOUT_S,
) -> str | None:
    """Give the id of the one session that belongs to a task, or None.

    See `find_sessions`. When several belong, none is given: it could be another task's.

    Raises:
        CrushError: the database cannot be read.
    """
    found = find_sessions(
        database,
        started_at=started_at,
        ended_at=ended_at,
        prompt=prompt,
        busy_timeout_s=busy_timeout_s,
    )
    return found[0] if len(found) == 1 else None


def find_sessions(
    database: Path,
    *,
    started_at: float,
    ended_at: float | None,
    prompt: str | None = None,
    busy_timeout_s: float = BUSY_TIMEOUT_S,
) -> list[str]:
    """Give the ids of the sessions that can belong to a task, the newest first.

    They were begun while the task's container ran (seconds since the epoch; `ended_at` is None
    while it runs) and are no sub-agent's. With a `prompt`, the first user message must be it, or,
    when none is, contain it; white space does not count. Without, a session that another task or
    a user began in the same home meanwhile is among them.

    Raises:
        CrushError: the database cannot be read.
    """

    def question(connection: sqlite3.Connection) -> list[str]:
        # Crush keeps whole seconds: what began in the second of our start may be ours.
        window = (math.floor(started_at), math.inf if ended_at is None else ended_at)
        known = check_tables(connection)["sessions"]
        is_root = "coalesce(parent_session_id, '') = ''" if "parent_session_id" in known else "1"
        rows = connection.execute(
            f"SELECT id FROM sessions WHERE created_at BETWEEN ? AND ? AND {is_root} "  # noqa: S608 - one of two constants
            "ORDER BY created_at DESC, rowid DESC",
            window,
        )
        begun = [session_id for (session_id,) in rows if isinstance(session_id, str)]
        return begun if prompt is None else _asked(connection, begun, prompt)

    return ask(database, question, busy_timeout_s) or []


def read_session(
    database: Path,
    session_id: str,
    *,
    limit_bytes: int = LOG_LIMIT_BYTES,
    busy_timeout_s: float = BUSY_TIMEOUT_S,
) -> dict[str, object] | None:
    """Give a session as `POST /logs` takes it, or None when there is no such session.

    `log_body` of it takes at most `limit_bytes` on the wire, for which some 10,000 are the least.
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


def session_of_task(
    database: Path, *, started_at: float, ended_at: float, prompt: str
) -> dict[str, object] | None:
    """Give the session that a task's agent left, as `POST /logs` takes it; None if it left none.

    Raises:
        CrushError: the database cannot be read.
    """
    session_id = find_session(database, started_at=started_at, ended_at=ended_at, prompt=prompt)
    return None if session_id is None else read_session(database, session_id)


def _asked(connection: sqlite3.Connection, session_ids: list[str], prompt: str) -> list[str]:
    """Give the sessions that begin with the prompt, or else those that begin with more than it."""
    wanted = _squeezed(clean(prompt))
    alike, containing = [], []
    for session_id in session_ids:
        row = connection.execute(
            "SELECT rowid FROM messages WHERE session_id = ? AND role = 'user' "
            "ORDER BY created_at, rowid LIMIT 1",
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
