"""Scoped keys: what each may do, and how they are rotated and revoked."""

import uuid

import httpx
import pytest
from sqlalchemy import update

from orchestrator.db.tables import ApiKey
from tests.orchestrator.serving import Json, RunningOrchestrator, ok, refusal, rows


def _holder(orchestrator: RunningOrchestrator, **fields: object) -> httpx.Client:
    return orchestrator.client(orchestrator.create_key(**fields)["api_key"])


def _new_task(client: httpx.Client, **fields: object) -> httpx.Response:
    return client.post("/tasks", json={"prompt": "p", **fields})


def _codes(orchestrator: RunningOrchestrator, *keys: Json) -> list[int]:
    return [_new_task(orchestrator.client(key["api_key"])).status_code for key in keys]


def test_key_has_defaults_and_undeclared_fields_are_ignored(shared: RunningOrchestrator) -> None:
    fields = dict.fromkeys(("allowed_node_patterns", "role", "rate_limit", "expires_in_days"))
    key = shared.create_key(**fields, further=1)
    assert (key["allowed_node_patterns"], key["role"]) == (["*"], "submitter")
    assert key["permissions"] == ["files:upload", "tasks:create"]
    assert not {"rate_limit", "expires_at", "rotated_at", "further"} & set(key)
    assert key["key_prefix"] == key["api_key"][:8]
    by_id = ok(shared.admin.get(f"/keys/{key['key_id']}"))
    assert by_id == {name: value for name, value in key.items() if name != "api_key"}
    assert by_id in rows(shared.admin.get("/keys"))


@pytest.mark.parametrize(
    ("role", "codes"),
    [
        ("submitter", [200, 403, 403, 403, 403, 403]),
        ("operator", [200, 404, 200, 404, 403, 403]),
        ("admin", [200, 404, 200, 404, 200, 200]),
    ],
)
def test_role_limits_the_key(shared: RunningOrchestrator, role: str, codes: list[int]) -> None:
    client = _holder(shared, role=role)
    paths = ("/tasks", "/logs/unknown", "/nodes", "/keys")
    responses = [_new_task(client), client.delete("/tasks/unknown"), *map(client.get, paths)]
    assert [response.status_code for response in responses] == codes


@pytest.mark.both_databases
def test_scoped_key_sees_only_its_own_tasks(orchestrator: RunningOrchestrator) -> None:
    others = orchestrator.create_task()["id"]
    client = _holder(orchestrator, role="operator")
    first, second = (ok(_new_task(client))["id"] for _ in range(2))
    assert [task["id"] for task in rows(client.get("/tasks"))] == [second, first]
    assert ok(client.get(f"/tasks/{first}"))["id"] == first
    for method in ("GET", "DELETE"):
        assert refusal(client.request(method, f"/tasks/{others}"))[0] == 404
    assert ok(client.delete(f"/tasks/{first}"))["status"] == "cancelled"
    assert [task["id"] for task in orchestrator.tasks()] == [second, first, others]


@pytest.mark.parametrize(
    ("path", "fields", "code"),
    [
        ("/tasks", {"target_node_name": "client-acme-*"}, 200),
        ("/tasks", {"target_node_name": "client-acme-*-gpu", "target_tags": {"a": "b"}}, 200),
        ("/tasks", {"target_node_name": "shared-1"}, 200),
        ("/tasks", {}, 403),
        ("/tasks", {"target_tags": {"client": "acme"}}, 403),
        ("/tasks", {"target_node_name": "client-*"}, 403),
        ("/tasks", {"target_node_name": "client-beta-1"}, 403),
        ("/tasks", {"target_node_name": "shared-*"}, 403),
        ("/tasks", {"target_node_name": ""}, 403),
        ("/tasks", {"target_node_id": str(uuid.UUID(int=0))}, 403),
        ("/keys", {"allowed_node_patterns": ["client-acme-prod-*", "shared-1"]}, 200),
        ("/keys", {}, 403),
        ("/keys", {"allowed_node_patterns": ["client-acme-*", "client-beta-*"]}, 403),
    ],
)
def test_patterns_limit_the_nodes_of_new_tasks_and_keys(
    shared: RunningOrchestrator, path: str, fields: Json, code: int
) -> None:
    holder = _holder(shared, role="admin", allowed_node_patterns=["client-acme-*", "shared-1"])
    before = len(rows(shared.admin.get(path)))
    body = {"prompt": "p", "name": "n", "description": "d", "role": "admin", **fields}
    assert holder.post(path, json=body).status_code == code
    assert len(rows(shared.admin.get(path))) == before + (code == 200)


def test_patterns_hold_for_a_node_targeted_by_its_id(shared: RunningOrchestrator) -> None:
    client = _holder(shared, allowed_node_patterns=["client-acme-*"])
    for name, code in (("client-acme-1", 200), ("client-beta-1", 403)):
        assert _new_task(client, target_node_id=shared.register(name).id).status_code == code


