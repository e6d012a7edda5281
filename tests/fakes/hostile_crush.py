"""Databases in Crush's place that a task can leave to harm their reader.

A task runs it as a program, ``hostile_crush.py KIND``, with its own Victoria home. Runs on Python
3.9, with the standard library.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

_MESSAGES = """
CREATE TABLE messages (
    id TEXT PRIMARY KEY, session_id TEXT, role TEXT, parts TEXT, model TEXT,
    created_at INTEGER, updated_at INTEGER, finished_at INTEGER, provider TEXT);
"""
_SESSIONS = "CREATE TABLE sessions (id TEXT PRIMARY KEY, title TEXT, created_at INTEGER{more});"
_COMPUTED = {
    "computes": "instr(hex(zeroblob(50000000)), hex(zeroblob(25000000)) || '1')",
    "grows": "hex(zeroblob(240000000))",
}
"""One step of SQLite's virtual machine that takes long, or much memory."""

SCHEMAS = {
    **dict.fromkeys(_COMPUTED, _SESSIONS.format(more=", parent_session_id TEXT AS (11111)")),
    "view": """
        CREATE VIEW sessions AS
            WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
            SELECT i AS id, {now} AS created_at, '' AS title FROM n;
    """,
    "virtual": "CREATE VIRTUAL TABLE sessions USING fts5 (id, title, created_at);",
    **dict.fromkeys(("many", "truncates", "fifo", "unfinished"), _SESSIONS.format(more="")),
}
REFUSED = frozenset({"computes", "grows", "view", "virtual"})
"""Those that are recognised by their schema."""


@contextmanager
def hostile_crush(database: Path, kind: str) -> Iterator[None]:
    """Leave a database of a kind of `SCHEMAS`; some go on changing it in the meantime."""
    database.parent.mkdir(parents=True, exist_ok=True)
    now = int(time.time())
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        if kind == "truncates":
            connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(SCHEMAS[kind].format(now=now) + _MESSAGES)
        if kind not in {"view", "virtual"}:
            count = 100_000 if kind == "many" else 3
            connection.execute("BEGIN")
            connection.executemany(
                "INSERT INTO sessions (id, created_at) VALUES (?, ?)",
                ((f"s{number}", now) for number in range(count)),
            )
            connection.execute("COMMIT")
        if kind in _COMPUTED:  # afterwards: the insertion would compute as well
            connection.execute("PRAGMA writable_schema = ON")
            connection.execute(
                "UPDATE sqlite_master SET sql = replace(sql, '11111', ?) WHERE name = 'sessions'",
                (_COMPUTED[kind],),
            )
    if kind == "unfinished":  # a transaction that is never over
        Path(f"{database}-journal").write_text("not empty")
    stop = threading.Event()
    thread = threading.Thread(target=_CHANGES.get(kind), args=(database, stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _truncate(database: Path, stop: threading.Event) -> None:
    while not stop.is_set():
        Path(f"{database}-wal").touch()
        with Path(f"{database}-shm").open("ab+") as file:
            os.ftruncate(file.fileno(), 32768)
            os.ftruncate(file.fileno(), 0)
        stop.wait(0.0001)


def _replace(database: Path, stop: threading.Event) -> None:
    content = database.read_bytes()
    while not stop.is_set():
        database.unlink(missing_ok=True)
        os.mkfifo(database)
        stop.wait(0.0001)
        database.unlink()
        database.write_bytes(content)
        stop.wait(0.0001)


def leave(home: Path, kind: str) -> None:
    """Put a folder with such a database in the place of whatever is there.

    It is made apart and moved there as a whole, since another task may do the same.
    """
    folder = home / f".crush-{os.environ['JOB_ID']}"
    folder.mkdir()
    os.chdir(folder)
    database = Path("crush.db")
    if kind in SCHEMAS:
        with hostile_crush(database, kind):
            _move(folder, home / ".crush")
            time.sleep(0.5)  # while it changes
        return
    database.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 16)
    if kind == "cut":
        os.truncate(database, 100)
    elif kind == "pipe":
        database.unlink()
        os.mkfifo(database)
    _move(folder, home / ".crush")


def _move(folder: Path, place: Path) -> None:
    with suppress(OSError):  # nothing is there, or another task is quicker
        place.rename(f"{folder}-before")
    with suppress(OSError):
        folder.rename(place)


OTHERS = ("garbage", "cut", "pipe")
"""Kinds that `leave` knows beside those of `SCHEMAS`."""
_CHANGES = {"truncates": _truncate, "fifo": _replace}

if __name__ == "__main__":
    leave(Path(os.environ.get("VICTORIA_HOME", "/workspace/Victoria")), sys.argv[1])
