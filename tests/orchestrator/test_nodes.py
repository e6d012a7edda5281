"""Registration, heartbeats, and the admin's view of nodes."""

import uuid
from datetime import datetime, timedelta, timezone
from pathlib import Path

import httpx
import pytest
from sqlalchemy import update

from orchestrator.db.tables import Node
from orchestrator.settings import Settings
from runner.settings import DEFAULT_HEARTBEAT_INTERVAL_S
from tests.orchestrator.serving import RegisteredNode, RunningOrchestrator, ok, refusal

DEFAULT_TIMEOUT_S = Settings(Path(), "", None).heartbeat_timeout_s


def _register(
    orchestrator: RunningOrchestrator, token: str | None, name: str | None = None
) -> httpx.Response:
    body = {"hostname": "box", "os_type": "linux", "name": name}
    headers = {} if token is None else {"X-Registration-Token": token}
    return orchestrator.client().post("/register", json=body, headers=headers)


@pytest.mark.parametrize("name", [None, "", "  "])
def test_name_defaults_to_hostname(shared: RunningOrchestrator, name: str | None) -> None:
    assert ok(_register(shared, shared.registration_token, name))["name"] == "box"


def test_key_is_stored_as_a_hash(orchestrator: RunningOrchestrator, node: RegisteredNode) -> None:
    stored = orchestrator.stored()
    assert node.id in stored
    assert node.api_key not in stored


@pytest.mark.parametrize(
    ("token", "sentence"),
    [(None, "X-Registration-Token is missing"), ("wrong", "invalid registration token")],
)
def test_wrong_registration_token_is_401(
    shared: RunningOrchestrator, token: str | None, sentence: str
) -> None:
    assert refusal(_register(shared, token)) == (401, sentence)


@pytest.mark.settings(registration_token=None)
def test_disabled_registration_is_503(orchestrator: RunningOrchestrator) -> None:
    for token in (None, "", "any"):
        assert refusal(_register(orchestrator, token)) == (503, "registration is disabled")


def test_heartbeat_is_recorded_as_sent(shared: RunningOrchestrator) -> None:
    node, task_ids = shared.register(), [str(uuid.uuid4()), str(uuid.uuid4())]
    before = ok(shared.admin.get(f"/nodes/{node.id}"))["last_heartbeat"]
    for status in ("idle", "busy", "offline", "error"):
        response = node.beat(status, current_task_id=task_ids[0], task_ids=task_ids)
        assert response["cancelled_task_ids"] == []
        shown = ok(shared.admin.get(f"/nodes/{node.id}"))
        assert (shown["status"], shown["current_task_id"]) == (status, task_ids[0])
    assert shown["last_heartbeat"] > before


def test_heartbeat_that_does_not_fit_is_refused(shared: RunningOrchestrator) -> None:
    node, other = shared.register(), shared.register("other")
    body = {"node_id": other.id, "status": "idle"}
    assert refusal(node.http.post("/nodes/heartbeat", json=body))[0] == 403
    body = {"node_id": node.id, "status": "sleepy"}
    code, sentence = refusal(node.http.post("/nodes/heartbeat", json=body))
    assert (code, sentence.startswith("status")) == (422, True)


@pytest.mark.both_databases
@pytest.mark.settings(heartbeat_timeout_s=DEFAULT_TIMEOUT_S)
def test_node_is_offline_from_three_missed_heartbeats_to_the_next(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    assert DEFAULT_TIMEOUT_S == 45 == 3 * DEFAULT_HEARTBEAT_INTERVAL_S
    own = update(Node).where(Node.id == node.id)
    for silent_s, status in ((25, "idle"), (46, "offline")):
        last = datetime.now(timezone.utc) - timedelta(seconds=silent_s)
        orchestrator.change(own.values(last_heartbeat=last))
        assert orchestrator.nodes()[0]["status"] == status
    assert node.beat("busy")["status"] == "busy"
    assert orchestrator.nodes()[0]["status"] == "busy"


def test_removing_an_unknown_node_is_404(shared: RunningOrchestrator) -> None:
    assert refusal(shared.admin.delete("/nodes/nobody"))[0] == 404
