"""The journal: identities, tasks and undelivered reports, in one SQLite file.

Contract
- It is written before the world is changed, and a change of state is one transaction with the
  reports that follow from it. What is written survives `kill -9` and a power cut (WAL, FULL).
- A task's state moves only along `model.TRANSITIONS`.
- One process writes (daemon.py holds the lock), through one connection, in one thread at a time;
  other processes may read meanwhile. Parked entries are nobody's: outbox.py changes them.

Moments are seconds since the epoch, but for `deadline_uptime_s`, which counts from the boot named
in `boot_id`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from runner.errors import JournalError
from runner.journal.schema import (
    TASK_KEY_MARK,
    TASKS,
    Database,
    entry_from_row,
    identity_from_row,
    is_worth_setting_aside,
    object_from_text,
    private,
    registration_from_row,
    task_from_row,
    transaction,
)
from runner.model import (
    OUTPUT,
    Assignment,
    EndReason,
    Identity,
    OutboxEntry,
    Outcome,
    OutputProgress,
    Registration,
    Report,
    Task,
    TaskState,
    check_transition,
)
from runner.redaction import Secret
from runner.timing import DEFAULT_TIMINGS, Timings

JOURNAL_NAME = "journal.sqlite3"


class Journal(Database):
    """An open journal."""

    # The identity

    @transaction
    def registration(self, orchestrator_url: str) -> Registration | None:
        """Return the newest registration there that was not refused since.

        An identity that came from a container counts only where there is no other, and a task's
        key never.
        """
        row = self.connection.execute(
            "SELECT * FROM identities WHERE orchestrator_url = ? AND NOT refused AND node <> ?"
            " ORDER BY node = '', id DESC LIMIT 1",
            (orchestrator_url, TASK_KEY_MARK),
        ).fetchone()
        return registration_from_row(row) if row else None

    @transaction
    def has_refused(self, identity: Identity) -> bool:
        """Return whether the orchestrator no longer knows this identity's key."""
        row = self.connection.execute(
            "SELECT 1 FROM identities WHERE refused AND api_key = ?",
            (identity.api_key.reveal(),),
        ).fetchone()
        return row is not None

    @transaction
    def identity_of_node(self, node_id: str, orchestrator_url: str) -> Identity | None:
        """Return the newest identity of a node there that was not refused since."""
        row = self.connection.execute(
            "SELECT * FROM identities WHERE orchestrator_url = ? AND NOT refused AND node <> ?"
            " AND node_id = ? ORDER BY id DESC LIMIT 1",
            (orchestrator_url, TASK_KEY_MARK, node_id),
        ).fetchone()
        return identity_from_row(row) if row else None

    @transaction
    def store_registration(
        self, registration: Registration, orchestrator_url: str, now: float
    ) -> None:
        """Write a registration, in the place of an earlier one with the same key."""
        self._store_registration(registration, orchestrator_url, now)

    @transaction
    def rotate_key(
        self, old: Identity, registration: Registration, orchestrator_url: str, now: float
    ) -> None:
        """Write a registration with the node's new key; should it be refused, the old one holds.

        Keys before that one count as refused: no more than two are ever tried. The tasks are the
        node's with any key.
        """
        self._store_registration(registration, orchestrator_url, now)
        identity = registration.identity
        self.connection.execute(
            "UPDATE tasks SET identity = (SELECT max(id) FROM identities WHERE api_key = ?)"
            " WHERE identity IN (SELECT id FROM identities WHERE api_key = ?)",
            (identity.api_key.reveal(), old.api_key.reveal()),
        )
        self.connection.execute(
            "UPDATE identities SET refused = 1 WHERE orchestrator_url = ? AND node_id = ?"
            " AND node <> ? AND api_key NOT IN (?, ?)",
            (
                *(orchestrator_url, identity.node_id, TASK_KEY_MARK),
                *(identity.api_key.reveal(), old.api_key.reveal()),
            ),
        )

    @transaction
    def store_extensions(self, identity: Identity, extensions: Iterable[str]) -> None:
        """Write which extensions the identity's orchestrator named last."""
        self.connection.execute(
            "UPDATE identities SET extensions = ? WHERE api_key = ?",
            (" ".join(sorted(extensions)), identity.api_key.reveal()),
        )

    @transaction
    def refuse_identity(self, identity: Identity) -> None:
        """Write that the orchestrator no longer knows this identity's key."""
        self.connection.execute(
            "UPDATE identities SET refused = 1 WHERE api_key = ?", (identity.api_key.reveal(),)
        )

    @transaction
    def keys_of_node_with(self, task_id: str) -> list[Secret]:
        """Return every key of the node that accepted the task, refused ones too: all are secret."""
        rows = self.connection.execute(
            "SELECT keys.api_key FROM tasks JOIN identities ON identities.id = tasks.identity"
            " JOIN identities AS keys USING (node_id) WHERE task_id = ?",
            (task_id,),
        )
        return [Secret(row["api_key"]) for row in rows]

    def _store_registration(
        self, registration: Registration, orchestrator_url: str, now: float
    ) -> None:
        key = registration.identity.api_key.reveal()
        node = registration.description
        description = "" if node is None else json.dumps(node, sort_keys=True)
        extensions = " ".join(sorted(registration.extensions))
        row = self.connection.execute(
            "SELECT id FROM identities WHERE orchestrator_url = ? AND api_key = ?",
            (orchestrator_url, key),
        ).fetchone()
        if row is not None:
            self.connection.execute(
                "UPDATE identities SET node = ?, extensions = ?, refused = 0 WHERE id = ?",
                (description, extensions, row["id"]),
            )
            return
        node_id = registration.identity.node_id
        self.connection.execute(
            "INSERT INTO identities"
            " (node_id, api_key, orchestrator_url, node, registered_at, extensions)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (node_id, key, orchestrator_url, description, now, extensions),
        )

    # The tasks

    @transaction
    def accept(self, assignment: Assignment, identity: Identity, now: float) -> bool:
        """Write a new task; False, and nothing is written, when it is known already."""
        return self._insert(
            identity,
            task_id=assignment.task_id,
            state=TaskState.ACCEPTED.value,
            assignment=assignment.to_json(),
            accepted_at=now,
        )

    @transaction
    def adopt(self, task: Task, identity: Identity, now: float) -> bool:
        """Write a task that was recovered from its container, and the identity to report it with.

        False, and nothing is written, when the task is known already.
        """
        key = identity.api_key.reveal()
        if self.connection.execute(
            "SELECT 1 FROM tasks WHERE task_id = ?", (task.task_id,)
        ).fetchone():
            return False
        # Without a description: what it was registered as is not known.
        self.connection.execute(
            "INSERT INTO identities (node_id, api_key, orchestrator_url, node, registered_at)"
            " SELECT ?, ?, ?, ?, ? WHERE NOT EXISTS"
            " (SELECT 1 FROM identities WHERE api_key = ?)",
            (
                *(identity.node_id, key, task.orchestrator_url),
                *(TASK_KEY_MARK if identity.is_task_key else "", now, key),
            ),
        )
        return self._insert(
            identity,
            task_id=task.task_id,
            state=TaskState.RUNNING.value,
            assignment=task.assignment.to_json() if task.assignment is not None else None,
            accepted_at=task.accepted_at,
            boot_id=task.boot_id,
            engine=task.engine,
            container_id=task.container_id,
            started_at=task.started_at,
            deadline_uptime_s=task.deadline_uptime_s,
        )

    @transaction
    def reject(
        self, task_id: str, outcome: Outcome, report: Report, identity: Identity, now: float
    ) -> bool:
        """Write a task that ends where it began, and its report; False when it is known already."""
        is_new = self._insert(
            identity,
            task_id=task_id,
            state=TaskState.ENDED.value,
            accepted_at=now,
            ended_at=now,
            end_reason=outcome.reason.value,
            message=outcome.message,
        )
        if is_new:
            self._post(task_id, [report], now)
        return is_new

    @transaction
    def task(self, task_id: str) -> Task | None:
        """Return the task of that id, whatever its state."""
        row = self.connection.execute(f"{TASKS} WHERE task_id = ?", (task_id,)).fetchone()
        return task_from_row(row) if row else None

    @transaction
    def open_tasks(self) -> list[Task]:
        """Return the tasks that are not closed, oldest first."""
        rows = self.connection.execute(
            f"{TASKS} WHERE state <> ? ORDER BY accepted_at", (TaskState.CLOSED.value,)
        )
        return [task_from_row(row) for row in rows]

    @transaction
    def closed_at(self) -> dict[str, float]:
        """Return when each closed task was closed, by its id."""
        rows = self.connection.execute(
            "SELECT task_id, closed_at FROM tasks WHERE state = ? AND closed_at IS NOT NULL",
            (TaskState.CLOSED.value,),
        )
        return {row["task_id"]: row["closed_at"] for row in rows}

    @transaction
    def unfinished_tasks(self) -> list[Task]:
        """Return the tasks that are not closed or have a report to deliver, oldest first."""
        rows = self.connection.execute(
            f"{TASKS} WHERE state <> ? OR task_id IN"  # noqa: S608 - our own text
            " (SELECT task_id FROM outbox WHERE parked IS NULL) ORDER BY accepted_at",
            (TaskState.CLOSED.value,),
        )
        return [task_from_row(row) for row in rows]

    @transaction
    def tasks_beside(self, task_id: str, started_at: float, ended_at: float) -> list[Task]:
        """Return the other tasks whose containers may have overlapped this interval.

        Closed ones have a digest in place of the prompt.
        """
        rows = self.connection.execute(
            f"{TASKS} WHERE task_id <> ? AND (ended_at IS NULL OR ended_at >= ?)"
            " AND (started_at <= ? OR started_at IS NULL AND (state = ? OR end_reason = ?))",
            (task_id, started_at, ended_at, TaskState.STARTING.value, EndReason.LOST.value),
        )
        return [task_from_row(row) for row in rows]

    @transaction
    def start(self, task_id: str, boot_id: str, engine: str) -> None:
        """Write that this engine is about to be asked for the task's container."""
        self._move(task_id, TaskState.STARTING, boot_id=boot_id, engine=engine)

    @transaction
    def run(
        self, task_id: str, container_id: str, started_at: float, deadline_uptime_s: float
    ) -> None:
        """Write that the task's container runs, and its deadline."""
        self._move(
            task_id,
            TaskState.RUNNING,
            container_id=container_id,
            started_at=started_at,
            deadline_uptime_s=deadline_uptime_s,
        )

    @transaction
    def replace_task_key(self, assignment: Assignment) -> bool:
        """Write the key that came with a task which is offered again, unless it has started.

        Return whether it was another one.
        """
        row = self.connection.execute(
            f"{TASKS} WHERE task_id = ? AND state IN (?, ?)",
            (assignment.task_id, TaskState.ACCEPTED.value, TaskState.STARTING.value),
        ).fetchone()
        before = task_from_row(row).assignment if row else None
        if before is None or assignment.task_key in {None, before.task_key}:
            return False
        after = replace(before, task_key=assignment.task_key)
        self.connection.execute(
            "UPDATE tasks SET assignment = ? WHERE task_id = ?",
            (after.to_json(), assignment.task_id),
        )
        return True

    @transaction
    def ask_to_stop(self, task_id: str, reason: EndReason, now: float) -> EndReason:
        """Write why the task is being stopped; the first reason stands and is returned."""
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
    def end(  # noqa: PLR0913 - what is known of an end
        self,
        task_id: str,
        outcome: Outcome,
        reports: Iterable[Report],
        now: float,
        *,
        is_log_pending: bool = False,
        image: tuple[str, str] | None = None,
    ) -> None:
        """Write the outcome with its reports, or that they wait for the log.

        `image` has the name under which its container's image was run, and the image's id.
        """
        self._move(
            task_id,
            TaskState.ENDED,
            end_reason=outcome.reason.value,
            message=outcome.message,
            exit_code=outcome.exit_code,
            ended_at=now,
            log_pending=is_log_pending,
        )
        if image is not None:
            self.connection.execute(
                # What was there is replaced: the newest run has the highest id.
                "INSERT OR REPLACE INTO images (name, image_id, engine)"
                " SELECT ?, ?, engine FROM tasks WHERE task_id = ?",
                (*image, task_id),
            )
        self._post(task_id, reports, now)

    @transaction
    def images(self, name: str, engine: str) -> list[str]:
        """Return the ids of the images that were run there under a name, newest run first."""
        # Read-only, the journal may be one of an earlier version.
        tables = self.connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'images'")
        if tables.fetchone() is None:
            return []
        rows = self.connection.execute(
            "SELECT image_id FROM images WHERE name = ? AND engine = ? ORDER BY id DESC",
            (name, engine),
        )
        return [row["image_id"] for row in rows]

    @transaction
    def release(
        self,
        task_id: str,
        reports: Iterable[Report],
        now: float,
        output: OutputProgress | None = None,
    ) -> None:
        """Post the final reports of a task whose log was pending; nothing if that was done.

        `output` is the progress after the chunk of output that is one of them.
        """
        released = self.connection.execute(
            "UPDATE tasks SET log_pending = 0 WHERE task_id = ? AND log_pending", (task_id,)
        )
        if released.rowcount:
            self._post(task_id, reports, now)
            if output is not None:
                self._note_output(task_id, output)

    @transaction
    def report_again(self, task_id: str, report: Report, now: float) -> bool:
        """Put a closed task's report into the outbox again, unless one waits there."""
        has_waiting = self._has_waiting(task_id)
        if not has_waiting:
            # A parked one is replaced: else there would be one more with each late offer.
            self.connection.execute(
                "DELETE FROM outbox WHERE task_id = ? AND path = ?", (task_id, report.path)
            )
            self._post(task_id, [report], now)
        return not has_waiting

    @transaction
    def close(self, task_id: str, now: float, prompt_digest: str | None = None) -> bool:
        """Close an ended task whose reports are delivered or parked; False while one waits.

        The digest takes the place of the prompt.
        """
        has_waiting = self._has_waiting(task_id)
        if not has_waiting:
            # The prompt is the orchestrator's; there is no reason to keep it here.
            self._move(
                task_id,
                TaskState.CLOSED,
                closed_at=now,
                assignment=None,
                prompt_digest=prompt_digest,
            )
        return not has_waiting

    @transaction
    def drop(self, task_id: str) -> None:
        """Delete a task that never had a container and is no longer ours."""
        self.connection.execute("DELETE FROM tasks WHERE task_id = ?", (task_id,))

    @transaction
    def prune_closed(self, before: float) -> int:
        """Delete the tasks that were closed before that moment; return how many.

        Those remain that may have overlapped a task whose log is still to be searched for.
        """
        return self.connection.execute(
            "DELETE FROM tasks WHERE state = ? AND closed_at < ? AND NOT EXISTS"
            # The state as text, so that the index `open_tasks` serves.
            " (SELECT 1 FROM tasks AS open WHERE open.state <> 'closed'"
            " AND (open.ended_at IS NULL OR open.log_pending)"
            " AND open.accepted_at <= tasks.ended_at)",
            (TaskState.CLOSED.value, before),
        ).rowcount

    def _insert(self, identity: Identity, **columns: object) -> bool:
        """Insert a task that the identity accepted; False when it is known already."""
        marks = ", ?" * len(columns)
        added = self.connection.execute(
            f"INSERT INTO tasks (identity, {', '.join(columns)})"  # noqa: S608 - names are keywords above
            f" SELECT max(id){marks} FROM identities WHERE api_key = ? ON CONFLICT DO NOTHING",
            (*columns.values(), identity.api_key.reveal()),
        )
        return added.rowcount == 1

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

    # The outbox: reports that are not delivered

    @transaction
    def entries(self) -> list[OutboxEntry]:
        """Return the outbox, parked entries too, in the order in which they were put there."""
        # The + has SQLite read the index, and none of the bodies.
        rows = self.connection.execute(
            "SELECT outbox.id, outbox.task_id, path, created_at, attempts, next_attempt_at, parked,"
            " orchestrator_url FROM outbox JOIN tasks USING (task_id)"
            " JOIN identities ON identities.id = tasks.identity ORDER BY +outbox.id"
        )
        return [entry_from_row(row) for row in rows]

    @transaction
    def body(self, row: int) -> Mapping[str, object] | None:
        """Return the body of an entry; None if it is no longer there, or damaged."""
        entry = self.connection.execute("SELECT body FROM outbox WHERE id = ?", (row,)).fetchone()
        return object_from_text(entry["body"]) if entry is not None else None

    @transaction
    def delivered(self, row: int) -> None:
        """Delete a delivered entry, and make the other entries of its task due.

        Their failures are counted from 0 again: they were failures of an outage that is over.
        """
        self.connection.execute(
            "UPDATE outbox SET attempts = 0, next_attempt_at = 0"
            " WHERE task_id = (SELECT task_id FROM outbox WHERE id = ?) AND parked IS NULL",
            (row,),
        )
        self.connection.execute("DELETE FROM outbox WHERE id = ?", (row,))

    @transaction
    def note_progress(self, row: int, body: Mapping[str, object]) -> None:
        """Write how far the upload of a task's artifacts has come; failures count from 0 again."""
        self.connection.execute(
            "UPDATE outbox SET body = ?, attempts = 0, next_attempt_at = 0 WHERE id = ?",
            (json.dumps(body), row),
        )

    @transaction
    def end_upload(self, row: int, sentence: str | None, *, parked: str | None = None) -> None:
        """Delete, or park with a reason, the entry of a task's artifacts.

        The sentence, about what is not uploaded, is added to the message of the final status.
        """
        entry = self.connection.execute(
            "SELECT task_id FROM outbox WHERE id = ?", (row,)
        ).fetchone()
        if entry is None:
            return
        if sentence is not None:
            self._add_to_message(entry["task_id"], sentence)
        if parked is None:
            self.connection.execute("DELETE FROM outbox WHERE id = ?", (row,))
        else:
            self.connection.execute("UPDATE outbox SET parked = ? WHERE id = ?", (parked, row))

    def _add_to_message(self, task_id: str, sentence: str) -> None:
        addition = f"\n\n{sentence}"
        rows = self.connection.execute(
            "SELECT id, body FROM outbox WHERE task_id = ? AND path = 'status'", (task_id,)
        )
        for status in rows.fetchall():
            body = object_from_text(status["body"])
            if body is not None:
                changed = {**body, "message": f"{body.get('message') or ''}{addition}"}
                self.connection.execute(
                    "UPDATE outbox SET body = ? WHERE id = ?", (json.dumps(changed), status["id"])
                )
        self.connection.execute(
            "UPDATE tasks SET message = coalesce(message, '') || ? WHERE task_id = ?",
            (addition, task_id),
        )

    @transaction
    def postpone(self, row: int, next_attempt_at: float) -> None:
        """Count a failed attempt and write when the next is due."""
        self.connection.execute(
            "UPDATE outbox SET attempts = attempts + 1, next_attempt_at = ? WHERE id = ?",
            (next_attempt_at, row),
        )

    @transaction
    def retry_all_now(self) -> None:
        """Make every failed entry due, and count its failures from 0; parked ones stay parked."""
        self.connection.execute(
            "UPDATE outbox SET attempts = 0, next_attempt_at = 0"
            " WHERE attempts > 0 AND parked IS NULL"
        )

    @transaction
    def park(self, row: int, reason: str) -> None:
        """Stop retrying an entry, and keep it with the reason for people to see."""
        self.connection.execute("UPDATE outbox SET parked = ? WHERE id = ?", (reason, row))

    @transaction
    def unpark(self, rows: Iterable[int]) -> None:
        """Make these entries due, parked ones too, and count their failures from 0."""
        self.connection.executemany(
            "UPDATE outbox SET parked = NULL, attempts = 0, next_attempt_at = 0 WHERE id = ?",
            [(row,) for row in rows],
        )

    @transaction
    def drop_parked(self, rows: Iterable[int]) -> None:
        """Delete those of these entries that are parked."""
        self.connection.executemany(
            "DELETE FROM outbox WHERE id = ? AND parked IS NOT NULL", [(row,) for row in rows]
        )

    # The output of tasks: the place after a chunk is one transaction with the chunk's report

    @transaction
    def output(self, task_id: str) -> OutputProgress:
        """Return how far a task's output was posted."""
        row = self.connection.execute(
            "SELECT anchor, skip, length, done FROM outputs WHERE task_id = ?", (task_id,)
        ).fetchone()
        if row is None:
            return OutputProgress()
        return OutputProgress(row["anchor"], row["skip"], row["length"], bool(row["done"]))

    @transaction
    def has_output_waiting(self, task_id: str) -> bool:
        """Return whether a chunk of the task's output is not delivered yet."""
        row = self.connection.execute(
            "SELECT 1 FROM outbox WHERE task_id = ? AND path = ? AND parked IS NULL",
            (task_id, OUTPUT),
        )
        return row.fetchone() is not None

    @transaction
    def post_output(
        self, task_id: str, chunk: Report | None, progress: OutputProgress, now: float
    ) -> None:
        """Post a chunk of output, if there is any text, and write how far this is."""
        if chunk is not None:
            self._post(task_id, [chunk], now)
        self._note_output(task_id, progress)

    @transaction
    def move_output(self, row: int, length: int, mark: str) -> bool:
        """Have a waiting chunk begin at the length that the orchestrator holds.

        What it holds of the chunk is cut off. If it holds less than what was delivered, `mark`
        comes in place of what it lacks, and the chunks that follow move too. Return False if the
        chunk begins there already, or is no longer there.
        """
        entry = self.connection.execute(
            "SELECT task_id, body FROM outbox WHERE id = ?", (row,)
        ).fetchone()
        body = object_from_text(entry["body"]) if entry is not None else None
        if body is None or body.get("offset") == length:
            return False
        task_id = entry["task_id"]
        offset, text = int(str(body["offset"])), str(body["text"])
        if length > offset:
            moved = text.encode()[length - offset :].decode(errors="ignore")
            self._replace_body(row, {**body, "offset": length, "text": moved})
            return True
        self._replace_body(row, {**body, "offset": length, "text": mark + text})
        by = length + len(mark.encode()) - offset
        rows = self.connection.execute(
            "SELECT id, body FROM outbox WHERE task_id = ? AND path = ? AND id > ?",
            (task_id, OUTPUT, row),
        ).fetchall()
        for later in rows:
            chunk = object_from_text(later["body"]) or {}
            self._replace_body(later["id"], {**chunk, "offset": int(str(chunk["offset"])) + by})
        self.connection.execute(
            "UPDATE outputs SET length = length + ? WHERE task_id = ?", (by, task_id)
        )
        return True

    @transaction
    def drop_output(self, task_id: str) -> None:
        """Delete the chunks of a task's output that are not delivered; no more is posted."""
        self.connection.execute(
            "DELETE FROM outbox WHERE task_id = ? AND path = ?", (task_id, OUTPUT)
        )
        self.connection.execute("UPDATE outputs SET done = 1 WHERE task_id = ?", (task_id,))

    def _note_output(self, task_id: str, progress: OutputProgress) -> None:
        self.connection.execute(
            "INSERT OR REPLACE INTO outputs (task_id, anchor, skip, length, done)"
            " VALUES (?, ?, ?, ?, ?)",
            (task_id, progress.anchor, progress.skip, progress.length, progress.is_done),
        )

    def _replace_body(self, row: int, body: Mapping[str, object]) -> None:
        self.connection.execute("UPDATE outbox SET body = ? WHERE id = ?", (json.dumps(body), row))

    def _has_waiting(self, task_id: str) -> bool:
        waiting = self.connection.execute(
            "SELECT 1 FROM outbox WHERE task_id = ? AND parked IS NULL", (task_id,)
        )
        return waiting.fetchone() is not None

    def _post(self, task_id: str, reports: Iterable[Report], now: float) -> None:
        self.connection.executemany(
            "INSERT INTO outbox (task_id, path, body, created_at) VALUES (?, ?, ?, ?)",
            [(task_id, report.path, json.dumps(report.body), now) for report in reports],
        )


