"""`python -m tests.harness.launcher`: the runner, with deadlines of a test and a mined journal.

VICTORIA_FAULTS_JOURNAL     a folder of `JournalFaults`: the process kills itself before or after
                            the commits that are planned there
VICTORIA_FAULTS_DISK        a file: while it is there, no disk answers how much room it has
VICTORIA_FAULTS_TIMINGS     JSON: fields of `Timings`, such as {"engine_timeout_s": 2}

Everything else is the runner as it is: the same code, the same command line, the same SQLite.
"""

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runner.journal.schema import Database
from runner.timing import Timings
from tests.harness.journal import count_commits, is_planned, note_commit

LAUNCHER = (sys.executable, "-m", "tests.harness.launcher")
JOURNAL_VARIABLE = "VICTORIA_FAULTS_JOURNAL"
DISK_VARIABLE = "VICTORIA_FAULTS_DISK"
TIMINGS_VARIABLE = "VICTORIA_FAULTS_TIMINGS"
LOOK_AGAIN_S = 0.05


def mine_journal(folder: Path) -> None:
    """Make every transaction of the journal look, before and after its commit, for a plan."""
    plain = Database.transaction

    @contextmanager
    def transaction(database: Database) -> Iterator[None]:
        changes = database.connection.total_changes
        with plain(database):
            yield
            has_changed = database.connection.total_changes != changes
            if has_changed and is_planned(folder, "before", count_commits(folder) + 1):
                os.kill(os.getpid(), signal.SIGKILL)
        if has_changed:
            note_commit(folder)
            if is_planned(folder, "after", count_commits(folder)):
                os.kill(os.getpid(), signal.SIGKILL)

    Database.transaction = transaction  # type: ignore[method-assign, assignment]


def hang_disks_with(sign: Path) -> None:
    """Make disks do what one on a dead network does, for as long as the sign is there."""
    statvfs = os.statvfs

    def hung(place: int | Path) -> os.statvfs_result:
        while sign.exists():
            time.sleep(LOOK_AGAIN_S)
        return statvfs(place)

    os.statvfs = hung  # type: ignore[assignment]


def main() -> None:
    """Prepare what the environment asks for, and be the runner."""
    if folder := os.environ.pop(JOURNAL_VARIABLE, ""):
        mine_journal(Path(folder))
    if disk := os.environ.pop(DISK_VARIABLE, ""):
        hang_disks_with(Path(disk))
    timings = Timings(**json.loads(os.environ.pop(TIMINGS_VARIABLE, "{}")))
    importlib.import_module("runner.cli").main(timings)


if __name__ == "__main__":
    main()
