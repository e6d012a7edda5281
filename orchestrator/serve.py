"""The server's command line: `victoria-orchestrator serve --port 8000 --data-dir DIR`.

`check URL` tests any orchestrator against the contract, and `move-to-postgresql` moves the database
of one of ours.
"""

import contextlib
import gc
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

import click

from orchestrator import __version__
from orchestrator.app import create_app
from orchestrator.budgets import (
    DEFAULT_KEY_PENDING_TASKS,
    DEFAULT_KEY_UPLOAD_BYTES,
    DEFAULT_NODE_ARTIFACT_BYTES,
    DEFAULT_NODE_CALLS_PER_MINUTE,
    DEFAULT_NODE_OUTPUT_BYTES,
    DEFAULT_TASK_LOG_BYTES,
    DEFAULT_TASK_OUTPUT_BYTES,
    DEFAULT_TASK_STEPS,
)
from orchestrator.client.help import use_help
from orchestrator.conformance.run import check
from orchestrator.db.copy import COPIED_NAME, move_to_postgresql
from orchestrator.db.database import postgresql_url
from orchestrator.errors import ConfigurationError
from orchestrator.log import is_journal, print_error, set_up_logging
from orchestrator.middleware import DEFAULT_LIMIT_BYTES
from orchestrator.routes.reports import MAX_LOG_BYTES
from orchestrator.security import UNGUESSABLE_LENGTH
from orchestrator.server import Server, bind, open_as_many_as_allowed
from orchestrator.settings import (
    DEFAULT_HEARTBEAT_TIMEOUT_S,
    DEFAULT_LOST_AFTER_S,
    DEFAULT_MAX_ARTIFACT_BYTES,
    DEFAULT_MAX_TASK_ARTIFACT_BYTES,
    DEFAULT_MAX_TASK_ARTIFACTS,
    DEFAULT_MAX_UNREPORTED,
    DEFAULT_MAX_UPLOAD_BYTES,
    DEFAULT_MIN_FREE_BYTES,
    Secret,
    Settings,
    hold_alone,
    load_secrets,
)
from orchestrator.workers import Workers

_OBJECTS_UNTIL_COLLECTION = 100_000
_SENT_URL = re.compile(r"[\x21-\x7e]{1,2000}")
"""What a runner takes in an assignment."""
_COUNT = click.IntRange(min=1)
_SECONDS = click.FloatRange(min=0, min_open=True)

log = logging.getLogger("orchestrator.start")


def _web_address(_context: click.Context, _option: click.Parameter, url: str | None) -> str | None:
    if url is None:
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if not parts.hostname or parts.scheme not in {"http", "https"} or not _SENT_URL.fullmatch(url):
        raise click.BadParameter("write it as https://HOST or https://HOST:PORT, in ASCII")
    return url


