"""Repeated tasks: when the next occurrence comes, and what ends a series."""

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from orchestrator.model import check_expression, next_time
from tests.orchestrator.serving import Json, RegisteredNode, RunningOrchestrator, ok, serve

NOW = datetime(2026, 3, 29, 0, 30, 15, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("* * * * *", "2026-03-29T00:31:00+00:00"),
        ("*/15 * * * *", "2026-03-29T00:45:00+00:00"),
        # Where clocks in Europe go forward that night: UTC has all its hours.
        ("30 1 * * *", "2026-03-29T01:30:00+00:00"),
        ("0 9 * * mon-fri", "2026-03-30T09:00:00+00:00"),
        ("0 0 29 2 *", "2028-02-29T00:00:00+00:00"),
    ],
)
def test_next_time_is_what_cron_says_in_utc(expression: str, expected: str) -> None:
    found = next_time(expression, NOW)
    assert found is not None
    assert found.isoformat() == expected


@pytest.mark.parametrize("expression", ["", "* * * *", "60 * * * *", "a b c d e", "0 0 31 2 *"])
def test_what_is_no_cron_expression_is_refused(expression: str) -> None:
    with pytest.raises(ValueError, match="cannot be read as a cron expression"):
        check_expression(expression)


def _next(orchestrator: RunningOrchestrator) -> list[Json]:
    return ok_rows(orchestrator, "pending")


def ok_rows(orchestrator: RunningOrchestrator, status: str) -> list[Json]:
    return [task for task in orchestrator.tasks() if task["status"] == status]


def test_first_occurrence_waits_for_its_time(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task = orchestrator.create_task(recurrence="0 0 1 1 *")
    assert task["scheduled_for"].endswith("-01-01T00:00:00Z")
    assert task["recurrence"] == "0 0 1 1 *"
    assert node.poll() is None


@pytest.mark.parametrize("end", ["success", "error"])
def test_end_of_an_occurrence_queues_the_next(
    orchestrator: RunningOrchestrator, node: RegisteredNode, end: str
) -> None:
    file = orchestrator.upload("a.txt", b"a")["filename"]
    task = orchestrator.create_task(
        "again",
        recurrence="0 0 1 1 *",
        scheduled_for=orchestrator.moment(),
        files=[file],
        priority=3,
        target_node_name="*",
        target_tags={},
    )
    assert node.poll() is not None
    node.report(task["id"], "running")
    assert _next(orchestrator) == []
    node.report(task["id"], end)
    node.report(task["id"], end)
    (following,) = _next(orchestrator)
    assert following["id"] != task["id"]
    assert following["scheduled_for"].endswith("-01-01T00:00:00Z")
    same = ("prompt", "files", "priority", "target_node_name", "recurrence", "created_by")
    assert [following[field] for field in same] == [task[field] for field in same]


def test_lost_occurrence_is_followed_too(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task = orchestrator.create_task(recurrence="0 0 1 1 *", scheduled_for=orchestrator.moment())
    node.poll()
    node.report(task["id"], "running")
    ok(orchestrator.admin.delete(f"/nodes/{node.id}"))
    assert orchestrator.task(task["id"])["status"] == "error"
    assert len(_next(orchestrator)) == 1


def test_cancelled_occurrence_ends_the_series(orchestrator: RunningOrchestrator) -> None:
    task = orchestrator.create_task(recurrence="0 0 1 1 *")
    orchestrator.cancel(task["id"])
    assert _next(orchestrator) == []


def test_occurrences_come_by_themselves(tmp_path: Path, database_url: str | None) -> None:
    with serve(tmp_path, database_url=database_url, sweep_every_s=0.1) as orchestrator:
        node = orchestrator.register()
        # Six fields: the last ones are seconds.
        task = orchestrator.create_task(recurrence="* * * * * *")
        for _ in range(2):
            assignment = node.poll(wait_s=60)
            assert assignment is not None
            node.report(assignment["task_id"], "success")
        ends = [one for one in orchestrator.tasks() if one["status"] == "success"]
    assert len(ends) == 2
    assert task["id"] in {one["id"] for one in ends}
    moments = [datetime.fromisoformat(one["scheduled_for"].replace("Z", "+00:00")) for one in ends]
    assert moments[0] - moments[1] >= timedelta(seconds=1)
