"""Crush's SQLite database, opened so that reading it disturbs nobody and trusts nothing in it.

Crush may be writing while we read, so SQLite's own locking is relied on; only a database that
nobody has open is read without locks, and read again should somebody have come meanwhile. That
way no `-wal` and `-shm` files are left beside a database that had none.

The tables are in charmbracelet/crush, internal/db/migrations.
"""

from __future__ import annotations

import sqlite3
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

from runner.errors import RunnerError

BUSY_TIMEOUT_S = 5.0
_DEADLINE_S = 30.0
_STEPS_BETWEEN_LOOKS = 100_000
# Python cannot even say what SQLite complains of when a damaged name is in the complaint.
_UNREADABLE = (sqlite3.Error, UnicodeDecodeError)
T = TypeVar("T")


class CrushError(RunnerError):
    """The database is there and cannot be read: locked, damaged, or not as Crush makes it."""


def query_database(
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


def check_tables(connection: sqlite3.Connection) -> dict[str, set[str]]:
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


def one_row(connection: sqlite3.Connection, statement: str, *values: object) -> tuple[object, ...]:
    """Give the one row that must be there; it is not when an index is damaged."""
    found: tuple[object, ...] | None = connection.execute(statement, values).fetchone()
    if found is None:
        raise sqlite3.DatabaseError("a message that is listed in it is missing")
    return found


def chosen(columns: Mapping[str, str], known: set[str]) -> str:
    """Give the columns for a SELECT; those that an older Crush did not have are NULL."""
    return ", ".join(said if name in known else "NULL" for name, said in columns.items())


def end_of_parts(connection: sqlite3.Connection, row: int, most_bytes: int) -> tuple[bytes, int]:
    """Give the last `most_bytes` of a message's parts, and how many bytes there are."""
    (kind,) = one_row(connection, "SELECT typeof(parts) FROM messages WHERE rowid = ?", row)
    return _end_of_value(connection, row, most_bytes) if kind in {"text", "blob"} else (b"", 0)


def rows_to_search(
    connection: sqlite3.Connection, session_id: str, pattern: str, most_bytes: int
) -> list[int]:
    """Give the first message of a session whose parts match a pattern of GLOB, if there is one.

    When there is one before it that has more than `most_bytes`, give all messages: SQLite would
    load it whole to look.
    """
    listed = "SELECT rowid FROM messages WHERE session_id = ?"
    try:
        with _values_up_to(connection, most_bytes):
            rows = connection.execute(
                f"{listed} AND parts GLOB ? ORDER BY rowid LIMIT 1", (session_id, pattern)
            ).fetchall()
    except sqlite3.DataError:
        rows = connection.execute(f"{listed} ORDER BY rowid", (session_id,)).fetchall()
    return [row for (row,) in rows]


if sys.version_info >= (3, 11):

    @contextmanager
    def _values_up_to(connection: sqlite3.Connection, most_bytes: int) -> Iterator[None]:
        before = connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, most_bytes)
        try:
            yield
        finally:
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, before)

    def _end_of_value(
        connection: sqlite3.Connection, row: int, most_bytes: int
    ) -> tuple[bytes, int]:
        # Asked for in SQL, even its length alone would have SQLite load all of a text.
        with connection.blobopen("messages", "parts", row, readonly=True) as blob:
            size = len(blob)
            blob.seek(max(0, size - most_bytes))
            return blob.read(), size

else:

    @contextmanager
    def _values_up_to(_connection: sqlite3.Connection, _most_bytes: int) -> Iterator[None]:
        yield

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
        try:
            mode = beside.lstat().st_mode  # asked for once: Crush may remove it at any moment
        except FileNotFoundError:
            continue
        # SQLite would wait for ever for the other end of a pipe.
        if not stat.S_ISREG(mode):
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


def _decoded(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, UnicodeDecodeError):
        return "its schema is malformed"
    text = str(error)
    if "interrupted" in text:
        return f"it took longer than {_DEADLINE_S:g} s"
    return "another process keeps it locked" if "locked" in text else text
