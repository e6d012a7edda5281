"""The log of a task: its session, found in Crush's database and cut to what `POST /logs` takes.

Crush is the agent in the container. It may be writing while we read, so SQLite's own locking is
relied on; only a database that nobody has open is read without locks, and read again should
somebody have come meanwhile. That way no `-wal` and `-shm` files are left beside a database that
had none. What the database holds was written by an agent: nothing in it is trusted.

A session that is too long loses its oldest messages first; when the first that does not fit is
a long one, it loses its head instead. It is read from the newest message backwards and no further
than needed, so memory is bounded by the limit and not by the database.

The tables are in charmbracelet/crush, internal/db/migrations.
"""

from __future__ import annotations

import json
import math
import sqlite3
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, TypeVar

from runner.crush_parts import shown_part
from runner.errors import RunnerError

LOG_LIMIT_BYTES = 10_000_000
BUSY_TIMEOUT_S = 5.0

_DEADLINE_S = 30.0
_STEPS_BETWEEN_LOOKS = 100_000
_WRAPPER_BYTES = 1_000  # of log_body, and of the message that says what was cut
_SMALLEST_MESSAGE_BYTES = 90
_MARK_BYTES = 60
_MOST_MARKS = 400_000
_LONGEST_PROMPT_BYTES = 2_000_000
_BLOCK_CHARS = 1 << 16
_ZSTD = b"\x28\xb5\x2f\xfd"

# Python cannot even say what SQLite complains of when a damaged name is in the complaint.
_UNREADABLE = (sqlite3.Error, UnicodeDecodeError)
_WIRE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)

# The names are short, and are shown whole; no agent needs more.
_SESSION_COLUMNS = {
    "title": "substr(title, 1, 300)",
    "prompt_tokens": "prompt_tokens",
    "completion_tokens": "completion_tokens",
    "cost": "cost",
    "created_at": "created_at",
    "updated_at": "updated_at",
}
_MESSAGE_COLUMNS = {
    "id": "substr(id, 1, 200)",
    "role": "substr(role, 1, 200)",
    "model": "substr(model, 1, 200)",
    "provider": "substr(provider, 1, 200)",
    "created_at": "created_at",
    "finished_at": "finished_at",
}

T = TypeVar("T")


class CrushError(RunnerError):
    """The database is there and cannot be read: locked, damaged, or not as Crush makes it."""


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
        known = _check_tables(connection)["sessions"]
        is_root = "coalesce(parent_session_id, '') = ''" if "parent_session_id" in known else "1"
        rows = connection.execute(
            f"SELECT id FROM sessions WHERE created_at BETWEEN ? AND ? AND {is_root} "  # noqa: S608 - one of two constants
            "ORDER BY created_at DESC, rowid DESC",
            window,
        )
        begun = [session_id for (session_id,) in rows if isinstance(session_id, str)]
        return begun if prompt is None else _asked(connection, begun, prompt)

    return _ask(database, question, busy_timeout_s) or []


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
        return _session(connection, session_id, limit_bytes)

    if session_id != _clean(session_id):
        return None  # SQLite could not even be asked
    return _ask(database, question, busy_timeout_s)


def session_of_task(
    database: Path, *, started_at: float, ended_at: float, prompt: str
) -> dict[str, object] | None:
    """Give the session that a task's agent left, as `POST /logs` takes it; None if it left none.

    Raises:
        CrushError: the database cannot be read.
    """
    session_id = find_session(database, started_at=started_at, ended_at=ended_at, prompt=prompt)
    return None if session_id is None else read_session(database, session_id)


def log_body(task_id: str, session: Mapping[str, object]) -> dict[str, object]:
    """Give what `POST /logs` takes; older orchestrators ask for job_id, newer for task_id."""
    return {"job_id": task_id, "task_id": task_id, "session": session}


def wire_size(body: object) -> int:
    """Give the bytes that httpx (since 0.28) sends for a body."""
    return len(_WIRE.encode(body).encode())


# The database


