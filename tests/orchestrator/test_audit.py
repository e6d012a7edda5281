"""The audit: every use of the admin key and of scoped ones, every change, and no secret."""

from datetime import datetime, timedelta, timezone

from sqlalchemy import update

from orchestrator.db.tables import ApiKey
from orchestrator.security import DenialSampler
from tests.orchestrator.serving import Json, RunningOrchestrator, ok, refusal

NODE_CALLS = {
    "record_heartbeat",
    "next_task",
    "download_file",
    "report_status",
    "store_log",
    "register",
}
"""The ids of those that only nodes make."""


def _new_key(orchestrator: RunningOrchestrator, **fields: object) -> Json:
    body = {"name": "ci", "description": "builds", **fields}
    return ok(orchestrator.admin.post("/keys", json=body))


def _audit(orchestrator: RunningOrchestrator, **params: object) -> Json:
    return ok(orchestrator.admin.get("/keys/audit", params=params))  # type: ignore[arg-type]  # what httpx takes is narrower than object


def test_every_use_and_change_of_a_key_is_in_the_audit(orchestrator: RunningOrchestrator) -> None:
    key = _new_key(orchestrator)
    client = orchestrator.client(key["api_key"])
    ok(client.post("/tasks", json={"prompt": "p"}))
    client.get("/nodes")
    ok(orchestrator.admin.post(f"/keys/{key['key_id']}/rotate"))
    ok(orchestrator.admin.post(f"/keys/{key['key_id']}/revoke"))
    ok(orchestrator.admin.delete(f"/keys/{key['key_id']}"))
    audit = _audit(orchestrator, key_id=key["key_id"])
    actions = [entry["action"] for entry in reversed(audit["entries"])]
    assert actions == [
        "key:created",
        "tasks:create",
        "denied nodes:read",
        "key:rotated",
        "key:revoked",
        "key:deleted",
    ]
    assert audit["total"] == len(actions)
    assert {entry["client"] for entry in audit["entries"]} == {"127.0.0.1"}


def test_every_call_with_the_admin_key_is_in_the_audit(orchestrator: RunningOrchestrator) -> None:
    orchestrator.nodes()
    task = orchestrator.create_task("the-prompt")
    orchestrator.cancel(task["id"])
    entries = _audit(orchestrator, key_id="admin")["entries"]
    assert [(entry["action"], entry["detail"]) for entry in reversed(entries)] == [
        ("nodes:read", "GET /nodes"),
        ("tasks:create", "POST /tasks"),
        ("tasks:cancel", f"DELETE /tasks/{task['id']}"),
        ("keys:manage", "GET /keys/audit"),
    ]


def _denied(orchestrator: RunningOrchestrator, key: Json) -> list[tuple[str, str]]:
    entries = _audit(orchestrator, key_id=key["key_id"])["entries"]
    return [
        (entry["action"], entry["detail"])
        for entry in reversed(entries)
        if entry["action"].startswith("denied ")
    ]


def test_calls_over_the_rate_are_in_the_audit_once_a_minute(
    orchestrator: RunningOrchestrator,
) -> None:
    key = _new_key(orchestrator, rate_limit=1)
    client = orchestrator.client(key["api_key"])
    codes = [client.post("/tasks", json={"prompt": "p"}).status_code for _ in range(5)]
    assert codes == [200, 429, 429, 429, 429]
    sentence = "POST /tasks: the key is limited to 1 calls a minute"
    assert _denied(orchestrator, key) == [("denied tasks:create", sentence)]


def test_calls_with_keys_that_hold_no_more_are_in_the_audit_once_a_minute(
    orchestrator: RunningOrchestrator,
) -> None:
    key = _new_key(orchestrator)
    old = orchestrator.client(key["api_key"])
    rotate = f"/keys/{key['key_id']}/rotate?grace_period_hours=0"
    new = orchestrator.client(ok(orchestrator.admin.post(rotate))["api_key"])
    own = update(ApiKey).where(ApiKey.id == key["key_id"])
    codes = [old.post("/tasks").status_code for _ in range(3)]
    orchestrator.change(own.values(expires_at=ApiKey.created_at))
    codes += [new.get("/nodes").status_code for _ in range(3)]
    ok(orchestrator.admin.post(f"/keys/{key['key_id']}/revoke"))
    codes += [new.get("/tasks/pending").status_code for _ in range(3)]
    assert set(codes) == {401}
    assert _denied(orchestrator, key) == [
        ("denied tasks:create", "POST /tasks: the key has been rotated: use the new one"),
        ("denied nodes:read", "GET /nodes: the key has expired"),
        ("denied node", "GET /tasks/pending: the key has been revoked"),
    ]


def test_keys_that_do_what_only_nodes_may_are_in_the_audit(
    orchestrator: RunningOrchestrator,
) -> None:
    key = _new_key(orchestrator)
    for client in (orchestrator.client(key["api_key"]), orchestrator.admin):
        for _ in range(2):
            assert refusal(client.get("/tasks/pending")) == (403, "only a node may do this")
    entry = ("denied node", "GET /tasks/pending: only a node may do this")
    assert _denied(orchestrator, key) == _denied(orchestrator, {"key_id": "admin"}) == [entry]


def test_refusals_that_are_alike_are_noted_again_after_a_minute() -> None:
    denials = DenialSampler()
    now = datetime(2026, 1, 1, tzinfo=timezone.utc)
    assert denials.is_due("key", "revoked", now)
    assert not denials.is_due("key", "revoked", now + timedelta(seconds=59))
    assert denials.is_due("key", "expired", now)
    assert denials.is_due("other", "revoked", now)
    assert denials.is_due("key", "revoked", now + timedelta(seconds=60))


def test_only_so_many_refusals_are_remembered() -> None:
    denials = DenialSampler()
    now = datetime(2026, 1, 1, tzinfo=timezone.utc)
    for number in range(10_001):
        assert denials.is_due(f"key-{number}", "revoked", now)
    assert not denials.is_due("key-1", "revoked", now)
    assert denials.is_due("key-0", "revoked", now)


def test_every_admin_call_there_is_is_in_the_audit(orchestrator: RunningOrchestrator) -> None:
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
    entries = _audit(orchestrator, limit=1000)["entries"]
    seen = {entry["detail"] for entry in entries if not entry["action"].startswith("denied ")}
    assert {f"{method} {path}" for method, path in calls} - seen == set()


def test_audit_has_the_address_that_a_call_came_from(orchestrator: RunningOrchestrator) -> None:
    orchestrator.admin.get("/nodes", headers={"X-Forwarded-For": "203.0.113.9"})
    entries = _audit(orchestrator)["entries"]
    assert {entry["client"] for entry in entries} == {"127.0.0.1"}


def test_audit_is_filtered_and_cut(orchestrator: RunningOrchestrator) -> None:
    for _ in range(3):
        orchestrator.create_task()
    audit = _audit(orchestrator, action="tasks:create", limit=2, hours=1)
    assert (len(audit["entries"]), audit["total"]) == (2, 3)
    assert _audit(orchestrator, key_id="nobody") == {"entries": [], "total": 0}


def test_audit_and_list_hold_no_secret(orchestrator: RunningOrchestrator) -> None:
    key = _new_key(orchestrator)
    orchestrator.client(key["api_key"]).get("/nodes")
    for path in ("/keys", "/keys/audit", f"/keys/{key['key_id']}"):
        text = orchestrator.admin.get(path).text
        assert key["api_key"] not in text
        assert orchestrator.admin_key not in text
    stored = orchestrator.stored()
    assert key["api_key"] not in stored
    assert orchestrator.admin_key not in stored
