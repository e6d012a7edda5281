"""Scoped keys: what each may do, and how they are limited, rotated and revoked."""

import uuid
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from orchestrator.db.tables import ApiKey
from tests.orchestrator.serving import Json, RunningOrchestrator, ok, refusal, rows

ROTATED = (401, "the key has been rotated: use the new one")


def _holder(orchestrator: RunningOrchestrator, **fields: object) -> httpx.Client:
    return orchestrator.client(orchestrator.create_key(**fields)["api_key"])


def _new_task(client: httpx.Client, **fields: object) -> httpx.Response:
    return client.post("/tasks", json={"prompt": "p", **fields})


def _codes(orchestrator: RunningOrchestrator, *keys: Json) -> list[int]:
    """Create a task with each of these secrets."""
    return [_new_task(orchestrator.client(key["api_key"])).status_code for key in keys]


def _change(orchestrator: RunningOrchestrator, key: Json, **values: Any) -> None:  # noqa: ANN401 - any column's
    orchestrator.change(update(ApiKey).where(ApiKey.id == key["key_id"]).values(**values))


def test_key_has_a_prefix_and_the_permissions_of_its_role(shared: RunningOrchestrator) -> None:
    key = shared.create_key()
    assert key["key_prefix"] == key["api_key"][:8]
    assert key["permissions"] == ["files:upload", "tasks:create"]
    by_id = ok(shared.admin.get(f"/keys/{key['key_id']}"))
    assert by_id == {name: value for name, value in key.items() if name != "api_key"}
    assert by_id in rows(shared.admin.get("/keys"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", None),
        ("description", None),
        ("allowed_node_patterns", []),
        ("allowed_node_patterns", [1]),
        ("role", "king"),
        ("rate_limit", 0),
        ("expires_in_days", 0),
        ("expires_in_days", 10**6),
    ],
)
def test_invalid_key_is_422_and_names_the_field(
    shared: RunningOrchestrator, field: str, value: object
) -> None:
    body = {"name": "n", "description": "d", field: value}
    code, sentence = refusal(shared.admin.post("/keys", json=body))
    assert code == 422
    assert sentence.startswith(field)


def test_fields_that_are_not_declared_are_ignored_and_null_is_as_if_left_out(
    shared: RunningOrchestrator,
) -> None:
    fields = dict.fromkeys(("allowed_node_patterns", "role", "rate_limit", "expires_in_days"))
    key = shared.create_key(**fields, further=1)
    assert (key["allowed_node_patterns"], key["role"]) == (["*"], "submitter")
    assert not {"rate_limit", "expires_at", "rotated_at", "further"} & set(key)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("DELETE", ""), ("POST", "/rotate"), ("POST", "/revoke")],
)
def test_unknown_key_id_is_404(shared: RunningOrchestrator, method: str, path: str) -> None:
    response = shared.admin.request(method, f"/keys/nothing{path}")
    assert refusal(response) == (404, "there is no such key")


# What a key may do


@pytest.mark.parametrize(
    ("role", "codes"),
    [
        ("submitter", [200, 403, 403, 403, 403, 403]),
        ("operator", [200, 200, 404, 404, 403, 403]),
        ("admin", [200, 200, 404, 404, 200, 200]),
    ],
)
def test_role_decides_what_a_key_may_do(
    shared: RunningOrchestrator, role: str, codes: list[int]
) -> None:
    client = _holder(shared, role=role)
    responses = [
        _new_task(client),
        client.get("/tasks"),
        client.get("/logs/unknown"),
        client.delete("/tasks/unknown"),
        client.get("/nodes"),
        client.get("/keys"),
    ]
    assert [response.status_code for response in responses] == codes


