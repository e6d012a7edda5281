"""The journal: what this runner is, has taken on, and still has to say, in one SQLite file.

Contract
- It is written before the world is changed, and a change of state is one transaction with the
  reports that follow from it. What it says survives `kill -9` and a power cut (WAL, FULL).
- A task's state moves only along `states.TRANSITIONS`.
- One process writes (app.py holds the lock), through one connection, in one thread at a time;
  other processes may read while it does.

Moments are seconds since the epoch, but for `deadline_uptime_s`, which counts from the boot named
in `boot_id`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from runner.errors import JournalError
from runner.journal.schema import (
    TASKS,
    Database,
    body_from_row,
    entry_from_row,
    is_worth_setting_aside,
    private,
    task_from_row,
    transaction,
)
from runner.model import (
    Assignment,
    EndReason,
    Identity,
    OutboxEntry,
    Outcome,
    Report,
    Task,
    TaskState,
    check_transition,
)
from runner.redaction import Secret

SPEAKER = (
    "JOIN identities AS own ON own.id = tasks.identity"
    " JOIN identities AS speaker ON speaker.id = CASE WHEN own.refused"
    # One that was found with a container is older than what was registered since.
    " THEN coalesce((SELECT max(id) FROM identities"
    " WHERE orchestrator_url = own.orchestrator_url AND node <> '' AND NOT refused),"
    " (SELECT max(id) FROM identities"
    " WHERE orchestrator_url = own.orchestrator_url AND node <> ''), own.id)"
    " ELSE own.id END"
)
"""For a query over tasks: `own` is who took one on, `speaker` who speaks for it now."""
JOURNAL_NAME = "journal.sqlite3"


class Identities(Database):
    """The table of identities."""

    @transaction
    def identity(self, orchestrator_url: str, node: Mapping[str, object]) -> Identity | None:
        """Give the identity under which this very node was registered there, if it still holds."""
        row = self.connection.execute(
            "SELECT node_id, api_key FROM identities"
            " WHERE orchestrator_url = ? AND node = ? AND NOT refused ORDER BY id DESC LIMIT 1",
            (orchestrator_url, _canonical(node)),
        ).fetchone()
        return Identity(row["node_id"], Secret(row["api_key"])) if row else None

    @transaction
    def store_identity(
        self, identity: Identity, orchestrator_url: str, node: Mapping[str, object], now: float
    ) -> None:
        """Keep who the orchestrator says we are."""
        self.connection.execute(
            "INSERT INTO identities (node_id, api_key, orchestrator_url, node, registered_at)"
            " VALUES (?, ?, ?, ?, ?)",
            (identity.node_id, identity.api_key.reveal(), orchestrator_url, _canonical(node), now),
        )

    @transaction
    def refuse_identity(self, identity: Identity) -> None:
        """Note that the orchestrator no longer knows this identity's key."""
        self.connection.execute(
            "UPDATE identities SET refused = 1 WHERE api_key = ?", (identity.api_key.reveal(),)
        )

    @transaction
    def identity_for(self, task_id: str) -> Identity:
        """Give the identity that took the task on, or what stands for it now (see above)."""
        row = self.connection.execute(
            f"SELECT speaker.* FROM tasks {SPEAKER} WHERE task_id = ?",  # noqa: S608 - our own text
            (task_id,),
        ).fetchone()
        return Identity(row["node_id"], Secret(row["api_key"]))

    @transaction
    def speakers(self, orchestrator_url: str) -> dict[str, Identity]:
        """Give that identity for each open task of an orchestrator, by the task's id."""
        rows = self.connection.execute(
            f"SELECT task_id, speaker.* FROM tasks {SPEAKER}"  # noqa: S608 - our own text
            " WHERE state <> ? AND own.orchestrator_url = ?",
            (TaskState.CLOSED.value, orchestrator_url),
        )
        return {row["task_id"]: Identity(row["node_id"], Secret(row["api_key"])) for row in rows}


def _canonical(node: Mapping[str, object]) -> str:
    return json.dumps(node, sort_keys=True)


