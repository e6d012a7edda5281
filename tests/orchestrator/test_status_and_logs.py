"""Reports of a task's progress and end, and the agent's sessions."""

import json
import socket

import pytest

from tests.orchestrator.serving import (
    DEADLINE_S,
    Json,
    RegisteredNode,
    RunningOrchestrator,
    ok,
    refusal,
)


@pytest.fixture
def task(orchestrator: RunningOrchestrator, node: RegisteredNode) -> Json:
    """Give the node a task."""
    task = orchestrator.create_task()
    node.poll()
    return task


def test_reports_move_the_task_on(
    orchestrator: RunningOrchestrator, node: RegisteredNode, task: Json
) -> None:
    assert node.report(task["id"], "running", message="begin", progress=10) == {
        "task_id": task["id"],
        "job_id": task["id"],
        "status": "running",
    }
    started = orchestrator.task(task["id"])["started_at"]
    assert started is not None
    node.report(task["id"], "analyzing", progress=62.5, crush_session_id="session-1")
    node.report(task["id"], "running", progress=70)
    node.report(task["id"], "success", message="all good")
    ended = orchestrator.task(task["id"])
    assert ended["status"] == "success"
    assert ended["started_at"] == started
    assert ended["completed_at"] >= started
    assert ended["result"] == "all good"
    assert "error_message" not in ended
    assert ended["crush_session_id"] == "session-1"
    steps = [(entry["status"], entry.get("progress")) for entry in ended["history"]]
    assert steps == [
        ("pending", None),
        ("assigned", None),
        ("running", 10),
        ("analyzing", 62.5),
        ("running", 70),
        ("success", None),
    ]


def test_error_keeps_its_message(
    orchestrator: RunningOrchestrator, node: RegisteredNode, task: Json
) -> None:
    node.report(task["id"], "error", message="timed_out: ...")
    ended = orchestrator.task(task["id"])
    assert (ended["status"], ended["error_message"]) == ("error", "timed_out: ...")
    assert not {"result", "started_at"} & set(ended)


@pytest.mark.parametrize("late", ["running", "analyzing", "success", "error"])
@pytest.mark.parametrize("first", ["success", "error"])
def test_first_final_status_wins(
    orchestrator: RunningOrchestrator, node: RegisteredNode, task: Json, first: str, late: str
) -> None:
    node.report(task["id"], first, message="first")
    before = orchestrator.task(task["id"])
    assert node.report(task["id"], late, message="late", progress=1)["status"] == first
    assert orchestrator.task(task["id"]) == before


def test_history_has_the_time_that_the_node_gave(
    orchestrator: RunningOrchestrator, node: RegisteredNode, task: Json
) -> None:
    node.report(task["id"], "running", timestamp="2024-01-01T12:00:00+02:00")
    entry = orchestrator.task(task["id"])["history"][-1]
    assert entry["timestamp"] == "2024-01-01T10:00:00Z"


@pytest.mark.parametrize("status", ["pending", "assigned", "cancelled", "RUNNING", "", None])
def test_status_that_is_not_a_nodes_to_report_is_422(
    orchestrator: RunningOrchestrator, node: RegisteredNode, task: Json, status: str | None
) -> None:
    body = {"task_id": task["id"], "status": status}
    code, sentence = refusal(node.http.post("/status", json=body))
    assert code == 422
    assert sentence == "status must be one of running, analyzing, success, error"
    assert orchestrator.task(task["id"])["status"] == "assigned"


@pytest.mark.parametrize(
    ("progress", "stored"),
    [("-1", 0), ("-1e999", 0), ("45.5", 45.5), ("100.1", 100), ("1e999", 100), (str(10**400), 100)],
)
def test_progress_is_any_number_and_stored_within_0_and_100(
    orchestrator: RunningOrchestrator,
    node: RegisteredNode,
    task: Json,
    progress: str,
    stored: float,
) -> None:
    body = f'{{"task_id": "{task["id"]}", "status": "running", "progress": {progress}}}'
    headers = {"Content-Type": "application/json"}
    ok(node.http.post("/status", content=body, headers=headers))
    assert orchestrator.task(task["id"])["history"][-1]["progress"] == stored


