"""Reports of a task's progress and end, and the agent's sessions."""

import json
import socket
from urllib.parse import urlsplit

import pytest

from tests.orchestrator.serving import Json, RegisteredNode, RunningOrchestrator, ok, refusal

LIMIT = 10 * 1024**2
JSON_TYPE = {"Content-Type": "application/json"}
SESSION: Json = {"id": "session-uuid", "title": "Task Session", "prompt_tokens": 10, "cost": 0.25}
SESSION |= {"created_at": 1234567890, "further": {"deep": [1, None]}}
SESSION["messages"] = [
    {"role": "user", "content": "grüß dich", "created_at": 1234567890},
    {"role": "assistant", "content": "…", "created_at": 1234567891, "further": [None]},
]


@pytest.mark.both_databases
@pytest.mark.parametrize(("end", "field"), [("success", "result"), ("error", "error_message")])
def test_reports_move_the_task_on_and_the_last_message_stays(
    orchestrator: RunningOrchestrator, node: RegisteredNode, end: str, field: str
) -> None:
    task_id = orchestrator.assign(node)
    first = {"message": "begin", "progress": 10, "timestamp": "2024-01-01T12:00:00+02:00"}
    node.report(task_id, "running", **first)
    started_at = orchestrator.task(task_id)["started_at"]
    node.report(task_id, "analyzing", progress=62.5, crush_session_id="session-1")
    node.report(task_id, "running", progress=70)
    node.report(task_id, end, message="the last")
    ended = orchestrator.task(task_id)
    assert (ended["status"], ended["started_at"]) == (end, started_at)
    assert ended["completed_at"] >= started_at
    assert {"result", "error_message"} & set(ended) == {field}
    assert (ended[field], ended["crush_session_id"]) == ("the last", "session-1")
    statuses = ["pending", "assigned", "running", "analyzing", "running", end]
    assert [entry["status"] for entry in ended["history"]] == statuses
    assert [entry.get("progress") for entry in ended["history"]] == [None, None, 10, 62.5, 70, None]
    assert ended["history"][2]["timestamp"] == "2024-01-01T10:00:00Z"


@pytest.mark.parametrize(
    ("progress", "stored"),
    [("-1e999", 0), ("45.5", 45.5), ("100.1", 100), (str(10**400), 100)],
)
def test_progress_is_0_to_100(shared: RunningOrchestrator, progress: str, stored: float) -> None:
    node = shared.register()
    task_id = shared.assign(node)
    body = f'{{"task_id": "{task_id}", "status": "running", "progress": {progress}}}'
    ok(node.http.post("/status", content=body, headers=JSON_TYPE))
    assert shared.task(task_id)["history"][-1]["progress"] == stored


def test_only_the_holder_sends_a_log(shared: RunningOrchestrator) -> None:
    node, other = shared.register(), shared.register("other")
    pending, others = shared.create_task(target_node_id=node.id)["id"], shared.assign(other)
    for task_id, code in ((None, 422), (pending, 403), (others, 403), ("unknown", 404)):
        response = node.http.post("/logs", json={"session": {}, "task_id": task_id})
        assert refusal(response)[0] == code


def test_later_session_replaces_the_first_once_more_after_the_end(
    shared: RunningOrchestrator,
) -> None:
    node = shared.register()
    task_id = shared.assign(node)
    assert node.send_log(task_id, SESSION) == SESSION == shared.log_of(task_id)
    assert shared.task(task_id)["crush_session_id"] == "session-uuid"
    node.report(task_id, "success")
    longer = {**SESSION, "title": "longer"}
    # Null in a field that the contract has is left out.
    messages = [{**message, "model": None} for message in SESSION["messages"]]
    for _ in range(2):  # the second as after a lost response
        node.send_log(task_id, {**longer, "messages": messages, "completion_tokens": None})
        assert shared.log_of(task_id) == longer
    response = node.http.post("/logs", json={"task_id": task_id, "session": SESSION})
    assert refusal(response) == (409, "cannot replace the log: its task has ended")
    assert shared.log_of(task_id) == longer


@pytest.mark.parametrize(
    ("session", "sentence"),
    [
        ('{"title": 1}', "session.title must be a string"),
        ('{"cost": "0.1"}', "session.cost must be a number"),
        ('{"messages": {}}', "session.messages must be a list"),
        ('{"messages": [{"created_at": 1.5}]}', "session.messages.0.created_at must be a whole"),
        ('{"a": NaN}', "session"),
        ('{"a": "\\ud800"}', "session"),
        ("null", "session"),
        ('"text"', "session"),
    ],
)
def test_malformed_session_is_422(shared: RunningOrchestrator, session: str, sentence: str) -> None:
    body = f'{{"task_id": "any", "session": {session}}}'
    response = shared.register().http.post("/logs", content=body, headers=JSON_TYPE)
    assert (response.status_code, refusal(response)[1][: len(sentence)]) == (422, sentence)


@pytest.mark.both_databases
def test_log_of_10_mb_is_accepted(orchestrator: RunningOrchestrator, node: RegisteredNode) -> None:
    body = json.dumps({"task_id": orchestrator.assign(node), "session": {"title": ""}})
    head, tail = body.split('""')
    content = f'{head}"{"x" * (LIMIT - len(body))}"{tail}'.encode()
    assert len(content) == LIMIT
    ok(node.http.post("/logs", content=content, headers=JSON_TYPE))


@pytest.mark.parametrize("is_declared", [True, False])
def test_larger_log_is_413_at_once(shared: RunningOrchestrator, *, is_declared: bool) -> None:
    node, place = shared.register(), urlsplit(shared.url)
    head = f"POST /logs HTTP/1.1\r\nHost: {place.netloc}\r\nX-API-Key: {node.api_key}\r\n"
    address = (str(place.hostname), place.port or 0)
    with socket.create_connection(address, timeout=60) as connection:
        if is_declared:
            connection.sendall(f"{head}Content-Length: {LIMIT + 1}\r\n\r\n".encode())
        else:
            chunk = b"%x\r\n%s\r\n" % (LIMIT + 1, b"x" * (LIMIT + 1))
            connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunk)
        # More is announced in both cases, and never sent.
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(("opened", "inside", "closed"), [("[", "", "]"), ('{"a":', "1", "}")])
def test_deeply_nested_log_is_stored_whole_or_refused(
    shared: RunningOrchestrator, opened: str, inside: str, closed: str
) -> None:
    node = shared.register()
    for depth in (100, 253, 254, 255, 256, 1000, 5000):
        task_id, nested = shared.assign(node), opened * depth + inside + closed * depth
        body = f'{{"task_id": "{task_id}", "session": {{"deep": {nested}}}}}'
        stored = node.http.post("/logs", content=body, headers=JSON_TYPE).status_code
        shown = shared.admin.get(f"/logs/{task_id}").status_code
        assert (stored, shown) in {(200, 200), (422, 404), (400, 404)}, depth
