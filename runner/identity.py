"""The identity file: which node this host is at each orchestrator, and with which key.

The journal is the source: its tasks refer to the identities that accepted them, and a release that
the host goes back to reads them there. This file is the copy by which a lost journal can still
adopt containers, which have their tasks' keys and not the node's.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from runner.errors import ConfigurationError
from runner.model import Identity, Registration
from runner.redaction import Secret

IDENTITY_NAME = "identity.json"
_PART_NAME = "identity.json.part"
_MODE = 0o600
_MAX_BYTES = 1 << 20


class IdentityFile:
    """`identity.json` in the state folder, readable by its owner only. Its methods block."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / IDENTITY_NAME

    def read(self) -> dict[str, Registration]:
        """Return the registrations by the orchestrator's URL; none where there is no file yet.

        Raises:
            ConfigurationError: the file cannot be read, or is damaged.
        """
        try:
            content = _read(self.path)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise ConfigurationError(
                f"cannot read {self.path}: {(error.strerror or str(error)).lower()}; run as the "
                "runner's user, or restart the runner, which writes the file again"
            ) from error
        try:
            entries = json.loads(content)["identities"]
            return {url: _registration(entry) for url, entry in entries.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigurationError(
                f"cannot read {self.path}: it is damaged; restart the runner, which writes it again"
            ) from error

    def store(self, orchestrator_url: str, registration: Registration) -> None:
        """Write the registration there, unless it is there already; on disk when this returns.

        Raises:
            ConfigurationError: the file cannot be written; it is as it was before.
        """
        registrations: dict[str, Registration] = {}
        with suppress(ConfigurationError):  # a damaged file is replaced
            registrations = self.read()
        # What the orchestrator offers is the journal's to remember.
        entry = _entry(registration)
        before = registrations.get(orchestrator_url)
        if before is not None and _entry(before) == entry and self.is_private():
            return
        entries = {url: _entry(known) for url, known in registrations.items()}
        text = json.dumps({"identities": {**entries, orchestrator_url: entry}}, indent=2)
        try:
            _write(self.path, text.encode())
        except OSError as error:
            raise ConfigurationError(
                f"cannot write {self.path}: {(error.strerror or str(error)).lower()}; free some "
                "space there, and see that the folder is the runner's own"
            ) from error

    def is_private(self) -> bool:
        """Return whether only its owner may read it; true where there is no file."""
        try:
            return not self.path.lstat().st_mode & 0o077
        except OSError:
            return True


def _read(path: Path) -> bytes:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is not a regular file")
    with open(handle, "rb") as file:  # noqa: PTH123 - pathlib follows links
        return file.read(_MAX_BYTES)


def _write(path: Path, content: bytes) -> None:
    """Write a file atomically and durably, whatever is in its place."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(FileNotFoundError):
            os.unlink(_PART_NAME, dir_fd=folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(_PART_NAME, flags, _MODE, dir_fd=folder), "wb") as file:  # noqa: PTH123 - as above
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(_PART_NAME, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)  # else a power cut could bring the file before back
    finally:
        os.close(folder)


def _entry(registration: Registration) -> dict[str, object]:
    identity = registration.identity
    return {
        "node_id": identity.node_id,
        "api_key": identity.api_key.reveal(),
        "node": registration.description,
    }


def _registration(entry: Mapping[str, object]) -> Registration:
    node_id, api_key, node = entry["node_id"], entry["api_key"], entry["node"]
    if not isinstance(node_id, str) or not isinstance(api_key, str):
        raise TypeError("an identity is text")
    if node is not None and not isinstance(node, dict):
        raise TypeError("a description is an object")
    return Registration(Identity(node_id, Secret(api_key)), node)
