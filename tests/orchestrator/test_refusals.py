"""Invalid requests change nothing, and are refused in one sentence that begins with the field."""

import json

import pytest

from tests.orchestrator.serving import Json, RunningOrchestrator, refusal

JSON_TYPE = {"Content-Type": "application/json"}
VALID: dict[str, Json] = {
    "/tasks": {"prompt": "p"},
    "/keys": {"name": "n", "description": "d"},
    "/status": {"task_id": "any", "status": "running"},
    "/nodes/heartbeat": {"node_id": "any", "status": "idle"},
}


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("/tasks", "prompt", " \n"),
        ("/tasks", "prompt", "\ud800"),
        ("/tasks", "prompt", "zero \0"),
        ("/tasks", "timeout_seconds", 2**40),
        ("/tasks", "target_tags", {"env": 1}),
        ("/tasks", "files", ["never-uploaded"]),
        ("/tasks", "files", ["twice", "twice"]),
        ("/tasks", "scheduled_for", "0001-01-01T00:00:00+14:00"),
        ("/tasks", "recurrence", "daily"),
        ("/tasks", "recurrence", "0 17-20 */14 */18 2 1#5"),
        ("/tasks", "recurrence", "*/30 * * * * *"),
        ("/tasks", "target_node_id", "not a UUID, so no node's"),
        ("/keys", "name", ""),
        ("/keys", "allowed_node_patterns", []),
        ("/keys", "role", "king"),
        ("/keys", "expires_in_days", 10**6),
        ("/status", "progress", float("nan")),
        ("/status", "progress", True),
        ("/status", "job_id", "another than task_id"),
        ("/nodes/heartbeat", "status", "sleepy"),
        pytest.param("/status", "message", "m" * 100_001, id="message"),
        pytest.param("/nodes/heartbeat", "task_ids", ["x"] * 1001, id="ids"),
        pytest.param("/nodes/heartbeat", "task_ids", ["x" * 129], id="long id"),
        pytest.param("/tasks", "target_tags", {str(n): "" for n in range(33)}, id="tags"),
        pytest.param("/tasks", "target_tags", {"k" * 256: ""}, id="long tag"),
        pytest.param("/tasks", "target_node_name", "*-" * 11, id="asterisks"),
        pytest.param("/tasks", "files", [str(n) for n in range(1001)], id="files"),
        pytest.param("/keys", "allowed_node_patterns", ["*-" * 11], id="patterns"),
    ],
)
def test_invalid_field_is_422_and_is_named(
    shared: RunningOrchestrator, path: str, field: str, value: object
) -> None:
    client = shared.admin if path in {"/tasks", "/keys"} else shared.register().http
    before = len(shared.tasks())
    body = json.dumps({**VALID[path], field: value})
    code, sentence = refusal(client.post(path, content=body, headers=JSON_TYPE))
    assert (code, sentence[: len(field)]) == (422, field)
    assert len(shared.tasks()) == before


def test_ten_errors_are_listed(shared: RunningOrchestrator) -> None:
    body = {"node_id": "any", "status": "idle", "task_ids": list(range(100))}
    code, sentence = refusal(shared.register().http.post("/nodes/heartbeat", json=body))
    listed = [f"task_ids.{number} must be a string" for number in range(10)]
    assert (code, sentence) == (422, "; ".join([*listed, "and 90 more"]))


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/nowhere", 404),
        ("PUT", "/tasks", 405),
        ("DELETE", "/tasks/nothing", 404),
        ("DELETE", "/nodes/nobody", 404),
        ("POST", "/keys/nothing/rotate", 404),
        ("POST", "/keys/nothing/revoke", 404),
        ("GET", "/tasks?status_filter=nonsense", 422),
        ("POST", "/tasks/cleanup?days=40000", 422),
    ],
)
def test_unknown_path_method_or_id_is_one_sentence(
    shared: RunningOrchestrator, method: str, path: str, code: int
) -> None:
    assert refusal(shared.admin.request(method, path))[0] == code


@pytest.mark.parametrize("body", [b"{bad", b"", b"[]", b'"text"', b"\xff", b"[" * 69_000])
def test_broken_body_is_one_sentence(shared: RunningOrchestrator, body: bytes) -> None:
    code, sentence = refusal(shared.admin.post("/tasks", content=body, headers=JSON_TYPE))
    assert code in {400, 422}
    assert sentence
