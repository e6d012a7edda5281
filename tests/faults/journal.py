"""Killing the runner at the commits of its journal: what a test plans, `launcher` carries out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

WRITES = (
    *("identity", "refused"),
    *("accepted", "rejected", "adopted", "starting", "running", "stop", "ended", "closed"),
    *("released", "forgotten", "postponed", "delivered", "parked"),
)
"""The transactions that surround a change of the world; most are named after the state."""


class JournalFaults:
    """Plans in a folder of their own, which hold over any number of starts."""

    def __init__(self, folder: Path) -> None:
        """Plan nothing yet."""
        folder.mkdir(parents=True)
        self.folder = folder

    def kill_before(self, write: str) -> None:
        """Have the runner die when it is about to commit this: it is not written."""
        self._plan(write, "before")

    def kill_after(self, write: str) -> None:
        """Have the runner die when it has just committed this."""
        self._plan(write, "after")

    def _plan(self, write: str, when: str) -> None:
        assert write in WRITES, f"{write!r} is no write of the journal"
        (self.folder / f"{write}.{when}").touch()

    @property
    def met(self) -> list[str]:
        """What has happened, such as `starting.before`."""
        return sorted(path.name.removesuffix(".met") for path in self.folder.glob("*.met"))

    def clear(self) -> None:
        """Take back what has not happened."""
        for path in self.folder.iterdir():
            if path.suffix != ".met":
                path.unlink(missing_ok=True)
