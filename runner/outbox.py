"""What this runner still has to say: a part of the journal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from runner.identities import SPEAKER
from runner.journal_file import JournalFile, in_writer_thread
from runner.records import Letter, Report, body_in, letter_in


class Outbox(JournalFile):
    """The table of reports that are not delivered."""

    @in_writer_thread
    def letters(self) -> list[Letter]:
        """Give what is in the outbox, parked or not, in the order in which it was put there.

        A letter goes out under the identity that took the task on while that holds, else under
        the newest at the same orchestrator: no other is ever shown a key.
        """
        # The + has SQLite read the index, and none of the bodies.
        rows = self.connection.execute(
            "SELECT outbox.id, outbox.task_id, path, created_at, attempts, next_attempt_at, parked,"  # noqa: S608 - our own text
            " speaker.node_id, speaker.api_key, speaker.orchestrator_url"
            f" FROM outbox JOIN tasks USING (task_id) {SPEAKER} ORDER BY +outbox.id"
        )
        return [letter_in(row) for row in rows]

    @in_writer_thread
    def body(self, row: int) -> Mapping[str, object] | None:
        """Give what a letter says; None if it is no longer there, or damaged."""
        found = self.connection.execute("SELECT body FROM outbox WHERE id = ?", (row,)).fetchone()
        return body_in(found["body"]) if found is not None else None

    @in_writer_thread
    def delivered(self, row: int) -> None:
        """Take a letter out: the orchestrator has it, and so may take what waits of the same task.

        The failures of that are counted anew: those of an outage say nothing against it.
        """
        self.connection.execute(
            "UPDATE outbox SET attempts = 0, next_attempt_at = 0"
            " WHERE task_id = (SELECT task_id FROM outbox WHERE id = ?) AND parked IS NULL",
            (row,),
        )
        self.connection.execute("DELETE FROM outbox WHERE id = ?", (row,))

    @in_writer_thread
    def postpone(self, row: int, next_attempt_at: float) -> None:
        """Count a failed attempt and say when the next is due."""
        self.connection.execute(
            "UPDATE outbox SET attempts = attempts + 1, next_attempt_at = ? WHERE id = ?",
            (next_attempt_at, row),
        )

    @in_writer_thread
    def hurry(self) -> None:
        """Make everything due at once that has failed, and count its failures anew.

        What is parked stays so.
        """
        self.connection.execute(
            "UPDATE outbox SET attempts = 0, next_attempt_at = 0"
            " WHERE attempts > 0 AND parked IS NULL"
        )

    @in_writer_thread
    def park(self, row: int, why: str) -> None:
        """Stop trying a letter, and keep it with the reason for people to see."""
        self.connection.execute("UPDATE outbox SET parked = ? WHERE id = ?", (why, row))

    def post(self, task_id: str, reports: Iterable[Report], now: float) -> None:
        """Put reports into the outbox, within the transaction that is under way."""
        self.connection.executemany(
            "INSERT INTO outbox (task_id, path, body, created_at) VALUES (?, ?, ?, ?)",
            [(task_id, report.path, json.dumps(report.body), now) for report in reports],
        )
