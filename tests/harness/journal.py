"""Killing the runner at the commits of its journal: what a test plans, `launcher` carries out.

Commits are counted, not named, so no test knows what the journal's tables are. A commit that
changed nothing does not count. A plan counts from when it was made, over any number of starts.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from itertools import count
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

_COMMITS = "commits"
_READ_WITHIN_S = 60.0


class JournalFaults:
    """Plans in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        """Plan nothing yet."""
        folder.mkdir(parents=True)
        self.folder = folder
        self._numbers = count(1)

    def kill_before(self, commit: int) -> None:
        """Kill the runner when it is about to make this commit (1 is the next)."""
        self._plan(commit, "before")

    def kill_after(self, commit: int) -> None:
        """Kill the runner when it has just made this commit."""
        self._plan(commit, "after")

    def _plan(self, commit: int, when: str) -> None:
        new = self.folder / "new"
        new.write_text(str(commit))
        new.rename(self.folder / f"{next(self._numbers)}.{when}")

    @property
    def commits(self) -> int:
        """The number of commits so far."""
        try:
            return (self.folder / _COMMITS).stat().st_size
        except FileNotFoundError:
            return 0

    def clear(self) -> None:
        """Take back what has not happened."""
        for path in [*self.folder.glob("*.before"), *self.folder.glob("*.after")]:
            path.unlink(missing_ok=True)


def note_commit(folder: Path) -> None:
    """Count one more commit."""
    with (folder / _COMMITS).open("ab") as commits:
        commits.write(b".")


def is_planned(folder: Path, when: str) -> bool:
    """Count down the plans for before or after a commit; return whether one of them is due."""
    is_due = False
    for plan in folder.glob(f"*.{when}"):
        try:
            left = int(plan.read_text()) - 1
            if left:
                plan.write_text(str(left))
            else:
                plan.rename(plan.with_name(f"{plan.name}.met"))
                is_due = True
        except FileNotFoundError:
            continue  # taken back meanwhile
    return is_due


def read_rows(path: Path, query: str) -> list[dict[str, Any]]:
    """Read an SQLite file that another process writes to."""
    until = time.monotonic() + _READ_WITHIN_S
    while True:
        try:
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as database:
                database.row_factory = sqlite3.Row
                return [dict(row) for row in database.execute(query)]
        except sqlite3.OperationalError:
            # In the moment in which its writer dies or comes back it may be locked.
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