@pytest.mark.parametrize("progress", ["NaN", '"half"', '"50"', "true"])
def test_progress_that_is_not_a_number_is_422(
    node: RegisteredNode, task: Json, progress: str
) -> None:
    body = f'{{"task_id": "{task["id"]}", "status": "running", "progress": {progress}}}'
    headers = {"Content-Type": "application/json"}
    code, sentence = refusal(node.http.post("/status", content=body, headers=headers))
    assert code == 422
    assert sentence == "progress must be a number"


@pytest.mark.parametrize("path", ["/status", "/logs"])
@pytest.mark.parametrize(
    ("names", "code"),
    [
        (("job_id",), 200),
        (("task_id",), 200),
        (("job_id", "task_id"), 200),
        ((), 422),
    ],
)
def test_body_names_its_task_by_either_name(
    node: RegisteredNode, task: Json, path: str, names: tuple[str, ...], code: int
) -> None:
    body: Json = {"status": "running", "session": {}, **dict.fromkeys(names, task["id"])}
    assert node.http.post(path, json=body).status_code == code


@pytest.mark.parametrize("path", ["/status", "/logs"])
def test_names_that_differ_are_422(node: RegisteredNode, task: Json, path: str) -> None:
    body = {"status": "running", "session": {}, "job_id": task["id"], "task_id": "another"}
    assert refusal(node.http.post(path, json=body)) == (422, "job_id and task_id differ")


@pytest.mark.parametrize("path", ["/status", "/logs"])
def test_only_the_holder_reports(
    orchestrator: RunningOrchestrator, node: RegisteredNode, task: Json, path: str
) -> None:
    other = orchestrator.register("other")
    body = {"status": "success", "session": {}, "task_id": task["id"]}
    assert refusal(other.http.post(path, json=body))[0] == 403
    unclaimed = orchestrator.create_task()
    assert refusal(node.http.post(path, json={**body, "task_id": unclaimed["id"]}))[0] == 403
    assert refusal(node.http.post(path, json={**body, "task_id": "unknown"}))[0] == 404
    assert orchestrator.task(task["id"])["status"] == "assigned"


SESSION: Json = {
    "id": "session-uuid",
    "title": "Task Session",
    "prompt_tokens": 10,
    "completion_tokens": 20,
    "cost": 0.25,
    "created_at": 1234567890,
    "updated_at": 1234567891,
    "messages": [
        {"role": "user", "content": "grüß dich", "created_at": 1234567890},
        {"role": "assistant", "content": "…", "created_at": 1234567891, "further": [None]},
    ],
    "further": {"deep": [1, None]},
}


def test_session_comes_out_as_it_went_in(
    orchestrator: RunningOrchestrator, node: RegisteredNode, task: Json
) -> None:
    body = {"job_id": task["id"], "session": SESSION}
    assert ok(node.http.post("/logs", json=body)) == SESSION
    assert orchestrator.log_of(task["id"]) == SESSION
    assert orchestrator.task(task["id"])["crush_session_id"] == "session-uuid"


def test_null_in_a_session_is_left_out(node: RegisteredNode, task: Json) -> None:
    messages = [{**message, "model": None} for message in SESSION["messages"]]
    session = {**SESSION, "cost": None, "messages": messages}
    stored = ok(node.http.post("/logs", json={"job_id": task["id"], "session": session}))
    assert stored == {name: value for name, value in SESSION.items() if name != "cost"}


@pytest.mark.parametrize(
    ("session", "sentence"),
    [
        ({"title": 1}, "session.title must be a string"),
        ({"cost": "0.1"}, "session.cost must be a number"),
        ({"messages": {}}, "session.messages must be a list"),
        (
            {"messages": [{"created_at": 1.5}]},
            "session.messages.0.created_at must be a whole number",
        ),
    ],
)
def test_field_of_a_session_with_another_type_is_422(
    node: RegisteredNode, task: Json, session: Json, sentence: str
) -> None:
    body = {"job_id": task["id"], "session": session}
    assert refusal(node.http.post("/logs", json=body)) == (422, sentence)


