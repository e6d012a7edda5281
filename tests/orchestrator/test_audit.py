"""Who may make which call; and the audit: every use and change of a key, and no secret."""

from datetime import datetime, timedelta, timezone

import pytest
from sqlalchemy import update

from orchestrator.db.tables import ApiKey
from orchestrator.security import DenialSampler
from tests.orchestrator.serving import RunningOrchestrator, ok

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
OF_NODES = {"record_heartbeat", "next_task", "download_file", "report_status", "store_log"}
OF_NODES |= {"put_artifact", "send_output"}
"""The ids of the operations that only nodes call, once they are registered."""


def _calls(orchestrator: RunningOrchestrator) -> dict[tuple[str, str], bool]:
    """Return for each call that needs a key, by method and path, whether it is for nodes."""
    schema = ok(orchestrator.client().get("/openapi.json"))
    calls = {
        (method.upper(), path.replace("{", "").replace("}", "")): operation["operationId"]
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
        if operation.get("security") and operation["operationId"] != "register"
    }
    assert set(calls.values()) >= OF_NODES
    return {call: operation_id in OF_NODES for call, operation_id in calls.items()}


def test_each_call_is_open_to_its_callers_alone(shared: RunningOrchestrator) -> None:
    node, scoped = shared.register(), shared.create_key(role="admin")["api_key"]
    keys = {"admin": shared.admin_key, "node": node.api_key, "scoped": scoped}
    clients = {name: shared.client(key) for name, key in keys.items()}
    strangers = [shared.client(key) for key in (None, "unknown", "", shared.registration_token)]
    for (method, path), is_for_nodes in _calls(shared).items():
        codes = [client.request(method, path).status_code for client in strangers]
        assert codes == [401] * 4, path
        allowed = {"node"} if is_for_nodes else {"admin", "scoped"}
        for name, client in clients.items():
            code = client.request(method, path).status_code
            assert (code == 403) is (name not in allowed), (method, path, name)
            assert code != 401


def test_every_call_with_the_admin_key_is_in_the_audit(orchestrator: RunningOrchestrator) -> None:
    calls = [call for call, is_for_nodes in _calls(orchestrator).items() if not is_for_nodes]
    calls.append(("POST", "/dashboard/matches"))
    for method, path in calls:
        orchestrator.admin.request(method, path, json={} if method == "POST" else None)
    entries = orchestrator.audit(limit=1000, key_id="admin")
    seen = {entry["detail"]: entry["action"] for entry in entries}
    assert {f"{method} {path}" for method, path in calls} - set(seen) == set()
    assert (seen["POST /tasks"], seen["DELETE /tasks/task_id"]) == ("tasks:create", "tasks:cancel")


@pytest.mark.both_databases
def test_every_use_and_change_of_a_key_is_in_the_audit(orchestrator: RunningOrchestrator) -> None:
    key = orchestrator.create_key()
    path, client = f"/keys/{key['key_id']}", orchestrator.client(key["api_key"])
    ok(client.post("/tasks", json={"prompt": "p"}))
    client.get("/nodes")
    ok(orchestrator.admin.post(f"{path}/rotate"))
    ok(orchestrator.admin.post(f"{path}/revoke"))
    ok(orchestrator.admin.delete(path))
    entries = orchestrator.audit(key_id=key["key_id"])
    actions = "key:created,tasks:create,denied nodes:read,key:rotated,key:revoked,key:deleted"
    assert ",".join(entry["action"] for entry in entries) == actions
    assert {entry["client"] for entry in entries} == {"127.0.0.1"}
    stored = orchestrator.stored()
    assert key["key_id"] in stored
    for secret in (key["api_key"], orchestrator.admin_key):
        assert secret not in stored


