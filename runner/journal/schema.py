"""The journal's file: its schema, its opening, and one transaction at a time.

Written with WAL and synchronous=FULL: what it says survives `kill -9` and a power cut.
"""

from __future__ import annotations

import functools
import json
import sqlite3
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import anyio
import anyio.to_thread

from runner.errors import JournalError
from runner.model import (
    Assignment,
    EndReason,
    Identity,
    OutboxEntry,
    Registration,
    Task,
    TaskState,
)
from runner.redaction import Secret
from runner.timing import DEFAULT_TIMINGS, Timings

_FIRST_SCHEMA = """
CREATE TABLE identities (
    id INTEGER PRIMARY KEY,
    node_id TEXT NOT NULL,
    api_key TEXT NOT NULL,
    orchestrator_url TEXT NOT NULL,
    node TEXT NOT NULL,
    registered_at REAL NOT NULL,
    refused INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE tasks (
    task_id TEXT PRIMARY KEY,
    identity INTEGER NOT NULL REFERENCES identities (id),
    state TEXT NOT NULL,
    assignment TEXT,
    accepted_at REAL NOT NULL,
    boot_id TEXT,
    container_id TEXT,
    started_at REAL,
    deadline_uptime_s REAL,
    stop_reason TEXT,
    stop_asked_at REAL,
    end_reason TEXT,
    exit_code INTEGER,
    message TEXT,
    ended_at REAL,
    closed_at REAL
);
CREATE INDEX open_tasks ON tasks (accepted_at) WHERE state <> 'closed';
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    task_id TEXT NOT NULL REFERENCES tasks (task_id) ON DELETE CASCADE,
    path TEXT NOT NULL,
    body TEXT NOT NULL,
    created_at REAL NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    next_attempt_at REAL NOT NULL DEFAULT 0,
    parked TEXT
);
"""
_ENGINE_OF_A_TASK = "ALTER TABLE tasks ADD COLUMN engine TEXT;"
_LOG_PENDING = "ALTER TABLE tasks ADD COLUMN log_pending INTEGER NOT NULL DEFAULT 0;"
_EXTENSIONS_OF_A_REGISTRATION = "ALTER TABLE identities ADD COLUMN extensions TEXT;"
_PROMPT_DIGEST = "ALTER TABLE tasks ADD COLUMN prompt_digest TEXT;"
MIGRATIONS: tuple[str, ...] = (
    _FIRST_SCHEMA,
    _ENGINE_OF_A_TASK,
    _LOG_PENDING,
    _EXTENSIONS_OF_A_REGISTRATION,
    _PROMPT_DIGEST,
)
"""Each brings the schema from its index to the next version, kept in `user_version`."""
ADDITIONS = """
CREATE INDEX IF NOT EXISTS letters ON outbox
    (task_id, id, path, created_at, attempts, next_attempt_at, parked);
CREATE TABLE IF NOT EXISTS images (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    image_id TEXT NOT NULL,
    engine TEXT NOT NULL,
    UNIQUE (name, image_id, engine)
);
CREATE TABLE IF NOT EXISTS outputs (
    task_id TEXT PRIMARY KEY REFERENCES tasks (task_id) ON DELETE CASCADE,
    anchor TEXT NOT NULL,
    skip INTEGER NOT NULL,
    length INTEGER NOT NULL,
    done INTEGER NOT NULL
);
"""
"""An index of all columns of an outbox entry but its body: a query over entries reads no body of
10 MB. The images that tasks have run, by which old ones are removed. And how far the output of each
task was read: its chunks are in the outbox.

Not a migration: an earlier version works with an index or a table that it does not know.
"""
TASK_KEY_MARK = "task-key"
"""In `identities.node`, where a registration has its description: the key is one task's.

Not a column: a host can go back to the version before, which would set the journal aside.
"""
_TABLES = frozenset({"identities", "tasks", "outbox"})
TASKS = (
    "SELECT tasks.*, orchestrator_url, node_id, api_key, node, refused FROM tasks"
    " JOIN identities ON identities.id = tasks.identity"
)
F = TypeVar("F", bound="Database")
P = ParamSpec("P")
T = TypeVar("T")