@click.group(
    invoke_without_command=True,
    context_settings={
        "auto_envvar_prefix": "VICTORIA_ORCHESTRATOR",
        "show_default": True,
        "max_content_width": 100,
    },
)
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, help="Port; 0 picks a free one."
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default="orchestrator-data",
    help="Folder for the database, files and secrets; created if it is missing.",
)
@click.option(
    "--database-url",
    metavar="URL",
    help="PostgreSQL database: postgresql://USER@HOST/NAME, or postgresql:///NAME by socket. Set a"
    " URL with a password by its variable. Default: SQLite in the data folder.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=1,
    help="Number of server processes; more than one needs PostgreSQL. One per core is enough.",
)
@click.option(
    "--public-url",
    callback=_web_address,
    help="URL at which containers reach this server. Default: the one that the node uses.",
)
@click.option(
    "--forwarded-allow-ips",
    envvar=["FORWARDED_ALLOW_IPS", "VICTORIA_ORCHESTRATOR_FORWARDED_ALLOW_IPS"],
    metavar="ADDRESSES",
    help="Addresses of proxies, separated by commas, whose X-Forwarded-For and X-Forwarded-Proto"
    " are trusted; 127.0.0.1 for one on this machine. Also set by FORWARDED_ALLOW_IPS. Default:"
    " none.",
)
@click.option(
    "--heartbeat-timeout",
    type=_SECONDS,
    default=DEFAULT_HEARTBEAT_TIMEOUT_S,
    help="Seconds without a heartbeat after which a node is offline; below 15, set the runners'"
    " --heartbeat-interval too.",
)
@click.option(
    "--lost-after",
    type=click.FloatRange(min=0),
    default=DEFAULT_LOST_AFTER_S,
    help="Seconds after its time limit at which a running task that no node holds ends as lost;"
    " time in which the server was away does not count.",
)
@click.option(
    "--redelivery-after",
    type=click.FloatRange(min=0),
    default=5,
    help="Seconds after which an unreported assignment is offered to its node again.",
)
@click.option(
    "--max-unreported",
    type=click.IntRange(min=1),
    default=DEFAULT_MAX_UNREPORTED,
    help="Number of unreported assignments at which a node gets no more work.",
)
@click.option(
    "--max-upload-bytes",
    type=click.IntRange(min=1),
    default=DEFAULT_MAX_UPLOAD_BYTES,
    help="Largest file that can be uploaded.",
)
@click.option(
    "--max-artifact-bytes",
    type=_COUNT,
    default=DEFAULT_MAX_ARTIFACT_BYTES,
    help="Largest file that a task may have as an artifact.",
)
@click.option(
    "--max-task-artifact-bytes",
    type=_COUNT,
    default=DEFAULT_MAX_TASK_ARTIFACT_BYTES,
    help="Most bytes of all artifacts of one task.",
)
@click.option(
    "--max-task-artifacts",
    type=_COUNT,
    default=DEFAULT_MAX_TASK_ARTIFACTS,
    help="Most artifacts of one task.",
)
@click.option(
    "--min-free-bytes",
    type=click.IntRange(min=0),
    default=DEFAULT_MIN_FREE_BYTES,
    help="Refuse what would leave less free disk space than this: uploads, artifacts, logs,"
    " messages, tasks.",
)
@click.option(
    "--node-calls-per-minute",
    type=_COUNT,
    default=DEFAULT_NODE_CALLS_PER_MINUTE,
    help="Most heartbeats, polls, and other calls of one node in a minute, of each kind.",
)
@click.option(
    "--task-steps",
    type=_COUNT,
    default=DEFAULT_TASK_STEPS,
    help="Most steps that are stored of one task, not counting its final one.",
)
@click.option(
    "--task-log-bytes",
    # Never too few for one log: it would never be taken. Stored, its characters are escaped.
    type=click.IntRange(min=3 * MAX_LOG_BYTES),
    default=DEFAULT_TASK_LOG_BYTES,
    help="Most bytes of logs that are taken for one task in an hour; the last log is kept.",
)
@click.option(
    "--task-output-bytes",
    # Never too few for one chunk: it would never be taken.
    type=click.IntRange(min=DEFAULT_LIMIT_BYTES),
    default=DEFAULT_TASK_OUTPUT_BYTES,
    help="Most bytes of output that are taken for one task in an hour; 10 MiB of it are stored.",
)
@click.option(
    "--node-output-bytes",
    type=click.IntRange(min=DEFAULT_LIMIT_BYTES),
    default=DEFAULT_NODE_OUTPUT_BYTES,
    help="Most bytes of output that are taken from one node in an hour.",
)
@click.option(
    "--node-artifact-bytes",
    type=_COUNT,
    default=DEFAULT_NODE_ARTIFACT_BYTES,
    help="Most bytes of artifacts that are taken from one node in a day.",
)
@click.option(
    "--key-pending-tasks",
    type=_COUNT,
    default=DEFAULT_KEY_PENDING_TASKS,
    help="Most pending tasks of one scoped key.",
)
@click.option(
    "--key-upload-bytes",
    type=_COUNT,
    default=DEFAULT_KEY_UPLOAD_BYTES,
    help="Most bytes of stored files of one scoped key.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    default="info",
    help="Lowest level that is logged, to standard error.",
)
@click.option(
    "--log-format", type=click.Choice(["text", "json"]), default="text", help="Log format."
)
@click.version_option(__version__, prog_name="orchestrator")
@click.pass_context
def main(  # noqa: PLR0913 - click hands every option over as an argument
    context: click.Context,
    *,
    host: str,
    port: int,
    data_dir: Path,
    database_url: str | None,
    workers: int,
    public_url: str | None,
    forwarded_allow_ips: str | None,
    heartbeat_timeout: float,
    lost_after: float,
    redelivery_after: float,
    max_unreported: int,
    max_upload_bytes: int,
    max_artifact_bytes: int,
    max_task_artifact_bytes: int,
    max_task_artifacts: int,
    min_free_bytes: int,
    node_calls_per_minute: int,
    task_steps: int,
    task_log_bytes: int,
    task_output_bytes: int,
    node_output_bytes: int,
    node_artifact_bytes: int,
    key_pending_tasks: int,
    key_upload_bytes: int,
    log_level: str,
    log_format: str,
) -> None:
    """Serve the reference orchestrator.

    The registration token and the admin key come from REGISTRATION_TOKEN and ADMIN_API_KEY. One
    that is unset is generated on the first start, kept in a file in the data folder, and printed
    once, on a terminal only. An empty REGISTRATION_TOKEN disables registration.

    Each option can also be set by a variable: --log-format by VICTORIA_ORCHESTRATOR_LOG_FORMAT, and
    so on. To run it as a service, behind a proxy or on PostgreSQL, see docs/orchestrator.md.
    """
    if context.invoked_subcommand is not None:
        return
    if workers > 1 and database_url is None:
        _refuse("cannot start several workers on SQLite: set --database-url, or --workers 1")
    set_up_logging(log_format, log_level)
    open_as_many_as_allowed()
    # Files are for the server's own user only.
    os.umask(0o077)
    for number in (signal.SIGTERM, signal.SIGINT):
        # For the time before uvicorn handles signals, and after, when it raises the signal again.
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if database_url is not None:
            postgresql_url(database_url)
        lock = None if database_url is not None else hold_alone(data_dir)
        # First: an address that is in use is the most frequent mistake.
        address = Workers(workers, host, port) if workers > 1 else bind(host, port)
        token, admin_key = secrets = load_secrets(data_dir, os.environ)
        _warn_of_short(secrets)
        settings = Settings(
            data_dir=data_dir,
            admin_key=admin_key.value,
            registration_token=token.value or None,
            database_url=database_url,
            heartbeat_timeout_s=heartbeat_timeout,
            lost_after_s=lost_after,
            redelivery_after_s=redelivery_after,
            max_unreported=max_unreported,
            max_upload_bytes=max_upload_bytes,
            max_artifact_bytes=max_artifact_bytes,
            max_task_artifact_bytes=max_task_artifact_bytes,
            max_task_artifacts=max_task_artifacts,
            min_free_bytes=min_free_bytes,
            node_calls_per_minute=node_calls_per_minute,
            task_steps=task_steps,
            task_log_bytes=task_log_bytes,
            task_output_bytes=task_output_bytes,
            node_output_bytes=node_output_bytes,
            node_artifact_bytes=node_artifact_bytes,
            key_pending_tasks=key_pending_tasks,
            key_upload_bytes=key_upload_bytes,
            public_url=public_url,
            trusted_proxies=forwarded_allow_ips,
        )
        serve: Callable[[], int | None]
        if isinstance(address, Workers):
            serve = partial(
                address.run, partial(_serve_worker, settings), partial(_print_start, secrets)
            )
        else:
            print_start = partial(_print_start, secrets)
            serve = Server(create_app(settings), address, print_start).serve_until_stopped
        # Stored last: if the start fails before, the next one generates and prints them again.
        for secret in secrets:
            secret.store()
    except OSError as error:
        _refuse(f"cannot use data folder {data_dir}: {error.strerror}")
    except ConfigurationError as error:
        _refuse(str(error), error.exit_code)
    _collect_seldom()
    with lock or contextlib.nullcontext():
        sys.exit(serve() or 0)


