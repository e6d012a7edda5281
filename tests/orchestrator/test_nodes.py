"""Registration, also with a key (the extension `reregister`), heartbeats, and silent nodes."""

import uuid

import httpx
import pytest
from sqlalchemy import update

from orchestrator.db.tables import Node
from orchestrator.scheduling.claims import look_for, take
from tests.orchestrator.claiming import claim_next
from tests.orchestrator.serving import PROMPTLY_S, Json, Poller, RunningOrchestrator, ok, refusal

GONE = "no node has the key in X-API-Key: register without it, as a new node"
CHANGED: Json = {"hostname": "renamed.example", "os_type": "debian", "name": "new"}
CHANGED |= {"capabilities": ["cuda"], "tags": {"zone": "eu"}}
TASK_ID = str(uuid.UUID(int=0))


def _register(
    orchestrator: RunningOrchestrator, api_key: str | None = None, **changes: object
) -> httpx.Response:
    token = {"X-Registration-Token": str(orchestrator.registration_token)}
    body = {**CHANGED, **changes}
    return orchestrator.client(api_key).post("/register", json=body, headers=token)


@pytest.mark.parametrize("name", [None, "  "])
def test_name_defaults_to_the_hostname(shared: RunningOrchestrator, name: str | None) -> None:
    assert ok(_register(shared, name=name))["name"] == "renamed.example"


@pytest.mark.both_databases
def test_node_with_a_key_changes_its_description_alone(orchestrator: RunningOrchestrator) -> None:
    node = orchestrator.register()
    node.beat("busy", current_task_id=TASK_ID, task_ids=[TASK_ID])
    (before,) = orchestrator.nodes()
    for _ in range(3):
        ok(_register(orchestrator, node.api_key))
    assert orchestrator.nodes() == [{**before, **CHANGED}]
    # The repeats changed nothing, so they are not in the audit.
    (entry,) = orchestrator.audit(key_id=node.id)
    assert (entry["action"], entry["client"]) == ("node:reregistered", "127.0.0.1")
    assert "name: 'node' -> 'new'" in entry["detail"]
    assert "tags: {} -> {'zone': 'eu'}" in entry["detail"]
    assert node.api_key not in orchestrator.stored()


def test_silent_node_is_offline_until_its_next_heartbeat(orchestrator: RunningOrchestrator) -> None:
    node = orchestrator.register()
    orchestrator.silence(node)
    assert ok(_register(orchestrator, node.api_key))["status"] == "offline"
    assert node.beat("idle")["status"] == "idle"


def test_held_request_gets_a_task_for_the_new_name(orchestrator: RunningOrchestrator) -> None:
    node = orchestrator.register()
    task_id = orchestrator.create_task(target_node_name="new")["id"]
    poller = Poller(orchestrator, node)
    ok(_register(orchestrator, node.api_key))
    assert poller.task_id(within_s=PROMPTLY_S) == task_id


@pytest.mark.both_databases
def test_task_seen_for_the_old_name_is_not_claimed(orchestrator: RunningOrchestrator) -> None:
    node = orchestrator.register()
    task_id = orchestrator.create_task(target_node_name="node")["id"]
    settings = orchestrator.settings
    with orchestrator.database() as database:
        (look,) = look_for(database, settings, [node.id])
        assert look is not None
        orchestrator.change(update(Node).where(Node.id == node.id).values(name="new"))
        assert take(database, settings, look).task is None
        assert claim_next(database, settings, node.id).task is None
    assert orchestrator.task(task_id)["status"] == "pending"


def test_admin_keys_are_403_and_in_the_audit(orchestrator: RunningOrchestrator) -> None:
    scoped = orchestrator.create_key()
    keys = {"admin": orchestrator.admin_key, scoped["key_id"]: scoped["api_key"]}
    for key_id, key in keys.items():
        assert refusal(_register(orchestrator, key)) == (403, "only a node may do this")
        entries = [(one["action"], one["detail"]) for one in orchestrator.audit(key_id=key_id)]
        assert entries.count(("denied node", "POST /register: only a node may do this")) == 1
    ok(orchestrator.admin.post(f"/keys/{scoped['key_id']}/revoke"))
    assert refusal(_register(orchestrator, scoped["api_key"])) == (410, GONE)
    assert orchestrator.nodes() == []


def test_key_does_not_replace_the_token(orchestrator: RunningOrchestrator) -> None:
    node = orchestrator.register()
    response = node.http.post("/register", json=CHANGED)
    assert refusal(response) == (401, "X-Registration-Token is missing")
    assert orchestrator.nodes()[0]["name"] == "node"


def test_heartbeat_is_recorded_and_only_for_its_own_node(shared: RunningOrchestrator) -> None:
    node, other = shared.register(), shared.register()
    for status in ("idle", "busy", "offline", "error"):
        node.beat(status, current_task_id=TASK_ID)
        shown = ok(shared.admin.get(f"/nodes/{node.id}"))
        assert (shown["status"], shown["current_task_id"]) == (status, TASK_ID)
    response = other.http.post("/nodes/heartbeat", json={"node_id": node.id, "status": "idle"})
    assert refusal(response)[0] == 403
