"""Copies all tables from SQLite to PostgreSQL, when one process is no longer enough."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

from sqlalchemy import Table, func, insert, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from orchestrator.db.database import DATABASE_NAME, Database
from orchestrator.db.tables import Base, Log, OutputPart
from orchestrator.errors import ConfigurationError

COPIED_NAME = f"{DATABASE_NAME}.copied"
"""The name of the SQLite database after the copy."""

_ROWS_AT_ONCE = 1000
_ROWS_AT_ONCE_OF = {Log.__tablename__: 10, OutputPart.__tablename__: 100}
"""A log may have 10 MB, a part of an output 32 kB."""


def move_to_postgresql(data_dir: Path, database_url: str) -> Mapping[str, int]:
    """Copy the database of a data folder in one transaction; return the number of rows by table.

    The SQLite file is then renamed: a server started without the URL would hand out its tasks a
    second time. The caller holds the lock on the data folder. Raises ConfigurationError if there is
    nothing to copy, the target has rows, or either database fails.
    """
    source_path = data_dir / DATABASE_NAME
    if not source_path.is_file():
        raise ConfigurationError(f"cannot copy {source_path}: there is no such file")
    with (
        closing(Database(data_dir)) as source,
        closing(Database(data_dir, database_url)) as target,
        source.reading() as reading,
    ):
        try:
            with target.writing() as writing:
                _require_empty(writing)
                counts = {
                    table.name: _copy(table, reading, writing)
                    for table in Base.metadata.sorted_tables
                }
        except SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            raise ConfigurationError(
                f"cannot copy {source_path}: {reason}; nothing was copied"
            ) from error
    # SQLite leaves the other two behind if another program had the file open.
    for suffix in ("", "-wal", "-shm"):
        path = data_dir / f"{DATABASE_NAME}{suffix}"
        if path.exists():
            path.chmod(0o600)
            path.rename(data_dir / f"{COPIED_NAME}{suffix}")
    return counts


def _require_empty(target: Session) -> None:
    names = ", ".join(table.name for table in Base.metadata.sorted_tables)
    # A server that is using the target writes nothing until the copy is committed.
    target.execute(text(f"LOCK TABLE {names} IN EXCLUSIVE MODE"))
    for table in Base.metadata.sorted_tables:
        if target.execute(select(table).limit(1)).first() is not None:
            raise ConfigurationError(
                f"cannot copy to this database: its table {table.name} has rows; use an empty one"
            )


def _copy(table: Table, source: Session, target: Session) -> int:
    count = 0
    for rows in _pages(table, source):
        target.execute(insert(table), rows)
        count += len(rows)
    number = table.autoincrement_column
    if count and number is not None:
        sequence = func.pg_get_serial_sequence(table.name, number.name)
        target.execute(select(func.setval(sequence, select(func.max(number)).scalar_subquery())))
    return count


def _pages(table: Table, source: Session) -> Iterator[list[dict[str, object]]]:
    rows = source.execute(select(table).order_by(*table.primary_key))
    size = _ROWS_AT_ONCE_OF.get(table.name, _ROWS_AT_ONCE)
    for page in rows.mappings().partitions(size):
        yield [dict(row) for row in page]
