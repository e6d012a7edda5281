"""Fixtures of the orchestrator's tests: on SQLite, and on both databases where the SQL differs."""

import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import create_engine

from orchestrator.db.database import postgresql_url as postgresql_url_of
from orchestrator.db.migrate import migrate
from tests.orchestrator.serving import RegisteredNode, RunningOrchestrator, serve
from tools.dev.postgres import postgresql

# Schemathesis has no release for Python 3.10.
collect_ignore = ["test_schemathesis.py"] if sys.version_info < (3, 11) else []

POSTGRESQL_VARIABLE = "VICTORIA_TEST_POSTGRESQL"
DATABASES = ("sqlite", "postgresql")
MARKERS = (
    "both_databases: run on SQLite and on PostgreSQL",
    "settings(**fields): serve with these fields of Settings",
)


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers of this folder."""
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests that are marked so on both databases."""
    is_marked = metafunc.definition.get_closest_marker("both_databases") is not None
    if is_marked and "orchestrator" in metafunc.fixturenames:
        metafunc.parametrize("orchestrator", DATABASES, indirect=True)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """Yield the URL of a PostgreSQL server: that of ./dev, or one of our own."""
    with ExitStack() as stack:
        yield os.environ.get(POSTGRESQL_VARIABLE) or stack.enter_context(postgresql())


@pytest.fixture(scope="session")
def empty_postgresql_url(postgresql_server: str) -> Iterator[str]:
    """Yield the URL of a database with empty tables, to be copied."""
    with _new_database(postgresql_server, "template0") as url:
        engine = create_engine(postgresql_url_of(url))
        migrate(engine)
        engine.dispose()
        yield url


@pytest.fixture
def postgresql_url(postgresql_server: str, empty_postgresql_url: str) -> Iterator[str]:
    """Yield the URL of a new PostgreSQL database, removed after the test."""
    with _new_database(postgresql_server, empty_postgresql_url.rpartition("/")[2]) as url:
        yield url


@pytest.fixture
def bare_postgresql_url(postgresql_server: str) -> Iterator[str]:
    """Yield the URL of a new PostgreSQL database without tables."""
    with _new_database(postgresql_server, "template0") as url:
        yield url


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest) -> str | None:
    """Return the URL of each database in turn: None means SQLite."""
    return _url_of(request, request.param)


@pytest.fixture
def orchestrator(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[RunningOrchestrator]:
    """Serve with the settings that the test is marked with, or the default ones."""
    fields: dict[str, object] = {}
    for marker in request.node.iter_markers("settings"):
        fields = {**marker.kwargs, **fields}
    url = _url_of(request, getattr(request, "param", "sqlite"))
    with serve(tmp_path / "data", database_url=url, **fields) as running:
        yield running


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningOrchestrator]:
    """Serve once for all tests of a module that do not depend on what others leave behind."""
    data_dir = tmp_path_factory.mktemp("shared") / "data"
    with serve(data_dir, failures_per_minute=10**6) as running:
        yield running


@pytest.fixture
def node(orchestrator: RunningOrchestrator) -> RegisteredNode:
    """Register a node."""
    return orchestrator.register()


def _url_of(request: pytest.FixtureRequest, database: str) -> str | None:
    return None if database == "sqlite" else str(request.getfixturevalue("postgresql_url"))


@contextmanager
def _new_database(server: str, template: str) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                sql.Identifier(name), sql.Identifier(template)
            )
        )
        yield server.rpartition("/")[0] + f"/{name}"
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
