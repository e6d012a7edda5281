"""Transactions, either for reading or for writing, on SQLite or on PostgreSQL.

On SQLite a writing transaction takes the write lock when it begins, so that what it reads cannot
change before it writes. Within the process writers queue at a lock of our own: SQLite's waiting is
by sleeping and asking again, which is slow and unfair.

On PostgreSQL writers run side by side. A change that depends on what a row contains must read that
row `with_for_update()`, which SQLite ignores. Rows are locked in one order: keys, nodes, tasks,
files.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from orchestrator.db.migrate import migrate
from orchestrator.errors import ConfigurationError, DatabaseUnreachable
from orchestrator.log import Outage

log = logging.getLogger(__name__)

DATABASE_NAME = "orchestrator.db"
CONNECTIONS = 10
"""The size of the pool of one process on PostgreSQL."""

_BUSY_TIMEOUT_S = 30
_PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA foreign_keys=ON",
)
_POSTGRESQL_OPTIONS = {
    "connect_timeout": 10,
    "application_name": "victoria-orchestrator",
    # A process whose machine is gone must not hold its locks for hours.
    "keepalives_idle": 30,
    "options": "-c lock_timeout=30s -c statement_timeout=120s"
    " -c idle_in_transaction_session_timeout=120s",
}


class Database:
    """The one way to the tables."""

    def __init__(self, data_dir: Path, url: str | None = None) -> None:
        """Open the database and bring its tables up to date; without a URL it is a SQLite file.

        Raises ConfigurationError when that cannot be done.
        """
        self.url = None if url is None else postgresql_url(url)
        """None when it is SQLite."""
        self._write_lock: AbstractContextManager[object]
        self._writing_engine: Engine
        self._relaxed_engine: Engine
        if self.url is None:
            self._engine = _sqlite(data_dir / DATABASE_NAME)
            self._reading_engine: Engine = self._engine
            self._autocommit_engine: Engine = self._engine
            self._writing_engine = self._engine.execution_options(writes=True)
            self._relaxed_engine = self._writing_engine.execution_options(waits_for_disk=False)
            self._write_lock = threading.Lock()
        else:
            self._engine = _postgresql(self.url)
            self._reading_engine = self._engine.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
            self._autocommit_engine = self._engine.execution_options(isolation_level="AUTOCOMMIT")
            self._writing_engine = self._engine
            self._relaxed_engine = self._engine
            self._write_lock = nullcontext()
        self._writes = sessionmaker(self._writing_engine, expire_on_commit=False)
        self._notes = sessionmaker(self._relaxed_engine, expire_on_commit=False)
        self.outage = Outage(log, "the database answers again")
        """As requests, sweeps and announcements see it."""
        try:
            migrate(self._writing_engine)
        except SQLAlchemyError as error:
            self.close()
            # psycopg's have lines that say what a user of psql might do.
            reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            place = (
                data_dir / DATABASE_NAME
                if self.url is None
                else self.url.set(drivername="postgresql").render_as_string()
            )
            is_unreachable = self.url is not None and isinstance(error, OperationalError)
            kind = DatabaseUnreachable if is_unreachable else ConfigurationError
            raise kind(f"cannot open database {place}: {reason}") from error
        except ConfigurationError:
            self.close()
            raise

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Read in one consistent view; changes are discarded."""
        with Session(self._reading_engine, expire_on_commit=False, autoflush=False) as session:
            yield session

    @contextmanager
    def autocommit(self) -> Iterator[Session]:
        """Read without a transaction: the cheapest, for a single statement."""
        with Session(self._autocommit_engine, expire_on_commit=False, autoflush=False) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """Write in one transaction, committed at the end and rolled back on an error."""
        with self._write_lock, self._writes.begin() as session:
            yield session

    @contextmanager
    def writing_relaxed(self) -> Iterator[Session]:
        """Write in one transaction that does not wait for the disk: for what will be sent again.

        A power cut can lose the last moments of it, as if they had not been sent. Nothing else
        is touched by that: a transaction of `writing` after it takes it to the disk as well.
        """
        with self._write_lock, self._notes.begin() as session:
            if self.url is not None:
                session.execute(text("SET LOCAL synchronous_commit = off"))
            yield session

    def unused_bytes(self) -> int:
        """Return the size of what SQLite fills before its file grows; 0 on PostgreSQL."""
        if self.url is not None:
            return 0
        with self.autocommit() as session:
            pages = session.execute(text("PRAGMA freelist_count")).scalar_one()
            return int(pages * session.execute(text("PRAGMA page_size")).scalar_one())

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


def postgresql_url(text: str) -> URL:
    """Read the URL of a PostgreSQL database. Raises ConfigurationError, without repeating it."""
    try:
        url = make_url(text)
    except ArgumentError:
        raise ConfigurationError(
            "cannot read the database URL: write it as postgresql://USER:PASSWORD@HOST/NAME"
        ) from None
    if url.drivername not in {"postgresql", "postgres", "postgresql+psycopg"}:
        raise ConfigurationError(
            f"cannot use a database of kind {url.drivername}: give a postgresql:// URL,"
            " or none for SQLite"
        )
    return url.set(drivername="postgresql+psycopg")


def _sqlite(path: Path) -> Engine:
    engine = create_engine(
        f"sqlite:///{path}",
        connect_args={"timeout": _BUSY_TIMEOUT_S, "check_same_thread": False},
        pool_size=10,
        max_overflow=30,
        # An error's text must not show what was being stored.
        hide_parameters=True,
    )
    event.listen(engine, "connect", _prepare_connection)
    event.listen(engine, "begin", _begin)
    return engine


def _postgresql(url: URL) -> Engine:
    return create_engine(
        url,
        connect_args=_POSTGRESQL_OPTIONS,
        pool_size=CONNECTIONS,
        max_overflow=0,
        pool_timeout=30,
        hide_parameters=True,
    )


def _prepare_connection(connection: Any, _record: object) -> None:  # noqa: ANN401 - DBAPI has no type
    # sqlite3's own transactions are off: `_begin` chooses the kind.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(pragma)
    cursor.close()


def _begin(connection: Connection) -> None:
    options = connection.get_execution_options()
    writes = options.get("writes", False)
    if writes:
        # The same connection serves both kinds in turn.
        level = "FULL" if options.get("waits_for_disk", True) else "NORMAL"
        connection.exec_driver_sql(f"PRAGMA synchronous={level}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