@pytest.mark.parametrize("call", ["POST {}/rotate", "POST {}/revoke", "DELETE {}"])
def test_key_changes_only_keys_for_its_own_nodes(shared: RunningOrchestrator, call: str) -> None:
    method, path = call.split()
    holder = _holder(shared, role="admin", allowed_node_patterns=["client-acme-*"])
    within = shared.create_key(allowed_node_patterns=["client-acme-prod-*"])["key_id"]
    beyond = shared.create_key(allowed_node_patterns=["client-*"])
    code, sentence = refusal(holder.request(method, path.format(f"/keys/{beyond['key_id']}")))
    assert (code, sentence[:46]) == (403, "the key may manage keys for client-acme-* only")
    assert _new_task(shared.client(beyond["api_key"]), target_node_name="client-1").is_success
    ok(holder.request(method, path.format(f"/keys/{within}")))


def test_only_its_uploader_may_use_a_file(shared: RunningOrchestrator) -> None:
    one, other = _holder(shared), _holder(shared)
    file = ok(one.post("/upload", files={"file": ("a.txt", b"a")}))["filename"]
    of_admin = shared.upload("b.txt", b"b")["filename"]
    for client, name in ((other, file), (one, of_admin)):
        code, sentence = refusal(_new_task(client, files=[name]))
        assert (code, sentence.partition(":")[0]) == (422, "files")
    assert ok(_new_task(one, files=[file]))["files"] == [file]


@pytest.mark.both_databases
def test_revoked_key_ends_its_repeated_tasks(orchestrator: RunningOrchestrator) -> None:
    _check_series_end(orchestrator, "POST {}/revoke")


def test_deleted_key_ends_its_repeated_tasks(orchestrator: RunningOrchestrator) -> None:
    _check_series_end(orchestrator, "DELETE {}")


def _check_series_end(orchestrator: RunningOrchestrator, call: str) -> None:
    key, other = orchestrator.create_key(), orchestrator.create_key()
    node, now = orchestrator.register(), orchestrator.moment()
    due, later = {"recurrence": "@daily", "scheduled_for": now}, {"recurrence": "@daily"}
    clients = [orchestrator.client(one["api_key"]) for one in (key, other)]
    running, others = (ok(_new_task(client, **due))["id"] for client in clients)
    assert {node.poll_id(), node.poll_id()} == {running, others}
    waiting, once = ok(_new_task(clients[0], **later))["id"], ok(_new_task(clients[0]))["id"]
    method, path = call.format(f"/keys/{key['key_id']}").split()
    ok(orchestrator.admin.request(method, path))
    for task_id in (running, others):
        node.report(task_id, "success")
    statuses = {task["id"]: task["status"] for task in orchestrator.tasks()}
    (following,) = set(statuses) - {running, others, waiting, once}
    assert statuses == {
        running: "success",
        others: "success",
        waiting: "cancelled",
        once: "pending",
        following: "pending",
    }
    assert orchestrator.task(following)["created_by"] == other["key_id"]


def test_end_of_a_key_cancels_all_its_tasks_on_request(orchestrator: RunningOrchestrator) -> None:
    key, node = orchestrator.create_key(), orchestrator.register()
    client = orchestrator.client(key["api_key"])
    task_ids = [ok(_new_task(client))["id"] for _ in range(2)]
    assert node.poll_id() == task_ids[0]
    others = orchestrator.create_task()["id"]
    ok(orchestrator.admin.post(f"/keys/{key['key_id']}/revoke?cancel_tasks=true"))
    assert [orchestrator.task(one)["status"] for one in task_ids] == ["cancelled"] * 2
    assert node.beat("busy", current_task_id=task_ids[0])["cancelled_task_ids"] == task_ids[:1]
    assert orchestrator.task(others)["status"] == "pending"


@pytest.mark.both_databases
def test_rotated_key_works_until_its_grace_or_all_ends(orchestrator: RunningOrchestrator) -> None:
    first = orchestrator.create_key()
    path = f"/keys/{first['key_id']}/rotate"
    second = ok(orchestrator.admin.post(path))
    code, sentence = refusal(orchestrator.admin.post(path))
    assert (code, "grace_period_hours=0" in sentence) == (409, True)
    third = ok(orchestrator.admin.post(path, params={"grace_period_hours": 0}))
    assert _codes(orchestrator, first, second, third) == [401, 401, 200]
    # No grace period is left that a further rotation would end too early.
    fourth = ok(orchestrator.admin.post(path))
    assert _codes(orchestrator, third, fourth) == [200, 200]
    orchestrator.change(update(ApiKey).values(previous_until=ApiKey.created_at))
    assert _codes(orchestrator, third, fourth) == [401, 200]
    fifth = ok(orchestrator.admin.post(path))
    ok(orchestrator.admin.post(path.replace("rotate", "revoke")))
    assert _codes(orchestrator, fourth, fifth) == [401, 401]
    sentence = "cannot rotate the key: it has been revoked"
    assert refusal(orchestrator.admin.post(path)) == (409, sentence)
