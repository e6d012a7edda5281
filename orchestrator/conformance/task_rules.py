"""Rules about tasks: whom they are for, their order, and what their owners see of them."""

from datetime import datetime, timedelta, timezone

from orchestrator.conformance.site import (
    Broken,
    Rule,
    Site,
    answered,
    assigned_id,
    expect_equal,
    expect_fields,
    expect_refusal,
    fields_of,
    unique,
)

_NAMES = (
    ("client-acme-*", "client-acme-prod-1", True),
    ("client-acme-*", "client-acme-dev-2", True),
    ("client-acme-*", "client-beta-prod-1", False),
    ("*-gpu-*", "client-acme-gpu-1", True),
    ("prod-*", "prod-server-1", True),
)
_TASK = (
    "id",
    "prompt",
    "target_node_id",
    "target_node_name",
    "target_tags",
    "priority",
    "timeout_seconds",
    "status",
    "assigned_node_id",
    "crush_session_id",
    "created_at",
    "started_at",
    "completed_at",
    "result",
    "error_message",
    "scheduled_for",
    "recurrence",
    "created_by",
    "files",
)


def name_targets(site: Site) -> None:
    """target_node_name is a wildcard over the node's whole name."""
    for pattern, name, is_meant in _NAMES:
        # The mark keeps the check's tasks from real nodes; it stands where it changes nothing.
        mark = unique("n")
        node = site.register(f"{mark}{name}")
        task = site.create_task(target_node_name=f"{mark}{pattern}")
        expected = task["id"] if is_meant else None
        expect_equal(f"what {name} gets for {pattern}", assigned_id(node), expected)


def tag_targets(site: Site) -> None:
    """Every pair of target_tags must be among the node's tags."""
    # By its name, too: an orchestrator that passes over tags must not give these to real nodes.
    name = unique("tags")
    node = site.register(name, tags={"client": "acme", "env": "production"})
    for tags in ({"client": "acme", "env": "test"}, {"client": "beta"}, {"zone": "eu"}):
        site.create_task(target_node_name=name, target_tags=tags)
    tags = {"client": "acme", "env": "production"}
    task = site.create_task(target_node_name=name, target_tags=tags)
    expect_equal("the task that it gets", assigned_id(node), task["id"])
    expect_equal("the one after it", assigned_id(node), None)


def all_targets_hold(site: Site) -> None:
    """Where several targets are given, all of them hold."""
    name = unique("all")
    node, other = site.register(name), site.register(name)
    task = site.create_task(target_node_id=other.id, target_node_name=name)
    expect_equal("what the node gets that only the name fits", assigned_id(node), None)
    expect_equal("what the other gets", assigned_id(other), task["id"])


def order(site: Site) -> None:
    """A higher priority goes first, and the older task within it."""
    node = site.register()
    created = [
        site.create_task(target_node_id=node.id, priority=priority)["id"]
        for priority in (0, 5, -1, 5, 0)
    ]
    wanted = [created[index] for index in (1, 3, 0, 4, 2)]
    given: list[str | None] = []
    for _ in wanted:
        given.append(assigned_id(node))
        if given[-1] is not None:
            node.report(str(given[-1]), "running")
    expect_equal("the order", given, wanted)


def task_fields(site: Site) -> None:
    """A task has all its fields, with what it was made with in them."""
    made = {
        "prompt": "conformance check: grüß dich",
        "target_node_name": unique("fields"),
        "target_tags": {"client": "acme"},
        "priority": 3,
        "timeout_seconds": 77,
        "scheduled_for": (datetime.now(timezone.utc) + timedelta(days=1)).isoformat(),
    }
    task = site.create_task(**made)
    listed = answered(site.admin.get("/tasks", params={"status_filter": "pending"}))
    found = {
        "the new task": task,
        "the task as it is shown": site.task(task["id"]),
        "the task on the list": next((one for one in listed if one.get("id") == task["id"]), {}),
    }
    for what, one in found.items():
        expect_fields(what, one, *_TASK)
        for name in ("prompt", "target_node_name", "target_tags", "priority", "timeout_seconds"):
            expect_equal(f"{name} of {what}", one[name], made[name])
        if not one["scheduled_for"]:
            raise Broken(f"{what} has lost its scheduled_for")


def recurrence(site: Site) -> None:
    """A task keeps its recurrence, and one that is no cron expression is refused with 422."""
    name = unique("cron")
    task = site.create_task(target_node_name=name, recurrence="0 3 * * 1")
    expect_equal("the task's recurrence", task.get("recurrence"), "0 3 * * 1")
    response = site.try_to_create(target_node_name=name, recurrence="whenever")
    expect_refusal("what is no cron expression", response, 400, 422)


def list_filter(site: Site) -> None:
    """Tasks are listed by status."""
    node = site.register()
    task = site.create_task(target_node_id=node.id)
    for status, is_there in (("pending", True), ("success", False)):
        listed = answered(site.admin.get("/tasks", params={"status_filter": status}))
        found = task["id"] in [one.get("id") for one in listed]
        expect_equal(f"whether it is among those that are {status}", found, is_there)


def bad_task(site: Site) -> None:
    """A task without a prompt is refused with 422."""
    expect_refusal("it", site.admin.post("/tasks", json={"priority": 1}), 400, 422)


def cancel_pending(site: Site) -> None:
    """A cancelled task is given to nobody, and what has ended cannot be cancelled."""
    node = site.register()
    task = site.create_task(target_node_id=node.id)
    answer = fields_of(site.admin.delete(f"/tasks/{task['id']}"), "status")
    expect_equal("the status", answer["status"], "cancelled")
    expect_equal("what the node gets", assigned_id(node), None)
    ended = site.task_of(node)
    fields_of(node.report(ended, "success"))
    expect_refusal("cancelling a task that ended", site.admin.delete(f"/tasks/{ended}"), 400, 409)


TASK_RULES: tuple[Rule, ...] = (
    name_targets,
    tag_targets,
    all_targets_hold,
    order,
    task_fields,
    recurrence,
    list_filter,
    bad_task,
    cancel_pending,
)