def _ask(
    database: Path, question: Callable[[sqlite3.Connection], T], busy_timeout_s: float
) -> T | None:
    """Put a question to the database within one snapshot of it; None when there is none."""
    uri = database.absolute().as_uri()

    def answer(mode: str) -> T | None:
        with closing(
            sqlite3.connect(f"{uri}?{mode}", uri=True, timeout=busy_timeout_s, isolation_level=None)
        ) as connection:
            _prepare(connection)
            is_empty = connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None
            return None if is_empty else question(connection)

    try:
        if not _is_there(database):
            return None
        at_rest = _at_rest(database)
        if at_rest is not None:
            try:
                found = answer("mode=ro&immutable=1")
            except (*_UNREADABLE, CrushError):
                if _at_rest(database) == at_rest:
                    raise
            else:
                if _at_rest(database) == at_rest:
                    return found
        return answer("mode=ro")
    except (*_UNREADABLE, OSError) as error:
        raise CrushError(f"cannot read the Crush database: {_reason(error)}") from error


def _is_there(database: Path) -> bool:
    """Say whether there is a file to read; one elsewhere, behind a link, is not the task's."""
    try:
        folder, file = database.parent.lstat(), database.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    if stat.S_ISLNK(folder.st_mode) or stat.S_ISLNK(file.st_mode):
        raise CrushError("cannot read the Crush database: it is behind a symbolic link")
    if not stat.S_ISREG(file.st_mode):
        raise CrushError("cannot read the Crush database: it is no file")
    for ending in ("-journal", "-wal", "-shm"):
        beside = database.with_name(database.name + ending)
        # SQLite would wait for ever for the other end of a pipe.
        if beside.is_symlink() or (beside.exists() and not beside.is_file()):
            raise CrushError(f"cannot read the Crush database: {beside.name} is no file")
    return True


def _at_rest(database: Path) -> tuple[int, int, int] | None:
    """Give what tells a change of the file, or None while some process may have it open."""
    if any(database.with_name(database.name + end).exists() for end in ("-wal", "-journal")):
        return None
    found = database.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _prepare(connection: sqlite3.Connection) -> None:
    deadline_s = time.monotonic() + _DEADLINE_S
    connection.set_progress_handler(
        lambda: int(time.monotonic() > deadline_s), _STEPS_BETWEEN_LOOKS
    )
    connection.text_factory = _decoded
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("BEGIN")


def _check_tables(connection: sqlite3.Connection) -> dict[str, set[str]]:
    """Give the columns of the two tables.

    Raises:
        CrushError: one of the tables is not there, or hides the numbers of its rows.
    """
    found = {}
    for table in ("sessions", "messages"):
        is_table = connection.execute(
            "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (table,)
        ).fetchone()
        if is_table is None:
            raise CrushError(f"cannot read the Crush database: it has no table {table}")
        names = connection.execute("SELECT name FROM pragma_table_info(?)", (table,))
        found[table] = {name.lower() for (name,) in names}
        if "rowid" in found[table]:
            raise CrushError(f"cannot read the Crush database: its {table} are not Crush's")
    return found


def _row(connection: sqlite3.Connection, statement: str, *values: object) -> tuple[object, ...]:
    """Give the one row that must be there; it is not when an index is damaged."""
    found: tuple[object, ...] | None = connection.execute(statement, values).fetchone()
    if found is None:
        raise sqlite3.DatabaseError("a message that is listed in it is missing")
    return found


def _chosen(columns: Mapping[str, str], known: set[str]) -> str:
    """Give the columns for a SELECT; those that an older Crush did not have are NULL."""
    return ", ".join(said if name in known else "NULL" for name, said in columns.items())


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, UnicodeDecodeError):
        return "its schema is malformed"
    text = str(error)
    if "interrupted" in text:
        return f"it took longer than {_DEADLINE_S:g} s"
    return "another process keeps it locked" if "locked" in text else text


# The session


