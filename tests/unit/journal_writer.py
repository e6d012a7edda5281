"""A process that writes a journal until it is killed: `JOURNAL_FOLDER`.

After each write that has returned it prints `<task id> <state>`.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import anyio

from runner.journal.journal import Journal, open_journal
from runner.model import Assignment, EndReason, Identity, Outcome, Registration, Report
from runner.redaction import Secret

NODE: dict[str, object] = {"name": "n-1"}
URL = "https://o.example.com"
REPORTS = [Report("logs", {"session": {"messages": ["x" * 4000]}}), Report("status", {})]


def acknowledge(task_id: str, state: str) -> None:
    """Write on standard output that a write has returned."""
    sys.stdout.write(f"{task_id} {state}\n")
    sys.stdout.flush()


async def lead_a_life(journal: Journal, identity: Identity, task_id: str) -> None:
    """Take a task from its assignment to its end."""
    await journal.accept(Assignment(task_id, "p" * 500, URL, 60), identity, 1.0)
    acknowledge(task_id, "accepted")
    await journal.start(task_id, "boot-1", "podman")
    acknowledge(task_id, "starting")
    await journal.run(task_id, "c0ffee", 2.0, 62.0)
    acknowledge(task_id, "running")
    await journal.end(task_id, Outcome(EndReason.COMPLETED, "completed", 0), REPORTS, 3.0)
    acknowledge(task_id, "ended")


async def main() -> None:
    """Write for ever."""
    journal, _ = open_journal(Path(sys.argv[1]), "now")
    identity = Identity("node-1", Secret("key-1"))
    await journal.store_registration(Registration(identity, NODE), URL, 0.0)
    for number in itertools.count():
        await lead_a_life(journal, identity, f"t-{number}")


if __name__ == "__main__":
    anyio.run(main)
