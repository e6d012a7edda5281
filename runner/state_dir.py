"""The state folder: one runner at a time holds it, and its id tells whose the containers are."""

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
_RUNNER_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@contextmanager
def lock_state_dir(state_dir: Path) -> Iterator[None]:
    """Hold the state folder, which two runners must not share."""
    try:
        handle = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(state_dir, error) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StateFolderInUse(
                f"cannot use the state folder {state_dir}: another runner is at work with it; "
                "stop that one, or give this one a --state-dir of its own"
            ) from error
        yield
    finally:
        os.close(handle)


def prepare_state_dir(state_dir: Path) -> str:
    """Lay out the state folder; give the id made at its first use, older than any journal in it."""
    starting = run_folder(state_dir)
    try:
        starting.mkdir(mode=0o700, exist_ok=True)
        for left_over in (*starting.glob("*.env"), *starting.glob("*.watcher")):
            left_over.unlink(missing_ok=True)
        known = known_runner_id(state_dir)
        if known is None:
            known = str(uuid.uuid4())
            (state_dir / RUNNER_ID_NAME).write_text(known + "\n", encoding="ascii")
    except OSError as error:
        raise _unusable(state_dir, error) from error
    return known


def known_runner_id(state_dir: Path) -> str | None:
    """Give the id that was made before; None if there is none, or none that can be read.

    A power cut leaves such a file empty, or full of zeros.

    Raises:
        OSError: the file cannot be opened.
    """
    try:
        known = (state_dir / RUNNER_ID_NAME).read_bytes().decode(errors="replace").strip()
    except FileNotFoundError:
        return None
    return known if _RUNNER_ID.fullmatch(known) else None


def _unusable(state_dir: Path, error: OSError) -> TryAgain:
    return TryAgain(
        f"cannot use the state folder {state_dir}: {error.filename or ''} "
        f"{(error.strerror or str(error)).lower()}; run as its owner, with room on its disk"
    )


def run_folder(state_dir: Path) -> Path:
    """Give the folder for what lives only while a container is started."""
    return state_dir / "run"


def env_file(state_dir: Path, task_id: str) -> Path:
    """Give the file with what the container is told, its key among it; gone when it runs."""
    return run_folder(state_dir) / f"{task_id}.env"


def cid_file(state_dir: Path, task_id: str) -> Path:
    """Give the file in which the engine writes the container's id before it starts it."""
    return run_folder(state_dir) / f"{task_id}.cid"