@pytest.mark.both_databases
def test_refused_calls_are_in_the_audit_once_a_minute(orchestrator: RunningOrchestrator) -> None:
    key = orchestrator.create_key(rate_limit=1)
    path, old = f"/keys/{key['key_id']}", orchestrator.client(key["api_key"])
    codes = [old.post("/tasks", json={"prompt": "p"}).status_code for _ in range(4)]
    assert codes == [200, 429, 429, 429]
    rotated = ok(orchestrator.admin.post(f"{path}/rotate?grace_period_hours=0"))
    new = orchestrator.client(rotated["api_key"])
    codes = [old.post("/tasks").status_code for _ in range(3)]
    orchestrator.change(update(ApiKey).values(expires_at=ApiKey.created_at))
    codes += [new.get("/nodes").status_code for _ in range(3)]
    ok(orchestrator.admin.post(f"{path}/revoke"))
    codes += [new.get("/tasks/pending").status_code for _ in range(3)]
    assert codes == [401] * 9
    submitter = orchestrator.create_key(role="submitter")
    client = orchestrator.client(submitter["api_key"])
    calls = [("GET", "/nodes"), ("DELETE", "/nodes/x"), ("GET", "/nodes/x"), ("POST", "/tasks")]
    codes = [client.request(*call).status_code for call in calls * 5]
    assert codes == [403, 403, 403, 422] * 5
    actions = [entry["action"] for entry in orchestrator.audit(key_id=submitter["key_id"])]
    assert actions.count("denied nodes:read") == actions.count("denied nodes:remove") == 1
    assert actions.count("tasks:create") == 5
    entries = orchestrator.audit(key_id=key["key_id"])
    denied = [one for one in entries if one["action"].startswith("denied ")]
    assert [(one["action"][len("denied ") :], one["detail"]) for one in denied] == [
        ("tasks:create", "POST /tasks: the key is limited to 1 calls a minute"),
        ("call", "POST /tasks: the key has been rotated: use the new one"),
        ("nodes:read", "GET /nodes: the key has expired"),
        ("node", "GET /tasks/pending: the key has been revoked"),
    ]


@pytest.mark.both_databases
def test_calls_that_their_handler_refuses_are_in_the_audit_once_a_minute(
    orchestrator: RunningOrchestrator,
) -> None:
    key = orchestrator.create_key(role="admin", allowed_node_patterns=["acme-*"])
    client = orchestrator.client(key["api_key"])
    # Each names another host: what varies in a call is not another kind of refusal.
    codes = [
        client.post("/tasks", json={"prompt": "p", "target_node_name": f"beta-{n}"}).status_code
        for n in range(4)
    ]
    body = {"name": "wide", "description": "d", "allowed_node_patterns": ["*"]}
    codes += [client.post("/keys", json=body).status_code for _ in range(3)]
    assert codes == [403] * 7
    ok(client.post("/tasks", json={"prompt": "p", "target_node_name": "acme-1"}))
    entries = orchestrator.audit(key_id=key["key_id"])
    assert sorted(one["action"] for one in entries) == [
        "denied keys:manage",
        "denied tasks:create",
        "key:created",
        "tasks:create",
    ]
    assert any("the key may target acme-* only" in one["detail"] for one in entries)


@pytest.mark.settings(key_pending_tasks=1)
def test_tasks_beyond_the_limit_of_a_key_are_in_the_audit_once_a_minute(
    orchestrator: RunningOrchestrator,
) -> None:
    key = orchestrator.create_key(role="submitter")
    client = orchestrator.client(key["api_key"])
    codes = [client.post("/tasks", json={"prompt": "p"}).status_code for _ in range(4)]
    assert codes == [200, 429, 429, 429]
    actions = [one["action"] for one in orchestrator.audit(key_id=key["key_id"])]
    assert sorted(actions) == ["denied tasks:create", "key:created", "tasks:create"]


@pytest.mark.both_databases
def test_audit_is_filtered_and_limited(orchestrator: RunningOrchestrator) -> None:
    for _ in range(3):
        orchestrator.create_task()
    audit = ok(orchestrator.admin.get("/keys/audit?action=tasks:create&limit=2&hours=1"))
    assert (len(audit["entries"]), audit["total"]) == (2, 3)
    audit = ok(orchestrator.admin.get("/keys/audit?key_id=nobody"))
    assert audit == {"entries": [], "total": 0}


def test_refusals_that_are_alike_are_noted_again_after_a_minute() -> None:
    denials = DenialSampler()
    calls = [("key", "revoked", 0), ("key", "revoked", 59), ("key", "expired", 0)]
    calls += [("other", "revoked", 0), ("key", "revoked", 60)]
    due = [denials.is_due(key, why, NOW + timedelta(seconds=s)) for key, why, s in calls]
    assert due == [True, False, True, True, True]


def test_number_of_remembered_refusals_is_limited() -> None:
    denials = DenialSampler()
    assert all(denials.is_due(f"key-{number}", "revoked", NOW) for number in range(10_001))
    assert [denials.is_due(f"key-{number}", "revoked", NOW) for number in (1, 0)] == [False, True]
