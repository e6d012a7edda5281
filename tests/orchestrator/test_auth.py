"""Who may call what: one row for each call."""

import pytest

from tests.orchestrator.serving import RegisteredNode, RunningOrchestrator, refusal

ADMIN, NODE = "admin", "node"

CALLS = [
    ("POST", "/nodes/heartbeat", NODE),
    ("GET", "/nodes", ADMIN),
    ("GET", "/nodes/some-id", ADMIN),
    ("DELETE", "/nodes/some-id", ADMIN),
    ("GET", "/tasks/pending", NODE),
    ("POST", "/tasks", ADMIN),
    ("GET", "/tasks", ADMIN),
    ("GET", "/tasks/some-id", ADMIN),
    ("DELETE", "/tasks/some-id", ADMIN),
    ("POST", "/upload", ADMIN),
    ("GET", "/files/some-name", NODE),
    ("POST", "/status", NODE),
    ("POST", "/logs", NODE),
    ("GET", "/logs/some-id", ADMIN),
]


@pytest.mark.parametrize(("method", "path", "allowed"), CALLS)
def test_call_is_open_to_its_caller_alone(
    orchestrator: RunningOrchestrator,
    node: RegisteredNode,
    method: str,
    path: str,
    allowed: str,
) -> None:
    keys = {ADMIN: orchestrator.admin_key, NODE: node.api_key}
    other = keys[NODE if allowed == ADMIN else ADMIN]

    def answer(key: str | None) -> int:
        return orchestrator.client(key).request(method, path).status_code

    assert answer(None) == 401
    assert answer("unknown") == 401
    assert answer("") == 401
    assert answer(other) == 403
    assert answer(keys[allowed]) not in {401, 403}


def test_health_needs_no_key(orchestrator: RunningOrchestrator) -> None:
    health = orchestrator.client().get("/health").json()
    assert set(health) == {"status", "version", "timestamp"}


def test_registration_token_is_no_api_key(orchestrator: RunningOrchestrator) -> None:
    key = orchestrator.registration_token
    assert orchestrator.client(key).get("/nodes").status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "code"), [("GET", "/nowhere", 404), ("PUT", "/tasks", 405)]
)
def test_unknown_path_or_method_is_one_sentence(
    orchestrator: RunningOrchestrator, method: str, path: str, code: int
) -> None:
    assert refusal(orchestrator.admin.request(method, path))[0] == code


@pytest.mark.parametrize("body", [b"{bad", b"", b"[]", b'"text"', b"\xff", b"[" * 100_000])
def test_broken_body_is_refused_with_one_sentence(
    orchestrator: RunningOrchestrator, body: bytes
) -> None:
    headers = {"Content-Type": "application/json"}
    code, sentence = refusal(orchestrator.admin.post("/tasks", content=body, headers=headers))
    assert code in {400, 422}
    assert sentence
