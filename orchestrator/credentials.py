"""The registration token and the admin key: from the environment, or made on first start.

What is made is kept in the data folder, readable by its owner alone.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.errors import ConfigurationError
from orchestrator.hashing import new_secret

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
