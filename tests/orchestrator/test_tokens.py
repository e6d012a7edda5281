"""Registration tokens for some names: whom they admit, how often, and until when."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import update

from orchestrator.db.tables import RegistrationToken
from tests.orchestrator.serving import Json, RunningOrchestrator, ok, refusal, rows

PATH = "/registration-tokens"


def _token(orchestrator: RunningOrchestrator, token: Json) -> Json:
    return ok(orchestrator.admin.get(f"{PATH}/{token['token_id']}"))


def test_token_registers_nodes_of_its_names_alone(orchestrator: RunningOrchestrator) -> None:
    token = orchestrator.create_token("client-acme-*", "shared-1")
    secret = token["token"]
    for name in ("client-acme-1", "shared-1"):
        node = ok(orchestrator.try_to_register(name, secret))
    assert (secret[:3], node["api_key"][:3], token["token_prefix"]) == ("vr_", "vn_", secret[:8])
    sentence = (
        "the registration token acme is for client-acme-*, shared-1 only, not for client-beta-1:"
        " use another name or token"
    )
    for _ in range(3):
        refused = orchestrator.try_to_register("client-beta-1", secret)
        assert refusal(refused) == (403, sentence)
    orchestrator.register("client-beta-1")  # with REGISTRATION_TOKEN, which is for every name
    assert (token["uses"], _token(orchestrator, token)["uses"]) == (0, 2)
    actions = [entry["action"] for entry in orchestrator.audit(key_id=token["token_id"])]
    uses = ["node:registered", "node:registered", "denied node:registered"]
    assert actions == ["token:created", *uses]
    assert secret not in orchestrator.stored()


def test_node_registers_again_within_the_patterns_without_a_use(
    orchestrator: RunningOrchestrator,
) -> None:
    token = orchestrator.create_token(max_uses=1)
    first = ok(orchestrator.try_to_register("client-acme-1", token["token"]))
    again = {"token": token["token"], "key": first["api_key"]}
    renamed = ok(orchestrator.try_to_register("client-acme-2", **again))
    assert (renamed["id"], renamed["name"]) == (first["id"], "client-acme-2")
    assert refusal(orchestrator.try_to_register("client-beta-1", **again))[0] == 403
    code, sentence = refusal(orchestrator.try_to_register("client-acme-3", token["token"]))
    assert (code, sentence[:54]) == (403, "the registration token acme has registered 1 nodes, as")
    assert [node["name"] for node in orchestrator.nodes()] == ["client-acme-2"]
    assert {**token, "uses": 1, "enabled": False} == {
        **_token(orchestrator, token),
        "token": token["token"],
    }


@pytest.mark.both_databases
def test_uses_at_the_same_time_are_all_counted(orchestrator: RunningOrchestrator) -> None:
    token = orchestrator.create_token(max_uses=3)
    with ThreadPoolExecutor(8) as pool:
        names = [f"client-acme-{number}" for number in range(8)]
        responses = pool.map(lambda name: orchestrator.try_to_register(name, token["token"]), names)
        codes = sorted(response.status_code for response in responses)
    assert codes == [200] * 3 + [403] * 5
    assert (len(orchestrator.nodes()), _token(orchestrator, token)["uses"]) == (3, 3)


def test_revoked_and_expired_tokens_are_refused_and_their_nodes_stay(
    orchestrator: RunningOrchestrator,
) -> None:
    first, second = (orchestrator.create_token(name=name) for name in ("first", "second"))
    node = ok(orchestrator.try_to_register("client-acme-1", first["token"]))
    ok(orchestrator.admin.delete(f"{PATH}/{first['token_id']}"))
    refused = orchestrator.try_to_register("client-acme-2", first["token"])
    assert refusal(refused) == (401, "invalid registration token")
    orchestrator.change(update(RegistrationToken).values(expires_at=RegistrationToken.created_at))
    refused = orchestrator.try_to_register("client-acme-2", second["token"])
    assert refusal(refused) == (401, "the registration token second has expired")
    [shown] = rows(orchestrator.admin.get(PATH))
    assert (shown["token_id"], shown["enabled"], "token" in shown) == (
        second["token_id"],
        False,
        False,
    )
    assert orchestrator.client(node["api_key"]).get("/tasks/pending").json() is None


@pytest.mark.settings(registration_token=None)
def test_without_the_common_token_registration_needs_one_of_these(
    orchestrator: RunningOrchestrator,
) -> None:
    assert refusal(orchestrator.try_to_register("n", "any"))[0] == 503
    token = orchestrator.create_token()
    assert refusal(orchestrator.try_to_register("client-acme-1", "any"))[0] == 401
    ok(orchestrator.try_to_register("client-acme-1", token["token"]))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", " "),
        ("allowed_node_patterns", None),
        ("allowed_node_patterns", []),
        ("max_uses", 0),
        ("expires_at", "2026-01-01T00:00:00Z"),
    ],
)
def test_invalid_token_is_refused(shared: RunningOrchestrator, field: str, value: object) -> None:
    body = {"name": "acme", "allowed_node_patterns": ["*"], field: value}
    code, sentence = refusal(shared.admin.post(PATH, json=body))
    assert (code, sentence[: len(field)]) == (422, field)


def test_answers_with_secrets_are_not_stored_by_caches(shared: RunningOrchestrator) -> None:
    body: Json = {"name": "n", "description": "d", "allowed_node_patterns": ["*"]}
    responses = [shared.try_to_register("n")]
    responses += [shared.admin.post(path, json=body) for path in ("/keys", PATH)]
    responses.append(shared.admin.post(f"/keys/{responses[1].json()['key_id']}/rotate"))
    for response in responses:
        assert "_" in str(ok(response).get("api_key", response.json().get("token")))
        assert response.headers["Cache-Control"] == "no-store"
