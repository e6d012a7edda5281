"""How one server behaves, its two secrets, and the data folder that it holds."""

import fcntl
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from orchestrator.errors import ConfigurationError
from orchestrator.security import new_secret

DEFAULT_MAX_UPLOAD_BYTES = 4 * 1024**3
DEFAULT_MIN_FREE_BYTES = 1024**3
DEFAULT_HEARTBEAT_TIMEOUT_S = 45
DEFAULT_LOST_AFTER_S = 600


@dataclass(frozen=True)
class Settings:
    """How one server behaves; the secrets stay out of its repr."""

    data_dir: Path
    """Files live here, and the database if it is SQLite."""
    admin_key: str = field(repr=False)
    registration_token: str | None = field(repr=False)
    """What a node registers with; None means that registration is disabled."""
    database_url: str | None = field(default=None, repr=False)
    """A PostgreSQL database, maybe with its password; None means SQLite in the data folder."""
    heartbeat_timeout_s: float = DEFAULT_HEARTBEAT_TIMEOUT_S
    """A node silent for longer is offline, and what it has not started goes back to the queue.

    The default is three heartbeats of our runner.
    """
    lost_after_s: float = DEFAULT_LOST_AFTER_S
    """How long after its time limit a task is given up if its node is silent or has it no more."""
    redelivery_after_s: float = 5
    """How long an assignment may go unreported before it is offered to its node again."""
    sweep_every_s: float = 1
    """How often the sweeper looks for leases that have ended and tasks whose time has come."""
    max_upload_bytes: int = DEFAULT_MAX_UPLOAD_BYTES
    min_free_bytes: int = DEFAULT_MIN_FREE_BYTES
    """Uploads are refused where they would leave less of the disk."""
    failures_per_minute: int = 20
    """How many wrong credentials one address may show."""
    trusted_proxies: str | None = None
    """Addresses, with commas between, that may tell clients' own in X-Forwarded-For; None: nobody.

    Whoever may chooses what the throttle and the audit see.
    """
    public_url: str | None = None
    """The address that assignments carry; None means the one that the node asked at."""


TOKEN_VARIABLE = "REGISTRATION_TOKEN"  # noqa: S105 - a variable's name, not a secret
ADMIN_KEY_VARIABLE = "ADMIN_API_KEY"
TOKEN_FILE = "registration-token"  # noqa: S105 - a file's name, not a secret
ADMIN_KEY_FILE = "admin-key"


@dataclass(frozen=True)
class Credentials:
    """The two secrets, and which of them were made just now."""

    registration_token: str | None = field(repr=False)
    """None when registration is disabled."""
    admin_key: str = field(repr=False)
    made: tuple[str, ...]
    """The variables' names of those that nobody has seen yet."""


def load_credentials(data_dir: Path, environment: Mapping[str, str]) -> Credentials:
    """Read both secrets, making those that neither the environment nor the data folder has.

    An empty REGISTRATION_TOKEN disables registration. Raises ConfigurationError for an empty
    ADMIN_API_KEY, and for a file that cannot be read or written.
    """
    token = environment.get(TOKEN_VARIABLE)
    admin_key = environment.get(ADMIN_KEY_VARIABLE)
    if admin_key is not None and not admin_key.strip():
        raise ConfigurationError(f"{ADMIN_KEY_VARIABLE} is empty: give it a value or unset it")
    made = []
    if token is None:
        token, is_new = _read_or_make(data_dir / TOKEN_FILE)
        made += [TOKEN_VARIABLE] * is_new
    if admin_key is None:
        admin_key, is_new = _read_or_make(data_dir / ADMIN_KEY_FILE)
        made += [ADMIN_KEY_VARIABLE] * is_new
    return Credentials(token.strip() or None, admin_key.strip(), tuple(made))


def _read_or_make(path: Path) -> tuple[str, bool]:
    try:
        if path.exists():
            return _read(path), False
        secret = new_secret()
        _write(path, secret)
    except OSError as error:
        raise ConfigurationError(f"cannot keep a secret in {path}: {error.strerror}") from error
    return secret, True


def _read(path: Path) -> str:
    secret = path.read_text(encoding="utf-8").strip()
    if not secret:
        raise ConfigurationError(f"{path} is empty: remove it to have a new one made")
    return secret


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
    """Lock the folder until what is given is closed, or the process has ended.

    Raises ConfigurationError when another process holds it.
    """
    lock = (data_dir / LOCK_NAME).open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ConfigurationError(
            f"cannot use data folder {data_dir}: another orchestrator is at work with it; end that"
            " one, give --data-dir another folder, or have both use one PostgreSQL database"
        ) from None
    return lock
