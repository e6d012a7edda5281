"""What the journal keeps, as values: a task, a report, a report in the outbox, an end.

Moments are seconds since the epoch, but for `deadline_uptime_s` (see journal.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.api import Identity
from runner.assignment import Assignment
from runner.errors import JournalError
from runner.settings import Secret
from runner.states import EndReason, TaskState

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping


@dataclass(frozen=True)
class Task:
    """A task as the journal knows it; None where it has not come to that yet."""

    task_id: str
    state: TaskState
    orchestrator_url: str
    assignment: Assignment | None
    accepted_at: float
    boot_id: str | None = None
    engine: str | None = None
    container_id: str | None = None
    started_at: float | None = None
    deadline_uptime_s: float | None = None
    stop_reason: EndReason | None = None
    stop_asked_at: float | None = None
    end_reason: EndReason | None = None
    exit_code: int | None = None
    message: str | None = None
    ended_at: float | None = None

    @property
    def end(self) -> End | None:
        """Give how it ended, if it has."""
        if self.end_reason is None:
            return None
        return End(self.end_reason, self.message or "", self.exit_code)


@dataclass(frozen=True)
class Report:
    """One thing to tell the orchestrator: `path` is status or logs, `body` what is posted there."""

    path: str
    body: Mapping[str, object]


@dataclass(frozen=True)
class Letter:
    """A report in the outbox, with the identity it goes out under; its body may be long."""

    row: int
    task_id: str
    path: str
    identity: Identity
    orchestrator_url: str
    created_at: float
    attempts: int
    next_attempt_at: float
    parked: str | None

    @property
    def is_log(self) -> bool:
        """Tell a task's log, which may be long and may be missed, from its status."""
        return self.path == "logs"


@dataclass(frozen=True)
class End:
    """How a task ended; `message` is what the operator and the orchestrator are told."""

    reason: EndReason
    message: str
    exit_code: int | None = None


def task_in(row: sqlite3.Row) -> Task:
    """Read a row of the table `tasks`.

    Raises:
        JournalError: there is something in it that nobody wrote.
    """
    written = row["assignment"]
    try:
        return Task(
            task_id=row["task_id"],
            state=TaskState(row["state"]),
            orchestrator_url=row["orchestrator_url"],
            assignment=Assignment.from_json(written) if written else None,
            accepted_at=row["accepted_at"],
            boot_id=row["boot_id"],
            # A reader may come before the runner that brings the schema up to date.
            engine=row["engine"] if "engine" in row.keys() else None,  # noqa: SIM118 - no mapping
            container_id=row["container_id"],
            started_at=row["started_at"],
            deadline_uptime_s=row["deadline_uptime_s"],
            stop_reason=_reason(row["stop_reason"]),
            stop_asked_at=row["stop_asked_at"],
            end_reason=_reason(row["end_reason"]),
            exit_code=row["exit_code"],
            message=row["message"],
            ended_at=row["ended_at"],
        )
    except (ValueError, TypeError, KeyError) as error:
        raise JournalError(f"the text of task {row['task_id']!r} is damaged") from error


def letter_in(row: sqlite3.Row) -> Letter:
    """Read a row of the table `outbox` and, in it, the identity under which it goes out."""
    return Letter(
        row=row["id"],
        task_id=row["task_id"],
        path=row["path"],
        identity=Identity(row["node_id"], Secret(row["api_key"])),
        orchestrator_url=row["orchestrator_url"],
        created_at=row["created_at"],
        attempts=row["attempts"],
        next_attempt_at=row["next_attempt_at"],
        parked=row["parked"],
    )


def body_in(written: object) -> Mapping[str, object] | None:
    """Read the body of a letter; None when it is damaged."""
    try:
        body = json.loads(written) if isinstance(written, str) else None
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def _reason(word: str | None) -> EndReason | None:
    return None if word is None else EndReason(word)
