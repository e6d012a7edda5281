"""Several servers with one PostgreSQL serve one fleet, and none misses what another announces."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.orchestrator.serving import (
    PROMPTLY_S,
    Poller,
    RunningOrchestrator,
    ok,
    refusal,
    serve,
    wait_for,
)

LISTENING = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
    " AND application_name = 'victoria-orchestrator-listen' AND query LIKE 'LISTEN%'"
)

Pair = tuple[RunningOrchestrator, RunningOrchestrator]


@pytest.fixture
def pair(tmp_path: Path, postgresql_url: str) -> Iterator[Pair]:
    settings = {"database_url": postgresql_url}
    with serve(tmp_path, **settings) as one, serve(tmp_path, **settings) as other:
        yield one, other


@pytest.fixture
def alone(tmp_path: Path, postgresql_url: str) -> Iterator[RunningOrchestrator]:
    with serve(tmp_path, database_url=postgresql_url, sweep_every_s=3600) as orchestrator:
        yield orchestrator


@pytest.fixture
def poller(alone: RunningOrchestrator, postgresql_url: str) -> Poller:
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        wait_for(lambda: connection.execute(LISTENING).fetchall())
    return Poller(alone, alone.register())


# Tags as long as these do not fit into an announcement.
@pytest.mark.parametrize(
    "tags", [{}, {f"{n}-{'x' * 200}": "y" * 200 for n in range(30)}], ids=["no tags", "long tags"]
)
def test_task_of_one_server_ends_a_wait_at_the_other(pair: Pair, tags: dict[str, str]) -> None:
    one, other = pair
    node = other.register(tags=tags)
    poller = Poller(other, node)
    task_id = one.create_task(target_tags=tags)["id"]
    assert poller.task_id(within_s=PROMPTLY_S) == task_id
    assert one.task(task_id)["assigned_node_id"] == node.id


def test_node_removed_at_one_server_is_refused_by_the_other(pair: Pair) -> None:
    one, other = pair
    node = other.register()
    node.beat()
    poller = Poller(other, node)
    ok(one.admin.delete(f"/nodes/{node.id}"))
    responses = [
        poller.response(within_s=PROMPTLY_S),
        node.http.post("/nodes/heartbeat", json={"node_id": node.id, "status": "idle"}),
        node.http.get("/tasks/pending"),
        node.http.post("/status", json={"task_id": "any", "status": "running"}),
    ]
    assert [refusal(response)[0] for response in responses] == [401] * 4


def test_name_changed_at_one_server_is_known_at_the_other(pair: Pair) -> None:
    one, other = pair
    node = other.register("old")
    poller = Poller(other, node)
    body = {"hostname": "h", "os_type": "linux", "name": "new"}
    headers = {"X-Registration-Token": str(one.registration_token), "X-API-Key": node.api_key}
    ok(one.client().post("/register", json=body, headers=headers))
    for _ in range(2):
        task_id = one.create_task(target_node_name="new")["id"]
        assert poller.task_id(within_s=PROMPTLY_S) == task_id
        # What that server has cached of the node has changed as well, not this request alone.
        poller = Poller(other, node)


def test_rotated_key_and_the_key_of_a_task_are_the_same_at_every_server(pair: Pair) -> None:
    one, other = pair
    node = other.register()
    node.beat()
    poller = Poller(other, node)
    task_id = one.create_task()["id"]
    assignment = ok(poller.response(within_s=PROMPTLY_S))
    report = {"task_id": task_id, "status": "running"}
    ok(one.client(assignment["task_api_key"]).post("/status", json=report))
    poller = Poller(other, node)
    ok(one.admin.post(f"/nodes/{node.id}/rotate-key"))
    key = wait_for(lambda: node.beat().get("new_api_key"))
    ok(one.client(key).get("/tasks/pending"))
    # The request that is held there with the old key ends, and no other is taken.
    assert poller.task_id(within_s=PROMPTLY_S) is None
    assert refusal(node.http.get("/tasks/pending"))[0] == 401
    assert node.report(task_id, "success")["status"] == "success"
    assert other.client(key).get("/tasks/pending").status_code == 200


def test_node_paused_at_one_server_gets_nothing_from_the_other(pair: Pair) -> None:
    one, other = pair
    node = other.register()
    node.beat()
    poller = Poller(other, node)
    ok(one.admin.post(f"/nodes/{node.id}/pause"))
    task_id = other.create_task()["id"]
    wait_for(lambda: node.beat()["paused"])
    assert node.poll() is None
    assert one.task(task_id)["waiting"] == "none of 1 node matching is free: 1 paused"
    ok(one.admin.post(f"/nodes/{node.id}/resume"))
    assert poller.task_id(within_s=PROMPTLY_S) == task_id


def test_key_and_rate_are_the_same_at_every_server(pair: Pair) -> None:
    one, other = pair
    secret = one.create_key(rate_limit=2)["api_key"]
    clients = [server.client(secret) for server in (one, other, one)]
    codes = [client.post("/tasks", json={"prompt": "p"}).status_code for client in clients]
    assert codes == [200, 200, 429]


def test_server_relistens_and_misses_nothing(alone: RunningOrchestrator, poller: Poller) -> None:
    assert alone.disconnect("victoria-orchestrator-listen") == 1
    assert alone.create_task()["id"] == poller.task_id(within_s=PROMPTLY_S)


def test_unreadable_announcement_is_survived(
    alone: RunningOrchestrator,
    poller: Poller,
    postgresql_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        connection.execute("NOTIFY victoria_work, 'nonsense'")
    wait_for(lambda: "listening for new work failed" in caplog.text)
    assert alone.create_task()["id"] == poller.task_id(within_s=PROMPTLY_S)


def test_lost_connection_is_503_once_and_one_line_a_minute(
    alone: RunningOrchestrator, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        assert alone.nodes() == []
        assert alone.disconnect("victoria-orchestrator") >= 1
        response = alone.admin.get("/nodes")
        assert refusal(response) == (503, "the database does not answer: try again")
        assert response.headers["Retry-After"] == "1"
    assert caplog.text.count("the database does not answer") == 1
