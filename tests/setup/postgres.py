"""Makes a PostgreSQL of our own: a new cluster on a free port of loopback, gone when it was used.

It is for tests: it does not wait for the disk. PostgreSQL refuses to run as root, so there it runs
as the user that its package made. The kernel ends it should whoever started it be killed.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.ports import kept_port
from tests.setup.packages import ensure_program, find_program
from tests.setup.steps import SetupError, attempt, require

if TYPE_CHECKING:
    from collections.abc import Iterator

START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 60
LOOK_AGAIN_S = 0.05
USER = "victoria"
ACCOUNT = "postgres"
UNSAFE_AND_FAST = ("fsync=off", "full_page_writes=off", "synchronous_commit=off")


@contextlib.contextmanager
def postgresql(settings: tuple[str, ...] = UNSAFE_AND_FAST) -> Iterator[str]:
    """Give the URL of a PostgreSQL that answers, of a user who may do anything there."""
    ensure_program("postgres", "the other database that the orchestrator's tests run on")
    folder = Path(tempfile.mkdtemp(prefix="victoria-postgres-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, ACCOUNT)
        with _running(folder, settings) as url:
            yield url
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def _running(folder: Path, settings: tuple[str, ...]) -> Iterator[str]:
    password = secrets.token_hex(16)
    keeper, port = kept_port()
    with keeper:
        _make_cluster(folder, password)
        with _listening(folder, port, settings):
            yield f"postgresql://{USER}:{password}@127.0.0.1:{port}/postgres"


@contextlib.contextmanager
def _listening(folder: Path, port: int, settings: tuple[str, ...]) -> Iterator[None]:
    options = (f"port={port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={folder}")
    log = folder / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [
                *_as_account(["--pdeathsig", "INT"]),
                *(_program("postgres"), "-D", str(folder / "cluster")),
                *(f"--{setting}" for setting in (*options, *settings)),
            ],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _await_answer(server, port, log)
        yield
    finally:
        _stop(server)


def _make_cluster(folder: Path, password: str) -> None:
    # The folder is nobody else's, so the password can lie in it.
    secret = folder / "password"
    secret.write_text(password)
    if os.geteuid() == 0:
        shutil.chown(secret, ACCOUNT)
    command = [
        *_as_account([]),
        *(_program("initdb"), "-D", str(folder / "cluster"), "--no-sync", "--encoding=UTF8"),
        *("--locale=C", "--auth=password", f"--username={USER}", f"--pwfile={secret}"),
    ]
    require(command, "cannot make a PostgreSQL cluster: see initdb's message above")


def _as_account(options: list[str]) -> list[str]:
    if os.geteuid() == 0:
        account = pwd.getpwnam(ACCOUNT)
        options = [
            *(f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--init-groups"),
            *options,
        ]
    return ["setpriv", *options, "--"] if options else []


def _await_answer(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    question = [_program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
    while not attempt(question)[0]:
        if server.poll() is not None or time.monotonic() > deadline:
            raise SetupError(f"cannot start PostgreSQL: {log.read_text(errors='replace')}")
        time.sleep(LOOK_AGAIN_S)


def _stop(server: subprocess.Popen[bytes]) -> None:
    # The interrupt is PostgreSQL's fast shutdown: it sends everybody away.
    server.send_signal(signal.SIGINT)
    try:
        server.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
        raise SetupError("cannot stop PostgreSQL: it took too long, killed") from None


def _program(name: str) -> str:
    return find_program(name) or name