def test_later_session_replaces_the_earlier_also_after_the_end(
    orchestrator: RunningOrchestrator, node: RegisteredNode, task: Json
) -> None:
    ok(node.http.post("/logs", json={"job_id": task["id"], "session": SESSION}))
    node.report(task["id"], "success")
    longer = {**SESSION, "title": "longer"}
    ok(node.http.post("/logs", json={"job_id": task["id"], "session": longer}))
    assert orchestrator.log_of(task["id"]) == longer


def test_task_without_a_session_is_404(orchestrator: RunningOrchestrator, task: Json) -> None:
    response = orchestrator.admin.get(f"/logs/{task['id']}")
    assert refusal(response) == (404, "no log has been sent for this task")


@pytest.mark.parametrize("session", ['{"a": NaN}', '{"a": "\\ud800"}', "[]", "null", '"text"'])
def test_session_that_is_no_json_object_is_422(
    node: RegisteredNode, task: Json, session: str
) -> None:
    body = f'{{"task_id": "{task["id"]}", "session": {session}}}'
    headers = {"Content-Type": "application/json"}
    code, sentence = refusal(node.http.post("/logs", content=body, headers=headers))
    assert code == 422
    assert sentence.startswith("session")


def _log_body(task: Json, size: int) -> bytes:
    body = json.dumps({"task_id": task["id"], "session": {"title": ""}})
    head, tail = body.split('""')
    return f'{head}"{"x" * (size - len(body))}"{tail}'.encode()


LIMIT = 10 * 1024**2


def test_log_of_10_mb_is_taken(node: RegisteredNode, task: Json) -> None:
    headers = {"Content-Type": "application/json"}
    ok(node.http.post("/logs", content=_log_body(task, LIMIT), headers=headers))


@pytest.mark.parametrize("depth", [100, 252, 253, 254, 255, 256, 300, 1000, 5000])
@pytest.mark.parametrize(("opened", "inside", "closed"), [("[", "", "]"), ('{"a":', "1", "}")])
def test_log_that_is_nested_ever_so_deep_is_kept_whole_or_refused(  # noqa: PLR0913, PLR0917 - the cases
    orchestrator: RunningOrchestrator,
    task: Json,
    node: RegisteredNode,
    depth: int,
    opened: str,
    inside: str,
    closed: str,
) -> None:
    nested, task_id = opened * depth + inside + closed * depth, task["id"]
    answer = node.http.post(
        "/logs",
        content=f'{{"task_id": "{task_id}", "session": {{"deep": {nested}}}}}',
        headers={"Content-Type": "application/json"},
    )
    shown = orchestrator.admin.get(f"/logs/{task_id}")
    assert (answer.status_code, shown.status_code) in {(200, 200), (422, 404), (400, 404)}


@pytest.mark.parametrize("declared", [True, False])
def test_larger_log_is_413(
    orchestrator: RunningOrchestrator, node: RegisteredNode, task: Json, *, declared: bool
) -> None:
    body = _log_body(task, LIMIT + 1)
    headers = {"Content-Type": "application/json"}
    content = body if declared else iter([body[:LIMIT], body[LIMIT:]])
    code, _ = refusal(node.http.post("/logs", content=content, headers=headers))
    assert code == 413
    assert orchestrator.admin.get(f"/logs/{task['id']}").status_code == 404


@pytest.mark.parametrize("declared", [True, False])
def test_larger_log_is_413_before_its_body_has_come_to_its_end(
    orchestrator: RunningOrchestrator, node: RegisteredNode, *, declared: bool
) -> None:
    host, port = orchestrator.url.removeprefix("http://").split(":")
    head = f"POST /logs HTTP/1.1\r\nHost: {host}\r\nX-API-Key: {node.api_key}\r\n"
    with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as connection:
        if declared:
            connection.sendall(f"{head}Content-Length: {LIMIT + 1}\r\n\r\n".encode())
        else:
            chunk = b"%x\r\n%s\r\n" % (LIMIT + 1, b"x" * (LIMIT + 1))
            connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunk)
        # More is announced in both cases, and never sent.
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413 ")
