"""Who may make which call."""

import pytest

from tests.orchestrator.serving import RunningOrchestrator, ok, refusal

NODE_CALLS = {"record_heartbeat", "next_task", "download_file", "report_status", "store_log"}
NODE_CALLS |= {"register"}
"""The ids of the operations that only nodes call."""


def test_each_call_is_open_to_its_callers_alone(shared: RunningOrchestrator) -> None:
    schema = ok(shared.client().get("/openapi.json"))
    operations = {
        (method.upper(), path): operation["operationId"] in NODE_CALLS
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
        if operation.get("security") and operation["operationId"] != "register"
    }
    assert sum(operations.values()) == len(NODE_CALLS) - 1
    assert len(operations) > 20
    node, scoped = shared.register(), shared.create_key(role="admin")["api_key"]
    keys = {"admin": shared.admin_key, "node": node.api_key, "scoped": scoped}
    clients = {name: shared.client(key) for name, key in keys.items()}
    strangers = [shared.client(key) for key in (None, "unknown", "", shared.registration_token)]
    for (method, template), is_for_nodes in operations.items():
        path = template.replace("{", "").replace("}", "")
        codes = [client.request(method, path).status_code for client in strangers]
        assert codes == [401] * 4, path
        allowed = {"node"} if is_for_nodes else {"admin", "scoped"}
        for name, client in clients.items():
            code = client.request(method, path).status_code
            assert (code == 403) is (name not in allowed), (method, path, name)
            assert code != 401


@pytest.mark.parametrize(
    ("method", "path", "code"), [("GET", "/nowhere", 404), ("PUT", "/tasks", 405)]
)
def test_unknown_path_or_method_is_one_sentence(
    shared: RunningOrchestrator, method: str, path: str, code: int
) -> None:
    assert refusal(shared.admin.request(method, path))[0] == code


@pytest.mark.parametrize("body", [b"{bad", b"", b"[]", b'"text"', b"\xff", b"[" * 100_000])
def test_broken_body_is_refused_with_one_sentence(shared: RunningOrchestrator, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    code, sentence = refusal(shared.admin.post("/tasks", content=body, headers=headers))
    assert code in {400, 422}
    assert sentence
