"""The audit: every use of the admin key and of scoped keys, every change, and no secret."""

from datetime import datetime, timedelta, timezone

import pytest
from sqlalchemy import update

from orchestrator.db.tables import ApiKey
from orchestrator.security import DenialSampler
from tests.orchestrator.serving import Json, RunningOrchestrator, ok, refusal
from tests.orchestrator.test_auth import NODE_CALLS

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


def _denied(orchestrator: RunningOrchestrator, key_id: str) -> list[tuple[str, str]]:
    entries = orchestrator.audit(key_id=key_id)
    return [
        (entry["action"].removeprefix("denied "), entry["detail"])
        for entry in entries
        if entry["action"].startswith("denied ")
    ]


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
    assert [entry["action"] for entry in entries] == [
        "key:created",
        "tasks:create",
        "denied nodes:read",
        "key:rotated",
        "key:revoked",
        "key:deleted",
    ]
    assert {entry["client"] for entry in entries} == {"127.0.0.1"}
    stored = orchestrator.stored()
    assert key["key_id"] in stored
    for secret in (key["api_key"], orchestrator.admin_key):
        assert secret not in stored


def test_every_call_with_the_admin_key_is_in_the_audit(orchestrator: RunningOrchestrator) -> None:
    schema = ok(orchestrator.client().get("/openapi.json"))
    calls = [("POST", "/dashboard/matches")]
    calls += [
        (method.upper(), path.replace("{", "").replace("}", ""))
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
        if operation.get("security") and operation["operationId"] not in NODE_CALLS
    ]
    assert len(calls) > 15
    for method, path in calls:
        orchestrator.admin.request(method, path, json={} if method == "POST" else None)
    entries = orchestrator.audit(limit=1000, key_id="admin")
    seen = {entry["detail"]: entry["action"] for entry in entries}
    assert {f"{method} {path}" for method, path in calls} - set(seen) == set()
    assert (seen["POST /tasks"], seen["DELETE /tasks/task_id"]) == ("tasks:create", "tasks:cancel")


@pytest.mark.both_databases
def test_refused_calls_with_a_key_are_in_the_audit_once_a_minute(
    orchestrator: RunningOrchestrator,
) -> None:
    key = orchestrator.create_key(rate_limit=1)
    path, old = f"/keys/{key['key_id']}", orchestrator.client(key["api_key"])
    codes = [old.post("/tasks", json={"prompt": "p"}).status_code for _ in range(4)]
    assert codes == [200, 429, 429, 429]
    rotated = ok(orchestrator.admin.post(f"{path}/rotate?grace_period_hours=0"))
    new = orchestrator.client(rotated["api_key"])
    codes = [old.post("/tasks").status_code for _ in range(3)]
    own = update(ApiKey).where(ApiKey.id == key["key_id"])
    orchestrator.change(own.values(expires_at=ApiKey.created_at))
    codes += [new.get("/nodes").status_code for _ in range(3)]
    ok(orchestrator.admin.post(f"{path}/revoke"))
    codes += [new.get("/tasks/pending").status_code for _ in range(3)]
    assert set(codes) == {401}
    assert _denied(orchestrator, key["key_id"]) == [
        ("tasks:create", "POST /tasks: the key is limited to 1 calls a minute"),
        ("tasks:create", "POST /tasks: the key has been rotated: use the new one"),
        ("nodes:read", "GET /nodes: the key has expired"),
        ("node", "GET /tasks/pending: the key has been revoked"),
    ]


def test_calls_that_only_nodes_may_make_are_in_the_audit(orchestrator: RunningOrchestrator) -> None:
    key: Json = orchestrator.create_key()
    for client in (orchestrator.client(key["api_key"]), orchestrator.admin):
        for _ in range(2):
            assert refusal(client.get("/tasks/pending")) == (403, "only a node may do this")
    entry = ("node", "GET /tasks/pending: only a node may do this")
    assert _denied(orchestrator, key["key_id"]) == _denied(orchestrator, "admin") == [entry]


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
    assert denials.is_due("key", "revoked", NOW)
    assert not denials.is_due("key", "revoked", NOW + timedelta(seconds=59))
    assert denials.is_due("key", "expired", NOW)
    assert denials.is_due("other", "revoked", NOW)
    assert denials.is_due("key", "revoked", NOW + timedelta(seconds=60))


def test_number_of_remembered_refusals_is_limited() -> None:
    denials = DenialSampler()
    for number in range(10_001):
        assert denials.is_due(f"key-{number}", "revoked", NOW)
    assert not denials.is_due("key-1", "revoked", NOW)
    assert denials.is_due("key-0", "revoked", NOW)
