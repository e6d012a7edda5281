"""Killing the runner at the commits of its journal: what a test plans, `launcher` carries out.

Commits are counted, not named, so no test knows what the journal's tables are. A commit that
changed nothing does not count. A plan counts from when it was made, over any number of starts.
"""

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

_READ_WITHIN_S = 60.0


class JournalFaults:
    """Plans in a folder of their own: empty files, named by `before` or `after` and a commit."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder

    def kill(self, when: str, commit: int) -> None:
        """Kill the runner "before" or "after" it makes this commit (1 is the next)."""
        (self.folder / f"{when}-{self.commits + commit}").touch()

    @property
    def commits(self) -> int:
        return count_commits(self.folder)

    def clear(self) -> None:
        for path in self.folder.glob("*-*"):
            path.unlink(missing_ok=True)


def count_commits(folder: Path) -> int:
    commits = folder / "commits"
    return commits.stat().st_size if commits.exists() else 0


def note_commit(folder: Path) -> None:
    with (folder / "commits").open("ab") as commits:
        commits.write(b".")


def is_planned(folder: Path, when: str, commit: int) -> bool:
    """Return whether a plan for before or after a commit is due, and use it up.

    A plan that was made while its commit was under way is due at the next one.
    """
    due = [path for path in folder.glob(f"{when}-*") if int(path.name.split("-")[1]) <= commit]
    for path in due:
        path.unlink(missing_ok=True)
    return bool(due)


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
