"""The settings of one server, its two secrets, and the lock on its data folder."""

import fcntl
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

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
from orchestrator.errors import ConfigurationError
from orchestrator.security import ADMIN_KEY_MARK, TOKEN_MARK, new_secret

DEFAULT_MAX_UPLOAD_BYTES = 4 * 1024**3
DEFAULT_MIN_FREE_BYTES = 1024**3
DEFAULT_MAX_ARTIFACT_BYTES = 1024**3
DEFAULT_MAX_TASK_ARTIFACT_BYTES = 4 * 1024**3
DEFAULT_MAX_TASK_ARTIFACTS = 1000
DEFAULT_HEARTBEAT_TIMEOUT_S = 45
DEFAULT_LOST_AFTER_S = 600
DEFAULT_MAX_UNREPORTED = 64


@dataclass(frozen=True)
class Settings:
    """The settings of one server; the secrets stay out of its repr."""

    data_dir: Path
    """Files live here, and the database if it is SQLite."""
    admin_key: str = field(repr=False)
    registration_token: str | None = field(repr=False)
    """The token that nodes of any name register with; None leaves those in the database."""
    database_url: str | None = field(default=None, repr=False)
    """A PostgreSQL database, maybe with its password; None means SQLite in the data folder."""
    heartbeat_timeout_s: float = DEFAULT_HEARTBEAT_TIMEOUT_S
    """A node silent for longer is offline, and what it has not started goes back to the queue.

    The default is three heartbeats of our runner.
    """
    lost_after_s: float = DEFAULT_LOST_AFTER_S
    """Seconds after its time limit until a task that no node holds any more is lost."""
    redelivery_after_s: float = 5
    """Seconds until an unreported assignment is offered to its node again."""
    max_unreported: int = DEFAULT_MAX_UNREPORTED
    """Assignments that a node may have without a report; with more it gets no new work.

    A runner reports on each before its container starts, and takes one at a time while it prepares
    the last: it has a handful.
    """
    sweep_every_s: float = 1
    """Seconds between two looks for expired leases and scheduled tasks."""
    max_upload_bytes: int = DEFAULT_MAX_UPLOAD_BYTES
    min_free_bytes: int = DEFAULT_MIN_FREE_BYTES
    """What would leave less of the disk is refused: uploads, artifacts, logs, messages, tasks."""
    max_artifact_bytes: int = DEFAULT_MAX_ARTIFACT_BYTES
    """Of one artifact."""
    max_task_artifact_bytes: int = DEFAULT_MAX_TASK_ARTIFACT_BYTES
    """Of all artifacts of one task together."""
    max_task_artifacts: int = DEFAULT_MAX_TASK_ARTIFACTS
    """Artifacts of one task."""
    node_calls_per_minute: int = DEFAULT_NODE_CALLS_PER_MINUTE
    """Heartbeats of one node, its polls, and its other calls: of each so many."""
    task_steps: int = DEFAULT_TASK_STEPS
    """Steps of one task that are stored before its end."""
    task_log_bytes: int = DEFAULT_TASK_LOG_BYTES
    """Of the logs that come in for one task within an hour; the last one is stored."""
    task_output_bytes: int = DEFAULT_TASK_OUTPUT_BYTES
    """Of the output that comes in for one task within an hour; its head and tail are stored."""
    node_output_bytes: int = DEFAULT_NODE_OUTPUT_BYTES
    """Of the output that one node sends within an hour, of all its tasks."""
    node_artifact_bytes: int = DEFAULT_NODE_ARTIFACT_BYTES
    """Of the artifacts that one node sends within a day, of all its tasks."""
    key_pending_tasks: int = DEFAULT_KEY_PENDING_TASKS
    """Pending tasks of one scoped key."""
    key_upload_bytes: int = DEFAULT_KEY_UPLOAD_BYTES
    """Stored files of one scoped key."""
    failures_per_minute: int = 20
    """How many wrong credentials one address may send."""
    stall_timeout_s: float = 60
    """A connection on which a request is awaited is closed after so long without a byte."""
    trusted_proxies: str | None = None
    """Addresses, separated by commas, whose X-Forwarded-For is believed; None: nobody's.

    They decide which client addresses the throttle, the log and the audit see.
    """
    logs_nodes: bool = True
    """Whether this process logs which nodes go offline and come back."""
    public_url: str | None = None
    """The URL in assignments; None means the one that the node uses."""


TOKEN_VARIABLE = "REGISTRATION_TOKEN"  # noqa: S105 - a variable's name, not a secret
ADMIN_KEY_VARIABLE = "ADMIN_API_KEY"
TOKEN_FILE = "registration-token"  # noqa: S105 - a file's name, not a secret
ADMIN_KEY_FILE = "admin-key"


SHORTEST_SECRET = 16
"""Characters. The admin key may do everything, so a shorter one is refused."""


@dataclass(frozen=True)
class Secret:
    """The registration token or the admin key, and where it came from."""

    variable: str
    """The environment variable that sets it."""
    value: str = field(repr=False)
    path: Path | None = None
    """The file in the data folder that keeps it; None if the environment sets it."""
    is_new: bool = False
    """Whether it was generated by this start, and is not in its file yet."""

    def store(self) -> None:
        """Write it to its file if it is new. Raises ConfigurationError."""
        if self.path is None or not self.is_new:
            return
        try:
            _write(self.path, self.value)
        except OSError as error:
            raise ConfigurationError(
                f"cannot keep a secret in {self.path}: {error.strerror}"
            ) from error


def load_secrets(data_dir: Path, environment: Mapping[str, str]) -> tuple[Secret, Secret]:
    """Return the registration token and the admin key; generate those that are nowhere.

    An empty token disables registration. Raises ConfigurationError for an admin key that is empty
    or short, and for a file that cannot be read.
    """
    token = _load(TOKEN_VARIABLE, environment, data_dir / TOKEN_FILE, TOKEN_MARK)
    admin_key = _load(ADMIN_KEY_VARIABLE, environment, data_dir / ADMIN_KEY_FILE, ADMIN_KEY_MARK)
    if not admin_key.value:
        raise ConfigurationError(f"{ADMIN_KEY_VARIABLE} is empty: give it a value or unset it")
    if len(admin_key.value) < SHORTEST_SECRET:
        raise ConfigurationError(
            f"{admin_key.path or admin_key.variable} is shorter than {SHORTEST_SECRET} characters"
            " and could be guessed: use a longer key, or remove it to have one generated"
        )
    return token, admin_key


def _load(variable: str, environment: Mapping[str, str], path: Path, mark: str) -> Secret:
    if variable in environment:
        return Secret(variable, environment[variable].strip())
    try:
        if not path.exists():
            return Secret(variable, new_secret(mark), path, is_new=True)
        value = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    if not value:
        raise ConfigurationError(f"{path} is empty: remove it to have a new one generated")
    return Secret(variable, value, path)


def _write(path: Path, secret: str) -> None:
    # Under another name first: a crash must not leave an empty secret behind.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as sink:
        sink.write(secret + "\n")
        sink.flush()
        os.fsync(sink.fileno())
    unfinished.rename(path)


LOCK_NAME = "lock"


def hold_alone(data_dir: Path) -> IO[bytes]:
    """Lock the folder until the returned file is closed, or the process has ended.

    Raises ConfigurationError when another process holds it.
    """
    lock = (data_dir / LOCK_NAME).open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ConfigurationError(
            f"cannot use data folder {data_dir}: another orchestrator is using it; stop that"
            " one, give --data-dir another folder, or have both use one PostgreSQL database"
        ) from None
    return lock