def transaction(
    method: Callable[Concatenate[F, P], T],
) -> Callable[Concatenate[F, P], Coroutine[Any, Any, T]]:
    """Run a method as one transaction in a worker thread, one at a time; a disk may be slow."""

    @functools.wraps(method)
    async def run(self: F, /, *args: P.args, **kwargs: P.kwargs) -> T:
        def transaction() -> T:
            try:
                with self.transaction():
                    return method(self, *args, **kwargs)
            except sqlite3.Error as error:
                raise JournalError(
                    f"cannot use the journal {self.path}: {_error_text(error)}"
                ) from error

        return await anyio.to_thread.run_sync(transaction, limiter=self.one_at_a_time)

    return run


class Database:
    """An open file, and the connection to it."""

    def __init__(
        self, path: Path, timings: Timings = DEFAULT_TIMINGS, *, read_only: bool = False
    ) -> None:
        """Open the journal and bring its schema up to date.

        Raises:
            JournalError: it is damaged, from a newer version, or cannot be opened.
        """
        self.path = path
        self._begin = "BEGIN" if read_only else "BEGIN IMMEDIATE"
        self.one_at_a_time = anyio.CapacityLimiter(1)
        address = f"file:{_quoted(path)}?mode={'ro' if read_only else 'rwc'}"
        try:
            self.connection = sqlite3.connect(
                address,
                uri=True,
                timeout=timings.journal_busy_timeout_s,
                check_same_thread=False,
                isolation_level=None,  # no transaction but those begun below
            )
        except sqlite3.Error as error:
            raise JournalError(f"cannot open the journal {path}: {error}") from error
        self.connection.row_factory = sqlite3.Row
        try:
            self._prepare(read_only=read_only)
        except sqlite3.Error as error:
            self.connection.close()
            raise JournalError(f"cannot open the journal {path}: {error}") from error
        except JournalError:
            self.connection.close()
            raise

    def _prepare(self, *, read_only: bool) -> None:
        version = self.connection.execute("PRAGMA user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            raise JournalError(
                f"cannot use the journal {self.path}: it was written by a newer version"
            )
        if read_only:
            return
        self._check(version)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = FULL")
        self.connection.execute("PRAGMA foreign_keys = ON")
        for next_version, script in enumerate(MIGRATIONS[version:], start=version + 1):
            self.connection.executescript(
                f"BEGIN; {script} PRAGMA user_version = {next_version}; COMMIT;"
            )
        self.connection.executescript(ADDITIONS)
        self._check_tasks()

    def _check(self, version: int) -> None:
        """Check, without writing, that the file is new, or a journal that is not damaged.

        Raises:
            JournalError: it is neither.
        """
        damage = self.connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if damage != "ok":
            raise JournalError(f"cannot use the journal {self.path}: it is damaged: {damage}")
        rows = self.connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        tables = {row["name"] for row in rows}
        if tables if version == 0 else not tables >= _TABLES:
            raise JournalError(f"cannot use the journal {self.path}: it is not a journal of ours")

    def _check_tasks(self) -> None:
        """Check that every task can be read: a sound file may hold damaged text.

        Raises:
            JournalError: one cannot.
        """
        try:
            for row in self.connection.execute(TASKS):
                task_from_row(row)
        except (JournalError, sqlite3.OperationalError) as error:
            if isinstance(error, sqlite3.OperationalError) and "decode" not in str(error):
                raise
            # Without the cause: `is_worth_setting_aside` would take it for temporary.
            raise JournalError(f"cannot use the journal {self.path}: {error}") from None

    @property
    def is_current(self) -> bool:
        """Whether the schema is this version's; opening to write would change an older one."""
        version: int = self.connection.execute("PRAGMA user_version").fetchone()[0]
        return version == len(MIGRATIONS)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Begin, and commit or undo all of it."""
        self.connection.execute(self._begin)
        try:
            yield
            self.connection.execute("COMMIT")
        finally:
            # SQLite has rolled back by itself after some errors, such as a full disk.
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")

    def close_file(self) -> None:
        """Close the connection; the journal cannot be used after it."""
        self.connection.close()


def _error_text(error: sqlite3.Error) -> str:
    """Return SQLite's text, and what an operator can do about it."""
    text = str(error)
    return f"{text}; free some space there" if "full" in text else text


