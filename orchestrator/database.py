"""Transactions, either for reading or for writing.

A writing transaction takes SQLite's write lock when it begins, so that what it reads cannot change
before it writes. Within the process writers queue at a lock of our own: SQLite's waiting is by
sleeping and asking again, which is slow and unfair.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from orchestrator.errors import ConfigurationError
from orchestrator.schema import Base

_BUSY_TIMEOUT_S = 30
_PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",
)


class Database:
    """The one way to the tables."""

    def __init__(self, path: Path) -> None:
        """Open the database file, creating it and its tables as needed.

        Raises ConfigurationError when that cannot be done.
        """
        self._engine = create_engine(
            f"sqlite:///{path}",
            connect_args={"timeout": _BUSY_TIMEOUT_S, "check_same_thread": False},
            pool_size=10,
            max_overflow=30,
            # An error's text must not show what was being stored.
            hide_parameters=True,
        )
        event.listen(self._engine, "connect", _prepare_connection)
        event.listen(self._engine, "begin", _begin)
        self._writing_engine = self._engine.execution_options(writes=True)
        self._write_lock = threading.Lock()
        try:
            Base.metadata.create_all(self._writing_engine)
        except SQLAlchemyError as error:
            reason = getattr(error, "orig", None) or error
            raise ConfigurationError(f"cannot open database {path}: {reason}") from error

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Give one consistent view; what is changed in it is forgotten."""
        with Session(self._engine, expire_on_commit=False, autoflush=False) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """Give one transaction; it is committed at the end and rolled back on an error."""
        begun = sessionmaker(self._writing_engine, expire_on_commit=False).begin
        with self._write_lock, begun() as session:
            yield session

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


def _prepare_connection(connection: Any, _record: object) -> None:  # noqa: ANN401 - DBAPI has no type
    # sqlite3's own transactions are off: `_begin` says which kind it is to be.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(pragma)
    cursor.close()


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
