"""The servers that a fleet is put before: several processes on one new database, on loopback."""

from __future__ import annotations

import contextlib
import os
import resource
import secrets
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from benchmarks.simulated_fleet import KEEPALIVE_S
from benchmarks.system import children_of, line_of, parent_of, running
from orchestrator.scheduling.heartbeats import HEARTBEATS_PER_S

POSTGRESQL_VARIABLE = "VICTORIA_TEST_POSTGRESQL"

_SPARE_FILES = 200
_RAMP = 1.15
"""While a fleet connects, more connections are idle."""


@dataclass(frozen=True)
class Servers:
    """Servers that share one database, and the ids of all processes that do their work."""

    urls: list[str]
    token: str
    admin_key: str
    pids: list[int]
    database_pid: int | None
    """PostgreSQL's first process, the parent of all others."""


@contextlib.contextmanager
def served(folder: Path, server_url: str | None, *options: str) -> Iterator[Servers]:
    """Run a server on a new database, SQLite without a URL, for as long as the block lasts."""
    with contextlib.ExitStack() as stack:
        token, admin_key = secrets.token_hex(16), secrets.token_hex(16)
        environment = {**os.environ, "REGISTRATION_TOKEN": token, "ADMIN_API_KEY": admin_key}
        database_pid = None
        if server_url is not None:
            database_url, database_pid = stack.enter_context(new_database(server_url))
            environment["VICTORIA_ORCHESTRATOR_DATABASE_URL"] = database_url
        log = folder / "orchestrator.log"
        arguments = ["orchestrator", "--port=0", f"--data-dir={folder / 'data'}", *options]
        process = stack.enter_context(running(arguments, log, environment))
        url = line_of(log, "listening on ").rpartition(" ")[2].strip()
        pids = [process.pid, *children_of(process.pid)]
        yield Servers([url], token, admin_key, pids, database_pid)


def allow_open_files(size: int) -> None:
    """Raise the limit of open files, for us and our servers, to what a fleet needs, or exit."""
    # In a large fleet, heartbeats come more seldom than an idle connection is kept.
    share = min(1, KEEPALIVE_S * HEARTBEATS_PER_S / size)
    needed = round(size * (1 + share) * _RAMP) + _SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise SystemExit(
            f"bench: cannot simulate {size} nodes: they need {needed} open files and the limit is"
            f" {hard}: raise it with 'ulimit -Hn {needed}' as root"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


@contextlib.contextmanager
def new_database(server: str) -> Iterator[tuple[str, int]]:
    """Give the URL of a new database on that server, and the id of the server's first process."""
    name = sql.Identifier(f"bench_{uuid.uuid4().hex}")
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(name))
        url = server.rpartition("/")[0] + "/" + name.as_string().strip('"')
        yield url, parent_of(connection.info.backend_pid)
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
