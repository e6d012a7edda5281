"""Which task a node gets, when it gets it again, and that no two nodes get the same one."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from tests.orchestrator.serving import (
    Json,
    RegisteredNode,
    RunningOrchestrator,
    serve,
    wait_for,
)


def _claimed(node: RegisteredNode) -> str | None:
    assignment = node.poll()
    return None if assignment is None else str(assignment["task_id"])


def test_assignment_carries_what_the_contract_says(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task = orchestrator.create_task("Analyze", timeout_seconds=7)
    assert node.poll() == {
        "task_id": task["id"],
        "prompt": "Analyze",
        "orchestrator_url": orchestrator.url,
        "timeout_seconds": 7,
        "files": [],
        "file_checksums": [],
    }
    assigned = orchestrator.task(task["id"])
    assert (assigned["status"], assigned["assigned_node_id"]) == ("assigned", node.id)


def test_assignment_carries_the_public_url_if_one_is_set(
    tmp_path: Path, database_url: str | None
) -> None:
    with serve(
        tmp_path, database_url=database_url, public_url="https://quarterback.example.com/"
    ) as orchestrator:
        orchestrator.create_task()
        assignment = orchestrator.register().poll()
    assert assignment is not None
    assert assignment["orchestrator_url"] == "https://quarterback.example.com"


def test_no_work_is_null(node: RegisteredNode) -> None:
    response = node.http.get("/tasks/pending")
    assert (response.status_code, response.text) == (200, "null")


def test_higher_priority_goes_first_and_older_within_it(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    created = [orchestrator.create_task(priority=p)["id"] for p in (0, 5, -1, 5, 0)]
    claimed = [_claimed(node) for _ in created]
    assert claimed == [created[index] for index in (1, 3, 0, 4, 2)]


def test_task_is_not_assigned_before_its_time(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    now = datetime.now(timezone.utc)
    orchestrator.create_task(scheduled_for=(now + timedelta(hours=1)).isoformat())
    due = orchestrator.create_task(scheduled_for=(now - timedelta(hours=1)).isoformat())
    assert _claimed(node) == due["id"]
    assert _claimed(node) is None


def test_hundred_concurrent_claims_take_each_task_once(orchestrator: RunningOrchestrator) -> None:
    nodes = [orchestrator.register(f"node-{number}") for number in range(10)]
    created = {orchestrator.create_task()["id"] for _ in range(100)}
    with ThreadPoolExecutor(max_workers=20) as pool:
        claimed = list(pool.map(_claimed, nodes * 10))
    assert Counter(claimed) == Counter(created)
    holders = {task["id"]: task["assigned_node_id"] for task in orchestrator.tasks()}
    expected = {task_id: node.id for task_id, node in zip(claimed, nodes * 10, strict=True)}
    assert holders == expected


def test_unreported_assignment_is_offered_again(tmp_path: Path, database_url: str | None) -> None:
    with serve(tmp_path, database_url=database_url, redelivery_after_s=0) as orchestrator:
        node = orchestrator.register()
        task = orchestrator.create_task()
        assert [_claimed(node) for _ in range(3)] == [task["id"]] * 3
        node.report(task["id"], "running")
        assert _claimed(node) is None
        statuses = [entry["status"] for entry in orchestrator.task(task["id"])["history"]]
        assert statuses == ["pending", "assigned", "running"]


def test_unreported_assignment_is_offered_to_its_node_alone(
    tmp_path: Path, database_url: str | None
) -> None:
    with serve(tmp_path, database_url=database_url, redelivery_after_s=0) as orchestrator:
        node = orchestrator.register()
        orchestrator.create_task()
        node.poll()
        assert orchestrator.register().poll() is None


def test_assignment_just_offered_is_not_offered_again_yet(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    orchestrator.create_task()
    assert node.poll() is not None
    assert node.poll() is None


def test_new_work_goes_before_redelivery(tmp_path: Path, database_url: str | None) -> None:
    with serve(tmp_path, database_url=database_url, redelivery_after_s=0) as orchestrator:
        node = orchestrator.register()
        first, second = orchestrator.create_task(), orchestrator.create_task()
        assert [_claimed(node) for _ in range(3)] == [first["id"], second["id"], first["id"]]


def test_assignment_that_a_later_heartbeat_lacks_goes_before_new_work(
    tmp_path: Path, database_url: str | None
) -> None:
    with serve(tmp_path, database_url=database_url, redelivery_after_s=0) as orchestrator:
        node = orchestrator.register()
        lost = orchestrator.create_task()
        node.poll()
        orchestrator.create_task()
        node.beat()
        assert _claimed(node) == lost["id"]


def test_assignment_that_a_later_heartbeat_has_goes_after_new_work(
    tmp_path: Path, database_url: str | None
) -> None:
    with serve(tmp_path, database_url=database_url, redelivery_after_s=0) as orchestrator:
        node = orchestrator.register()
        held = orchestrator.create_task()
        node.poll()
        new = orchestrator.create_task()
        node.beat("busy", current_task_id=held["id"])
        assert _claimed(node) == new["id"]


def test_unstarted_task_of_a_silent_node_goes_to_another(
    orchestrator: RunningOrchestrator,
) -> None:
    silent, other = orchestrator.register("silent"), orchestrator.register("other")
    task = orchestrator.create_task()
    assert _claimed(silent) == task["id"]
    orchestrator.silence(silent)
    assert wait_for(lambda: _claimed(other)) == task["id"]
    assert orchestrator.task(task["id"])["assigned_node_id"] == other.id
    body = {"task_id": task["id"], "status": "running"}
    assert silent.http.post("/status", json=body).status_code == 403


def test_started_task_of_a_silent_node_stays_with_it(orchestrator: RunningOrchestrator) -> None:
    silent, other = orchestrator.register("silent"), orchestrator.register("other")
    started = orchestrator.create_task()
    silent.poll()
    silent.report(started["id"], "running")
    unstarted = orchestrator.create_task()
    silent.poll()
    orchestrator.silence(silent)
    assert wait_for(lambda: _claimed(other)) == unstarted["id"]
    assert orchestrator.task(started["id"])["status"] == "running"


@pytest.mark.parametrize("reported", [None, "running"])
def test_restarted_server_knows_its_nodes_tasks_and_files(
    tmp_path: Path, database_url: str | None, reported: str | None
) -> None:
    with serve(tmp_path, database_url=database_url, redelivery_after_s=0) as orchestrator:
        node = orchestrator.register()
        file = orchestrator.upload("a.txt", b"content")
        held = orchestrator.create_task(files=[file["filename"]])
        node.poll()
        if reported:
            node.report(held["id"], reported)
        waiting: Json = orchestrator.create_task("later")
        url = orchestrator.url
        orchestrator.restart()
        assert orchestrator.url == url
        assert node.http.get(f"/files/{file['filename']}").content == b"content"
        assert _claimed(node) == waiting["id"]
        assert _claimed(node) == (waiting["id"] if reported else held["id"])
        assert node.report(held["id"], "success")["status"] == "success"