class Outbox(Database):
    """The table of reports that are not delivered."""

    @transaction
    def entries(self) -> list[OutboxEntry]:
        """Give what is in the outbox, parked or not, in the order in which it was put there.

        A entry goes out under the identity that took the task on while that holds, else under
        the newest at the same orchestrator: no other is ever shown a key.
        """
        # The + has SQLite read the index, and none of the bodies.
        rows = self.connection.execute(
            "SELECT outbox.id, outbox.task_id, path, created_at, attempts, next_attempt_at, parked,"  # noqa: S608 - our own text
            " speaker.node_id, speaker.api_key, speaker.orchestrator_url"
            f" FROM outbox JOIN tasks USING (task_id) {SPEAKER} ORDER BY +outbox.id"
        )
        return [entry_from_row(row) for row in rows]

    @transaction
    def body(self, row: int) -> Mapping[str, object] | None:
        """Give what a entry says; None if it is no longer there, or damaged."""
        found = self.connection.execute("SELECT body FROM outbox WHERE id = ?", (row,)).fetchone()
        return body_from_row(found["body"]) if found is not None else None

    @transaction
    def delivered(self, row: int) -> None:
        """Take a entry out: the orchestrator has it, and so may take what waits of the same task.

        The failures of that are counted anew: those of an outage say nothing against it.
        """
        self.connection.execute(
            "UPDATE outbox SET attempts = 0, next_attempt_at = 0"
            " WHERE task_id = (SELECT task_id FROM outbox WHERE id = ?) AND parked IS NULL",
            (row,),
        )
        self.connection.execute("DELETE FROM outbox WHERE id = ?", (row,))

    @transaction
    def postpone(self, row: int, next_attempt_at: float) -> None:
        """Count a failed attempt and say when the next is due."""
        self.connection.execute(
            "UPDATE outbox SET attempts = attempts + 1, next_attempt_at = ? WHERE id = ?",
            (next_attempt_at, row),
        )

    @transaction
    def retry_all_now(self) -> None:
        """Make everything due at once that has failed, and count its failures anew.

        What is parked stays so.
        """
        self.connection.execute(
            "UPDATE outbox SET attempts = 0, next_attempt_at = 0"
            " WHERE attempts > 0 AND parked IS NULL"
        )

    @transaction
    def park(self, row: int, why: str) -> None:
        """Stop trying a entry, and keep it with the reason for people to see."""
        self.connection.execute("UPDATE outbox SET parked = ? WHERE id = ?", (why, row))

    def post(self, task_id: str, reports: Iterable[Report], now: float) -> None:
        """Put reports into the outbox, within the transaction that is under way."""
        self.connection.executemany(
            "INSERT INTO outbox (task_id, path, body, created_at) VALUES (?, ?, ?, ?)",
            [(task_id, report.path, json.dumps(report.body), now) for report in reports],
        )


