"""What becomes of the tasks of nodes that fall silent, and of those that nodes have lost."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import update

from orchestrator.db.tables import Task
from tests.orchestrator.serving import (
    DEADLINE_S,
    Json,
    RegisteredNode,
    RunningOrchestrator,
    serve,
    wait_for,
)


@pytest.fixture
def orchestrator(tmp_path: Path, database_url: str | None) -> Iterator[RunningOrchestrator]:
    """Serve with a busy sweeper."""
    with serve(tmp_path, database_url=database_url, sweep_every_s=0.1) as running:
        yield running


def _running(orchestrator: RunningOrchestrator, node: RegisteredNode) -> Json:
    task = orchestrator.create_task()
    node.poll()
    node.report(task["id"], "running")
    return task


def _age(orchestrator: RunningOrchestrator, task: Json, *, overdue: timedelta) -> None:
    overdue_at = datetime.now(timezone.utc) - overdue
    orchestrator.change(update(Task).where(Task.id == task["id"]).values(overdue_at=overdue_at))


WAIT_S = 25
"""Shorter than it takes until a waiting node's queue is looked at though no bell rang."""
LONG_OVER, JUST_OVER = timedelta(minutes=11), timedelta(minutes=9)


def test_unstarted_task_of_a_silent_node_returns_though_nobody_asks(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task = orchestrator.create_task()
    node.poll()
    orchestrator.silence(node)
    returned = orchestrator.wait_for_task(task["id"], "pending")
    assert returned["assigned_node_id"] is None
    assert "silent" in returned["history"][-1]["message"]


def test_returned_task_wakes_a_node_that_waits(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task = orchestrator.create_task()
    node.poll()
    orchestrator.silence(node)
    assignment = orchestrator.register("other").poll(WAIT_S)
    assert assignment is not None
    assert assignment["task_id"] == task["id"]


def test_task_whose_time_comes_wakes_a_node_that_waits(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task = orchestrator.create_task(scheduled_for=orchestrator.moment(seconds=1))
    assignment = node.poll(WAIT_S)
    assert assignment is not None
    assert assignment["task_id"] == task["id"]


def test_sweep_that_fails_is_logged_and_the_next_does_its_work(
    orchestrator: RunningOrchestrator, node: RegisteredNode, caplog: pytest.LogCaptureFixture
) -> None:
    later = orchestrator.moment(hours=1)
    task = orchestrator.create_task(target_tags={"a": "b"}, scheduled_for=later)
    own = update(Task).where(Task.id == task["id"])
    with ThreadPoolExecutor(max_workers=1) as pool:
        answer = pool.submit(node.poll, WAIT_S)
        wait_for(lambda: orchestrator.waiting_count == 1)
        # Nothing of ours writes this, and nothing of ours can read it. Its time comes after that.
        due = datetime.now(timezone.utc) + timedelta(seconds=5)
        orchestrator.change(own.values(target_tags=["no", "pairs"], scheduled_for=due))
        wait_for(lambda: "a sweep failed" in caplog.text)
        assert "AttributeError" in caplog.text
        orchestrator.change(own.values(target_tags={}))
        assignment = answer.result(DEADLINE_S)
    assert assignment is not None
    assert assignment["task_id"] == task["id"]


def test_running_task_of_a_silent_node_is_lost_after_limit_and_grace(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task = _running(orchestrator, node)
    orchestrator.silence(node)
    _age(orchestrator, task, overdue=LONG_OVER)
    lost = orchestrator.wait_for_task(task["id"], "error")
    assert lost["error_message"] == "lost: its node fell silent, and its time limit is long over"
    assert lost["completed_at"] > lost["started_at"]
    assert node.report(task["id"], "success")["status"] == "error"


def test_running_task_that_its_node_has_no_more_is_lost_after_limit_and_grace(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task = _running(orchestrator, node)
    node.beat("idle")
    _age(orchestrator, task, overdue=LONG_OVER)
    lost = orchestrator.wait_for_task(task["id"], "error")
    reason = "its node no longer has it, and its time limit is long over"
    assert lost["error_message"] == f"lost: {reason}"


def _see_the_sweeper_pass(orchestrator: RunningOrchestrator, node: RegisteredNode) -> None:
    other = _running(orchestrator, node)
    _age(orchestrator, other, overdue=LONG_OVER)
    orchestrator.wait_for_task(other["id"], "error")


@pytest.mark.parametrize("field", ["current_task_id", "task_ids"])
def test_running_task_that_its_node_has_in_hand_is_not_lost(
    orchestrator: RunningOrchestrator, node: RegisteredNode, field: str
) -> None:
    task = _running(orchestrator, node)
    node.beat("busy", **{field: task["id"] if field == "current_task_id" else [task["id"]]})
    _age(orchestrator, task, overdue=LONG_OVER)
    _see_the_sweeper_pass(orchestrator, orchestrator.register("other"))
    assert orchestrator.task(task["id"])["status"] == "running"


def test_running_task_of_a_silent_node_is_kept_until_limit_and_grace_are_over(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task = _running(orchestrator, node)
    orchestrator.silence(node)
    _age(orchestrator, task, overdue=JUST_OVER)
    _see_the_sweeper_pass(orchestrator, orchestrator.register("other"))
    assert orchestrator.nodes()[0]["status"] == "offline"
    assert node.report(task["id"], "success")["status"] == "success"
