"""Creating, listing and cancelling tasks."""

import json
import uuid

import pytest

from orchestrator.schemas.bodies import ADMIN_CREATOR, NewTask
from tests.orchestrator.serving import RegisteredNode, RunningOrchestrator, ok, refusal, rows


@pytest.mark.parametrize("timeout", [{}, {"timeout_seconds": None}])
def test_task_is_created_pending_with_defaults(
    shared: RunningOrchestrator, timeout: dict[str, None]
) -> None:
    task = shared.create_task("Analyze data", target_node_name="nobody", **timeout)
    assert str(uuid.UUID(task["id"])) == task["id"]
    assert (task["status"], task["priority"], task["timeout_seconds"]) == ("pending", 0, 3600)
    assert (task["files"], task["created_by"]) == ([], ADMIN_CREATOR)
    shown = shared.task(task["id"])
    assert [entry["status"] for entry in shown.pop("history")] == ["pending"]
    assert shown == task


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", ""),
        ("prompt", " \n"),
        ("prompt", None),
        ("prompt", "\ud800"),
        ("prompt", "zero \0"),
        ("timeout_seconds", 0),
        ("timeout_seconds", 2**40),
        ("priority", "high"),
        ("priority", 2**40),
        ("target_tags", {"env": 1}),
        ("files", ["never-uploaded"]),
        ("files", ["twice", "twice"]),
        ("scheduled_for", "soon"),
        ("scheduled_for", "0001-01-01T00:00:00+14:00"),
        ("recurrence", "* * * *"),
        ("recurrence", "61 * * * *"),
        ("recurrence", "daily"),
        ("target_node_id", "not a UUID, so no node's"),
    ],
)
def test_invalid_task_is_422_and_names_the_field(
    shared: RunningOrchestrator, field: str, value: object
) -> None:
    before, body = len(shared.tasks()), json.dumps({"prompt": "p", field: value})
    headers = {"Content-Type": "application/json"}
    code, sentence = refusal(shared.admin.post("/tasks", content=body, headers=headers))
    assert code == 422
    assert sentence.startswith(field)
    assert len(shared.tasks()) == before


def test_fields_that_are_not_declared_are_ignored_and_null_is_as_if_left_out(
    shared: RunningOrchestrator,
) -> None:
    required = {"id", "prompt", "priority", "timeout_seconds", "status", "created_at"}
    body = {**dict.fromkeys(NewTask.model_fields), "prompt": "do it", "further": 1}
    task = ok(shared.admin.post("/tasks", json=body))
    assert set(task) == required | {"created_by", "files"}


@pytest.mark.both_databases
def test_list_is_filtered_by_status_and_newest_first(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    first, second = orchestrator.assign(node), orchestrator.create_task()["id"]
    for status, expected in (
        ("", [second, first]),
        ("assigned", [first]),
        ("pending", [second]),
        ("success", []),
    ):
        listed = rows(orchestrator.admin.get("/tasks", params={"status_filter": status}))
        assert [task["id"] for task in listed] == expected
    response = orchestrator.admin.get("/tasks", params={"status_filter": "nonsense"})
    assert refusal(response)[0] == 422


def test_cancelling_an_unknown_task_is_404(shared: RunningOrchestrator) -> None:
    assert refusal(shared.admin.delete("/tasks/nothing"))[0] == 404


@pytest.mark.both_databases
@pytest.mark.parametrize("reports", [(), ("running",), ("analyzing",)])
def test_node_learns_of_a_cancelled_task_until_it_confirms(
    orchestrator: RunningOrchestrator, node: RegisteredNode, reports: tuple[str, ...]
) -> None:
    other, task_id = orchestrator.register("other"), orchestrator.assign(node, *reports)
    orchestrator.cancel(task_id)
    assert node.beat()["cancelled_task_ids"] == [task_id]
    assert other.beat(current_task_id=task_id)["cancelled_task_ids"] == []
    assert node.report(task_id, "running")["status"] == "cancelled"
    assert node.beat()["cancelled_task_ids"] == [task_id]
    assert node.report(task_id, "error", message="cancelled")["status"] == "cancelled"
    assert node.beat()["cancelled_task_ids"] == []
    # A node that still has it learns of it again.
    for field in ({"current_task_id": task_id}, {"task_ids": [task_id]}):
        assert node.beat("busy", **field)["cancelled_task_ids"] == [task_id]
    assert orchestrator.task(task_id)["status"] == "cancelled"


@pytest.mark.both_databases
def test_statistics_count_nodes_and_tasks(orchestrator: RunningOrchestrator) -> None:
    idle, busy, silent, gone = (orchestrator.register(name) for name in "abcd")
    for node, status in ((idle, "idle"), (busy, "busy"), (silent, "idle"), (gone, "offline")):
        node.beat(status)
    orchestrator.silence(silent)
    for status in ("success", "error", "running"):
        orchestrator.assign(busy, status)
    orchestrator.create_task()
    orchestrator.cancel(orchestrator.create_task()["id"])
    assert ok(orchestrator.admin.get("/dashboard/stats")) == {
        "total_nodes": 4,
        "active_nodes": 2,
        "idle_nodes": 1,
        "offline_nodes": 2,
        "pending_tasks": 1,
        "running_tasks": 1,
        "completed_tasks_today": 1,
        "failed_tasks_today": 1,
    }
