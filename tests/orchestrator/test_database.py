"""The tables: created and migrated at a start, by one server at a time."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, create_engine, inspect, text

from orchestrator.db.database import DATABASE_NAME, Database, postgresql_url
from orchestrator.db.migrate import FIRST, configuration
from orchestrator.db.tables import Base
from orchestrator.errors import ConfigurationError
from tests.orchestrator.conftest import NewDatabase
from tests.orchestrator.serving import serve

OLD_TASK = (
    "INSERT INTO tasks (id, prompt, priority, timeout_seconds, status, created_at, started_at,"
    " created_by) VALUES ('b1f2a0c4-3d5e-4f67-8a9b-0c1d2e3f4a5b', 'p', 0, 60, 'running',"
    " '2026-01-01 00:00:00', '2026-01-01 00:01:00', 'admin')"
)


@pytest.fixture(params=["sqlite", "bare"])
def url(request: pytest.FixtureRequest, new_database: NewDatabase) -> Iterator[str | None]:
    """Yield the URL of a database without tables: None means SQLite."""
    with new_database(request.param) as new:
        yield new


@pytest.fixture
def tables(tmp_path: Path, url: str | None) -> Iterator[Engine]:
    sqlite = f"sqlite:///{tmp_path / DATABASE_NAME}"
    engine = create_engine(sqlite if url is None else postgresql_url(url))
    yield engine
    engine.dispose()


def _execute(tables: Engine, *statements: str, first_migration: bool = False) -> None:
    with tables.begin() as connection:
        if first_migration:
            config = configuration()
            config.attributes["connection"] = connection
            command.upgrade(config, FIRST)
        for statement in statements:
            connection.execute(text(statement))


def _scalar(tables: Engine, query: str) -> object:
    with tables.connect() as connection:
        return connection.scalar(text(query))


def test_simultaneous_starts_migrate_once(tmp_path: Path, url: str | None, tables: Engine) -> None:
    def start(_: int) -> None:
        Database(tmp_path, url).close()

    with ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(start, range(4)))
    assert _scalar(tables, "SELECT count(*) FROM alembic_version") == 1
    with tables.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_first_database_is_migrated(tmp_path: Path, url: str | None, tables: Engine) -> None:
    _execute(tables, OLD_TASK, "DROP TABLE alembic_version", first_migration=True)
    with serve(tmp_path, database_url=url, lost_after_s=10**9) as orchestrator:
        assert [task["prompt"] for task in orchestrator.tasks()] == ["p"]
    overdue_at = str(_scalar(tables, "SELECT overdue_at FROM tasks"))
    assert overdue_at.startswith("2026-01-01 00:02:00")


@pytest.mark.parametrize("name", ["data?x=1", "a #%41%s&", "file:data?mode=memory", ":memory:"])
def test_sqlite_file_is_in_the_data_folder_whatever_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    Database(tmp_path / name).close()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name / DATABASE_NAME).is_file()


def test_newer_database_is_refused(tmp_path: Path, url: str | None, tables: Engine) -> None:
    Database(tmp_path, url).close()
    _execute(tables, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(ConfigurationError, match="a newer version of the orchestrator made it"):
        Database(tmp_path, url)


def test_failed_migration_changes_nothing(tmp_path: Path, url: str | None, tables: Engine) -> None:
    # In the way of the last thing that the next step does.
    _execute(tables, "CREATE TABLE key_audit (number INTEGER)", first_migration=True)
    with pytest.raises(ConfigurationError, match="cannot open database"):
        Database(tmp_path, url)
    assert not inspect(tables).has_table("api_keys")
    assert _scalar(tables, "SELECT version_num FROM alembic_version") == FIRST


def test_relaxed_writes_alone_skip_the_disk(tmp_path: Path, database_url: str | None) -> None:
    query = text("PRAGMA synchronous" if database_url is None else "SHOW synchronous_commit")
    levels = []
    with closing(Database(tmp_path, database_url)) as database:
        for transaction in (database.writing, database.writing_relaxed, database.writing):
            with transaction() as session:
                levels.append(session.scalar(query))
    # The tests' PostgreSQL never waits; what the transaction sets is what counts.
    full, relaxed = (2, 1) if database_url is None else (levels[0], "off")
    assert levels == [full, relaxed, full]