@pytest.mark.both_databases
def test_scoped_key_sees_only_its_own_tasks(orchestrator: RunningOrchestrator) -> None:
    others = orchestrator.create_task()["id"]
    client = _holder(orchestrator, role="operator")
    own = ok(_new_task(client))["id"]
    assert [task["id"] for task in rows(client.get("/tasks"))] == [own]
    assert ok(client.get(f"/tasks/{own}"))["id"] == own
    assert refusal(client.get(f"/tasks/{others}"))[0] == 404
    assert refusal(client.delete(f"/tasks/{others}"))[0] == 404
    assert ok(client.delete(f"/tasks/{own}"))["status"] == "cancelled"
    assert len(orchestrator.tasks()) == 2


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ({"target_node_name": "client-acme-prod-1"}, 200),
        ({"target_node_name": "client-acme-*"}, 200),
        ({"target_node_name": "client-acme-*-gpu", "target_tags": {"a": "b"}}, 200),
        ({"target_node_name": "shared-1"}, 200),
        ({}, 403),
        ({"target_tags": {"client": "acme"}}, 403),
        ({"target_node_name": "*"}, 403),
        ({"target_node_name": "client-*"}, 403),
        ({"target_node_name": "client-beta-1"}, 403),
        ({"target_node_name": "shared-*"}, 403),
        ({"target_node_name": ""}, 403),
        ({"target_node_id": str(uuid.uuid4())}, 403),
    ],
)
def test_patterns_limit_what_a_key_may_target(
    shared: RunningOrchestrator, target: Json, code: int
) -> None:
    before = len(shared.tasks())
    client = _holder(shared, allowed_node_patterns=["client-acme-*", "shared-1"])
    assert _new_task(client, **target).status_code == code
    assert len(shared.tasks()) == before + (code == 200)


def test_patterns_hold_for_a_node_targeted_by_its_id(shared: RunningOrchestrator) -> None:
    client = _holder(shared, allowed_node_patterns=["client-acme-*"])
    own, other = shared.register("client-acme-1"), shared.register("client-beta-1")
    assert _new_task(client, target_node_id=own.id).status_code == 200
    assert refusal(_new_task(client, target_node_id=other.id))[0] == 403
    # All targets must hold, so this task reaches no node.
    task = ok(_new_task(client, target_node_id=other.id, target_node_name="client-acme-*"))
    assert other.poll_id() != task["id"]


@pytest.mark.parametrize(
    ("patterns", "code"),
    [
        (["client-acme-*"], 200),
        (["client-acme-prod-*", "shared-1"], 200),
        (["client-acme-1"], 200),
        (None, 403),
        (["*"], 403),
        (["client-*"], 403),
        (["shared-*"], 403),
        (["client-acme-*", "client-beta-*"], 403),
    ],
)
def test_key_cannot_create_keys_for_more_nodes_than_its_own(
    shared: RunningOrchestrator, patterns: list[str] | None, code: int
) -> None:
    holder = _holder(shared, role="admin", allowed_node_patterns=["client-acme-*", "shared-1"])
    before = len(rows(shared.admin.get("/keys")))
    body = {"name": "n", "description": "d", "role": "admin"}
    limits = {} if patterns is None else {"allowed_node_patterns": patterns}
    assert holder.post("/keys", json={**body, **limits}).status_code == code
    assert len(rows(shared.admin.get("/keys"))) == before + (code == 200)


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/keys/{}/rotate"), ("POST", "/keys/{}/revoke"), ("DELETE", "/keys/{}")],
)
def test_key_changes_only_keys_for_its_own_nodes(
    shared: RunningOrchestrator, method: str, path: str
) -> None:
    holder = _holder(shared, role="admin", allowed_node_patterns=["client-acme-*"])
    within = shared.create_key(allowed_node_patterns=["client-acme-prod-*"])["key_id"]
    beyond = shared.create_key(allowed_node_patterns=["client-*"])
    code, sentence = refusal(holder.request(method, path.format(beyond["key_id"])))
    assert code == 403
    assert sentence.startswith("the key may manage keys for client-acme-* only")
    assert _new_task(shared.client(beyond["api_key"]), target_node_name="client-1").is_success
    ok(holder.request(method, path.format(within)))


