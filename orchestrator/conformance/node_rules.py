"""Rules about what nodes see: registration, work, reports, files and logs."""

import hashlib
import time
from datetime import datetime, timedelta, timezone
from urllib.parse import quote

from orchestrator.conformance.site import (
    NODE_FIELDS,
    Absent,
    Broken,
    Node,
    Rule,
    Site,
    assigned_id,
    expect_equal,
    expect_fields,
    expect_refusal,
    fields_of,
    unique,
)

_LOG_LIMIT = 10 * 1024**2
_LOOK_AGAIN_S = 0.5


def registration(site: Site) -> None:
    """A registration answers the node, with its id and its key."""
    expect_fields("the answer", site.register().registered, *NODE_FIELDS)


def wrong_token(site: Site) -> None:
    """A wrong registration token is refused with 401."""
    response = site.try_to_register(unique("token"), unique("node"), {})
    expect_refusal("a wrong registration token", response, 401)


def reregistration(site: Site) -> None:
    """A node that registers again with its key stays the same node, with its key and its task."""
    node = site.register()
    _require_extension("reregister", node, "a node with another name or tags is another node")
    task_id = site.task_of(node)
    name, tags = unique("again"), {"zone": unique("zone")}
    for attempt in ("first", "second"):
        answer = site.reregister(node, name, tags)
        expect_equal(f"the id of the {attempt} answer", answer["id"], node.id)
        expect_equal(f"the key of the {attempt} answer", answer["api_key"], node.api_key)
    shown = fields_of(site.admin.get(f"/nodes/{node.id}"), "name", "tags")
    expect_equal("the node's name and tags", (shown["name"], shown["tags"]), (name, tags))
    fields_of(node.report(task_id, "running"))
    task = site.create_task(target_node_name=name, target_tags=tags)
    expect_equal("the task for its new name and tags", assigned_id(node), task["id"])


def reregistration_of_nobody(site: Site) -> None:
    """A registration with a key that no node has is refused with 410, and makes no node."""
    node = site.register()
    _require_extension("reregister", node, "a key beside the token is passed over")
    fields_of(site.admin.delete(f"/nodes/{node.id}"))
    name = unique("nobody")
    response = site.try_to_register(site.registration_token, name, {}, api_key=node.api_key)
    if response.is_success:
        site.remove_later(f"/nodes/{fields_of(response, 'id')['id']}")
    expect_refusal("the key of a node that was removed", response, 410)


def heartbeat(site: Site) -> None:
    """A heartbeat is answered with the node, as it said it is."""
    expect_equal("the node's status", site.register().beat("busy").get("status"), "busy")


def no_work(site: Site) -> None:
    """Where there is no work, the answer is null."""
    expect_equal("the answer", site.register().poll(), None)


def assignment(site: Site) -> None:
    """An assignment has task_id, prompt, orchestrator_url and timeout_seconds."""
    node = site.register()
    task = site.create_task(target_node_id=node.id, timeout_seconds=77)
    found = node.poll() or {}
    site.unreported.append((node, str(task["id"])))
    fields = ("task_id", "prompt", "orchestrator_url", "timeout_seconds")
    expect_fields("the assignment", found, *fields)
    expect_equal("task_id", found["task_id"], task["id"])
    expect_equal("timeout_seconds", found["timeout_seconds"], 77)


def once_only(site: Site) -> None:
    """A task is given to one node only."""
    name = unique("twins")
    nodes = [site.register(name) for _ in range(2)]
    task = site.create_task(target_node_name=name)
    given = [assigned_id(node) for node in nodes]
    expect_equal("the number of nodes that got the task", given.count(task["id"]), 1)


def job_or_task(site: Site) -> None:
    """A body may name its task as job_id, as task_id, or as both."""
    node = site.register()
    task_id = site.task_of(node)
    for names in (("job_id",), ("task_id",), ("job_id", "task_id")):
        body = {"status": "running", **dict.fromkeys(names, task_id)}
        fields_of(node.http.post("/status", json=body))


def reports(site: Site) -> None:
    """Reports move a task on, and the last message is its result."""
    node = site.register()
    task_id = site.task_of(node)
    for status in ("running", "analyzing", "success"):
        fields_of(node.report(task_id, status, message="all is well", progress=50))
        expect_equal("the task's status", site.task(task_id)["status"], status)
    expect_equal("the task's result", site.task(task_id).get("result"), "all is well")


def first_end_wins(site: Site) -> None:
    """The first end counts: later reports change nothing."""
    node = site.register()
    task_id = site.task_of(node)
    fields_of(node.report(task_id, "success", message="first"))
    late = node.report(task_id, "error", message="second")
    if late.status_code not in {200, 409, 410}:
        raise Broken(f"a late report is answered {late.status_code}, not 200, 409 or 410")
    task = site.task(task_id)
    expect_equal("the task's status", task["status"], "success")
    expect_equal("the task's result", task.get("result"), "first")


def unknown_status(site: Site) -> None:
    """A status that is not a node's to report is refused."""
    node = site.register()
    task_id = site.task_of(node)
    for status in ("cancelled", "pending", "nonsense"):
        response = node.report(task_id, status)
        expect_refusal(f"the status {status}", response, 400, 403, 409, 422)


