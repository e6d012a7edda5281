"""`python -m tests.faults.launcher`: the runner, with deadlines of a test and a mined journal.

VICTORIA_FAULTS_JOURNAL     a folder of `JournalFaults`: where a write is planned to be met, the
                            process kills itself before or after its commit
VICTORIA_FAULTS_DISK        a file: while it is there, no disk answers how much room it has
VICTORIA_FAULTS_CONSTANTS   JSON, such as {"runner.engine.cli.ANSWER_DEADLINE_S": 2}

Everything else is the runner as it is: the same code, the same command line, the same SQLite.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

from runner.timing import Timings

LAUNCHER = (sys.executable, "-m", "tests.faults.launcher")
JOURNAL_VARIABLE = "VICTORIA_FAULTS_JOURNAL"
DISK_VARIABLE = "VICTORIA_FAULTS_DISK"
TIMINGS_VARIABLE = "VICTORIA_FAULTS_TIMINGS"
LOOK_AGAIN_S = 0.05


class ShortLivedConnection(sqlite3.Connection):
    """A connection of the journal, whose process may die at a commit."""

    folder = Path()
    _writes: list[str]

    def execute(self, statement: str, parameters: Any = (), /) -> sqlite3.Cursor:  # noqa: ANN401 - as sqlite3 has it
        """Execute, and die before or after if it is a commit for which that is planned."""
        if statement.startswith("BEGIN"):
            self._writes = []
        elif statement == "COMMIT":
            return self._commit()
        elif (name := name_of(statement, parameters)) is not None:
            self._writes.append(name)
        return super().execute(statement, parameters)

    def _commit(self) -> sqlite3.Cursor:
        self._die_if_planned("before")
        done = super().execute("COMMIT")
        self._die_if_planned("after")
        return done

    def _die_if_planned(self, when: str) -> None:
        for name in self._writes:
            try:
                (self.folder / f"{name}.{when}").rename(self.folder / f"{name}.{when}.met")
            except FileNotFoundError:
                continue
            os.kill(os.getpid(), signal.SIGKILL)


def name_of(statement: str, parameters: Any) -> str | None:  # noqa: ANN401 - as sqlite3 has it
    """Say what a statement writes, in the words of `journal.WRITES`; None for others."""
    verb, *words = statement.split()
    if verb not in {"INSERT", "UPDATE", "DELETE"}:
        return None
    table = next((word for word in words if word in {"identities", "tasks", "outbox"}), "")
    states = ("accepted", "starting", "running", "ended", "closed")
    if table == "tasks":
        state = next((state for state in states if state in tuple(parameters)), None)
        if verb == "INSERT":
            return {"ended": "rejected", "running": "adopted"}.get(state or "", state)
        other = "released" if "SET log_pending" in statement else "stop"
        return "forgotten" if verb == "DELETE" else state or other
    if table == "outbox" and "SET attempts = 0" in statement:
        return None  # goes with the letter that is delivered
    if table == "outbox":
        return {"DELETE": "delivered"}.get(verb) or ("parked" if "parked" in words else "postponed")
    return {"INSERT": "identity"}.get(verb) or ("refused" if "refused" in words else "described")


def hang_disks_with(sign: Path) -> None:
    """Have disks do what one on a dead network does, for as long as the sign is there."""
    statvfs = os.statvfs

    def hung(place: int | Path) -> os.statvfs_result:
        while sign.exists():
            time.sleep(LOOK_AGAIN_S)
        return statvfs(place)

    os.statvfs = hung  # type: ignore[assignment]


def main() -> None:
    """Prepare what the environment asks for, and be the runner."""
    folder = os.environ.pop(JOURNAL_VARIABLE, "")
    if folder:
        ShortLivedConnection.folder = Path(folder)
        sqlite3.connect = functools.partial(  # type: ignore[assignment]
            sqlite3.connect, factory=ShortLivedConnection
        )
    disk = os.environ.pop(DISK_VARIABLE, "")
    if disk:
        hang_disks_with(Path(disk))
    timings = Timings(**json.loads(os.environ.pop(TIMINGS_VARIABLE, "{}")))
    importlib.import_module("runner.cli").main(timings)


if __name__ == "__main__":
    main()
