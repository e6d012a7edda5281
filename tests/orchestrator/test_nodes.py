"""Registration, heartbeats, and the admin's view of nodes."""

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from orchestrator.db.tables import Node
from orchestrator.settings import Settings
from runner.settings import DEFAULT_HEARTBEAT_INTERVAL_S
from tests.orchestrator.serving import (
    RegisteredNode,
    RunningOrchestrator,
    ok,
    refusal,
    serve,
)

NODE_FIELDS = {
    "id",
    "hostname",
    "name",
    "os_type",
    "status",
    "last_heartbeat",
    "current_task_id",
    "registered_at",
}


def _register(orchestrator: RunningOrchestrator, token: str | None, **body: object) -> Any:  # noqa: ANN401
    headers = {} if token is None else {"X-Registration-Token": token}
    return orchestrator.client().post("/register", json=body, headers=headers)


def test_registration_answers_the_node_with_its_id_and_key(
    orchestrator: RunningOrchestrator,
) -> None:
    answer = ok(
        _register(
            orchestrator,
            orchestrator.registration_token,
            hostname="server-01.example.com",
            name="prod-runner-01",
            os_type="fedora",
            capabilities=[],
            tags={},
        )
    )
    assert NODE_FIELDS | {"api_key"} <= set(answer)
    assert answer["name"] == "prod-runner-01"
    assert answer["status"] == "idle"


@pytest.mark.parametrize("name", [None, "", "  "])
def test_name_defaults_to_hostname(orchestrator: RunningOrchestrator, name: str | None) -> None:
    body = {"hostname": "box", "os_type": "linux", "name": name}
    assert ok(_register(orchestrator, orchestrator.registration_token, **body))["name"] == "box"


def test_key_is_shown_at_registration_only(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    assert node.api_key not in orchestrator.admin.get("/nodes").text
    assert node.api_key not in orchestrator.admin.get(f"/nodes/{node.id}").text
    stored = orchestrator.stored()
    assert node.id in stored
    assert node.api_key not in stored


@pytest.mark.parametrize(
    ("token", "sentence"),
    [(None, "X-Registration-Token is missing"), ("wrong", "invalid registration token")],
)
def test_wrong_registration_token_is_401(
    orchestrator: RunningOrchestrator, token: str | None, sentence: str
) -> None:
    response = _register(orchestrator, token, hostname="h", os_type="linux")
    assert refusal(response) == (401, sentence)


@pytest.mark.parametrize("token", [None, "", "any"])
def test_disabled_registration_is_503(
    tmp_path: Path, database_url: str | None, token: str | None
) -> None:
    with serve(tmp_path, database_url=database_url, registration_token=None) as orchestrator:
        response = _register(orchestrator, token, hostname="h", os_type="linux")
    assert refusal(response) == (503, "registration is disabled")


def test_two_nodes_of_one_name_are_kept_apart(orchestrator: RunningOrchestrator) -> None:
    first, second = orchestrator.register("twin"), orchestrator.register("twin")
    assert first.id != second.id
    assert first.api_key != second.api_key
    orchestrator.create_task(target_node_id=second.id)
    assert first.poll() is None
    assert second.poll() is not None


@pytest.mark.parametrize("status", ["idle", "busy", "offline", "error"])
def test_heartbeat_records_the_node_as_it_says(
    orchestrator: RunningOrchestrator, node: RegisteredNode, status: str
) -> None:
    before = orchestrator.nodes()[0]["last_heartbeat"]
    answer = node.beat(status, current_task_id="some-task", task_ids=["some-task", "another"])
    assert answer["cancelled_task_ids"] == []
    shown = ok(orchestrator.admin.get(f"/nodes/{node.id}"))
    assert (shown["status"], shown["current_task_id"]) == (status, "some-task")
    assert shown["last_heartbeat"] > before


def test_heartbeat_for_another_node_is_403(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    other = orchestrator.register("other")
    body = {"node_id": other.id, "status": "idle"}
    assert refusal(node.http.post("/nodes/heartbeat", json=body))[0] == 403


def test_heartbeat_with_unknown_status_is_422(node: RegisteredNode) -> None:
    body = {"node_id": node.id, "status": "sleepy"}
    code, sentence = refusal(node.http.post("/nodes/heartbeat", json=body))
    assert code == 422
    assert sentence.startswith("status: ")


def test_silent_node_is_shown_offline_until_its_next_heartbeat(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    node.beat("busy")
    orchestrator.silence(node)
    assert orchestrator.nodes()[0]["status"] == "offline"
    assert node.beat("busy")["status"] == "busy"
    assert orchestrator.nodes()[0]["status"] == "busy"


def test_node_is_offline_after_three_missed_heartbeats(
    tmp_path: Path, database_url: str | None
) -> None:
    timeout_s = Settings(tmp_path, "", None).heartbeat_timeout_s
    assert timeout_s == 45 == 3 * DEFAULT_HEARTBEAT_INTERVAL_S
    with serve(tmp_path, database_url=database_url, heartbeat_timeout_s=timeout_s) as orchestrator:
        node = orchestrator.register()
        own = update(Node).where(Node.id == node.id)
        for silent_s, status in ((25, "idle"), (46, "offline")):
            heard = datetime.now(timezone.utc) - timedelta(seconds=silent_s)
            orchestrator.change(own.values(last_heartbeat=heard))
            assert orchestrator.nodes()[0]["status"] == status


def test_unknown_node_is_404(orchestrator: RunningOrchestrator) -> None:
    assert refusal(orchestrator.admin.get("/nodes/nobody"))[0] == 404
    assert refusal(orchestrator.admin.delete("/nodes/nobody"))[0] == 404


def test_removed_node_loses_its_key(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    answer = ok(orchestrator.admin.delete(f"/nodes/{node.id}"))
    assert answer == {"status": "deleted", "node_id": node.id}
    assert orchestrator.nodes() == []
    assert refusal(node.http.get("/tasks/pending"))[0] == 401


def test_removed_node_gives_back_what_it_has_not_started(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task = orchestrator.create_task()
    node.poll()
    ok(orchestrator.admin.delete(f"/nodes/{node.id}"))
    assert orchestrator.task(task["id"])["status"] == "pending"
    assigned = orchestrator.register("next").poll()
    assert assigned is not None
    assert assigned["task_id"] == task["id"]


def test_task_that_ran_on_a_removed_node_is_lost(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task = orchestrator.create_task()
    node.poll()
    node.report(task["id"], "running")
    ok(orchestrator.admin.delete(f"/nodes/{node.id}"))
    ended = orchestrator.task(task["id"])
    assert ended["status"] == "error"
    assert ended["error_message"].startswith("lost: ")
