"""Which task a node is assigned, when it is offered again, and that no two nodes get one task."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.orchestrator.serving import Json, RegisteredNode, RunningOrchestrator


@pytest.mark.settings(public_url="https://quarterback.example.com/")
def test_assignment_carries_the_public_url_if_one_is_set(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    orchestrator.create_task()
    assignment = node.poll()
    assert assignment is not None
    assert assignment["orchestrator_url"] == "https://quarterback.example.com"


@pytest.mark.both_databases
def test_hundred_concurrent_claims_take_each_task_once(orchestrator: RunningOrchestrator) -> None:
    nodes = [orchestrator.register(f"node-{number}") for number in range(10)] * 10
    created = {orchestrator.create_task()["id"] for _ in range(100)}
    with ThreadPoolExecutor(max_workers=20) as pool:
        claimed = list(pool.map(RegisteredNode.poll_id, nodes))
    assert Counter(claimed) == Counter(created)
    holders = {task["id"]: task["assigned_node_id"] for task in orchestrator.tasks()}
    assert holders == {task_id: node.id for task_id, node in zip(claimed, nodes, strict=True)}


@pytest.mark.both_databases
@pytest.mark.settings(redelivery_after_s=0)
def test_unreported_assignment_is_offered_again_to_its_node_alone(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id = orchestrator.create_task()["id"]
    assert [node.poll_id() for _ in range(3)] == [task_id] * 3
    assert orchestrator.register().poll() is None
    node.report(task_id, "running")
    assert node.poll() is None
    steps = [entry["status"] for entry in orchestrator.task(task_id)["history"]]
    assert steps == ["pending", "assigned", "running"]


def test_assignment_just_offered_is_not_offered_again_yet(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    orchestrator.assign(node)
    assert node.poll() is None


@pytest.mark.both_databases
@pytest.mark.settings(redelivery_after_s=0)
@pytest.mark.parametrize("heartbeat", ["none", "with the task", "without the task"])
def test_new_task_goes_first_unless_a_heartbeat_shows_that_the_old_one_is_lost(
    orchestrator: RunningOrchestrator, node: RegisteredNode, heartbeat: str
) -> None:
    old = orchestrator.assign(node)
    new = orchestrator.create_task()["id"]
    if heartbeat == "with the task":
        node.beat("busy", current_task_id=old)
    elif heartbeat == "without the task":
        node.beat()
    assert node.poll_id() == (old if heartbeat == "without the task" else new)


@pytest.mark.both_databases
@pytest.mark.settings(redelivery_after_s=0)
def test_restarted_server_knows_its_nodes_tasks_and_files(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    file = orchestrator.upload("a.txt", b"content")["filename"]
    running = orchestrator.assign(node, "running", files=[file])
    unreported = orchestrator.assign(node)
    waiting: Json = orchestrator.create_task("later")
    url = orchestrator.url
    orchestrator.restart()
    assert orchestrator.url == url
    assert node.http.get(f"/files/{file}").content == b"content"
    assert [node.poll_id() for _ in range(2)] == [waiting["id"], unreported]
    assert node.report(running, "success")["status"] == "success"
