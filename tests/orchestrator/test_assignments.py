"""Which task a node is assigned, when it is offered again, and when another node gets it."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone

import pytest
from sqlalchemy import update

from orchestrator.db.tables import Task
from tests.orchestrator.serving import (
    PROMPTLY_S,
    Poller,
    RegisteredNode,
    RunningOrchestrator,
    ok,
    wait_for,
)

pytestmark = [pytest.mark.both_databases, pytest.mark.settings(sweep_every_s=0.1)]

LONG_OVER, JUST_OVER = timedelta(minutes=11), timedelta(minutes=9)


def _change(orchestrator: RunningOrchestrator, task_id: str, **values: object) -> None:
    orchestrator.change(update(Task).where(Task.id == task_id).values(**values))


def _age(orchestrator: RunningOrchestrator, task_id: str, overdue: timedelta) -> None:
    _change(orchestrator, task_id, overdue_at=datetime.now(timezone.utc) - overdue)


@pytest.mark.settings(public_url="https://quarterback.example.com/")
def test_assignment_carries_the_public_url(orchestrator: RunningOrchestrator) -> None:
    orchestrator.create_task()
    assignment = orchestrator.register().poll() or {}
    assert assignment["orchestrator_url"] == "https://quarterback.example.com"


def test_hundred_claims_at_once_take_each_task_once(orchestrator: RunningOrchestrator) -> None:
    nodes = [orchestrator.register(f"node-{number}") for number in range(10)] * 10
    created = {orchestrator.create_task()["id"] for _ in range(100)}
    with ThreadPoolExecutor(max_workers=20) as pool:
        claimed = list(pool.map(RegisteredNode.poll_id, nodes))
    assert Counter(claimed) == Counter(created)
    holders = {task["id"]: task["assigned_node_id"] for task in orchestrator.tasks()}
    assert holders == {task_id: node.id for task_id, node in zip(claimed, nodes, strict=True)}


@pytest.mark.settings(redelivery_after_s=0)
@pytest.mark.parametrize("is_held", [True, False])
def test_new_task_goes_first_unless_a_heartbeat_shows_that_the_old_one_is_lost(
    orchestrator: RunningOrchestrator, node: RegisteredNode, *, is_held: bool
) -> None:
    old = orchestrator.assign(node)
    new = orchestrator.create_task()["id"]
    node.beat("busy", current_task_id=old if is_held else None)
    assert node.poll_id() == (new if is_held else old)


@pytest.mark.settings(redelivery_after_s=0)
def test_restarted_server_knows_nodes_tasks_and_files(orchestrator: RunningOrchestrator) -> None:
    node, file = orchestrator.register(), orchestrator.upload("a.txt", b"content")["filename"]
    running = orchestrator.assign(node, "running", files=[file])
    unreported = orchestrator.assign(node)
    waiting = orchestrator.create_task()["id"]
    orchestrator.restart()
    assert node.http.get(f"/files/{file}").content == b"content"
    assert [node.poll_id() for _ in range(2)] == [waiting, unreported]
    steps = [entry["status"] for entry in orchestrator.task(unreported)["history"]]
    assert steps == ["pending", "assigned"]
    assert node.report(running, "success")["status"] == "success"


def test_task_whose_time_comes_ends_the_wait(orchestrator: RunningOrchestrator) -> None:
    task_id = orchestrator.create_task(scheduled_for=orchestrator.moment(seconds=1))["id"]
    assert orchestrator.register().poll_id(PROMPTLY_S) == task_id


def test_unstarted_task_of_a_silent_node_goes_to_one_that_waits_and_a_started_one_stays(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    started, unstarted = orchestrator.assign(node, "running"), orchestrator.create_task()["id"]
    assert node.poll_id() == unstarted
    other = orchestrator.register("other")
    poller = Poller(orchestrator, other)
    orchestrator.silence(node)
    assert poller.task_id(within_s=PROMPTLY_S) == unstarted
    returned = orchestrator.task(unstarted)
    assert returned["assigned_node_id"] == other.id
    put_back = returned["history"][-2]
    assert (put_back["status"], "silent" in put_back["message"]) == ("pending", True)
    body = {"task_id": unstarted, "status": "running"}
    assert node.http.post("/status", json=body).status_code == 403
    assert orchestrator.task(started)["status"] == "running"


@pytest.mark.parametrize(
    ("is_silent", "reason"),
    [(True, "its node fell silent"), (False, "its node no longer has it")],
)
def test_running_task_without_its_node_is_lost_after_limit_and_grace(
    orchestrator: RunningOrchestrator, node: RegisteredNode, *, is_silent: bool, reason: str
) -> None:
    task_id = orchestrator.assign(node, "running")
    if is_silent:
        orchestrator.silence(node)
    _age(orchestrator, task_id, LONG_OVER)
    lost = orchestrator.wait_for_task(task_id, "error")
    assert lost["error_message"] == f"lost: {reason}, and its time limit is long over"
    assert lost["completed_at"] > lost["started_at"]
    assert node.report(task_id, "success")["status"] == "error"


@pytest.mark.parametrize("reason", ["current_task_id", "task_ids", "just over"])
def test_running_task_is_not_lost_while_its_node_has_it_or_within_the_grace(
    orchestrator: RunningOrchestrator, node: RegisteredNode, reason: str
) -> None:
    task_id = orchestrator.assign(node, "running")
    if reason == "just over":
        orchestrator.silence(node)
        _age(orchestrator, task_id, JUST_OVER)
    else:
        node.beat("busy", **{reason: task_id if reason == "current_task_id" else [task_id]})
        _age(orchestrator, task_id, LONG_OVER)
    # A sweep has passed once another task is lost.
    swept = orchestrator.assign(orchestrator.register("other"), "running")
    _age(orchestrator, swept, LONG_OVER)
    orchestrator.wait_for_task(swept, "error")
    assert orchestrator.task(task_id)["status"] == "running"
    assert node.report(task_id, "success")["status"] == "success"


def test_removed_node_returns_unstarted_and_loses_others(orchestrator: RunningOrchestrator) -> None:
    node = orchestrator.register()
    started, unstarted = orchestrator.assign(node, "running"), orchestrator.create_task()["id"]
    assert node.poll_id() == unstarted
    assert node.poll() is None  # what has just been offered is not offered again
    response = ok(orchestrator.admin.delete(f"/nodes/{node.id}"))
    assert response == {"status": "deleted", "node_id": node.id}
    lost = orchestrator.task(started)
    assert (lost["status"], lost["error_message"][:6]) == ("error", "lost: ")
    assert orchestrator.register("next").poll_id() == unstarted


def test_sweep_that_fails_is_logged_and_the_next_does_its_work(
    orchestrator: RunningOrchestrator, node: RegisteredNode, caplog: pytest.LogCaptureFixture
) -> None:
    later = orchestrator.moment(hours=1)
    task_id = orchestrator.create_task(target_tags={"a": "b"}, scheduled_for=later)["id"]
    poller = Poller(orchestrator, node)
    # The orchestrator writes nothing like this, and cannot read it. The task is due after that.
    due = datetime.now(timezone.utc) + timedelta(seconds=2)
    _change(orchestrator, task_id, target_tags=["no", "pairs"], scheduled_for=due)
    caplog.set_level("INFO", "orchestrator")
    wait_for(lambda: "a sweep failed" in caplog.text)
    assert "AttributeError" in caplog.text
    _change(orchestrator, task_id, target_tags={})
    wait_for(lambda: "sweeps succeed again" in caplog.text)
    assert caplog.text.count("a sweep failed") == 1, "however many did"
    assert poller.task_id() == task_id