def is_worth_setting_aside(error: JournalError) -> bool:
    """Check whether the file is damaged or newer, and not merely locked or on a full disk."""
    cause = error.__cause__
    return cause is None or (
        isinstance(cause, sqlite3.DatabaseError) and not isinstance(cause, sqlite3.OperationalError)
    )


def private(path: Path) -> Path:
    """Return the path of a file that exists and that only its owner may read."""
    try:
        path.touch(mode=0o600)
        path.chmod(0o600)
    except OSError as error:
        raise JournalError(f"cannot write the journal {path}: {error.strerror}") from error
    return path


def _quoted(path: Path) -> str:
    return str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def task_from_row(row: sqlite3.Row) -> Task:
    """Return the task of a row of `TASKS`.

    Raises:
        JournalError: a value is not one that a runner writes.
    """
    assignment = row["assignment"]
    try:
        return Task(
            task_id=row["task_id"],
            state=TaskState(row["state"]),
            orchestrator_url=row["orchestrator_url"],
            assignment=Assignment.from_json(assignment) if assignment else None,
            accepted_at=row["accepted_at"],
            identity=None if row["refused"] else identity_from_row(row),
            boot_id=row["boot_id"],
            engine=_column(row, "engine"),
            container_id=row["container_id"],
            started_at=row["started_at"],
            deadline_uptime_s=row["deadline_uptime_s"],
            stop_reason=_reason(row["stop_reason"]),
            stop_asked_at=row["stop_asked_at"],
            end_reason=_reason(row["end_reason"]),
            exit_code=row["exit_code"],
            message=row["message"],
            ended_at=row["ended_at"],
            is_log_pending=bool(_column(row, "log_pending")),
            prompt_digest=_column(row, "prompt_digest"),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise JournalError(f"the text of task {row['task_id']!r} is damaged") from error


def entry_from_row(row: sqlite3.Row) -> OutboxEntry:
    """Return the entry of a row of `outbox`, joined with its orchestrator's URL."""
    return OutboxEntry(
        row=row["id"],
        task_id=row["task_id"],
        path=row["path"],
        orchestrator_url=row["orchestrator_url"],
        created_at=row["created_at"],
        attempts=row["attempts"],
        next_attempt_at=row["next_attempt_at"],
        parked=row["parked"],
    )


def registration_from_row(row: sqlite3.Row) -> Registration:
    """Return the registration of a row of `identities`."""
    return Registration(
        identity=identity_from_row(row),
        description=object_from_text(row["node"]),
        extensions=frozenset((_column(row, "extensions") or "").split()),
    )


def identity_from_row(row: sqlite3.Row) -> Identity:
    """Return the identity of a row that has the columns of `identities`."""
    return Identity(row["node_id"], Secret(row["api_key"]), row["node"] == TASK_KEY_MARK)


def object_from_text(text: object) -> Mapping[str, object] | None:
    """Return the JSON object of a column; None when it is empty or damaged."""
    try:
        body = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def _column(row: sqlite3.Row, name: str) -> Any:  # noqa: ANN401 - as the column has it
    """Return a column that later versions added: a reader may come before the migration."""
    return row[name] if name in row.keys() else None  # noqa: SIM118 - not a mapping


def _reason(text: str | None) -> EndReason | None:
    return None if text is None else EndReason(text)
