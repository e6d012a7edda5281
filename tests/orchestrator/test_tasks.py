"""Creating, listing, showing and cancelling tasks."""

import json
import uuid

import pytest

from orchestrator.schemas.bodies import ADMIN_CREATOR, NewTask
from tests.orchestrator.serving import RegisteredNode, RunningOrchestrator, ok, refusal, rows

TASK_FIELDS = {
    "id",
    "prompt",
    "priority",
    "timeout_seconds",
    "status",
    "created_at",
    "created_by",
    "files",
}


def test_task_is_created_pending_with_defaults(orchestrator: RunningOrchestrator) -> None:
    task = orchestrator.create_task("Analyze data")
    assert set(task) == TASK_FIELDS
    assert task["created_by"] == ADMIN_CREATOR
    assert str(uuid.UUID(task["id"])) == task["id"]
    assert (task["status"], task["priority"], task["timeout_seconds"]) == ("pending", 0, 3600)
    assert task["files"] == []
    shown = orchestrator.task(task["id"])
    assert [entry["status"] for entry in shown.pop("history")] == ["pending"]
    assert shown == task


def test_fields_that_are_not_declared_are_ignored_and_null_is_as_if_left_out(
    orchestrator: RunningOrchestrator,
) -> None:
    body = {**dict.fromkeys(NewTask.model_fields), "prompt": "do it", "further": 1}
    assert set(ok(orchestrator.admin.post("/tasks", json=body))) == TASK_FIELDS


def test_null_timeout_means_the_default(orchestrator: RunningOrchestrator) -> None:
    assert orchestrator.create_task(timeout_seconds=None)["timeout_seconds"] == 3600


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", ""),
        ("prompt", " \n"),
        ("prompt", None),
        ("prompt", "\ud800"),
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
        ("prompt", "zero \0"),
        ("target_node_id", "not a UUID, so no node's"),
    ],
)
def test_invalid_task_is_422_and_names_the_field(
    orchestrator: RunningOrchestrator, field: str, value: object
) -> None:
    body = json.dumps({"prompt": "p", field: value})
    headers = {"Content-Type": "application/json"}
    code, sentence = refusal(orchestrator.admin.post("/tasks", content=body, headers=headers))
    assert code == 422
    assert sentence.startswith(field)
    assert orchestrator.tasks() == []


def test_list_is_filtered_by_status(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    first, second = orchestrator.create_task("one"), orchestrator.create_task("two")
    node.poll()

    def listed(status: str) -> list[str]:
        found = rows(orchestrator.admin.get("/tasks", params={"status_filter": status}))
        return [task["id"] for task in found]

    assert listed("") == [second["id"], first["id"]]
    assert listed("assigned") == [first["id"]]
    assert listed("pending") == [second["id"]]
    assert listed("success") == []
    response = orchestrator.admin.get("/tasks", params={"status_filter": "nonsense"})
    assert refusal(response)[0] == 422


def test_unknown_task_is_404(orchestrator: RunningOrchestrator) -> None:
    for response in (
        orchestrator.admin.get("/tasks/nothing"),
        orchestrator.admin.delete("/tasks/nothing"),
        orchestrator.admin.get("/logs/nothing"),
    ):
        assert refusal(response)[0] == 404


def test_pending_task_is_cancelled_and_never_assigned(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task = orchestrator.create_task()
    cancelled = orchestrator.cancel(task["id"])
    assert cancelled["status"] == "cancelled"
    assert cancelled["completed_at"] is not None
    assert node.poll() is None
    assert node.beat()["cancelled_task_ids"] == []


@pytest.mark.parametrize("status", [None, "running", "analyzing"])
def test_node_learns_of_a_cancelled_task_until_it_confirms(
    orchestrator: RunningOrchestrator, node: RegisteredNode, status: str | None
) -> None:
    task = orchestrator.create_task()
    node.poll()
    if status:
        node.report(task["id"], status)
    orchestrator.cancel(task["id"])
    assert node.beat()["cancelled_task_ids"] == [task["id"]]
    assert node.report(task["id"], "running")["status"] == "cancelled"
    assert node.beat()["cancelled_task_ids"] == [task["id"]]
    assert node.report(task["id"], "error", message="cancelled")["status"] == "cancelled"
    assert node.beat()["cancelled_task_ids"] == []
    assert orchestrator.task(task["id"])["status"] == "cancelled"


@pytest.mark.parametrize("field", ["current_task_id", "task_ids"])
def test_node_that_still_claims_a_cancelled_task_is_told_again(
    orchestrator: RunningOrchestrator, node: RegisteredNode, field: str
) -> None:
    task = orchestrator.create_task()
    node.poll()
    orchestrator.cancel(task["id"])
    node.report(task["id"], "error")
    claim = task["id"] if field == "current_task_id" else [task["id"]]
    assert node.beat("busy", **{field: claim})["cancelled_task_ids"] == [task["id"]]


def test_other_nodes_hear_nothing_of_a_cancelled_task(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task = orchestrator.create_task()
    node.poll()
    orchestrator.cancel(task["id"])
    assert orchestrator.register().beat(current_task_id=task["id"])["cancelled_task_ids"] == []


@pytest.mark.parametrize("status", ["success", "error", "cancelled"])
def test_task_that_has_ended_cannot_be_cancelled(
    orchestrator: RunningOrchestrator, node: RegisteredNode, status: str
) -> None:
    task = orchestrator.create_task()
    node.poll()
    if status == "cancelled":
        orchestrator.cancel(task["id"])
    else:
        node.report(task["id"], status)
    code, sentence = refusal(orchestrator.admin.delete(f"/tasks/{task['id']}"))
    assert code == 409
    assert status in sentence
    assert ok(orchestrator.admin.get(f"/tasks/{task['id']}"))["status"] == status