def bad_progress(site: Site) -> None:
    """A progress that is not from 0 to 100 is refused with 422."""
    node = site.register()
    task_id = site.task_of(node)
    for progress in (-1, 1000, "half"):
        response = node.report(task_id, "running", progress=progress)
        expect_refusal(f"the progress {progress}", response, 400, 422)


def tasks_of_others(site: Site) -> None:
    """A node cannot report on the task of another."""
    holder, other = site.register(), site.register()
    task_id = site.task_of(holder)
    expect_refusal("a report by another node", other.report(task_id, "success"), 403, 404)


def cancelled(site: Site) -> None:
    """A node learns of a cancelled task from its heartbeat or from its next report."""
    node = site.register()
    task_id = site.task_of(node)
    fields_of(node.report(task_id, "running"))
    fields_of(site.admin.delete(f"/tasks/{task_id}"))
    told = task_id in (node.beat("busy").get("cancelled_task_ids") or [])
    answer = node.report(task_id, "running")
    told = told or answer.status_code in {409, 410}
    if not told and fields_of(answer).get("status") != "cancelled":
        raise Broken("neither the heartbeat's answer nor the report's says so")


def logs(site: Site) -> None:
    """A session comes out as it went in."""
    node = site.register()
    task_id = site.task_of(node)
    session = {"id": "s", "title": "grüß dich", "messages": [{"role": "user", "content": "…"}]}
    fields_of(node.http.post("/logs", json={"job_id": task_id, "session": session}))
    found = fields_of(site.admin.get(f"/logs/{task_id}"))
    expect_equal("the session", {name: found.get(name) for name in session}, session)


def large_logs(site: Site) -> None:
    """A session of more than 10 MB is refused with 413."""
    node = site.register()
    task_id = site.task_of(node)
    body = {"job_id": task_id, "session": {"title": "x" * _LOG_LIMIT}}
    expect_refusal("a larger session", node.http.post("/logs", json=body), 413)


def files(site: Site) -> None:
    """The node that holds a task reads its files, whatever their names, and no other node does."""
    content = bytes(range(256))
    response = site.admin.post("/upload", files={"file": ("sales Übersicht.csv", content)})
    file = fields_of(response, "filename", "original_name", "checksum", "size")
    checksum = hashlib.sha256(content).hexdigest()
    expect_equal("the checksum", file["checksum"], checksum)
    node, other = site.register(), site.register()
    site.create_task(target_node_id=node.id, files=[file["filename"]])
    found = node.poll() or {}
    expect_equal("the assignment's files", found.get("files"), [file["filename"]])
    expect_equal("its checksums", found.get("file_checksums"), [checksum])
    path = f"/files/{quote(file['filename'], safe='')}"
    download = node.http.get(path)
    expect_equal("the answer to the download", download.status_code, 200)
    if download.content != content:
        raise Broken("the file has other bytes than were uploaded")
    expect_refusal("a download by another node", other.http.get(path), 403, 404)


def held_request(site: Site) -> None:
    """Extension: `Prefer: wait` is answered with Preference-Applied."""
    response = site.register().http.get("/tasks/pending", headers={"Prefer": "wait=1"})
    expect_equal("the answer", response.status_code, 200)
    if "Preference-Applied" not in response.headers:
        raise Absent("nodes will ask in intervals")


def not_before_its_time(site: Site) -> None:
    """A task is not given before its scheduled_for."""
    node = site.register()
    tomorrow = datetime.now(timezone.utc) + timedelta(days=1)
    site.create_task(target_node_id=node.id, scheduled_for=tomorrow.isoformat())
    expect_equal("the answer", node.poll(), None)


def redelivery(site: Site) -> None:
    """An assignment that its node does not report on is offered to it again."""
    # By the rule about assignments, so that the time until then is not waited for here.
    if not site.unreported:
        raise Broken("no assignment was given at all")
    node, task_id = site.unreported[0]
    until = time.monotonic() + site.redelivery_within_s
    while assigned_id(node) != task_id:
        if time.monotonic() > until:
            raise Broken("it is not, so one whose answer was lost is never done")
        time.sleep(_LOOK_AGAIN_S)


def _require_extension(name: str, node: Node, otherwise: str) -> None:
    extensions = node.registered.get("extensions") or []
    expect_equal("what a heartbeat names", node.beat().get("extensions") or [], extensions)
    if name not in extensions:
        raise Absent(otherwise)


NODE_RULES: tuple[Rule, ...] = (
    registration,
    wrong_token,
    reregistration,
    reregistration_of_nobody,
    heartbeat,
    no_work,
    assignment,
    once_only,
    not_before_its_time,
    held_request,
    job_or_task,
    reports,
    first_end_wins,
    unknown_status,
    bad_progress,
    tasks_of_others,
    cancelled,
    logs,
    large_logs,
    files,
)
LAST_RULES: tuple[Rule, ...] = (redelivery,)
"""Those about what takes its time."""