def open_journal(
    state_dir: Path, stamp: str, timings: Timings = DEFAULT_TIMINGS
) -> tuple[Journal, str | None]:
    """Open the state folder's journal; set a damaged or newer one aside under a dated name.

    Return the journal and, if one was set aside, a sentence for the operator.

    Raises:
        JournalError: not even a new journal can be opened there.
    """
    path = state_dir / JOURNAL_NAME
    try:
        return Journal(private(path), timings), None
    except JournalError as error:
        if not path.exists() or not is_worth_setting_aside(error):
            raise
        aside = path.with_name(f"{JOURNAL_NAME}.{stamp}.unusable")
        for ending in ("", "-wal", "-shm"):
            part = Path(f"{path}{ending}")
            if part.exists():
                part.rename(f"{aside}{ending}")
        sentence = f"{error}; it was set aside as {aside.name} and a new one begun"
        return Journal(private(path), timings), sentence


async def read_unfinished_tasks(state_dir: Path) -> list[Task]:
    """Return the state folder's unfinished tasks without changing anything there.

    There are none where the journal is missing or cannot be read: `open_journal` deals with that.
    """
    path = state_dir / JOURNAL_NAME
    try:
        path.lstat()
        journal = Journal(path, read_only=True)
    except (OSError, JournalError):
        return []
    try:
        return await journal.unfinished_tasks()
    except JournalError:
        return []
    finally:
        journal.close_file()
