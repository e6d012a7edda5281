"""The extension `reregister`: a node that registers again with its key stays the same node."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from orchestrator.db.database import Database
from orchestrator.db.tables import Node
from orchestrator.scheduling.claims import look_for, take
from tests.orchestrator.claiming import claim_next
from tests.orchestrator.serving import (
    Json,
    RegisteredNode,
    RunningOrchestrator,
    ok,
    refusal,
    rows,
    serve,
)
from tests.orchestrator.test_waiting import Poller

GONE = "no node has the key in X-API-Key: register without it, as a new node"
CHANGED: Json = {
    "hostname": "renamed.example",
    "os_type": "debian",
    "name": "new",
    "capabilities": ["cuda"],
    "tags": {"zone": "eu"},
}
PROMPTLY_S = 20
"""Less than the 30 s after which a held request looks for work though nobody rang."""


@pytest.fixture
def pair(tmp_path: Path, postgresql_url: str) -> Iterator[list[RunningOrchestrator]]:
    """Serve twice over one database."""
    with (
        serve(tmp_path / "data", database_url=postgresql_url) as first,
        serve(tmp_path / "data", database_url=postgresql_url) as second,
    ):
        yield [first, second]


def _register(orchestrator: RunningOrchestrator, api_key: str, **changes: object) -> Any:  # noqa: ANN401
    headers = {"X-Registration-Token": str(orchestrator.registration_token), "X-API-Key": api_key}
    return orchestrator.client().post("/register", json={**CHANGED, **changes}, headers=headers)


def _prompt_answer(poller: Poller, index: int = 0) -> str | None:
    answer = poller.answers[index].result(PROMPTLY_S)
    return None if answer is None else str(answer["task_id"])


def _audit(orchestrator: RunningOrchestrator, key_id: str) -> list[Json]:
    audit = ok(orchestrator.admin.get("/keys/audit", params={"key_id": key_id}))
    return list(audit["entries"])


def test_answers_to_registrations_and_heartbeats_name_the_extensions(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    assert node.beat()["extensions"] == ["reregister"]
    assert ok(_register(orchestrator, node.api_key))["extensions"] == ["reregister"]


def test_node_takes_over_its_new_description_and_keeps_its_id_and_key(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    node.beat("busy", current_task_id="some-task", task_ids=["some-task"])
    (before,) = orchestrator.nodes()
    answer = ok(_register(orchestrator, node.api_key))
    assert (answer["id"], answer["api_key"]) == (node.id, node.api_key)
    assert orchestrator.nodes() == [{**before, **CHANGED}]
    assert answer.items() >= orchestrator.nodes()[0].items()
    assert node.poll() is None


def test_repeat_is_answered_alike_and_is_no_second_entry_in_the_audit(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    answers = [ok(_register(orchestrator, node.api_key)) for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    (entry,) = _audit(orchestrator, node.id)
    assert (entry["action"], entry["client"]) == ("node:reregistered", "127.0.0.1")
    assert "name: 'node' -> 'new'" in entry["detail"]
    assert "tags: {} -> {'zone': 'eu'}" in entry["detail"]
    assert node.api_key not in orchestrator.stored()


def test_name_defaults_to_the_hostname_again(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    answer = ok(_register(orchestrator, node.api_key, name=None))
    assert answer["name"] == "renamed.example"


def test_name_of_another_node_is_taken_as_at_any_registration(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    twin = orchestrator.register("new")
    ok(_register(orchestrator, node.api_key))
    assert {one["id"]: one["name"] for one in orchestrator.nodes()} == {
        node.id: "new",
        twin.id: "new",
    }


def test_its_tasks_go_on(tmp_path: Path, database_url: str | None) -> None:
    # So soon that whatever was taken for lost would be offered again at once.
    with serve(tmp_path, database_url=database_url, redelivery_after_s=0.1) as orchestrator:
        node = orchestrator.register()
        running, assigned = (orchestrator.create_task(target_node_name="node") for _ in range(2))
        node.poll()
        node.report(running["id"], "running")
        node.beat("busy", task_ids=[running["id"], assigned["id"]])
        node.poll()
        ok(_register(orchestrator, node.api_key))
        newer = orchestrator.create_task(target_node_name="new")
        assignment = node.poll()
        assert assignment is not None
        assert assignment["task_id"] == newer["id"]
        for task in (running, assigned):
            assert node.report(task["id"], "success")["status"] == "success"


def test_silent_node_is_not_heard_of_by_it(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    orchestrator.silence(node)
    assert ok(_register(orchestrator, node.api_key))["status"] == "offline"
    assert node.beat("idle")["status"] == "idle"


def test_tasks_are_for_what_the_node_is_now(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    node.poll()
    old = orchestrator.create_task(target_node_name="node")
    new = orchestrator.create_task(target_node_name="new", target_tags={"zone": "eu"})
    ok(_register(orchestrator, node.api_key))
    assignment = node.poll()
    assert assignment is not None
    assert assignment["task_id"] == new["id"]
    assert node.poll() is None
    assert orchestrator.task(old["id"])["status"] == "pending"


def test_held_request_gets_what_had_waited_for_the_new_name(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task = orchestrator.create_task(target_node_name="new")
    poller = Poller(orchestrator, node)
    ok(_register(orchestrator, node.api_key))
    assert _prompt_answer(poller) == task["id"]


def test_held_request_gets_what_comes_for_the_new_name(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    other = orchestrator.register("node")
    poller = Poller(orchestrator, node, other)
    ok(_register(orchestrator, node.api_key))
    tasks = [orchestrator.create_task(target_node_name=name)["id"] for name in ("node", "new")]
    assert [_prompt_answer(poller, index) for index in (1, 0)] == tasks


def test_other_process_knows_the_new_name_at_once(pair: list[RunningOrchestrator]) -> None:
    first, second = pair
    node = first.register()
    there = RegisteredNode(node.id, node.name, node.api_key, second.client(node.api_key))
    assert there.poll() is None
    poller = Poller(second, there)
    ok(_register(first, node.api_key))
    task = first.create_task(target_node_name="new")
    assert _prompt_answer(poller) == task["id"]
    # What that process has kept of the node has changed as well, not this request alone.
    again = Poller(second, there)
    task = first.create_task(target_node_name="new")
    assert _prompt_answer(again) == task["id"]


def test_task_that_was_seen_for_the_old_name_is_not_taken(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task = orchestrator.create_task(target_node_name="node")
    settings = orchestrator.settings
    with closing(Database(settings.data_dir, settings.database_url)) as database:
        (look,) = look_for(database, settings, [node.id])
        assert look is not None
        orchestrator.change(update(Node).where(Node.id == node.id).values(name="new"))
        assert take(database, settings, look).task is None
        assert claim_next(database, settings, node.id).task is None
    assert orchestrator.task(task["id"])["status"] == "pending"


@pytest.mark.parametrize("key", ["unknown", ""])
def test_key_that_no_node_has_is_410_and_makes_no_node(
    orchestrator: RunningOrchestrator, node: RegisteredNode, key: str
) -> None:
    assert refusal(_register(orchestrator, key)) == (410, GONE)
    assert [one["id"] for one in orchestrator.nodes()] == [node.id]


def test_key_of_a_removed_node_is_410_even_if_it_was_used_just_now(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    ok(_register(orchestrator, node.api_key))
    ok(orchestrator.admin.delete(f"/nodes/{node.id}"))
    assert refusal(_register(orchestrator, node.api_key)) == (410, GONE)
    assert orchestrator.nodes() == []


def test_admin_keys_are_403_and_in_the_audit(orchestrator: RunningOrchestrator) -> None:
    body = {"name": "ci", "description": "builds"}
    scoped = ok(orchestrator.admin.post("/keys", json=body))
    keys = {"admin": orchestrator.admin_key, scoped["key_id"]: scoped["api_key"]}
    for key_id, key in keys.items():
        assert refusal(_register(orchestrator, key)) == (403, "only a node may do this")
        (entry,) = [one for one in _audit(orchestrator, key_id) if "/register" in one["detail"]]
        assert entry["action"] == "denied node"
    ok(orchestrator.admin.post(f"/keys/{scoped['key_id']}/revoke"))
    assert refusal(_register(orchestrator, scoped["api_key"])) == (410, GONE)
    assert rows(orchestrator.admin.get("/nodes")) == []


def test_key_does_not_stand_in_for_the_token(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    assert refusal(node.http.post("/register", json=CHANGED))[0] == 401
    wrong = {"X-Registration-Token": "wrong"}
    code, sentence = refusal(node.http.post("/register", json=CHANGED, headers=wrong))
    assert (code, sentence) == (401, "invalid registration token")
    assert orchestrator.nodes()[0]["name"] == "node"


def test_body_that_does_not_fit_changes_nothing(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    assert refusal(_register(orchestrator, node.api_key, hostname=""))[0] == 422
    assert orchestrator.nodes()[0]["name"] == "node"


def test_guessing_the_admin_key_beside_the_token_is_slowed(tmp_path: Path) -> None:
    with serve(tmp_path, failures_per_minute=2) as orchestrator:
        codes = [_register(orchestrator, f"guess-{number}").status_code for number in range(3)]
    assert codes == [410, 410, 429]
