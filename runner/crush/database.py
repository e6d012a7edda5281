"""Crush's SQLite database, as the child process opens it: a private copy with Crush's own schema.

Crush, or anything else in a container, may be writing while we copy, and may replace what we read
by something else. So the copy is made through handles, follows no link, and is repeated until
nothing has changed meanwhile. No lock is taken, and `-shm` is not opened: a task that truncates it
would kill every process that has it mapped.

The tables are in charmbracelet/crush, internal/db/migrations.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from runner.crush.sessions import (
    COPY_LIMIT_BYTES,
    DATABASE,
    JOURNAL,
    WAL,
    WAL_BEFORE,
    ChildLimits,
    CrushBusy,
    CrushError,
    CrushForbidden,
)
from runner.handles import free_disk, open_below, open_file

_BLOCK_BYTES = 1 << 20
_WAL_HEADER_BYTES = 32
_BUSY = "cannot read the Crush database: another process keeps writing it"


@contextmanager
def open_copy(
    database: Path, copy_dir: Path, limits: ChildLimits, archives: Path | None = None
) -> Iterator[sqlite3.Connection | None]:
    """Open a copy of the database, made in an empty folder; None if there is no database.

    With `archives`, the copy is made of the tar files in that folder.

    Raises:
        CrushForbidden: this user may not open it.
        CrushError: it cannot be read, here or by the caller.
    """
    try:
        copy = copy_dir / "crush.db"
        is_there = (
            _copy_when_quiet(database, copy, limits)
            if archives is None
            else _extract_all(archives, copy)
        )
        if not is_there:
            yield None
            return
        connection = sqlite3.connect(copy, isolation_level=None)
        try:
            connection.text_factory = _decode
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
            connection.execute("PRAGMA temp_store = MEMORY")
            connection.execute("BEGIN")
            is_empty = connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None
            # What SQLite has open needs no name, and so is gone with this process, however it ends.
            for path in copy_dir.iterdir():
                path.unlink()
            yield None if is_empty else connection
        finally:
            connection.close()
    except PermissionError as error:
        raise CrushForbidden("cannot read the Crush database: permission denied") from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CrushError(f"cannot read the Crush database: {reason}") from error
    except UnicodeDecodeError as error:  # in what SQLite complains of
        raise CrushError("cannot read the Crush database: its schema is malformed") from error
    except sqlite3.Error as error:
        raise CrushError(f"cannot read the Crush database: {error}") from error


def check_schema(connection: sqlite3.Connection) -> dict[str, set[str]]:
    """Return the columns of the two tables that are read.

    Raises:
        CrushError: one of them is missing, or is something that computes when it is read.
    """
    columns = {}
    for table in ("sessions", "messages"):
        entry = connection.execute(
            "SELECT type, rootpage FROM sqlite_master WHERE name = ?", (table,)
        ).fetchone()
        if entry is None:
            raise CrushError(f"cannot read the Crush database: it has no table {table}")
        kind, root_page = entry
        is_crushs = kind == "table" and root_page  # a view or a virtual table has no page
        info = connection.execute("SELECT name, hidden FROM pragma_table_xinfo(?)", (table,))
        hidden = dict(info.fetchall()) if is_crushs else {}
        columns[table] = {name.lower() for name in hidden}
        # A generated column is hidden; a column "rowid" would hide the number of a row.
        if not is_crushs or any(hidden.values()) or "rowid" in columns[table]:
            raise CrushError(f"cannot read the Crush database: its {table} are not Crush's")
    return columns


def _copy_when_quiet(database: Path, copy: Path, limits: ChildLimits) -> bool:
    """Copy the database and its write-ahead log as they are at one moment; False if there is none.

    Raises:
        CrushError: there is something else in its place, it is too large, or it keeps changing.
        OSError: it cannot be opened, or the copy cannot be written.
    """
    try:
        folder = open_below(database.parents[1], [database.parent.name], make=False)
    except FileNotFoundError:
        return False
    try:
        ends_at_s = time.monotonic() + limits.copy_timeout_s
        while not _copy_once(folder, database.name, copy, limits.tick_s):
            if time.monotonic() > ends_at_s:
                raise CrushBusy(_BUSY)
    except FileNotFoundError:
        return False
    finally:
        os.close(folder)
    return True


def _copy_once(folder: int, name: str, copy: Path, tick_s: float) -> bool:
    with ExitStack() as stack:
        database = open_file(folder, name)
        stack.callback(os.close, database)
        wal, wal_copy = None, copy.with_name(f"{copy.name}-wal")
        wal_copy.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            wal = open_file(folder, f"{name}-wal")
            stack.callback(os.close, wal)
        before = _state(database, wal)
        time.sleep(tick_s)
        # A rollback journal holds what a half-written database lacks.
        with suppress(FileNotFoundError):
            if os.stat(f"{name}-journal", dir_fd=folder, follow_symlinks=False).st_size:
                return False
        _copy_file(database, copy)
        if wal is not None:
            _copy_file(wal, wal_copy)
        return _state(database, wal) == before


def _state(database: int, wal: int | None) -> tuple[object, ...]:
    """Return what changes when the database is written, or when its log is begun again.

    Between those two the log is only added to, and SQLite stops reading at what is incomplete.
    """
    about = os.fstat(database)
    header = os.pread(wal, _WAL_HEADER_BYTES, 0) if wal is not None else b""
    return about.st_size, about.st_mtime_ns, header


def _copy_file(source: int, target: Path) -> None:
    size = os.fstat(source).st_size
    _check_size(size, target)
    with target.open("wb", buffering=0) as file:
        while size > 0 and (block := os.read(source, min(size, _BLOCK_BYTES))):
            file.write(block)
            size -= len(block)


def _check_size(size: int, target: Path) -> None:
    if size > COPY_LIMIT_BYTES:
        raise CrushError(
            f"cannot read the Crush database: it has more than {COPY_LIMIT_BYTES >> 20} MiB; "
            "move it away, and Crush begins a new one"
        )
    if size > free_disk(target.parent) // 2:
        raise CrushError(f"cannot read the Crush database: no room for a copy in {target.parent}")


def _extract_all(archives: Path, copy: Path) -> bool:
    """Extract database and write-ahead log as they were at one moment; False if there is none.

    The log was archived before and after the database. If it was not begun again in between, it
    has what was written to the database meanwhile.

    Raises:
        CrushBusy: the database was written meanwhile.
        CrushError: there is something else in its place, or it is too large.
    """
    if not (archives / DATABASE).exists():
        return False
    _extract(archives / DATABASE, copy)
    wal = copy.with_name(f"{copy.name}-wal")
    before = _extract(archives / WAL_BEFORE, wal)
    header = _header(wal) if before else b""
    wal.unlink(missing_ok=True)
    after = _extract(archives / WAL, wal)
    journal = copy.with_name(f"{copy.name}-rollback")
    # A rollback journal holds what a half-written database lacks.
    is_half_written = _extract(archives / JOURNAL, journal) and journal.stat().st_size > 0
    journal.unlink(missing_ok=True)
    if is_half_written or header != (_header(wal) if after else b""):
        raise CrushBusy(_BUSY)
    return True


def _header(wal: Path) -> bytes:
    with wal.open("rb") as file:
        return file.read(_WAL_HEADER_BYTES)


def _extract(archive: Path, target: Path) -> bool:
    """Extract the regular file that an engine has archived; False if there is no archive."""
    import tarfile  # noqa: PLC0415 - seldom needed, and takes longer to load than all the rest

    try:
        with tarfile.open(archive, "r:") as tar:
            member = tar.next()
            content = None if member is None or not member.isreg() else tar.extractfile(member)
            if member is None or content is None:
                raise CrushError("cannot read the Crush database: it is not a regular file")
            _check_size(member.size, target)
            with target.open("wb", buffering=0) as file:
                while block := content.read(_BLOCK_BYTES):
                    file.write(block)
    except FileNotFoundError:
        return False
    except tarfile.TarError as error:
        raise CrushError(f"cannot read the Crush database: {error}") from error
    return True


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "replace")
