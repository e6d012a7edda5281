"""Rules about tasks: which nodes they are for, their order, and what the admin sees of them."""

import re
from datetime import datetime, timedelta, timezone

from orchestrator.conformance.expect import (
    Broken,
    expect_accepted,
    expect_equal,
    expect_fields,
    expect_refusal,
    fields_of,
    json_of,
)
from orchestrator.conformance.target import PRIORITY, PROMPT, Rule, Target

_NAMES = (
    ("client-acme-*", "client-acme-prod-1", True),
    ("client-acme-*", "client-acme-dev-2", True),
    ("client-acme-*", "client-beta-prod-1", False),
    ("*-gpu-*", "client-acme-gpu-1", True),
    ("prod-*", "prod-server-1", True),
)
# Fields without a value may be left out.
_TASK = (
    "id",
    "prompt",
    "target_node_name",
    "target_tags",
    "priority",
    "timeout_seconds",
    "status",
    "created_at",
    "scheduled_for",
    "created_by",
    "files",
)


def name_targets(target: Target) -> None:
    """target_node_name is a wildcard over the node's whole name."""
    for pattern, name, is_match in _NAMES:
        # Each word gets the mark, so that neither pattern nor name fits anything of others.
        mark = target.unique("n").rpartition("-")[2]
        node = target.register(_marked(name, mark))
        task = target.create_task(target_node_name=_marked(pattern, mark))
        what = f"what {name} gets for {pattern}"
        if is_match:
            expect_equal(what, target.assigned_id(node), task["id"])
        else:
            target.expect_no_task(what, node)


def tag_targets(target: Target) -> None:
    """Every pair of target_tags must be among the node's tags."""
    # By its name, too: an orchestrator that ignores tags must not assign these to real nodes.
    name = target.unique("tags")
    acme, beta = target.unique("acme"), target.unique("beta")
    node = target.register(name, tags={"client": acme, "env": f"{acme}-production"})
    for tags in (
        {"client": acme, "env": f"{acme}-test"},
        {"client": beta},
        {"zone": acme},
    ):
        target.create_task(target_node_name=name, target_tags=tags)
    task = target.create_task(target_node_name=name, target_tags=node.tags)
    expect_equal("the task that it gets", target.assigned_id(node), task["id"])
    # Or it is offered again.
    node.report(task["id"], "running")
    target.expect_no_task("the one after it", node)


def all_targets_hold(target: Target) -> None:
    """Where several targets are given, all of them hold."""
    name = target.unique("all")
    node, other = target.register(name), target.register(name)
    task = target.create_task(target_node_id=other.id, target_node_name=name)
    expect_equal("what the node gets that both fit", target.assigned_id(other), task["id"])
    task = target.create_task(target_node_id=other.id, target_node_name=name)
    target.expect_no_task("what the node gets that only the name fits", node)


def order(target: Target) -> None:
    """A higher priority is assigned first, and the older task within it."""
    node = target.register()
    created = [
        target.create_task(target_node_id=node.id, priority=PRIORITY + priority)["id"]
        for priority in (0, 5, -1, 5, 0)
    ]
    assigned: list[str | None] = []
    for _ in created:
        task_id = target.assigned_id(node)
        assigned.append(task_id)
        if task_id is not None:
            node.report(task_id, "running")
    expect_equal("the order", assigned, [created[index] for index in (1, 3, 0, 4, 2)])


def task_fields(target: Target) -> None:
    """A task has all its fields, with the values that it was created with."""
    sent = {
        "prompt": f"{PROMPT}: {target.unique('grüß-dich')}",
        "target_node_name": target.unique("fields"),
        "target_tags": {"client": "acme"},
        "priority": 3,
        "timeout_seconds": 77,
        "scheduled_for": (datetime.now(timezone.utc) + timedelta(days=1)).isoformat(),
    }
    task = target.create_task(**sent)
    listed = json_of(target.admin.get("/tasks", params={"status_filter": "pending"}))
    views = {
        "the new task": task,
        "the task by its id": target.task(task["id"]),
        "the task on the list": next((one for one in listed if one.get("id") == task["id"]), {}),
    }
    for what, view in views.items():
        expect_fields(what, view, *_TASK)
        for name in ("prompt", "target_node_name", "target_tags", "priority", "timeout_seconds"):
            expect_equal(f"{name} of {what}", view[name], sent[name])
        if not view["scheduled_for"]:
            raise Broken(f"{what} has lost its scheduled_for")


def recurrence(target: Target) -> None:
    """A task keeps its recurrence, and one that is not a cron expression is refused with 422."""
    task = target.create_task(recurrence="0 3 * * 1")
    expect_equal("the task's recurrence", task.get("recurrence"), "0 3 * * 1")
    response = target.try_to_create(recurrence="whenever")
    expect_refusal("what is not a cron expression", response, 400, 422)


def list_filter(target: Target) -> None:
    """Tasks are listed by status."""
    task = target.create_task()
    for status, is_expected in (("pending", True), ("success", False)):
        listed = json_of(target.admin.get("/tasks", params={"status_filter": status}))
        is_listed = task["id"] in [one.get("id") for one in listed]
        expect_equal(f"whether it is listed as {status}", is_listed, is_expected)


def bad_task(target: Target) -> None:
    """A task without a prompt is refused with 422."""
    expect_refusal("it", target.try_to_create(prompt=None), 400, 422)


def cancel_pending(target: Target) -> None:
    """A cancelled task is assigned to no node, and a task that has ended cannot be cancelled."""
    node = target.register()
    ended = target.assign(node)
    expect_accepted("the status success", ended.report("success"))
    response = target.admin.delete(f"/tasks/{ended.task_id}")
    expect_refusal("cancelling a task that has ended", response, 400, 409)
    task = target.create_task(target_node_id=node.id)
    body = fields_of(target.admin.delete(f"/tasks/{task['id']}"), "status")
    expect_equal("the status", body["status"], "cancelled")
    target.expect_no_task("what the node gets", node)


def _marked(words: str, mark: str) -> str:
    return re.sub(r"\w+", lambda word: word[0] + mark, words)


TASK_RULES: dict[str, tuple[Rule, ...]] = {
    "targets": (name_targets, tag_targets, all_targets_hold, order),
    "tasks": (task_fields, recurrence, list_filter, bad_task, cancel_pending),
}
