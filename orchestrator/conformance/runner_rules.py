"""Rules about the six calls that a runner makes. They need no admin key."""

import hashlib
import time
from urllib.parse import quote

import httpx

from orchestrator.conformance.expect import (
    Broken,
    expect_accepted,
    expect_equal,
    expect_fields,
    expect_refusal,
)
from orchestrator.conformance.target import Rule, Target

_LOG_LIMIT = 10 * 1024**2
_LONGEST_MESSAGE = 100_000
_MOST_IDS = 1000
_LONGEST_ID = 128
_POLL_INTERVAL_S = 0.5
# No call for work goes out, which might take some, where a heartbeat is not refused.
_CALLS = (
    ("POST", "/nodes/heartbeat"),
    ("GET", "/tasks/pending"),
    ("GET", "/files/conformance"),
    ("POST", "/status"),
    ("POST", "/logs"),
)


def registration(target: Target) -> None:
    """A registration is answered with the node's id and its key."""
    registered = target.register().registered
    expect_fields("the response", registered, "id", "api_key")


def wrong_token(target: Target) -> None:
    """A wrong registration token is refused with 401."""
    response = target.try_to_register(target.unique("token"), target.unique("node"), {})
    expect_refusal("a wrong registration token", response, 401)


def node_key_needed(target: Target) -> None:
    """A call of a node without a key, or with a key of no node, is refused with 401."""
    anonymous, stranger = target.client(), target.client(target.unique("key"))
    for method, path in _CALLS:
        body: dict[str, str] | None = {} if method == "POST" else None
        response = anonymous.request(method, path, json=body)
        expect_refusal(f"{method} {path} without a key", response, 401)
    # One alone, since an orchestrator may slow down those who guess.
    response = stranger.post("/nodes/heartbeat", json={})
    expect_refusal("POST /nodes/heartbeat with an unknown key", response, 401)


def heartbeat(target: Target) -> None:
    """A heartbeat is accepted."""
    expect_accepted("a heartbeat", target.register().heartbeat())


def many_ids(target: Target) -> None:
    """A heartbeat with 1,000 ids of 128 characters is accepted."""
    ids = [f"{number:0{_LONGEST_ID}}" for number in range(_MOST_IDS)]
    node = target.register()
    body = {"node_id": node.id, "status": "busy", "task_ids": ids}
    response = node.http.post("/nodes/heartbeat", json=body)
    expect_accepted("a heartbeat with so many ids", response)


def assignment(target: Target) -> None:
    """An assignment has task_id, prompt and orchestrator_url."""
    fields = ("task_id", "prompt", "orchestrator_url")
    expect_fields("the assignment", target.hold().assignment, *fields)


def once_only(target: Target) -> None:
    """A task is assigned to one node only."""
    held = target.hold()
    target.expect_no_task("what another node gets", target.idle_node(held.node.name))


def no_work(target: Target) -> None:
    """Where there is no work, the response is null."""
    node = target.idle_node()
    target.require_no_foreign_work(node)
    expect_equal("the response", target.poll(node), None)


def redelivery(target: Target) -> None:
    """An assignment that its node does not report on is offered to the node again, unchanged."""
    held = target.hold()
    target.require_no_foreign_work(held.node)
    deadline = time.monotonic() + target.redelivery_within_s
    while (again := target.poll(held.node) or {}).get("task_id") != held.task_id:
        if time.monotonic() > deadline:
            raise Broken(
                f"not within {target.redelivery_within_s:g} s, so a task is lost if the response"
                " that assigns it is"
            )
        time.sleep(_POLL_INTERVAL_S)
    if again.get("task_api_key") != held.assignment.get("task_api_key"):
        raise Broken("its task_api_key is another one, and a container may have the first")


