"""What people ask of tasks and nodes: why one waits, pause, rerun, purge, and when it is over."""

from typing import Any

import pytest
from sqlalchemy import update

from orchestrator.db.tables import Task
from orchestrator.model import utc_now
from orchestrator.scheduling.heartbeats import UNCONFIRMED_CANCEL_FOR
from tests.orchestrator.serving import (
    PROMPTLY_S,
    Poller,
    RegisteredNode,
    RunningOrchestrator,
    ok,
    refusal,
    rows,
    wait_for,
)


def _waiting(orchestrator: RunningOrchestrator, **fields: Any) -> str:  # noqa: ANN401 - any JSON
    """Create a task; return why it waits, which its own page says as well."""
    task = orchestrator.create_task(**fields)
    assert orchestrator.task(task["id"])["waiting"] == task["waiting"]
    listed = next(one for one in orchestrator.tasks() if one["id"] == task["id"])
    assert "waiting" not in listed
    orchestrator.cancel(task["id"])
    assert "waiting" not in orchestrator.task(task["id"])
    return str(task["waiting"])


@pytest.mark.both_databases
def test_pending_task_says_which_condition_fails_for_how_many_nodes(
    orchestrator: RunningOrchestrator,
) -> None:
    assert _waiting(orchestrator) == "no node is registered"
    node = orchestrator.register("acme-1", tags={"env": "eu", "gpu": "yes"})
    orchestrator.register("acme-2", tags={"env": "us"})
    orchestrator.register("beta-1", tags={"env": "eu"})
    failing = {"target_node_name": "acme-*", "target_tags": {"env": "us", "gpu": "yes"}}
    assert _waiting(orchestrator, **failing) == (
        "none of 3 nodes matches:"
        " tag env=us fails for 2, tag gpu=yes fails for 2, target_node_name 'acme-*' fails for 1"
    )
    missing = "7d0c6c3e-5f0a-4b53-9f0e-2a4d1c8b7e61"
    sentence = f"none of 3 nodes matches: target_node_id {missing} fails for 3"
    assert _waiting(orchestrator, target_node_id=missing) == sentence
    many = {f"t{n}": "x" for n in range(9)}
    assert _waiting(orchestrator, target_tags=many).endswith("fails for 3, and 4 more conditions")
    due = _waiting(orchestrator, scheduled_for="2126-03-02T09:00:00+01:00", target_node_id=node.id)
    assert due == "it is due at 2126-03-02T08:00:00Z"
    # A key sees no more of the fleet than its patterns allow.
    key = orchestrator.create_key(allowed_node_patterns=["beta-*"])
    body = {"prompt": "p", "target_node_name": "beta-1", "target_tags": {"env": "us"}}
    task = ok(orchestrator.client(key["api_key"]).post("/tasks", json=body))
    assert task["waiting"] == "none of 1 node matches: tag env=us fails for 1"


@pytest.mark.both_databases
def test_pending_task_says_that_matching_nodes_are_busy_offline_or_paused(
    orchestrator: RunningOrchestrator,
) -> None:
    names = ("busy", "silent", "signed off", "paused", "broken", "free")
    nodes = {name: orchestrator.register(name) for name in names}
    for name, status in (("busy", "busy"), ("signed off", "offline"), ("broken", "error")):
        nodes[name].beat(status)
    orchestrator.silence(nodes["silent"])
    ok(orchestrator.admin.post(f"/nodes/{nodes['paused'].id}/pause"))
    sentence = "it waits for its turn: of 6 nodes matching, 1 is free"
    assert _waiting(orchestrator) == sentence
    ok(orchestrator.admin.delete(f"/nodes/{nodes['free'].id}"))
    assert _waiting(orchestrator) == (
        "none of 5 nodes matching is free: 1 busy, 2 offline, 1 paused, 1 with a problem"
    )
    only = {"target_node_id": nodes["paused"].id}
    assert _waiting(orchestrator, **only) == "none of 1 node matching is free: 1 paused"


@pytest.mark.parametrize(
    "name", ["a\nb", "a\x1b[2J", "a\x7f", "a\x9b", "a\u202eb", "\u2066a", "a\u2028"]
)
def test_name_with_control_or_direction_characters_is_422(
    shared: RunningOrchestrator, name: str
) -> None:
    sentence = "must not contain control characters or ones that change the text's direction"
    assert refusal(shared.try_to_register(name)) == (422, f"name {sentence}")
    response = shared.try_to_register("", hostname=f"h{name}h")
    assert refusal(response) == (422, f"hostname {sentence}")


