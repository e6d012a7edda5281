"""Several servers with one PostgreSQL serve one fleet, and one that dies loses nothing."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.orchestrator.serving import Poller, RunningOrchestrator, ok, refusal, serve, wait_for

PROMPTLY_S = 25
"""Shorter than it takes until a waiting node's queue is looked at without an announcement."""


@pytest.fixture
def pair(tmp_path: Path, postgresql_url: str) -> Iterator[list[RunningOrchestrator]]:
    """Serve twice."""
    settings = {"database_url": postgresql_url}
    with serve(tmp_path / "data", **settings) as one, serve(tmp_path / "data", **settings) as other:
        yield [one, other]


@pytest.fixture
def alone(tmp_path: Path, postgresql_url: str) -> Iterator[RunningOrchestrator]:
    """Serve once, and not sweep."""
    with serve(tmp_path, database_url=postgresql_url, sweep_every_s=3600) as orchestrator:
        yield orchestrator


@pytest.fixture
def poller(alone: RunningOrchestrator, postgresql_url: str) -> Poller:
    """Let a node wait at a server that listens."""
    query = (
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'victoria-orchestrator-listen' AND query LIKE 'LISTEN%'"
    )
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        wait_for(lambda: connection.execute(query).fetchall())
    return Poller(alone, alone.register())


def _disconnect(url: str, application: str) -> int:
    query = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = %s"
    )
    with psycopg.connect(url, autocommit=True) as connection:
        return len(connection.execute(query, [application]).fetchall())


# Tags as long as these do not fit into an announcement.
@pytest.mark.parametrize("tags", [{}, {f"{n}-{'x' * 200}": "y" * 200 for n in range(30)}])
def test_task_created_at_one_server_ends_the_wait_at_the_other(
    pair: list[RunningOrchestrator], tags: dict[str, str]
) -> None:
    one, other = pair
    node = other.register(tags=tags)
    poller = Poller(other, node)
    task_id = one.create_task(target_tags=tags)["id"]
    assert poller.task_id(within_s=PROMPTLY_S) == task_id
    assert one.task(task_id)["assigned_node_id"] == node.id


def test_node_removed_at_one_server_is_refused_by_the_other(
    pair: list[RunningOrchestrator],
) -> None:
    one, other = pair
    node = other.register()
    node.beat()
    assert node.poll() is None
    poller = Poller(other, node)
    ok(one.admin.delete(f"/nodes/{node.id}"))
    assert refusal(poller.response(within_s=PROMPTLY_S))[0] == 401
    beat = {"node_id": node.id, "status": "idle"}
    assert refusal(node.http.post("/nodes/heartbeat", json=beat))[0] == 401
    assert refusal(node.http.get("/tasks/pending"))[0] == 401
    status = {"task_id": "any", "status": "running"}
    assert refusal(node.http.post("/status", json=status))[0] == 401


def test_name_changed_at_one_server_is_known_at_the_other(pair: list[RunningOrchestrator]) -> None:
    one, other = pair
    node = other.register("old")
    assert node.poll() is None
    poller = Poller(other, node)
    token, body = str(one.registration_token), {"hostname": "h", "os_type": "linux", "name": "new"}
    headers = {"X-Registration-Token": token, "X-API-Key": node.api_key}
    ok(one.client().post("/register", json=body, headers=headers))
    task_id = one.create_task(target_node_name="new")["id"]
    assert poller.task_id(within_s=PROMPTLY_S) == task_id
    # What that server has cached of the node has changed as well, not this request alone.
    poller = Poller(other, node)
    task_id = one.create_task(target_node_name="new")["id"]
    assert poller.task_id(within_s=PROMPTLY_S) == task_id


def test_key_and_rate_are_the_same_at_every_server(pair: list[RunningOrchestrator]) -> None:
    one, other = pair
    secret = one.create_key(rate_limit=2)["api_key"]
    clients = [server.client(secret) for server in (one, other, one)]
    codes = [client.post("/tasks", json={"prompt": "p"}).status_code for client in clients]
    assert codes == [200, 200, 429]


def test_server_that_was_disconnected_listens_again_and_has_missed_nothing(
    alone: RunningOrchestrator, poller: Poller, postgresql_url: str
) -> None:
    assert _disconnect(postgresql_url, "victoria-orchestrator-listen") == 1
    assert alone.create_task()["id"] == poller.task_id(within_s=PROMPTLY_S)


def test_server_listens_again_after_an_announcement_that_it_cannot_read(
    alone: RunningOrchestrator,
    poller: Poller,
    postgresql_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        connection.execute("NOTIFY victoria_work, 'nonsense'")
    wait_for(lambda: "listening for new work failed" in caplog.text)
    assert alone.create_task()["id"] == poller.task_id(within_s=PROMPTLY_S)


def test_lost_connection_is_503_once_and_then_replaced(
    alone: RunningOrchestrator, postgresql_url: str
) -> None:
    alone.nodes()
    assert _disconnect(postgresql_url, "victoria-orchestrator") >= 1
    response = alone.admin.get("/nodes")
    assert refusal(response) == (503, "the database does not answer: try again")
    assert response.headers["Retry-After"] == "1"
    assert alone.nodes() == []