def _asked(connection: sqlite3.Connection, session_ids: list[str], prompt: str) -> list[str]:
    """Give the sessions that begin with the prompt, or else those that begin with more than it."""
    wanted = _squeezed(_clean(prompt))
    alike, containing = [], []
    for session_id in session_ids:
        row = connection.execute(
            "SELECT rowid FROM messages WHERE session_id = ? AND role = 'user' "
            "ORDER BY created_at, rowid LIMIT 1",
            (session_id,),
        ).fetchone()
        said = _squeezed(_content(connection, row[0], _LONGEST_PROMPT_BYTES).text) if row else ""
        if said == wanted:
            alike.append(session_id)
        elif wanted in said:
            containing.append(session_id)
    return alike or containing


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def _session(
    connection: sqlite3.Connection, session_id: str, limit_bytes: int
) -> dict[str, object] | None:
    known = _check_tables(connection)
    row = connection.execute(
        f"SELECT {_chosen(_SESSION_COLUMNS, known['sessions'])} FROM sessions WHERE id = ?",  # noqa: S608 - constants
        (session_id,),
    ).fetchone()
    if row is None:
        return None
    fields = dict(zip(_SESSION_COLUMNS, row, strict=True))
    session: dict[str, object] = {
        "id": session_id,
        "title": _name(fields["title"]) or "",
        "prompt_tokens": _whole(fields["prompt_tokens"]) or 0,
        "completion_tokens": _whole(fields["completion_tokens"]) or 0,
        "cost": _finite(fields["cost"]) or 0.0,
        "created_at": _whole(fields["created_at"]) or 0,
        "updated_at": _whole(fields["updated_at"]) or 0,
        "messages": [],
    }
    columns = _chosen(_MESSAGE_COLUMNS, known["messages"])
    room = limit_bytes - _WRAPPER_BYTES - wire_size(session)
    session["messages"] = _newest(connection, session_id, columns, room)
    return session


def _newest(
    connection: sqlite3.Connection, session_id: str, columns: str, room: int
) -> list[dict[str, object]]:
    """Give the newest messages that fit into `room` bytes on the wire, the oldest first."""
    (count,) = connection.execute(
        "SELECT count(*) FROM messages WHERE session_id = ?", (session_id,)
    ).fetchone()
    longest_content = max(room, 0)
    worth_cutting = room // 10
    kept: list[dict[str, object]] = []
    for row in _rows(connection, session_id, longest_content):
        message = _message(connection, row, columns)
        left = room - wire_size(message) - 1
        content = _content(connection, row, longest_content)
        start, room = _start_within(content.text, left)
        is_whole = not start and not content.unread_bytes
        if not is_whole:
            if left < (worth_cutting if kept else _MARK_BYTES):
                break
            start, _ = _start_within(content.text, left - _MARK_BYTES)
        mark = "" if is_whole else _head_was_cut(content, start)
        text = content.text[start:]
        del content  # which may be long: two of the three suffice at a time
        message["content"] = mark + text
        kept.append(message)
        if not is_whole:
            break
    kept.reverse()
    older = count - len(kept)
    return [_older_were_cut(older, kept), *kept] if older else kept


