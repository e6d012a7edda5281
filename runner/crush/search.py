"""Which of the sessions in Crush's database are a task's; this runs in the child process."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from runner.crush.database import check_schema, open_copy
from runner.crush.log import read_log
from runner.crush.messages import PARTS, read_content, to_valid_unicode
from runner.crush.sessions import Candidates, Request, SessionQuery, prompt_digest, squeeze
from runner.redaction import encoded_forms

if TYPE_CHECKING:
    import sqlite3

_MAX_ID_CHARS = 200
"""Crush's are UUIDs. One of a megabyte would not fit into the final report that names it."""
_PATTERN = "*victoria-reporter/[A-Za-z0-9]*"
_MARK = re.compile(rb"victoria-reporter/[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


class _Begun(NamedTuple):
    session_id: str
    prompt: str
    """The first message of the user; empty when it does not matter."""


def answer(request: Request) -> tuple[Candidates, dict[str, object] | None]:
    """Return the candidates and, if it is wanted and there is one, the log of the session.

    Raises:
        CrushError: the database cannot be read.
    """
    candidates, session_id = Candidates([], certain=False), request.session_id
    copy_dir = Path(request.copy_dir)
    archives = None if request.archive_dir is None else Path(request.archive_dir)
    with open_copy(Path(request.database), copy_dir, request.limits, archives) as connection:
        if connection is None:
            return candidates, None
        columns = check_schema(connection)
        if request.query is not None:
            candidates = find(connection, columns["sessions"], request.query)
            if session_id is None and candidates.certain:
                session_id = candidates.ids[0]
        # SQLite cannot even be asked for half a character.
        if not session_id or not request.limit_bytes or session_id != to_valid_unicode(session_id):
            return candidates, None
        forms = encoded_forms(request.secrets)
        return candidates, read_log(connection, columns, session_id, request.limit_bytes, forms)


def find(connection: sqlite3.Connection, columns: set[str], query: SessionQuery) -> Candidates:
    """Return the sessions that can belong to a task; `columns` are those that sessions have.

    They were begun while the task's container ran and are no sub-agent's. Where the prompt is
    known, the first user message must be it, or, when none is, contain it; white space does not
    count. Those whose first mark is the task's are the task's, and those with another's never
    are. Without a mark one is the task's when it is the only one, and cannot have been begun by
    any of the others.
    """
    # Crush keeps whole seconds: what began in the second of our start may be ours.
    ended_at = math.inf if query.ended_at is None else query.ended_at
    is_root = "coalesce(parent_session_id, '') = ''" if "parent_session_id" in columns else "1"
    rows = connection.execute(
        f"SELECT id FROM sessions WHERE created_at BETWEEN ? AND ? AND {is_root} "  # noqa: S608 - one of two constants
        "ORDER BY created_at DESC, rowid DESC",
        (math.floor(query.started_at), ended_at),
    )
    session_ids = [
        session_id
        for (session_id,) in rows
        if isinstance(session_id, str) and len(session_id) <= _MAX_ID_CHARS
    ]
    prompt = None if query.prompt is None else squeeze(query.prompt)
    begun = _with_prompt(connection, session_ids, prompt)
    ours, unmarked = _by_mark(connection, [each.session_id for each in begun], query.mark)
    if not ours and not unmarked:
        ours, _ = _by_mark(connection, session_ids, query.mark)
    if ours:
        return Candidates(ours, certain=True)
    others = [other if other is None else squeeze(other) for other in query.others]
    if prompt is not None and prompt_digest(prompt) in query.digests:
        others.append(prompt)
    has_closed = bool(query.digests)
    eligible = set(unmarked)
    certain = [
        each.session_id
        for each in begun
        if each.session_id in eligible
        and not _may_be_anothers(each.prompt, prompt, others, has_closed=has_closed)
    ]
    is_certain = len(certain) == 1
    return Candidates(certain if is_certain else unmarked, certain=is_certain)


def _with_prompt(
    connection: sqlite3.Connection, session_ids: list[str], prompt: str | None
) -> list[_Begun]:
    """Return the sessions whose first prompt is this one, or else those where it contains it."""
    if prompt is None:
        return [_Begun(session_id, "") for session_id in session_ids]
    # In the order of their writing, which the index has: by time, each message would be read.
    alike, containing = [], []
    for session_id in session_ids:
        row = connection.execute(
            f"SELECT {PARTS} FROM messages WHERE session_id = ? AND role = 'user' "  # noqa: S608 - a constant
            "ORDER BY rowid LIMIT 1",
            (session_id,),
        ).fetchone()
        first = squeeze(read_content(row[0])) if row else ""
        if first == prompt:
            alike.append(_Begun(session_id, first))
        elif prompt in first:
            containing.append(_Begun(session_id, first))
    return alike or containing


def _by_mark(
    connection: sqlite3.Connection, session_ids: list[str], mark: str | None
) -> tuple[list[str], list[str]]:
    """Return the sessions with our mark and those with none; not those with another's."""
    if mark is None:
        return [], session_ids
    ours, unmarked = [], []
    for session_id in session_ids:
        first = _first_mark(connection, session_id)
        if first is None:
            unmarked.append(session_id)
        elif first.rstrip(".") == mark.rstrip("."):  # it may end a sentence
            ours.append(session_id)
    return ours, unmarked


def _first_mark(connection: sqlite3.Connection, session_id: str) -> str | None:
    """Return the mark that came first in a session; None when there is none in it.

    An agent can have met the marks of others by reading what they left; its own comes with the
    first answer of its reporter.
    """
    rows = connection.execute(
        f"SELECT {PARTS} FROM messages WHERE session_id = ? AND parts GLOB ? ORDER BY rowid",  # noqa: S608 - a constant
        (session_id, _PATTERN),
    )
    marks = (_MARK.search(parts) for (parts,) in rows if isinstance(parts, bytes))
    return next((mark[0].decode() for mark in marks if mark is not None), None)


def _may_be_anothers(
    first: str, prompt: str | None, others: list[str | None], *, has_closed: bool
) -> bool:
    """Return whether one of the other tasks can have begun a session that has no mark.

    A task whose prompt is only a part of ours would have begun a session with the shorter text.
    """
    if prompt is None:
        return has_closed or bool(others)
    if has_closed and first != prompt:
        return True  # the deleted prompt of a closed task may be in it
    return any(
        other is None or (other in first and (other == prompt or other not in prompt))
        for other in others
    )