def test_only_its_uploader_may_use_a_file(shared: RunningOrchestrator) -> None:
    one, other = _holder(shared), _holder(shared)
    file = ok(one.post("/upload", files={"file": ("a.txt", b"a")}))["filename"]
    code, sentence = refusal(_new_task(other, files=[file]))
    assert (code, sentence.partition(":")[0]) == (422, "files")
    assert ok(_new_task(one, files=[file]))["files"] == [file]
    of_admin = shared.upload("b.txt", b"b")["filename"]
    assert refusal(_new_task(one, files=[of_admin]))[0] == 422


# How a key is limited, and how it ends


@pytest.mark.both_databases
def test_rate_limit_is_429_with_retry_after(orchestrator: RunningOrchestrator) -> None:
    key = orchestrator.create_key(rate_limit=3)
    client = orchestrator.client(key["api_key"])
    assert [_new_task(client).status_code for _ in range(3)] == [200, 200, 200]
    response = _new_task(client)
    assert refusal(response) == (429, "the key is limited to 3 calls a minute")
    assert 1 <= int(response.headers["Retry-After"]) <= 20
    # Equivalent to that time passing.
    _change(orchestrator, key, paid_until=None)
    assert _new_task(client).status_code == 200


def test_expired_key_is_401(shared: RunningOrchestrator) -> None:
    key = shared.create_key(expires_in_days=1)
    client = shared.client(key["api_key"])
    assert _new_task(client).status_code == 200
    _change(shared, key, expires_at=ApiKey.created_at)
    assert refusal(_new_task(client)) == (401, "the key has expired")


@pytest.mark.both_databases
def test_rotated_key_works_until_the_grace_period_ends(orchestrator: RunningOrchestrator) -> None:
    key = orchestrator.create_key()
    path = f"/keys/{key['key_id']}/rotate"
    rotated = ok(orchestrator.admin.post(f"{path}?grace_period_hours=1"))
    assert rotated["grace_period_hours"] == 1
    assert rotated["rotated_at"] is not None
    assert _codes(orchestrator, key, rotated) == [200, 200]
    code, sentence = refusal(orchestrator.admin.post(path))
    assert code == 409
    assert "grace_period_hours=0" in sentence
    assert _codes(orchestrator, key, rotated) == [200, 200]
    _change(orchestrator, key, previous_until=ApiKey.created_at)
    assert refusal(_new_task(orchestrator.client(key["api_key"]))) == ROTATED
    second = ok(orchestrator.admin.post(path))
    assert _codes(orchestrator, key, rotated, second) == [401, 200, 200]


def test_second_rotation_without_grace_ends_all_but_the_new_key(
    shared: RunningOrchestrator,
) -> None:
    key = shared.create_key()
    path = f"/keys/{key['key_id']}/rotate"
    second = ok(shared.admin.post(path))
    third = ok(shared.admin.post(path, params={"grace_period_hours": 0}))
    assert _codes(shared, key, second, third) == [401, 401, 200]
    # No grace period is left that a further rotation would end too early.
    ok(shared.admin.post(path))


def test_revoked_key_is_401_and_stays_on_the_list(shared: RunningOrchestrator) -> None:
    key = shared.create_key()
    path = f"/keys/{key['key_id']}"
    rotated = ok(shared.admin.post(f"{path}/rotate"))
    assert ok(shared.admin.post(f"{path}/revoke"))["enabled"] is False
    for secret in (key["api_key"], rotated["api_key"]):
        assert refusal(_new_task(shared.client(secret))) == (401, "the key has been revoked")
    listed = {one["key_id"]: one["enabled"] for one in rows(shared.admin.get("/keys"))}
    assert listed[key["key_id"]] is False
    response = shared.admin.post(f"{path}/rotate")
    assert refusal(response) == (409, "cannot rotate the key: it has been revoked")