class Journal(Identities, Outbox):
    """An open journal: the tasks, and with them who we are and what we still have to say."""

    @transaction
    def accept(self, assignment: Assignment, identity: Identity, now: float) -> bool:
        """Take a task on; False when it is known already, and nothing changes then."""
        added = self.connection.execute(
            "INSERT INTO tasks (task_id, identity, state, assignment, accepted_at)"
            " SELECT ?, max(id), ?, ?, ? FROM identities WHERE api_key = ?"
            " ON CONFLICT DO NOTHING",
            (
                assignment.task_id,
                TaskState.ACCEPTED.value,
                assignment.to_json(),
                now,
                identity.api_key.reveal(),
            ),
        )
        return added.rowcount == 1

    @transaction
    def adopt(self, task: Task, identity: Identity, now: float) -> bool:
        """Take on a task that was found running, with the identity that started it.

        False when it is known already, and nothing changes then.
        """
        key = identity.api_key.reveal()
        if self.connection.execute(
            "SELECT 1 FROM tasks WHERE task_id = ?", (task.task_id,)
        ).fetchone():
            return False
        # What it was registered as is not known: it speaks for its tasks, and for nothing new.
        self.connection.execute(
            "INSERT INTO identities (node_id, api_key, orchestrator_url, node, registered_at)"
            " SELECT ?, ?, ?, '', ? WHERE NOT EXISTS"
            " (SELECT 1 FROM identities WHERE api_key = ?)",
            (identity.node_id, key, task.orchestrator_url, now, key),
        )
        self.connection.execute(
            "INSERT INTO tasks (task_id, identity, state, assignment, accepted_at, boot_id,"
            " engine, container_id, started_at, deadline_uptime_s)"
            " SELECT ?, max(id), ?, ?, ?, ?, ?, ?, ?, ? FROM identities WHERE api_key = ?",
            (
                task.task_id,
                TaskState.RUNNING.value,
                task.assignment.to_json() if task.assignment is not None else None,
                task.accepted_at,
                task.boot_id,
                task.engine,
                task.container_id,
                task.started_at,
                task.deadline_uptime_s,
                key,
            ),
        )
        return True

    @transaction
    def reject(
        self, task_id: str, end: Outcome, report: Report, identity: Identity, now: float
    ) -> bool:
        """Write down a task that ended where it began; False when it is known already."""
        added = self.connection.execute(
            "INSERT INTO tasks (task_id, identity, state, accepted_at, ended_at, end_reason,"
            " message) SELECT ?, max(id), ?, ?, ?, ?, ? FROM identities WHERE api_key = ?"
            " ON CONFLICT DO NOTHING",
            (
                task_id,
                TaskState.ENDED.value,
                now,
                now,
                end.reason.value,
                end.message,
                identity.api_key.reveal(),
            ),
        )
        if added.rowcount == 1:
            self.post(task_id, [report], now)
        return added.rowcount == 1

    @transaction
    def task(self, task_id: str) -> Task | None:
        """Give the task of that id, whatever its state."""
        row = self.connection.execute(f"{TASKS} WHERE task_id = ?", (task_id,)).fetchone()
        return task_from_row(row) if row else None

    @transaction
    def open_tasks(self) -> list[Task]:
        """Give the tasks that are not closed, oldest first."""
        rows = self.connection.execute(
            f"{TASKS} WHERE state <> ? ORDER BY accepted_at", (TaskState.CLOSED.value,)
        )
        return [task_from_row(row) for row in rows]

    @transaction
    def tasks_beside(self, task_id: str, started_at: float, ended_at: float) -> list[Task]:
        """Give the other tasks whose containers ran, or may have run, at some time within these.

        Of those that are closed the prompts are not known any more.
        """
        rows = self.connection.execute(
            f"{TASKS} WHERE task_id <> ? AND (ended_at IS NULL OR ended_at >= ?)"
            " AND (started_at <= ? OR started_at IS NULL AND state = ?)",
            (task_id, started_at, ended_at, TaskState.STARTING.value),
        )
        return [task_from_row(row) for row in rows]

    @transaction
    def start(self, task_id: str, boot_id: str, engine: str) -> None:
        """Write down that this engine is about to be asked for the task's container."""
        self._move(task_id, TaskState.STARTING, boot_id=boot_id, engine=engine)

    @transaction
    def run(
        self, task_id: str, container_id: str, started_at: float, deadline_uptime_s: float
    ) -> None:
        """Write down that the task's container runs, and until when it may."""
        self._move(
            task_id,
            TaskState.RUNNING,
            container_id=container_id,
            started_at=started_at,
            deadline_uptime_s=deadline_uptime_s,
        )

    @transaction
    def ask_to_stop(self, task_id: str, reason: EndReason, now: float) -> EndReason:
        """Write down why the task is to be stopped; the first reason stands and is given."""
        self.connection.execute(
            "UPDATE tasks SET stop_reason = ?, stop_asked_at = ?"
            " WHERE task_id = ? AND stop_reason IS NULL",
            (reason.value, now, task_id),
        )
        row = self.connection.execute(
            "SELECT stop_reason FROM tasks WHERE task_id = ?", (task_id,)
        ).fetchone()
        return EndReason(row["stop_reason"])

    @transaction
    def end(
        self,
        task_id: str,
        end: Outcome,
        reports: Iterable[Report],
        now: float,
        *,
        is_log_pending: bool = False,
    ) -> None:
        """Write down the outcome with its reports, or that they wait for the log."""
        self._move(
            task_id,
            TaskState.ENDED,
            end_reason=end.reason.value,
            message=end.message,
            exit_code=end.exit_code,
            ended_at=now,
            log_pending=is_log_pending,
        )
        self.post(task_id, reports, now)

    @transaction
    def release(self, task_id: str, reports: Iterable[Report], now: float) -> None:
        """Post the final reports of a task whose log was pending; nothing if that was done."""
        released = self.connection.execute(
            "UPDATE tasks SET log_pending = 0 WHERE task_id = ? AND log_pending", (task_id,)
        )
        if released.rowcount:
            self.post(task_id, reports, now)

    @transaction
    def report_again(self, task_id: str, report: Report, now: float) -> bool:
        """Put a finished task's report into the outbox anew, unless one waits there."""
        waiting = self.connection.execute(
            "SELECT 1 FROM outbox WHERE task_id = ? AND parked IS NULL", (task_id,)
        ).fetchone()
        if waiting is None:
            # One that was refused says the same, and would be one more with each late offer.
            self.connection.execute(
                "DELETE FROM outbox WHERE task_id = ? AND path = ?", (task_id, report.path)
            )
            self.post(task_id, [report], now)
        return waiting is None

    @transaction
    def close(self, task_id: str, now: float) -> bool:
        """Close an ended task whose reports are delivered or parked; False while one waits."""
        waiting = self.connection.execute(
            "SELECT 1 FROM outbox WHERE task_id = ? AND parked IS NULL", (task_id,)
        ).fetchone()
        if waiting is None:
            # The prompt is the orchestrator's; there is no reason to keep it here.
            self._move(task_id, TaskState.CLOSED, closed_at=now, assignment=None)
        return waiting is None

    @transaction
    def forget(self, task_id: str) -> None:
        """Drop a task that never had a container and is no longer ours."""
        self.connection.execute("DELETE FROM tasks WHERE task_id = ?", (task_id,))

    @transaction
    def forget_closed(self, before: float) -> int:
        """Drop the tasks closed before that moment; give how many."""
        return self.connection.execute(
            "DELETE FROM tasks WHERE state = ? AND closed_at < ?", (TaskState.CLOSED.value, before)
        ).rowcount

    def _move(self, task_id: str, after: TaskState, **columns: object) -> None:
        row = self.connection.execute(
            "SELECT state FROM tasks WHERE task_id = ?", (task_id,)
        ).fetchone()
        check_transition(TaskState(row["state"]), after)
        columns["state"] = after.value
        names = ", ".join(f"{name} = ?" for name in columns)
        self.connection.execute(
            f"UPDATE tasks SET {names} WHERE task_id = ?",  # noqa: S608 - names are keywords above
            (*columns.values(), task_id),
        )


def open_journal(state_dir: Path, stamp: str) -> tuple[Journal, str | None]:
    """Open the state folder's journal; set a damaged or newer one aside under a dated name.

    Give the journal and, if one was set aside, the sentence that an operator is to read.

    Raises:
        JournalError: not even a new journal can be opened there.
    """
    path = state_dir / JOURNAL_NAME
    try:
        return Journal(private(path)), None
    except JournalError as error:
        if not path.exists() or not is_worth_setting_aside(error):
            raise
        aside = path.with_name(f"{JOURNAL_NAME}.{stamp}.unusable")
        for ending in ("", "-wal", "-shm"):
            part = Path(f"{path}{ending}")
            if part.exists():
                part.rename(f"{aside}{ending}")
        said = f"{error}; it was set aside as {aside.name} and a new one begun"
        return Journal(private(path)), said
