"""Run a PostgreSQL of our own: a new cluster on a free port of loopback, removed after use.

PostgreSQL refuses to run as root, so there it runs as the user that its package made. The kernel
stops it if the process that started it is killed.
"""

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.harness.ports import kept_port
from tools.dev.packages import ensure_program, find_program
from tools.dev.shell import SetupError, run, wait_until

USER = "victoria"
ACCOUNT = "postgres"
# For tests: nothing waits for the disk.
UNSAFE_AND_FAST = ("fsync=off", "full_page_writes=off", "synchronous_commit=off")


@contextlib.contextmanager
def postgresql(settings: tuple[str, ...] = UNSAFE_AND_FAST) -> Iterator[str]:
    """Yield the URL of a PostgreSQL that answers, with the rights of its superuser."""
    ensure_program("postgres", "the other database that the orchestrator's tests run on")
    password = secrets.token_hex(16)
    keeper, port = kept_port()
    with keeper, tempfile.TemporaryDirectory(prefix="victoria-postgres-") as name:
        folder = Path(name)
        _make_cluster(folder, password)
        options = ("listen_addresses=127.0.0.1", f"unix_socket_directories={folder}", *settings)
        log = folder / "log"
        with log.open("wb") as output:
            server = subprocess.Popen(
                [
                    *_as_account("--pdeathsig", "INT"),
                    *(_program("postgres"), "-D", str(folder / "cluster"), f"--port={port}"),
                    *(f"--{option}" for option in options),
                ],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            question = [_program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
            wait_until(lambda: run(question).ok or server.poll() is not None)
            if not run(question).ok:
                raise SetupError(f"cannot start PostgreSQL: {log.read_text(errors='replace')}")
            yield f"postgresql://{USER}:{password}@127.0.0.1:{port}/postgres"
        finally:
            # The interrupt is its fast shutdown, which ends all sessions.
            server.send_signal(signal.SIGINT)
            if not wait_until(lambda: server.poll() is not None):
                server.kill()
                server.wait()
                raise SetupError("cannot stop PostgreSQL: it took too long, killed")


def _make_cluster(folder: Path, password: str) -> None:
    secret = folder / "password"
    secret.write_text(password)
    if os.geteuid() == 0:
        shutil.chown(folder, ACCOUNT)
        shutil.chown(secret, ACCOUNT)
    run(
        [
            *(*_as_account(), _program("initdb"), "-D", str(folder / "cluster"), "--no-sync"),
            *("--encoding=UTF8", "--locale=C", "--auth=password"),
            *(f"--username={USER}", f"--pwfile={secret}"),
        ],
        error="cannot make a PostgreSQL cluster: see initdb's message above",
    )


def _as_account(*options: str) -> list[str]:
    # The prefix of a command: setpriv with these options, and never root.
    if os.geteuid() == 0:
        account = pwd.getpwnam(ACCOUNT)
        ids = (f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--init-groups")
        options = (*ids, *options)
    return ["setpriv", *options, "--"] if options else []


def _program(name: str) -> str:
    return find_program(name) or name
