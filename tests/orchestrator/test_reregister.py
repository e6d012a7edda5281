"""The extension `reregister`: a node that registers again with its key stays the same node."""

from contextlib import closing

import httpx
import pytest
from sqlalchemy import update

from orchestrator.db.database import Database
from orchestrator.db.tables import Node
from orchestrator.scheduling.claims import look_for, take
from tests.orchestrator.claiming import claim_next
from tests.orchestrator.serving import (
    Json,
    Poller,
    RegisteredNode,
    RunningOrchestrator,
    ok,
    refusal,
)

GONE = "no node has the key in X-API-Key: register without it, as a new node"
CHANGED: Json = {
    "hostname": "renamed.example",
    "os_type": "debian",
    "name": "new",
    "capabilities": ["cuda"],
    "tags": {"zone": "eu"},
}
NOT_OURS = "b1f2a0c4-3d5e-4f67-8a9b-0c1d2e3f4a5b"
PROMPTLY_S = 20
"""Less than the 30 s after which a held request looks for work without an announcement."""


def _register(orchestrator: RunningOrchestrator, api_key: str, **changes: object) -> httpx.Response:
    headers = {"X-Registration-Token": str(orchestrator.registration_token), "X-API-Key": api_key}
    return orchestrator.client().post("/register", json={**CHANGED, **changes}, headers=headers)


@pytest.mark.both_databases
def test_node_changes_its_description_and_keeps_its_id_and_key(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    node.beat("busy", current_task_id=NOT_OURS, task_ids=[NOT_OURS])
    (before,) = orchestrator.nodes()
    responses = [ok(_register(orchestrator, node.api_key)) for _ in range(3)]
    assert responses[0] == responses[1] == responses[2]
    assert (responses[0]["id"], responses[0]["api_key"]) == (node.id, node.api_key)
    assert orchestrator.nodes() == [{**before, **CHANGED}]
    assert responses[0].items() >= orchestrator.nodes()[0].items()
    # The repeats changed nothing, so they are not in the audit.
    (entry,) = orchestrator.audit(key_id=node.id)
    assert (entry["action"], entry["client"]) == ("node:reregistered", "127.0.0.1")
    assert "name: 'node' -> 'new'" in entry["detail"]
    assert "tags: {} -> {'zone': 'eu'}" in entry["detail"]
    assert node.api_key not in orchestrator.stored()


def test_name_defaults_to_the_hostname_and_may_be_that_of_another_node(
    shared: RunningOrchestrator,
) -> None:
    node, twin = shared.register(), shared.register("new")
    assert ok(_register(shared, node.api_key, name=None))["name"] == "renamed.example"
    ok(_register(shared, node.api_key))
    names = {one["id"]: one["name"] for one in shared.nodes()}
    assert (names[node.id], names[twin.id]) == ("new", "new")


@pytest.mark.both_databases
# So soon that a task taken for lost would be offered again at once.
@pytest.mark.settings(redelivery_after_s=0.1)
def test_its_tasks_go_on(orchestrator: RunningOrchestrator, node: RegisteredNode) -> None:
    running = orchestrator.assign(node, "running")
    assigned = orchestrator.create_task(target_node_name="node")["id"]
    node.beat("busy", task_ids=[running, assigned])
    assert node.poll_id() == assigned
    ok(_register(orchestrator, node.api_key))
    newer = orchestrator.create_task(target_node_name="new")["id"]
    assert node.poll_id() == newer
    for task_id in (running, assigned):
        assert node.report(task_id, "success")["status"] == "success"


def test_silent_node_stays_offline_until_its_heartbeat(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    orchestrator.silence(node)
    assert ok(_register(orchestrator, node.api_key))["status"] == "offline"
    assert node.beat("idle")["status"] == "idle"


@pytest.mark.both_databases
def test_held_request_is_answered_with_a_task_for_the_new_name(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    # One that was pending before, and one that comes after.
    waiting = orchestrator.create_task(target_node_name="new")["id"]
    poller = Poller(orchestrator, node)
    ok(_register(orchestrator, node.api_key))
    assert poller.task_id(within_s=PROMPTLY_S) == waiting
    node.report(waiting, "success")
    other = orchestrator.register("node")
    poller = Poller(orchestrator, node, other)
    ok(_register(orchestrator, node.api_key, name="newer"))
    names = ("node", "newer")
    tasks = [orchestrator.create_task(target_node_name=name)["id"] for name in names]
    assert [poller.task_id(index, PROMPTLY_S) for index in (1, 0)] == tasks


@pytest.mark.both_databases
def test_task_that_was_seen_for_the_old_name_is_not_claimed(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id = orchestrator.create_task(target_node_name="node")["id"]
    settings = orchestrator.settings
    with closing(Database(settings.data_dir, settings.database_url)) as database:
        (look,) = look_for(database, settings, [node.id])
        assert look is not None
        orchestrator.change(update(Node).where(Node.id == node.id).values(name="new"))
        assert take(database, settings, look).task is None
        assert claim_next(database, settings, node.id).task is None
    assert orchestrator.task(task_id)["status"] == "pending"


def test_key_of_no_node_is_410_and_makes_no_node(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    for key in ("unknown", ""):
        assert refusal(_register(orchestrator, key)) == (410, GONE)
    assert [one["id"] for one in orchestrator.nodes()] == [node.id]
    # Also that of a removed node which was used just before.
    ok(_register(orchestrator, node.api_key))
    ok(orchestrator.admin.delete(f"/nodes/{node.id}"))
    assert refusal(_register(orchestrator, node.api_key)) == (410, GONE)
    assert orchestrator.nodes() == []


def test_admin_keys_are_403_and_in_the_audit(orchestrator: RunningOrchestrator) -> None:
    scoped = orchestrator.create_key()
    keys = {"admin": orchestrator.admin_key, scoped["key_id"]: scoped["api_key"]}
    for key_id, key in keys.items():
        assert refusal(_register(orchestrator, key)) == (403, "only a node may do this")
        entries = orchestrator.audit(key_id=key_id)
        (entry,) = [one for one in entries if "/register" in one["detail"]]
        assert entry["action"] == "denied node"
    ok(orchestrator.admin.post(f"/keys/{scoped['key_id']}/revoke"))
    assert refusal(_register(orchestrator, scoped["api_key"])) == (410, GONE)
    assert orchestrator.nodes() == []


def test_refused_registration_changes_nothing(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    # The key does not replace the token.
    assert refusal(node.http.post("/register", json=CHANGED))[0] == 401
    wrong = {"X-Registration-Token": "wrong"}
    response = node.http.post("/register", json=CHANGED, headers=wrong)
    assert refusal(response) == (401, "invalid registration token")
    assert refusal(_register(orchestrator, node.api_key, hostname=""))[0] == 422
    assert orchestrator.nodes()[0]["name"] == "node"


@pytest.mark.settings(failures_per_minute=2)
def test_guessing_a_key_beside_the_token_is_slowed(orchestrator: RunningOrchestrator) -> None:
    codes = [_register(orchestrator, f"guess-{number}").status_code for number in range(3)]
    assert codes == [410, 410, 429]
