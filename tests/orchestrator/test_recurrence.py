"""Repeated tasks: when the next occurrence is created, and what ends a series."""

from datetime import datetime, timedelta

import pytest

from tests.orchestrator.serving import Json, RegisteredNode, RunningOrchestrator, ok

YEARLY = "0 0 1 1 *"


def _pending(orchestrator: RunningOrchestrator) -> list[Json]:
    return [task for task in orchestrator.tasks() if task["status"] == "pending"]


def test_first_occurrence_waits_for_its_time_and_cancelling_it_ends_the_series(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task = orchestrator.create_task(recurrence=YEARLY)
    assert task["scheduled_for"].endswith("-01-01T00:00:00Z")
    assert task["recurrence"] == YEARLY
    assert node.poll() is None
    orchestrator.cancel(task["id"])
    assert _pending(orchestrator) == []


@pytest.mark.both_databases
@pytest.mark.parametrize("end", ["success", "error", "lost"])
def test_end_of_an_occurrence_creates_the_next(
    orchestrator: RunningOrchestrator, node: RegisteredNode, end: str
) -> None:
    file = orchestrator.upload("a.txt", b"a")["filename"]
    fields = {"files": [file], "priority": 3, "target_node_name": "*", "target_tags": {}}
    times = {"recurrence": YEARLY, "scheduled_for": orchestrator.moment()}
    task = orchestrator.create_task("again", **fields, **times)
    assert node.poll_id() == task["id"]
    node.report(task["id"], "running")
    assert _pending(orchestrator) == []
    if end == "lost":
        ok(orchestrator.admin.delete(f"/nodes/{node.id}"))
        assert orchestrator.task(task["id"])["status"] == "error"
    else:
        node.report(task["id"], end)
        node.report(task["id"], end)
    (following,) = _pending(orchestrator)
    assert following["id"] != task["id"]
    assert following["scheduled_for"].endswith("-01-01T00:00:00Z")
    same = ("prompt", "files", "priority", "target_node_name", "recurrence", "created_by")
    assert [following[field] for field in same] == [task[field] for field in same]


@pytest.mark.settings(sweep_every_s=0.1)
def test_occurrences_come_by_themselves(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    # Six fields: the last ones are seconds.
    task = orchestrator.create_task(recurrence="* * * * * *")
    for _ in range(2):
        task_id = node.poll_id(wait_s=60)
        assert task_id is not None
        node.report(task_id, "success")
    ends = [one for one in orchestrator.tasks() if one["status"] == "success"]
    assert len(ends) == 2
    assert task["id"] in {one["id"] for one in ends}
    moments = [datetime.fromisoformat(one["scheduled_for"].replace("Z", "+00:00")) for one in ends]
    assert moments[0] - moments[1] >= timedelta(seconds=1)