def download(target: Target) -> None:
    """The node that holds a task can download its files, and their checksums are right."""
    held = target.hold(with_file=True)
    expect_fields("the assignment", held.assignment, "file_checksums")
    response = held.node.http.get(path_of_file(held.assignment["files"][0]))
    expect_accepted("the download", response)
    checksum = hashlib.sha256(response.content).hexdigest()
    expect_equal("the checksum", held.assignment["file_checksums"][0], checksum)


def files_of_others(target: Target) -> None:
    """A node cannot download the files of a task that another node holds."""
    held, other = target.hold(with_file=True), target.idle_node()
    response = other.http.get(path_of_file(held.assignment["files"][0]))
    expect_refusal("a download by another node", response, 403, 404)


def job_or_task(target: Target) -> None:
    """A status may name its task as job_id, as task_id, or as both."""
    held = target.hold()
    for names in (("job_id",), ("task_id",), ("job_id", "task_id")):
        body = {"status": "running", **dict.fromkeys(names, held.task_id)}
        response = held.node.http.post("/status", json=body)
        expect_accepted(f"a status with {' and '.join(names)}", response)


def unknown_status(target: Target) -> None:
    """A status that a node may not report is refused."""
    held = target.hold()
    for status in ("cancelled", "pending", "nonsense"):
        expect_refusal(f"the status {status}", held.report(status), 400, 403, 409, 422)


def long_message(target: Target) -> None:
    """A message of 100,000 characters is accepted, whatever their bytes."""
    response = target.hold().report("running", message="…" * _LONGEST_MESSAGE)
    expect_accepted("a long message", response)


def bad_progress(target: Target) -> None:
    """A progress that is not a number is refused with 422."""
    response = target.hold().report("running", progress="half")
    expect_refusal('the progress "half"', response, 400, 422)


def tasks_of_others(target: Target) -> None:
    """A node cannot report on the task of another."""
    held, other = target.hold(), target.idle_node()
    response = other.report(held.task_id, "success")
    expect_refusal("a status from another node", response, 403, 404)


def log(target: Target) -> None:
    """The log of a session is accepted."""
    held = target.hold()
    session = {"id": "s", "title": "grüß dich", "messages": [{"role": "user", "content": "…"}]}
    response = held.node.http.post("/logs", json={"job_id": held.task_id, "session": session})
    expect_accepted("the log", response)


def large_log(target: Target) -> None:
    """A log of more than 10 MB is refused with 413."""
    held = target.hold()
    body = {"job_id": held.task_id, "session": {"title": "x" * _LOG_LIMIT}}
    expect_refusal("a larger log", held.node.http.post("/logs", json=body), 413)


def end(target: Target) -> None:
    """A task's statuses up to its end are accepted; a status after that is 200, 409 or 410."""
    held = target.hold()
    for status in ("running", "analyzing", "success"):
        response = held.report(status, message="all is well", progress=50)
        expect_accepted(f"the status {status}", response)
    expect_late(held.report("error", message="late"))


def expect_late(response: httpx.Response) -> None:
    """Raise Broken unless a status after the end is answered with 200, 409 or 410."""
    if response.status_code not in {200, 409, 410}:
        raise Broken(f"a late status is answered with {response.status_code}, not 200, 409 or 410")


def path_of_file(name: str) -> str:
    """Return the path of a file, whatever characters its name has."""
    return f"/files/{quote(name, safe='')}"


RUNNER_RULES: dict[str, tuple[Rule, ...]] = {
    "POST /register": (registration, wrong_token),
    "POST /nodes/heartbeat": (heartbeat, many_ids),
    # Before the task is reported on: until then it is offered again.
    "GET /tasks/pending": (assignment, once_only, no_work, redelivery),
    "GET /files/{filename}": (download, files_of_others),
    "POST /logs": (log, large_log),
    # The task ends with the last.
    "POST /status": (job_or_task, unknown_status, bad_progress, long_message, tasks_of_others, end),
    "authentication": (node_key_needed,),
}
"""By call, in the order in which one task can be led through all of them."""
