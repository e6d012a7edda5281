"""The state folder: locked by one runner at a time; its runner id labels the containers."""

from __future__ import annotations

import fcntl
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runner.errors import StateFolderInUse, TryAgain

RUNNER_ID_NAME = "runner-id"
_CONTAINER_ID = re.compile(r"[0-9a-f]{64}")
_RUNNER_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@contextmanager
def lock_state_dir(state_dir: Path) -> Iterator[None]:
    """Lock the state folder, which two runners must not share.

    Raises:
        StateFolderInUse: another runner has locked it.
        TryAgain: it cannot be written, or its file system has no locks.
    """
    try:
        handle = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(state_dir, error) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StateFolderInUse(
                f"cannot use the state folder {state_dir}: another runner is using it; "
                "stop that one, or give this one a --state-dir of its own"
            ) from error
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise TryAgain(
                f"cannot lock the state folder {state_dir}: {reason}; give a --state-dir on a file "
                "system with locks, such as a local disk"
            ) from error
        yield
    finally:
        os.close(handle)


def prepare_state_dir(state_dir: Path) -> str:
    """Prepare the state folder for a run; return the runner id, which is created at first use.

    The id is written before any journal is, so that a folder with a journal has one.

    Raises:
        TryAgain: the folder cannot be written.
    """
    folder = run_folder(state_dir)
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        # Versions that passed --conmon-pidfile to podman also left *.watcher here.
        for leftover in (*folder.glob("*.env"), *folder.glob("*.watcher")):
            leftover.unlink(missing_ok=True)
        runner_id = known_runner_id(state_dir)
        if runner_id is None:
            runner_id = str(uuid.uuid4())
            (state_dir / RUNNER_ID_NAME).write_text(runner_id + "\n", encoding="ascii")
    except OSError as error:
        raise _unusable(state_dir, error) from error
    return runner_id


def known_runner_id(state_dir: Path) -> str | None:
    """Return the runner id in the state folder; None if there is none or its file is damaged.

    Raises:
        OSError: the file cannot be opened.
    """
    try:
        text = (state_dir / RUNNER_ID_NAME).read_bytes().decode(errors="replace").strip()
    except FileNotFoundError:
        return None
    # A power cut can leave the file empty or full of zeros.
    return text if _RUNNER_ID.fullmatch(text) else None


def _unusable(state_dir: Path, error: OSError) -> TryAgain:
    file = f"{error.filename} " if error.filename else ""
    return TryAgain(
        f"cannot use the state folder {state_dir}: {file}{(error.strerror or str(error)).lower()}; "
        "run as its owner, on a disk with free space"
    )


def run_folder(state_dir: Path) -> Path:
    """Return the folder of the files that exist only while a container starts."""
    return state_dir / "run"


def check_writable(state_dir: Path) -> None:
    """Check that a file can be made where a container's start needs it.

    Raises:
        OSError: it cannot.
    """
    folder = run_folder(state_dir)
    folder.mkdir(mode=0o700, exist_ok=True)
    probe = folder / ".probe"
    probe.touch()
    probe.unlink(missing_ok=True)


def env_file(state_dir: Path, task_id: str) -> Path:
    """Return the path of the container's variables, its key included; removed once it runs."""
    return run_folder(state_dir) / f"{task_id}.env"


def cid_file(state_dir: Path, task_id: str) -> Path:
    """Return the path to which the engine writes the container's id before it starts it."""
    return run_folder(state_dir) / f"{task_id}.cid"


def read_cid_file(path: Path) -> str | None:
    """Return the container's id; None while the engine has not written it."""
    try:
        text = path.read_bytes().decode(errors="replace").strip()
    except OSError:
        return None
    # A power cut can leave the file empty or full of zeros.
    return text if _CONTAINER_ID.fullmatch(text) else None
