"""The audit: every use of the admin key and of scoped ones, every change, and no secret."""

from tests.orchestrator.serving import Json, RunningOrchestrator, ok


def _new_key(orchestrator: RunningOrchestrator) -> Json:
    return ok(orchestrator.admin.post("/keys", json={"name": "ci", "description": "builds"}))


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
