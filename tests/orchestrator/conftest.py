"""What the orchestrator's tests share. Each that asks for a database runs on both."""

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


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """Give the URL of a PostgreSQL server: that of ./dev, or one of our own."""
    with ExitStack() as stack:
        yield os.environ.get(POSTGRESQL_VARIABLE) or stack.enter_context(postgresql())


@pytest.fixture(scope="session")
def empty_postgresql_url(postgresql_server: str) -> Iterator[str]:
    """Give the URL of a database with all tables and nothing in them, to be copied."""
    with _new_database(postgresql_server, "template0") as url:
        engine = create_engine(postgresql_url_of(url))
        migrate(engine)
        engine.dispose()
        yield url


@pytest.fixture
def postgresql_url(postgresql_server: str, empty_postgresql_url: str) -> Iterator[str]:
    """Give the URL of a new PostgreSQL database, gone with the test."""
    with _new_database(postgresql_server, empty_postgresql_url.rpartition("/")[2]) as url:
        yield url


@pytest.fixture
def bare_postgresql_url(postgresql_server: str) -> Iterator[str]:
    """Give the URL of a new PostgreSQL database without a table in it."""
    with _new_database(postgresql_server, "template0") as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str | None:
    """Give what settings say of the database: None means SQLite."""
    if request.param == "sqlite":
        return None
    url: str = request.getfixturevalue("postgresql_url")
    return url


@pytest.fixture
def orchestrator(tmp_path: Path, database_url: str | None) -> Iterator[RunningOrchestrator]:
    """Serve with the default settings."""
    with serve(tmp_path / "data", database_url=database_url) as running:
        yield running


@pytest.fixture
def node(orchestrator: RunningOrchestrator) -> RegisteredNode:
    """Register a node with it."""
    return orchestrator.register()


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