def _warn_of_short(secrets: Sequence[Secret]) -> None:
    short = [one.variable for one in secrets if 0 < len(one.value) < UNGUESSABLE_LENGTH]
    if short:
        log.warning(
            "%s could be guessed: use %d characters or more; until then, wrong ones from an address"
            " also keep the right one from that address out",
            " and ".join(short),
            UNGUESSABLE_LENGTH,
        )


def _serve_worker(
    settings: Settings, number: int, listener: socket.socket, on_listening: Callable[[], None]
) -> None:
    try:
        # One of them is enough to log which nodes go offline.
        app = create_app(replace(settings, logs_nodes=number == 0))
    except ConfigurationError as error:
        _refuse(str(error), error.exit_code)
    Server(app, listener, lambda _: on_listening()).serve_until_stopped()


@main.command("move-to-postgresql", short_help="Copy the SQLite database to PostgreSQL.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    envvar="VICTORIA_ORCHESTRATOR_DATA_DIR",
    default="orchestrator-data",
    show_default=True,
    help="Folder with the SQLite database.",
)
@click.option(
    "--database-url",
    metavar="URL",
    envvar="VICTORIA_ORCHESTRATOR_DATABASE_URL",
    required=True,
    help="Empty PostgreSQL database: postgresql://USER@HOST/NAME, or postgresql:///NAME by socket."
    " Set a URL with a password by VICTORIA_ORCHESTRATOR_DATABASE_URL.",
)
def move(data_dir: Path, database_url: str) -> None:
    """Copy the SQLite database to PostgreSQL, all or nothing. Stop the server first.

    The SQLite database is renamed afterwards. Start the server with the same data folder and the
    URL of the PostgreSQL database.
    """
    os.umask(0o077)
    try:
        with hold_alone(data_dir):
            counts = move_to_postgresql(data_dir, database_url)
    except OSError as error:
        _refuse(f"cannot use data folder {data_dir}: {error.strerror}")
    except ConfigurationError as error:
        _refuse(str(error), error.exit_code)
    for table, count in counts.items():
        click.echo(f"{table}: {count}")
    click.echo(
        f"copied; the SQLite database is now {data_dir / COPIED_NAME}."
        " Start the server with this --database-url and the same --data-dir"
    )


