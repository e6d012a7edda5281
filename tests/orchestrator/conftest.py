"""Fixtures of the orchestrator's tests: on SQLite, and on both databases where the SQL differs."""

import os
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import create_engine

from orchestrator.db import database, migrate
from tests.orchestrator.serving import RegisteredNode, RunningOrchestrator, serve
from tools.dev.postgres import postgresql

# Schemathesis has no release for Python 3.10.
collect_ignore = ["test_schemathesis.py"] if sys.version_info < (3, 11) else []

DATABASES = ("sqlite", "postgresql")
NewDatabase = Callable[[str], AbstractContextManager[str | None]]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "both_databases: run on SQLite and on PostgreSQL")
    config.addinivalue_line("markers", "settings(**fields): serve with these fields of Settings")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    is_marked = metafunc.definition.get_closest_marker("both_databases") is not None
    if is_marked and "orchestrator" in metafunc.fixturenames:
        metafunc.parametrize("orchestrator", DATABASES, indirect=True)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """Yield the URL of a PostgreSQL server: that of ./dev, or one of our own."""
    if url := os.environ.get("VICTORIA_TEST_POSTGRESQL"):
        yield url
        return
    with postgresql() as url:
        yield url


@pytest.fixture(scope="session")
def empty_database(postgresql_server: str) -> Iterator[str]:
    """Yield the name of a PostgreSQL database with empty tables, to be copied."""
    with _copied(postgresql_server, "template0") as url:
        engine = create_engine(database.postgresql_url(url))
        migrate.migrate(engine)
        engine.dispose()
        yield url.rpartition("/")[2]


@pytest.fixture(scope="session")
def new_database(request: pytest.FixtureRequest) -> NewDatabase:
    """Return what makes a database of a kind for a while: it yields the URL, None for SQLite."""

    @contextmanager
    def new(kind: str) -> Iterator[str | None]:
        if kind == "sqlite":
            yield None
            return
        template = "template0" if kind == "bare" else request.getfixturevalue("empty_database")
        with _copied(request.getfixturevalue("postgresql_server"), template) as url:
            yield url

    return new


@pytest.fixture
def postgresql_url(new_database: NewDatabase) -> Iterator[str]:
    with new_database("postgresql") as url:
        yield str(url)


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, new_database: NewDatabase) -> Iterator[str | None]:
    with new_database(request.param) as url:
        yield url


@pytest.fixture
def orchestrator(
    tmp_path: Path, request: pytest.FixtureRequest, new_database: NewDatabase
) -> Iterator[RunningOrchestrator]:
    """Serve with the settings that the test is marked with, or the default ones."""
    fields: dict[str, object] = {}
    for marker in request.node.iter_markers("settings"):
        fields = {**marker.kwargs, **fields}
    with (
        new_database(getattr(request, "param", "sqlite")) as url,
        serve(tmp_path / "data", database_url=url, **fields) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningOrchestrator]:
    """Serve once for all tests of a module that do not depend on what others leave behind."""
    with serve(tmp_path_factory.mktemp("shared"), failures_per_minute=10**6) as running:
        yield running


@pytest.fixture
def node(orchestrator: RunningOrchestrator) -> RegisteredNode:
    return orchestrator.register()


@contextmanager
def _copied(server: str, template: str) -> Iterator[str]:
    name = sql.Identifier(f"test_{uuid.uuid4().hex}")
    with psycopg.connect(server, autocommit=True) as connection:
        copy = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(name, sql.Identifier(template))
        connection.execute(copy)
        yield server.rpartition("/")[0] + "/" + name.as_string().strip('"')
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