def test_name_in_any_script_is_taken(shared: RunningOrchestrator) -> None:
    for name in ("Übersicht", "узел-1", "עברית", "節点", "a b 🚀\u200d"):
        assert ok(shared.try_to_register(name))["name"] == name


@pytest.mark.both_databases
def test_paused_node_gets_no_new_task_and_its_tasks_go_on(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    running = orchestrator.assign(node, "running")
    poller = Poller(orchestrator, node)
    for _ in range(2):
        assert ok(orchestrator.admin.post(f"/nodes/{node.id}/pause"))["paused"] is True
    task_id = orchestrator.create_task()["id"]
    other = orchestrator.register()
    wait_for(lambda: node.beat("busy", task_ids=[running])["paused"])
    assert node.poll() is None
    assert orchestrator.task(task_id)["status"] == "pending"
    assert node.report(running, "success")["status"] == "success"
    # The request that it holds does not keep the task from others.
    assert other.poll_id() == task_id
    second = orchestrator.create_task()["id"]
    assert ok(orchestrator.admin.post(f"/nodes/{node.id}/resume"))["paused"] is False
    assert poller.task_id(within_s=PROMPTLY_S) == second
    assert [one["paused"] for one in orchestrator.nodes()] == [False, False]


@pytest.mark.settings(redelivery_after_s=0)
def test_paused_node_is_offered_again_what_it_was_assigned(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id = orchestrator.assign(node)
    ok(orchestrator.admin.post(f"/nodes/{node.id}/pause"))
    assert node.poll_id() == task_id


def test_rerun_is_a_new_task_of_the_same_content(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    file = orchestrator.upload("a.txt", b"a")["filename"]
    content = {"files": [file], "priority": 3, "target_node_name": "n*", "timeout_seconds": 7}
    content |= {"target_tags": {}, "target_node_id": node.id}
    times = {"recurrence": "@yearly", "scheduled_for": orchestrator.moment()}
    task_id = orchestrator.create_task("again", **content, **times)["id"]
    url = f"/tasks/{task_id}/rerun"
    sentence = "cannot rerun the task: it is {}; wait for its end"
    assert refusal(orchestrator.admin.post(url)) == (409, sentence.format("pending"))
    assert node.poll_id() == task_id
    assert refusal(orchestrator.admin.post(url)) == (409, sentence.format("assigned"))
    node.report(task_id, "error", message="failed")
    copy = ok(orchestrator.admin.post(url))
    assert {field: copy[field] for field in content} == content
    assert (copy["prompt"], copy["rerun_of"], copy["status"]) == ("again", task_id, "pending")
    # It runs once, now: the series goes on by itself.
    assert not {"recurrence", "scheduled_for"} & set(copy)
    assert copy["waiting"] == "it waits for its turn: of 1 node matching, 1 is free"
    assert node.poll_id() == copy["id"]
    assert node.http.get(f"/files/{file}").content == b"a"
    assert orchestrator.task(task_id)["status"] == "error"


@pytest.mark.settings(key_pending_tasks=1)
def test_rerun_counts_as_a_creation_of_the_key(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    key = orchestrator.create_key()
    client = orchestrator.client(key["api_key"])
    task_id = ok(client.post("/tasks", json={"prompt": "p"}))["id"]
    assert node.poll_id() == task_id
    node.report(task_id, "success")
    assert ok(client.post(f"/tasks/{task_id}/rerun"))["created_by"] == key["key_id"]
    assert refusal(client.post(f"/tasks/{task_id}/rerun"))[0] == 429
    other = orchestrator.client(orchestrator.create_key()["api_key"])
    assert refusal(other.post(f"/tasks/{task_id}/rerun"))[0] == 404
    assert refusal(client.post(f"/tasks/{task_id}/purge"))[0] == 403


@pytest.mark.both_databases
def test_purged_task_is_gone_with_its_log_and_history(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    file = orchestrator.upload("a.txt", b"a")["filename"]
    task_id = orchestrator.assign(node, prompt="the-prompt", files=[file])
    url = f"/tasks/{task_id}/purge"
    for status in ("assigned", "running"):
        sentence = f"cannot purge the task: it is {status}; cancel it first"
        assert refusal(orchestrator.admin.post(url)) == (409, sentence)
        node.report(task_id, "running")
    node.send_log(task_id, {"title": "the-log"})
    node.report(task_id, "success", message="the-message")
    copy = ok(orchestrator.admin.post(f"/tasks/{task_id}/rerun"))
    assert ok(orchestrator.admin.post(url)) == {"status": "deleted", "task_id": task_id}
    assert refusal(orchestrator.admin.post(url))[0] == 404
    stored = orchestrator.stored()
    assert ("the-log" in stored, "the-message" in stored) == (False, False)
    # The copy has its own link to the file.
    assert node.poll_id() == copy["id"]
    assert node.http.get(f"/files/{file}").content == b"a"
    pending = orchestrator.create_task(recurrence="@yearly")["id"]
    ok(orchestrator.admin.post(f"/tasks/{pending}/purge"))
    assert [task["id"] for task in orchestrator.tasks()] == [copy["id"]]


def test_cancelled_task_shows_when_its_container_is_gone_and_is_purged_only_then(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id = orchestrator.assign(node, "running")
    url = f"/tasks/{task_id}/purge"
    assert "node_ended_at" not in orchestrator.cancel(task_id)
    assert "node_ended_at" not in orchestrator.task(task_id)
    code, sentence = refusal(orchestrator.admin.post(url))
    assert (code, "has not reported the end of its container" in sentence) == (409, True)
    node.report(task_id, "error", message="cancelled")
    shown = orchestrator.task(task_id)
    assert (shown["status"], shown["node_ended_at"] >= shown["completed_at"]) == ("cancelled", True)
    ok(orchestrator.admin.post(url))


@pytest.mark.parametrize("end", ["removed", "a day later"])
def test_task_whose_node_never_confirms_can_be_purged(
    orchestrator: RunningOrchestrator, node: RegisteredNode, end: str
) -> None:
    task_id = orchestrator.assign(node, "running")
    orchestrator.cancel(task_id)
    if end == "removed":
        ok(orchestrator.admin.delete(f"/nodes/{node.id}"))
    else:
        long_ago = utc_now() - 2 * UNCONFIRMED_CANCEL_FOR
        orchestrator.change(update(Task).values(completed_at=long_ago))
    ok(orchestrator.admin.post(f"/tasks/{task_id}/purge"))
    assert rows(orchestrator.admin.get("/tasks")) == []


@pytest.mark.both_databases
@pytest.mark.parametrize("end", ["reported", "node removed"])
def test_cleanup_keeps_a_cancelled_task_until_its_container_is_gone(
    orchestrator: RunningOrchestrator, node: RegisteredNode, end: str
) -> None:
    task_id = orchestrator.assign(node, "running")
    orchestrator.cancel(task_id)
    # However long ago: the node may come back with the container.
    long_ago = utc_now() - 2 * UNCONFIRMED_CANCEL_FOR
    orchestrator.change(update(Task).values(completed_at=long_ago))
    orchestrator.assign(node, "success")
    assert ok(orchestrator.admin.post("/tasks/cleanup?days=0")) == {"deleted_count": 1}
    assert [task["id"] for task in orchestrator.tasks()] == [task_id]
    if end == "reported":
        node.report(task_id, "error", message="cancelled")
    else:
        ok(orchestrator.admin.delete(f"/nodes/{node.id}"))
    assert ok(orchestrator.admin.post("/tasks/cleanup?days=0")) == {"deleted_count": 1}


def test_pause_rerun_and_purge_are_in_the_audit(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id = orchestrator.assign(node, "success")
    calls = [("nodes:pause", f"/nodes/{node.id}/{word}") for word in ("pause", "resume")]
    calls += [
        ("tasks:create", f"/tasks/{task_id}/rerun"),
        ("tasks:purge", f"/tasks/{task_id}/purge"),
    ]
    for _, path in calls:
        ok(orchestrator.admin.post(path))
    entries = [(one["action"], one["detail"]) for one in orchestrator.audit(key_id="admin")]
    assert entries[-5:-1] == [(action, f"POST {path}") for action, path in calls]
