"""Several servers with one PostgreSQL serve one fleet, and one that dies takes nothing along."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from tests.orchestrator.serving import DEADLINE_S, RunningOrchestrator, ok, refusal, serve, wait_for

WAIT_S = 25
"""Shorter than it takes until a waiting node's queue is looked at though no bell rang."""


@pytest.fixture
def pair(tmp_path: Path, postgresql_url: str) -> Iterator[list[RunningOrchestrator]]:
    """Serve twice."""
    settings = {"database_url": postgresql_url}
    with serve(tmp_path / "data", **settings) as one, serve(tmp_path / "data", **settings) as other:
        yield [one, other]


def _cut(url: str, application: str) -> int:
    with psycopg.connect(url, autocommit=True) as connection:
        return len(
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = %s",
                [application],
            ).fetchall()
        )


def _listeners(url: str) -> int:
    with psycopg.connect(url, autocommit=True) as connection:
        return len(
            connection.execute(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
                " AND application_name = 'victoria-orchestrator-listen' AND query LIKE 'LISTEN%'"
            ).fetchall()
        )


def test_task_created_at_one_server_ends_the_wait_at_the_other(
    pair: list[RunningOrchestrator],
) -> None:
    one, other = pair
    node = other.register()
    with ThreadPoolExecutor(max_workers=1) as pool:
        answer = pool.submit(node.poll, WAIT_S)
        wait_for(lambda: other.waiting_count == 1)
        task = one.create_task()
        assignment = answer.result(DEADLINE_S)
    assert assignment is not None
    assert assignment["task_id"] == task["id"]
    assert one.task(task["id"])["assigned_node_id"] == node.id


def test_task_with_a_target_too_long_to_tell_ends_the_wait_all_the_same(
    pair: list[RunningOrchestrator],
) -> None:
    one, other = pair
    tags = {f"{number}-{'x' * 200}": "y" * 200 for number in range(30)}
    node = other.register(tags=tags)
    with ThreadPoolExecutor(max_workers=1) as pool:
        answer = pool.submit(node.poll, WAIT_S)
        wait_for(lambda: other.waiting_count == 1)
        one.create_task(target_tags=tags)
        assert answer.result(DEADLINE_S) is not None


def test_node_removed_at_one_server_waits_no_longer_at_the_other(
    pair: list[RunningOrchestrator],
) -> None:
    one, other = pair
    node = other.register()
    with ThreadPoolExecutor(max_workers=1) as pool:
        answer = pool.submit(node.http.get, "/tasks/pending", headers={"Prefer": f"wait={WAIT_S}"})
        wait_for(lambda: other.waiting_count == 1)
        ok(one.admin.delete(f"/nodes/{node.id}"))
        assert refusal(answer.result(DEADLINE_S))[0] == 401


def test_key_and_rate_are_the_same_at_every_server(pair: list[RunningOrchestrator]) -> None:
    one, other = pair
    body = {"name": "n", "description": "d", "rate_limit": 2}
    secret = ok(one.admin.post("/keys", json=body))["api_key"]
    clients = [server.client(secret) for server in (one, other, one)]
    codes = [client.post("/tasks", json={"prompt": "p"}).status_code for client in clients]
    assert codes == [200, 200, 429]


def test_server_that_was_cut_off_hears_again_and_has_missed_nothing(
    tmp_path: Path, postgresql_url: str
) -> None:
    with serve(tmp_path, database_url=postgresql_url) as orchestrator:
        node = orchestrator.register()
        wait_for(lambda: _listeners(postgresql_url) == 1)
        with ThreadPoolExecutor(max_workers=1) as pool:
            answer = pool.submit(node.poll, WAIT_S)
            wait_for(lambda: orchestrator.waiting_count == 1)
            assert _cut(postgresql_url, "victoria-orchestrator-listen") == 1
            task = orchestrator.create_task()
            assignment = answer.result(DEADLINE_S)
        assert assignment is not None
        assert assignment["task_id"] == task["id"]


def test_server_that_was_told_nonsense_is_told_again(
    tmp_path: Path, postgresql_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serve(tmp_path, database_url=postgresql_url) as orchestrator:
        node = orchestrator.register()
        wait_for(lambda: _listeners(postgresql_url) == 1)
        with ThreadPoolExecutor(max_workers=1) as pool:
            answer = pool.submit(node.poll, WAIT_S)
            wait_for(lambda: orchestrator.waiting_count == 1)
            with psycopg.connect(postgresql_url, autocommit=True) as connection:
                connection.execute("NOTIFY victoria_work, 'nonsense'")
            wait_for(lambda: "listening for new work failed" in caplog.text)
            task = orchestrator.create_task()
            assignment = answer.result(DEADLINE_S)
        assert assignment is not None
        assert assignment["task_id"] == task["id"]


def test_lost_connection_is_503_once_and_then_mended(tmp_path: Path, postgresql_url: str) -> None:
    with serve(tmp_path, database_url=postgresql_url, sweep_every_s=3600) as orchestrator:
        orchestrator.nodes()
        assert _cut(postgresql_url, "victoria-orchestrator") >= 1
        response = orchestrator.admin.get("/nodes")
        assert refusal(response) == (503, "the database does not answer: try again")
        assert response.headers["Retry-After"] == "1"
        assert orchestrator.nodes() == []


def test_node_removed_at_one_server_is_refused_by_the_other_that_knows_it(
    pair: list[RunningOrchestrator],
) -> None:
    one, other = pair
    node = other.register()
    node.beat()
    assert node.poll() is None
    ok(one.admin.delete(f"/nodes/{node.id}"))
    beat = {"node_id": node.id, "status": "idle"}
    assert refusal(node.http.post("/nodes/heartbeat", json=beat))[0] == 401
    assert refusal(node.http.get("/tasks/pending"))[0] == 401
    status = {"task_id": "any", "status": "running"}
    assert refusal(node.http.post("/status", json=status))[0] == 401
