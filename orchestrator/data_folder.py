"""The data folder, which on SQLite serves one process at a time."""

import fcntl
from pathlib import Path
from typing import IO

from orchestrator.errors import ConfigurationError

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
