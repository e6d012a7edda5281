"""Further rules about the six calls that a runner makes: with what the admin sees of them."""

import hashlib
from datetime import datetime, timedelta, timezone

from orchestrator.conformance.expect import (
    Absent,
    Broken,
    expect_accepted,
    expect_equal,
    expect_fields,
    expect_refusal,
    fields_of,
)
from orchestrator.conformance.runner_rules import RUNNER_RULES, expect_late
from orchestrator.conformance.target import FILE_CONTENT, NODE_FIELDS, Node, Rule, Target

_SHORTEST_PACE_S = 5


def registered_fields(target: Target) -> None:
    """A registration is answered with all fields of the node."""
    expect_fields("the response", target.register().registered, *NODE_FIELDS)


def reregistration(target: Target) -> None:
    """A node that registers again with its key stays the same node, with its key and its task."""
    node = target.register()
    require_extension("reregister", node, "a node with another name or tags is another node")
    held = target.assign(node)
    name, tags = target.unique("again"), {"zone": target.unique("zone")}
    for attempt in ("first", "second"):
        body = target.reregister(node, name, tags)
        expect_equal(f"the id in the {attempt} response", body["id"], node.id)
        expect_equal(f"the key in the {attempt} response", body["api_key"], node.api_key)
    listed = fields_of(target.admin.get(f"/nodes/{node.id}"), "name", "tags")
    expect_equal("the node's name and tags", (listed["name"], listed["tags"]), (name, tags))
    fields_of(held.report("running"))
    task = target.create_task(target_node_name=name, target_tags=tags)
    expect_equal("the task for its new name and tags", target.assigned_id(node), task["id"])


def reregistration_of_nobody(target: Target) -> None:
    """A registration with a key that no node has is refused with 410, and makes no node."""
    node = target.register()
    require_extension("reregister", node, "a key beside the token is ignored")
    fields_of(target.admin.delete(f"/nodes/{node.id}"))
    token, name = target.registration_token, target.unique("nobody")
    response = target.try_to_register(token, name, {}, api_key=node.api_key)
    expect_refusal("the key of a node that was removed", response, 410)


def heartbeat_status(target: Target) -> None:
    """A heartbeat is answered with the node, in the status that it reports."""
    response = target.register().heartbeat("busy")
    expect_equal("the node's status", fields_of(response).get("status"), "busy")


def pace(target: Target) -> None:
    """A heartbeat's response has the seconds until the next: 5 to 300, and 15 with a task."""
    node = target.register()
    require_extension("pace", node, "nodes choose the interval of their heartbeats")
    for status, longest_s in (("idle", 300), ("busy", 15)):
        interval_s = fields_of(node.heartbeat(status)).get("heartbeat_interval_seconds")
        if not isinstance(interval_s, int) or not _SHORTEST_PACE_S <= interval_s <= longest_s:
            raise Broken(
                f"heartbeat_interval_seconds is {interval_s!r} for a node that is {status}"
            )


def timeout(target: Target) -> None:
    """An assignment has the task's timeout_seconds."""
    held = target.assign(target.register(), timeout_seconds=77)
    expect_equal("timeout_seconds", held.assignment.get("timeout_seconds"), 77)


def held_request(target: Target) -> None:
    """Extension: `Prefer: wait` holds the request until there is work."""
    node = target.idle_node()
    target.require_no_foreign_work(node)
    response = target.request_work(node, prefer="wait=1")
    expect_accepted("a request with Prefer: wait=1", response)
    if "Preference-Applied" not in response.headers:
        raise Absent("there is no Preference-Applied, so runners poll at intervals")


def not_before_its_time(target: Target) -> None:
    """A task is not assigned before its scheduled_for."""
    node = target.register()
    tomorrow = datetime.now(timezone.utc) + timedelta(days=1)
    target.create_task(target_node_id=node.id, scheduled_for=tomorrow.isoformat())
    target.require_no_foreign_work(node)
    expect_equal("the response", target.poll(node), None)


def upload(target: Target) -> None:
    """An upload is answered with the file's name, checksum and size, and tasks are given it."""
    response = target.upload()
    file = fields_of(response, "filename", "original_name", "checksum", "size")
    held = target.assign(target.register(), files=[file["filename"]])
    expect_equal("the assignment's files", held.assignment.get("files"), [file["filename"]])
    checksums = held.assignment.get("file_checksums")
    expect_equal("its checksums", checksums, [file["checksum"]])
    expect_equal("the checksum", file["checksum"], hashlib.sha256(FILE_CONTENT).hexdigest())
    expect_equal("the size", file["size"], len(FILE_CONTENT))


def reports(target: Target) -> None:
    """Statuses move a task on, and the last message is its result."""
    held = target.hold()
    for status in ("running", "analyzing", "success"):
        response = held.report(status, message="all is well", progress=50)
        expect_accepted(f"the status {status}", response)
        expect_equal("the task's status", target.task(held.task_id)["status"], status)
    expect_equal("the task's result", target.task(held.task_id).get("result"), "all is well")


def first_end_wins(target: Target) -> None:
    """The first end counts: later statuses change nothing."""
    held = target.hold()
    expect_accepted("the first end", held.report("success", message="first"))
    expect_late(held.report("error", message="second"))
    task = target.task(held.task_id)
    expect_equal("the task's status", task["status"], "success")
    expect_equal("the task's result", task.get("result"), "first")


def cancelled(target: Target) -> None:
    """A node learns of a cancelled task from its heartbeat or from its next status."""
    held = target.hold()
    expect_accepted("the status running", held.report("running"))
    fields_of(target.admin.delete(f"/tasks/{held.task_id}"))
    beat = fields_of(held.node.heartbeat("busy"))
    response = held.report("running")
    if held.task_id in (beat.get("cancelled_task_ids") or []):
        return
    if response.status_code not in {409, 410} and fields_of(response).get("status") != "cancelled":
        raise Broken("neither the response to the heartbeat nor that to the status names it")


def stored_log(target: Target) -> None:
    """The log of a session is stored as it was sent."""
    held = target.hold()
    session = {"id": "s", "title": "grüß dich", "messages": [{"role": "user", "content": "…"}]}
    response = held.node.http.post("/logs", json={"job_id": held.task_id, "session": session})
    expect_accepted("the log", response)
    stored = fields_of(target.admin.get(f"/logs/{held.task_id}"))
    expect_equal("the session", {name: stored.get(name) for name in session}, session)


def require_extension(name: str, node: Node, otherwise: str) -> None:
    """Raise Absent, with what follows from it, if the orchestrator does not name the extension."""
    extensions = node.registered.get("extensions") or []
    beat = fields_of(node.heartbeat())
    expect_equal("what a heartbeat names", beat.get("extensions") or [], extensions)
    if name not in extensions:
        raise Absent(otherwise)


_FURTHER_RULES: dict[str, tuple[Rule, ...]] = {
    "POST /register": (registered_fields, reregistration, reregistration_of_nobody),
    "POST /nodes/heartbeat": (heartbeat_status, pace),
    "GET /tasks/pending": (timeout, held_request, not_before_its_time),
    "GET /files/{filename}": (upload,),
    "POST /logs": (stored_log,),
    "POST /status": (reports, first_end_wins, cancelled),
    "authentication": (),
}
NODE_RULES: dict[str, tuple[Rule, ...]] = {
    group: (*rules, *_FURTHER_RULES[group]) for group, rules in RUNNER_RULES.items()
}
"""By call, those of the runner's profile included."""
