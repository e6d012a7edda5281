"""Tasks: created, cancelled, counted, repeated, and deleted with all that belongs to them."""

import uuid
from pathlib import Path

import pytest

from orchestrator.schemas.bodies import ADMIN_CREATOR, NewTask
from tests.orchestrator.serving import Json, RegisteredNode, RunningOrchestrator, ok, wait_for

YEARLY = "0 0 1 1 *"


def _files(orchestrator: RunningOrchestrator) -> list[Path]:
    return list((orchestrator.settings.data_dir / "files").iterdir())


def _pending(orchestrator: RunningOrchestrator) -> list[Json]:
    return [task for task in orchestrator.tasks() if task["status"] == "pending"]


def test_task_has_defaults_and_undeclared_fields_are_ignored(shared: RunningOrchestrator) -> None:
    body = {**dict.fromkeys(NewTask.model_fields), "prompt": "do it", "further": 1}
    task = ok(shared.admin.post("/tasks", json=body))
    shown = shared.task(task["id"])
    assert [entry["status"] for entry in shown.pop("history")] == ["pending"]
    assert shown == task
    assert task.pop("waiting")
    assert task.pop("created_at")
    assert uuid.UUID(task.pop("id"))
    defaults = {"priority": 0, "timeout_seconds": 3600, "files": [], "created_by": ADMIN_CREATOR}
    assert task == {"prompt": "do it", "status": "pending", **defaults}
    assert shared.create_task(timeout_seconds=0)["timeout_seconds"] == 0


@pytest.mark.both_databases
@pytest.mark.parametrize("reports", [(), ("running",)])
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
    # A node that still has it learns of it again, a moment later.
    for field in ({"current_task_id": task_id}, {"task_ids": [task_id]}):
        wait_for(lambda: node.beat("busy", **field)["cancelled_task_ids"] == [task_id])  # noqa: B023
        node.beat("idle")
        wait_for(lambda: node.beat("idle")["cancelled_task_ids"] == [])
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
    nodes = {"total_nodes": 4, "active_nodes": 2, "idle_nodes": 1, "offline_nodes": 2}
    tasks = ("pending_tasks", "running_tasks", "completed_tasks_today", "failed_tasks_today")
    stats = ok(orchestrator.admin.get("/dashboard/stats"))
    assert stats == nodes | dict.fromkeys(tasks, 1)


def test_first_occurrence_waits_and_can_be_cancelled(orchestrator: RunningOrchestrator) -> None:
    task = orchestrator.create_task(recurrence=YEARLY)
    assert task["scheduled_for"].endswith("-01-01T00:00:00Z")
    assert orchestrator.register().poll() is None
    orchestrator.cancel(task["id"])
    assert _pending(orchestrator) == []


@pytest.mark.both_databases
@pytest.mark.parametrize("end", ["success", "error", "lost"])
def test_end_of_an_occurrence_creates_the_next(orchestrator: RunningOrchestrator, end: str) -> None:
    node = orchestrator.register()
    file = orchestrator.upload("a.txt", b"a")["filename"]
    fields = {"files": [file], "priority": 3, "target_node_name": "*", "target_tags": {}}
    times = {"recurrence": YEARLY, "scheduled_for": orchestrator.moment()}
    task = orchestrator.create_task("again", **fields, **times)
    assert node.poll_id() == task["id"]
    node.report(task["id"], "running")
    assert _pending(orchestrator) == []
    if end == "lost":
        ok(orchestrator.admin.delete(f"/nodes/{node.id}"))
    else:
        node.report(task["id"], end)
        node.report(task["id"], end)
    (following,) = _pending(orchestrator)
    assert following["scheduled_for"].endswith("-01-01T00:00:00Z")
    same = ("prompt", "files", "priority", "target_node_name", "recurrence", "created_by")
    assert [following[field] for field in same] == [task[field] for field in same]


@pytest.mark.both_databases
def test_ended_tasks_go_with_all_that_no_other_needs(orchestrator: RunningOrchestrator) -> None:
    node = orchestrator.register()
    own, unused, shared = (orchestrator.upload(name, b"content")["filename"] for name in "abc")
    ended = orchestrator.assign(node, prompt="the-ended-prompt", files=[own, shared])
    node.send_log(ended, {"title": "the-log"})
    node.report(ended, "success", message="the-message")
    waiting = orchestrator.create_task(files=[shared])["id"]
    assert ok(orchestrator.admin.post("/tasks/cleanup?days=0")) == {"deleted_count": 1}
    assert [task["id"] for task in orchestrator.tasks()] == [waiting]
    assert len(_files(orchestrator)) == 1
    stored = orchestrator.stored()
    for text in ("the-ended-prompt", "the-log", "the-message", own, unused):
        assert text not in stored
    assert node.poll_id() == waiting
    assert node.http.get(f"/files/{shared}").content == b"content"


@pytest.mark.both_databases
def test_tasks_and_files_of_a_week_are_kept_by_default(orchestrator: RunningOrchestrator) -> None:
    orchestrator.cancel(orchestrator.create_task()["id"])
    orchestrator.upload("unused.txt", b"a")
    assert ok(orchestrator.admin.post("/tasks/cleanup")) == {"deleted_count": 0}
    assert len(orchestrator.tasks()) == len(_files(orchestrator)) == 1
