"""Scoped keys: what each may do, and how it is rotated, limited, revoked and deleted."""

from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from orchestrator.db.tables import ApiKey
from tests.orchestrator.serving import Json, RunningOrchestrator, ok, refusal, rows

VIEW = {
    "key_id",
    "name",
    "key_prefix",
    "allowed_node_patterns",
    "permissions",
    "rate_limit",
    "created_at",
    "rotated_at",
    "expires_at",
    "enabled",
    "description",
}


def _create(orchestrator: RunningOrchestrator, **fields: object) -> Json:
    body = {"name": "ci", "description": "builds", **fields}
    return ok(orchestrator.admin.post("/keys", json=body))


def _holder(orchestrator: RunningOrchestrator, **fields: object) -> httpx.Client:
    return orchestrator.client(_create(orchestrator, **fields)["api_key"])


def _new_task(client: httpx.Client, **fields: object) -> httpx.Response:
    return client.post("/tasks", json={"prompt": "p", **fields})


def _change(orchestrator: RunningOrchestrator, key: Json, values: Mapping[str, Any]) -> None:
    orchestrator.change(update(ApiKey).where(ApiKey.id == key["key_id"]).values(**values))


# What is shown


def test_key_is_shown_once_and_kept_as_a_hash(orchestrator: RunningOrchestrator) -> None:
    key = _create(orchestrator, rate_limit=5, expires_in_days=1)
    assert set(key) > VIEW
    assert key["key_prefix"] == key["api_key"][:8]
    assert key["permissions"] == ["files:upload", "tasks:create"]
    shown = ok(orchestrator.admin.get(f"/keys/{key['key_id']}"))
    assert rows(orchestrator.admin.get("/keys")) == [shown]
    assert shown == {name: value for name, value in key.items() if name != "api_key"}
    assert key["key_id"] in orchestrator.stored()
    assert key["api_key"] not in orchestrator.stored()


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
    orchestrator: RunningOrchestrator, field: str, value: object
) -> None:
    body = {"name": "n", "description": "d", field: value}
    code, sentence = refusal(orchestrator.admin.post("/keys", json=body))
    assert code == 422
    assert sentence.startswith(field)


def test_unknown_key_id_is_404(orchestrator: RunningOrchestrator) -> None:
    for response in (
        orchestrator.admin.get("/keys/nothing"),
        orchestrator.admin.delete("/keys/nothing"),
        orchestrator.admin.post("/keys/nothing/rotate"),
        orchestrator.admin.post("/keys/nothing/revoke"),
    ):
        assert refusal(response) == (404, "there is no such key")


# What it may do


@pytest.mark.parametrize(
    ("role", "codes"),
    [
        ("submitter", [200, 403, 403, 403, 403, 403]),
        ("operator", [200, 200, 404, 404, 403, 403]),
        ("admin", [200, 200, 404, 404, 200, 200]),
    ],
)
def test_role_says_what_a_key_may_do(
    orchestrator: RunningOrchestrator, role: str, codes: list[int]
) -> None:
    client = _holder(orchestrator, role=role)
    answers = [
        _new_task(client),
        client.get("/tasks"),
        client.get("/logs/unknown"),
        client.delete("/tasks/unknown"),
        client.get("/nodes"),
        client.get("/keys"),
    ]
    assert [answer.status_code for answer in answers] == codes


def test_scoped_key_sees_only_its_own_tasks(orchestrator: RunningOrchestrator) -> None:
    others = orchestrator.create_task()
    client = _holder(orchestrator, role="operator")
    own = ok(_new_task(client))
    assert [task["id"] for task in rows(client.get("/tasks"))] == [own["id"]]
    assert ok(client.get(f"/tasks/{own['id']}"))["id"] == own["id"]
    assert refusal(client.get(f"/tasks/{others['id']}"))[0] == 404
    assert refusal(client.delete(f"/tasks/{others['id']}"))[0] == 404
    assert ok(client.delete(f"/tasks/{own['id']}"))["status"] == "cancelled"
    assert len(orchestrator.tasks()) == 2