def _rows(connection: sqlite3.Connection, session_id: str, room: int) -> Iterator[int]:
    """Give the messages from the newest, no more of them than can fit."""
    for (row,) in connection.execute(
        "SELECT rowid FROM messages WHERE session_id = ? "
        "ORDER BY created_at DESC, rowid DESC LIMIT ?",
        (session_id, room // _SMALLEST_MESSAGE_BYTES),
    ):
        yield row


def _message(connection: sqlite3.Connection, row: int, columns: str) -> dict[str, object]:
    """Give a message without its content."""
    found = _row(connection, f"SELECT {columns} FROM messages WHERE rowid = ?", row)  # noqa: S608 - constants
    fields = dict(zip(_MESSAGE_COLUMNS, found, strict=True))
    return {
        "id": _name(fields["id"]) or "",
        "role": _name(fields["role"]) or "",
        "content": "",
        "model": _name(fields["model"]),
        "provider": _name(fields["provider"]),
        "created_at": _whole(fields["created_at"]) or 0,
        "finished_at": _whole(fields["finished_at"]),
    }


def _name(found: object) -> str | None:
    return None if found is None else _clean(str(found))


def _whole(found: object) -> int | None:
    number = _finite(found)
    return None if number is None else int(number)


def _finite(found: object) -> float | None:
    """Give a number that JSON has too; SQLite keeps infinity, and text in columns of numbers."""
    return found if isinstance(found, int | float) and math.isfinite(found) else None


# What a message says


class _Content(NamedTuple):
    """A message's text. When its parts are too long, it is their end, and they are not parsed."""

    text: str
    unread_bytes: int = 0


def _content(connection: sqlite3.Connection, row: int, most_bytes: int) -> _Content:
    """Render the parts of a message; what is no list of parts is shown as it is."""
    raw, size = _end_of_parts(connection, row, most_bytes)
    unread = size - len(raw)
    if raw.startswith(_ZSTD) and not unread:
        return _Content(f"[… {size} compressed bytes …]")
    # What holds nothing but brackets would take twenty times its size when parsed.
    is_too_nested = sum(raw.count(mark) for mark in (b"[", b"{", b",")) > _MOST_MARKS
    text = raw.decode("utf-8", "replace")
    del raw
    if unread or is_too_nested:
        return _Content(_clean(text), unread)
    try:
        parts = json.loads(text) if text else []
    except (ValueError, RecursionError):
        return _Content(_clean(text))
    if not isinstance(parts, list):
        return _Content(_clean(text))
    del text
    return _Content(_clean("\n\n".join(filter(None, map(shown_part, parts)))))


def _clean(text: str) -> str:
    """Replace what cannot be sent: halves of characters, and NUL, which few stores take."""
    if "\x00" in text:
        text = text.replace("\x00", "\ufffd")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return text.encode("utf-8", "replace").decode()
    return text


def _decoded(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _end_of_parts(connection: sqlite3.Connection, row: int, most_bytes: int) -> tuple[bytes, int]:
    """Give the last `most_bytes` of a message's parts, and how many bytes there are."""
    (kind,) = _row(connection, "SELECT typeof(parts) FROM messages WHERE rowid = ?", row)
    return _end_of_value(connection, row, most_bytes) if kind in {"text", "blob"} else (b"", 0)


if sys.version_info >= (3, 11):

    def _end_of_value(
        connection: sqlite3.Connection, row: int, most_bytes: int
    ) -> tuple[bytes, int]:
        # Asked for in SQL, even its length alone would have SQLite load all of a text.
        with connection.blobopen("messages", "parts", row, readonly=True) as blob:
            size = len(blob)
            blob.seek(max(0, size - most_bytes))
            return blob.read(), size

else:

    def _end_of_value(
        connection: sqlite3.Connection, row: int, most_bytes: int
    ) -> tuple[bytes, int]:
        # Asked for at once, they would have SQLite hold two copies.
        (size,) = connection.execute(
            "SELECT length(CAST(parts AS BLOB)) FROM messages WHERE rowid = ?", (row,)
        ).fetchone()
        (end,) = connection.execute(
            "SELECT substr(CAST(parts AS BLOB), -?) FROM messages WHERE rowid = ?",
            (most_bytes, row),
        ).fetchone()
        return end or b"", size  # an empty end is NULL here


# The marks of what was cut


def _older_were_cut(count: int, kept: list[dict[str, object]]) -> dict[str, object]:
    return {
        "id": "cut",
        "role": "system",
        "content": f"[… {count} older messages cut …]",
        "model": None,
        "provider": None,
        "created_at": kept[0]["created_at"] if kept else 0,
        "finished_at": None,
    }


def _head_was_cut(content: _Content, start: int) -> str:
    if content.unread_bytes:
        count = content.unread_bytes + len(content.text[:start].encode())
        return f"[… {count} bytes cut …]\n"
    return f"[… {start} characters cut …]\n"


def _start_within(text: str, room: int) -> tuple[int, int]:
    """Say from where on a text fits into a JSON string of `room` bytes, and what it leaves of them.

    The text is measured block by block: encoded whole, it would take its memory twice over.
    """
    start, step = len(text), _BLOCK_CHARS
    while start and step:
        block = text[max(0, start - step) : start]
        size = wire_size(block) - 2
        if size <= room:
            start, room = start - len(block), room - size
        else:
            step //= 2
    return start, room
