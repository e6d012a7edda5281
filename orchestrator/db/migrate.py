"""Brings the tables up to date when a server starts, one server at a time.

The steps are in `migrations/versions`, each one transaction's work; all that are due are run in one
transaction, so a server that is killed in the middle leaves the database as it was. On SQLite the
transaction itself is the lock, on PostgreSQL an advisory lock is.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, inspect, text

from orchestrator.errors import ConfigurationError

FIRST = "0001"
"""The revision of databases from before there were migrations."""

_LOCK = 0x76696374
"""The advisory lock's number: any, as long as it stays the same."""


def migrate(engine: Engine) -> None:
    """Run the steps that are due. Raises ConfigurationError for a database of a newer version."""
    config = configuration()
    newest = ScriptDirectory.from_config(config).get_current_head()
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        if _revision(connection) == newest:
            return
        config.attributes["connection"] = connection
        try:
            if _is_older_than_migrations(connection):
                command.stamp(config, FIRST)
            command.upgrade(config, "head")
        except CommandError as error:
            raise ConfigurationError(
                "cannot use the database: a newer version of the orchestrator made it,"
                " so start that version"
            ) from error


def configuration() -> Config:
    """Return Alembic's configuration; the caller sets `attributes["connection"]`."""
    config = Config()
    scripts = str(Path(__file__).parent / "migrations")
    # It is read as the value of an ini file.
    config.set_main_option("script_location", scripts.replace("%", "%%"))
    return config


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _is_older_than_migrations(connection: Connection) -> bool:
    return _revision(connection) is None and inspect(connection).has_table("nodes")
