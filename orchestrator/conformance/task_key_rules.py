"""Rules about the keys of tasks (extension `task-key`), and about rotated keys of nodes."""

import time
from collections.abc import Callable
from dataclasses import replace

import httpx

from orchestrator.conformance.expect import (
    Absent,
    Broken,
    expect_accepted,
    expect_equal,
    expect_fields,
    expect_refusal,
    fields_of,
)
from orchestrator.conformance.node_rules import require_extension
from orchestrator.conformance.runner_rules import path_of_file
from orchestrator.conformance.target import Held, Rule, Target

_POLL_INTERVAL_S = 0.1


def task_key(target: Target) -> None:
    """A task's key sends its statuses and its log, and no log is replaced after the end."""
    _, by_task = _hold(target)
    for status in ("running", "success"):
        expect_accepted(f"the status {status}", by_task.report(status))
    expect_accepted("the log after the end", by_task.send_log("first"))
    by_task.send_log("second")
    title = fields_of(target.admin.get(f"/logs/{by_task.task_id}")).get("title")
    expect_equal("the log's title, once another was sent", title, "first")


def task_key_does_no_more(target: Target) -> None:
    """A task's key cannot take work, send heartbeats, get files or report on another task."""
    held, by_task = _hold(target, with_file=True)
    other = target.assign(target.register())
    other_by_task = Held(by_task.node, other.assignment)
    target.require_no_foreign_work(held.node)
    responses = {
        "POST /nodes/heartbeat": by_task.node.heartbeat(),
        "GET /tasks/pending": by_task.node.http.get("/tasks/pending"),
        "GET /files": by_task.node.http.get(path_of_file(held.assignment["files"][0])),
        "POST /status of another task": other_by_task.report("running"),
        "POST /logs of another task": other_by_task.send_log("forged"),
        "GET /tasks": by_task.node.http.get("/tasks"),
    }
    for call, response in responses.items():
        expect_refusal(f"{call} with it", response, 401, 403)


def task_key_ends(target: Target) -> None:
    """A task that is assigned to another node has another key, and the first one is refused."""
    held, by_task = _hold(target)
    other = target.register(held.node.name)
    fields_of(target.admin.delete(f"/nodes/{held.node.id}"))
    expect_refusal("a status with the first key", by_task.report("running"), 401, 403)
    again = target.poll(other) or {}
    expect_equal("the task that the other node gets", again.get("task_id"), held.task_id)
    for call in (by_task.report("running"), by_task.send_log("forged")):
        expect_refusal("the first key, once the task is another node's,", call, 401, 403)
    with_second = Held(target.with_key(other, str(again.get("task_api_key"))), again)
    expect_accepted("a status with the second key", with_second.report("running"))


def rotated_node_key(target: Target) -> None:
    """A node's new key comes by heartbeat; its first use ends the old one but for older tasks."""
    node = target.register()
    held = target.assign(node)
    response = target.admin.post(f"/nodes/{node.id}/rotate-key")
    if response.status_code in {404, 405}:
        raise Absent("the keys of nodes are not rotated")
    fields_of(response)
    _wait(target, "a heartbeat shows no new_api_key", lambda: _new_key(node.heartbeat()) != "")
    new = target.with_key(node, _new_key(node.heartbeat()))
    beat = fields_of(new.heartbeat())
    expect_equal("new_api_key, once it is used", beat.get("new_api_key"), None)
    _wait(
        target,
        "heartbeats with the old key are still taken",
        lambda: node.heartbeat().status_code in {401, 403},
    )
    expect_accepted("a status with it, of a task assigned before", held.report("running"))
    later = target.assign(new)
    response = node.report(later.task_id, "running")
    expect_refusal("a status with it, of a task assigned later", response, 401, 403)


def _hold(target: Target, *, with_file: bool = False) -> tuple[Held, Held]:
    """Return a task as a node holds it, and as a container with the task's key does."""
    held = target.hold(with_file=with_file)
    require_extension("task-key", held.node, "containers get the key of their node")
    expect_fields("the assignment", held.assignment, "task_api_key")
    node = target.with_key(held.node, str(held.assignment["task_api_key"]))
    return held, replace(held, node=node)


def _new_key(response: httpx.Response) -> str:
    return str(fields_of(response).get("new_api_key") or "")


def _wait(target: Target, otherwise: str, condition: Callable[[], bool]) -> None:
    # Several processes may serve: each needs a moment to know.
    deadline = time.monotonic() + target.known_within_s
    while not condition():
        if time.monotonic() > deadline:
            raise Broken(f"{otherwise} after {target.known_within_s:g} s")
        time.sleep(_POLL_INTERVAL_S)


TASK_KEY_RULES: dict[str, tuple[Rule, ...]] = {
    "keys of tasks and nodes": (
        task_key,
        task_key_does_no_more,
        task_key_ends,
        rotated_node_key,
    ),
}
