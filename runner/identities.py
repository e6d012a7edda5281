"""Who this runner is to its orchestrators: a part of the journal.

A task is spoken for under the identity that took it on while that holds, else under the newest at
the same orchestrator: no other is ever shown a key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from runner.api import Identity
from runner.journal_file import JournalFile, in_writer_thread
from runner.settings import Secret
from runner.states import TaskState

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


class Identities(JournalFile):
    """The table of identities."""

    @in_writer_thread
    def identity(self, orchestrator_url: str, node: Mapping[str, object]) -> Identity | None:
        """Give the identity under which this very node was registered there, if it still holds."""
        row = self.connection.execute(
            "SELECT node_id, api_key FROM identities"
            " WHERE orchestrator_url = ? AND node = ? AND NOT refused ORDER BY id DESC LIMIT 1",
            (orchestrator_url, _canonical(node)),
        ).fetchone()
        return Identity(row["node_id"], Secret(row["api_key"])) if row else None

    @in_writer_thread
    def store_identity(
        self, identity: Identity, orchestrator_url: str, node: Mapping[str, object], now: float
    ) -> None:
        """Keep who the orchestrator says we are."""
        self.connection.execute(
            "INSERT INTO identities (node_id, api_key, orchestrator_url, node, registered_at)"
            " VALUES (?, ?, ?, ?, ?)",
            (identity.node_id, identity.api_key.reveal(), orchestrator_url, _canonical(node), now),
        )

    @in_writer_thread
    def refuse_identity(self, identity: Identity) -> None:
        """Note that the orchestrator no longer knows this identity's key."""
        self.connection.execute(
            "UPDATE identities SET refused = 1 WHERE api_key = ?", (identity.api_key.reveal(),)
        )

    @in_writer_thread
    def identity_for(self, task_id: str) -> Identity:
        """Give the identity that took the task on, or what stands for it now (see above)."""
        row = self.connection.execute(
            f"SELECT speaker.* FROM tasks {SPEAKER} WHERE task_id = ?",  # noqa: S608 - our own text
            (task_id,),
        ).fetchone()
        return Identity(row["node_id"], Secret(row["api_key"]))

    @in_writer_thread
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
