"""What a runner that is gone has left in its journal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.journal.journal import open_journal
from runner.model import Assignment, EndReason, Identity, Outcome, Registration, Report
from runner.node import node_description
from runner.redaction import Secret
from runner.tasks.outcome import final_report

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.harness.host import Host

FAILED = Outcome(EndReason.FAILED, "failed: exit code 9", 9)


async def leave_ended(
    host: Host,
    *task_ids: str,
    log: Mapping[str, object] | None = None,
) -> None:
    """Leave tasks that have ended, each with its final report and, if given, its log."""
    settings = host.settings()
    journal, _ = open_journal(host.state_dir, "now")
    identity = Identity("node-1", Secret("node-key-1"))
    host.orchestrator.keys.add("node-key-1")
    now = host.clock.wall_s()
    try:
        registration = Registration(identity, node_description(settings))
        await journal.store_registration(registration, settings.orchestrator_url, now)
        for task_id in task_ids:
            await journal.accept(
                Assignment(task_id, "do it", host.orchestrator.url, 60), identity, now
            )
            reports = [final_report(task_id, FAILED, now)]
            if log is not None:
                body = {"job_id": task_id, "task_id": task_id, "session": log}
                reports.insert(0, Report("logs", body))
            await journal.end(task_id, FAILED, reports, now)
    finally:
        journal.close_file()