def _collect_seldom() -> None:
    # Each long poll is many objects. Searching those of thousands for garbage stops the server for
    # some tenths of a second, and finds hardly any.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS_UNTIL_COLLECTION)


def _refuse(sentence: str, exit_code: int = ConfigurationError.exit_code) -> None:
    print_error(f"Error: {sentence}")
    sys.exit(exit_code)


def _print_start(secrets: Sequence[Secret], url: str) -> None:
    # Anything but a terminal is probably a journal or a log file, which would keep the secrets.
    is_terminal = sys.stdout.isatty()
    for secret in secrets:
        if secret.is_new and is_terminal:
            click.echo(f"{secret.variable}={secret.value}")
        elif secret.path is not None:
            click.echo(f"{secret.variable} is in {secret.path.absolute()}")
    click.echo(f"dashboard: {url}/dashboard")
    # Programs that start this one read up to this line.
    click.echo(f"listening on {url}")
    sys.stdout.flush()


main.add_command(check)


use_help(main)


def run(arguments: Sequence[str], program: str) -> NoReturn:
    """Run the command line and exit; in the journal whatever ends it is one entry."""
    set_up_logging("text", "info")
    exit_code: object = 1
    try:
        exit_code = main.main(arguments, prog_name=program, standalone_mode=False)
    except click.ClickException as error:
        if is_journal(sys.stderr):
            print_error(f"Error: {error.format_message()}")
        else:
            error.show()
        exit_code = error.exit_code
    except click.Abort:
        print_error("Error: interrupted")
    except Exception:
        log.exception("a defect of the orchestrator")
    sys.exit(exit_code if isinstance(exit_code, int) else 0)