@pytest.mark.parametrize("call", ["/tasks/pending", "/files/some-name"])
def test_scoped_key_is_no_node(orchestrator: RunningOrchestrator, call: str) -> None:
    client = _holder(orchestrator, role="admin")
    assert refusal(client.get(call)) == (403, "only a node may do this")


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
        ({"target_node_id": "nothing"}, 403),
    ],
)
def test_patterns_limit_what_a_key_may_target(
    orchestrator: RunningOrchestrator, target: Json, code: int
) -> None:
    client = _holder(orchestrator, allowed_node_patterns=["client-acme-*", "shared-1"])
    assert _new_task(client, **target).status_code == code
    assert len(orchestrator.tasks()) == (code == 200)


def test_patterns_hold_for_a_node_named_by_its_id(orchestrator: RunningOrchestrator) -> None:
    client = _holder(orchestrator, allowed_node_patterns=["client-acme-*"])
    own, other = orchestrator.register("client-acme-1"), orchestrator.register("client-beta-1")
    assert _new_task(client, target_node_id=own.id).status_code == 200
    assert refusal(_new_task(client, target_node_id=other.id))[0] == 403
    # Both must hold for a node, so this one reaches nobody.
    response = _new_task(client, target_node_id=other.id, target_node_name="client-acme-*")
    assert response.status_code == 200
    assert other.poll() is None


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
def test_key_gives_no_more_nodes_than_it_has(
    orchestrator: RunningOrchestrator, patterns: list[str] | None, code: int
) -> None:
    own = ["client-acme-*", "shared-1"]
    holder = _holder(orchestrator, role="admin", allowed_node_patterns=own)
    body: Json = {"name": "n", "description": "d", "role": "admin"}
    if patterns is not None:
        body["allowed_node_patterns"] = patterns
    assert holder.post("/keys", json=body).status_code == code
    assert len(rows(orchestrator.admin.get("/keys"))) == 1 + (code == 200)


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/keys/{}/rotate"), ("POST", "/keys/{}/revoke"), ("DELETE", "/keys/{}")],
)
def test_key_changes_only_keys_for_nodes_that_it_has(
    orchestrator: RunningOrchestrator, method: str, path: str
) -> None:
    holder = _holder(orchestrator, role="admin", allowed_node_patterns=["client-acme-*"])
    within = _create(orchestrator, allowed_node_patterns=["client-acme-prod-*"])["key_id"]
    beyond = _create(orchestrator, allowed_node_patterns=["client-*"])
    code, sentence = refusal(holder.request(method, path.format(beyond["key_id"])))
    assert code == 403
    assert sentence.startswith("the key may manage keys for client-acme-* only")
    assert _new_task(orchestrator.client(beyond["api_key"]), target_node_name="client-1").is_success
    ok(holder.request(method, path.format(within)))


def test_file_is_its_uploaders_alone(orchestrator: RunningOrchestrator) -> None:
    one, other = _holder(orchestrator), _holder(orchestrator)
    file = ok(one.post("/upload", files={"file": ("a.txt", b"a")}))["filename"]
    code, sentence = refusal(_new_task(other, files=[file]))
    assert (code, sentence.partition(":")[0]) == (422, "files")
    assert ok(_new_task(one, files=[file]))["files"] == [file]
    of_admin = orchestrator.upload("b.txt", b"b")["filename"]
    assert refusal(_new_task(one, files=[of_admin]))[0] == 422


# How it is limited


def test_rate_limit_is_429_with_retry_after(orchestrator: RunningOrchestrator) -> None:
    key = _create(orchestrator, rate_limit=3)
    client = orchestrator.client(key["api_key"])
    assert [_new_task(client).status_code for _ in range(3)] == [200, 200, 200]
    response = _new_task(client)
    assert refusal(response) == (429, "the key is limited to 3 calls a minute")
    assert 1 <= int(response.headers["Retry-After"]) <= 20
    # As if that time had passed.
    _change(orchestrator, key, {"paid_until": None})
    assert _new_task(client).status_code == 200


def test_expired_key_is_401(orchestrator: RunningOrchestrator) -> None:
    key = _create(orchestrator, expires_in_days=1)
    client = orchestrator.client(key["api_key"])
    assert _new_task(client).status_code == 200
    _change(orchestrator, key, {"expires_at": ApiKey.created_at})
    assert refusal(_new_task(client)) == (401, "the key has expired")


# How it ends


def test_rotated_key_works_beside_the_new_one_for_the_grace_period(
    orchestrator: RunningOrchestrator,
) -> None:
    key = _create(orchestrator)
    rotated = ok(orchestrator.admin.post(f"/keys/{key['key_id']}/rotate?grace_period_hours=1"))
    assert rotated["grace_period_hours"] == 1
    assert rotated["rotated_at"] is not None
    assert rotated["api_key"] != key["api_key"]
    old, new = orchestrator.client(key["api_key"]), orchestrator.client(rotated["api_key"])
    assert (_new_task(old).status_code, _new_task(new).status_code) == (200, 200)
    _change(orchestrator, key, {"previous_until": ApiKey.created_at})
    assert refusal(_new_task(old)) == (401, "the key has been rotated: use the new one")
    assert _new_task(new).status_code == 200


def test_rotation_without_grace_ends_the_old_key_at_once(
    orchestrator: RunningOrchestrator,
) -> None:
    key = _create(orchestrator)
    path = f"/keys/{key['key_id']}/rotate?grace_period_hours=0"
    rotated = ok(orchestrator.admin.post(path))
    assert _new_task(orchestrator.client(key["api_key"])).status_code == 401
    assert _new_task(orchestrator.client(rotated["api_key"])).status_code == 200


def test_second_rotation_within_the_grace_is_409_and_both_keys_go_on(
    orchestrator: RunningOrchestrator,
) -> None:
    key = _create(orchestrator)
    path = f"/keys/{key['key_id']}/rotate"
    rotated = ok(orchestrator.admin.post(path))
    code, sentence = refusal(orchestrator.admin.post(path))
    assert code == 409
    assert "grace_period_hours=0" in sentence
    old, new = orchestrator.client(key["api_key"]), orchestrator.client(rotated["api_key"])
    assert (_new_task(old).status_code, _new_task(new).status_code) == (200, 200)
    _change(orchestrator, key, {"previous_until": ApiKey.created_at})
    assert ok(orchestrator.admin.post(path))["key_id"] == key["key_id"]
    assert (_new_task(old).status_code, _new_task(new).status_code) == (401, 200)


def test_second_rotation_without_grace_ends_all_but_the_new_key(
    orchestrator: RunningOrchestrator,
) -> None:
    key = _create(orchestrator)
    path = f"/keys/{key['key_id']}/rotate"
    second = ok(orchestrator.admin.post(path))
    third = ok(orchestrator.admin.post(path, params={"grace_period_hours": 0}))
    secrets = [made["api_key"] for made in (key, second, third)]
    codes = [_new_task(orchestrator.client(secret)).status_code for secret in secrets]
    assert codes == [401, 401, 200]
    # Nothing is left that a further rotation would end too early.
    ok(orchestrator.admin.post(path))


def test_revoked_key_is_401_and_stays_on_the_list(orchestrator: RunningOrchestrator) -> None:
    key = _create(orchestrator)
    rotated = ok(orchestrator.admin.post(f"/keys/{key['key_id']}/rotate"))
    revoked = ok(orchestrator.admin.post(f"/keys/{key['key_id']}/revoke"))
    assert revoked["enabled"] is False
    for secret in (key["api_key"], rotated["api_key"]):
        response = _new_task(orchestrator.client(secret))
        assert refusal(response) == (401, "the key has been revoked")
    assert [one["enabled"] for one in rows(orchestrator.admin.get("/keys"))] == [False]
    response = orchestrator.admin.post(f"/keys/{key['key_id']}/rotate")
    assert refusal(response) == (409, "cannot rotate the key: it has been revoked")


def test_deleted_key_is_gone(orchestrator: RunningOrchestrator) -> None:
    key = _create(orchestrator)
    answer = ok(orchestrator.admin.delete(f"/keys/{key['key_id']}"))
    assert answer == {"deleted": True, "key_id": key["key_id"]}
    assert rows(orchestrator.admin.get("/keys")) == []
    assert _new_task(orchestrator.client(key["api_key"])).status_code == 401


def test_key_with_a_misspelt_limit_is_refused(orchestrator: RunningOrchestrator) -> None:
    body = {"name": "ci", "description": "builds", "allowed_node_pattern": ["client-acme-*"]}
    code, sentence = refusal(orchestrator.admin.post("/keys", json=body))
    assert code == 422
    assert sentence.startswith("allowed_node_pattern: ")
