"""Keys of tasks, and rotated keys of nodes: what each may do, and until when."""

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection, Engine, event, update

from orchestrator.db.database import DATABASE_NAME, Database
from orchestrator.db.signing import SigningSecret
from orchestrator.db.tables import Task
from orchestrator.model import utc_now
from orchestrator.scheduling.claims import look_for, take
from tests.orchestrator.serving import (
    PROMPTLY_S,
    Json,
    Poller,
    RegisteredNode,
    RunningOrchestrator,
    ok,
    refusal,
    wait_for,
)

ENDED = (401, "the key has ended: its task has, or it was assigned again")
ROTATED = (401, "the key has been rotated: use the new one")
FIRST, SECOND = {"title": "first"}, {"title": "second"}


def _assigned(orchestrator: RunningOrchestrator, node: RegisteredNode) -> tuple[str, httpx.Client]:
    """Return a new task of the node, and a client with the task's key."""
    task_id = orchestrator.create_task(target_node_id=node.id)["id"]
    assignment = node.poll() or {}
    assert assignment["task_id"] == task_id
    return task_id, orchestrator.client(assignment["task_api_key"])


def _report(client: httpx.Client, task_id: str, status: str = "running") -> httpx.Response:
    return client.post("/status", json={"task_id": task_id, "status": status})


def _log(client: httpx.Client, task_id: str, session: Json) -> httpx.Response:
    return client.post("/logs", json={"task_id": task_id, "session": session})


def _age(orchestrator: RunningOrchestrator, task_id: str, **values: float) -> None:
    ended = {name: utc_now() - timedelta(seconds=seconds) for name, seconds in values.items()}
    orchestrator.change(update(Task).where(Task.id == task_id).values(**ended))


@pytest.mark.both_databases
def test_key_of_a_task_reports_on_it_until_a_minute_after_its_end(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id, task = _assigned(orchestrator, node)
    key = task.headers["X-API-Key"]
    assert key.startswith("vt_")
    assert key.rpartition("_")[2] not in orchestrator.stored()
    assert ok(_report(task, task_id))["status"] == "running"
    assert ok(_report(task, task_id, "success"))["status"] == "success"
    # The seed's reporter sends its log after its final status.
    _age(orchestrator, task_id, completed_at=50)
    assert ok(_log(task, task_id, FIRST)) == FIRST
    assert ok(_log(task, task_id, FIRST)) == FIRST
    for client in (task, node.http):
        assert refusal(_log(client, task_id, SECOND))[0] == 409
    _age(orchestrator, task_id, completed_at=61)
    assert refusal(_report(task, task_id)) == refusal(_log(task, task_id, FIRST)) == ENDED
    assert ok(_log(node.http, task_id, FIRST)) == FIRST == orchestrator.log_of(task_id)


def test_key_of_a_task_does_not_replace_a_log_after_the_end(shared: RunningOrchestrator) -> None:
    node = shared.register()
    task_id, task = _assigned(shared, node)
    for session in (SECOND, FIRST):
        ok(_log(task, task_id, session))
    ok(_report(task, task_id, "error"))
    assert refusal(_log(task, task_id, SECOND))[0] == 409
    assert shared.log_of(task_id) == FIRST
    # The runner has seen more of it, perhaps.
    assert ok(_log(node.http, task_id, SECOND)) == SECOND


def test_key_of_a_task_does_nothing_else(shared: RunningOrchestrator) -> None:
    node, file = shared.register(), shared.upload("a.txt", b"content")["filename"]
    other = shared.assign(node, "running")
    shared.create_task(target_node_id=node.id, files=[file])
    assignment = node.poll() or {}
    task = shared.client(assignment["task_api_key"])
    registration = {"hostname": "h", "os_type": "linux"}
    token = {"X-Registration-Token": str(shared.registration_token)}

    def codes() -> list[int]:
        responses = [
            task.get("/tasks/pending"),
            task.post("/nodes/heartbeat", json={"node_id": node.id, "status": "offline"}),
            task.get(f"/files/{file}"),
            _report(task, other, "success"),
            _report(task, "unknown"),
            _log(task, other, FIRST),
            task.post("/tasks", json={"prompt": "p"}),
            task.delete(f"/tasks/{other}"),
            *map(task.get, (f"/tasks/{other}", "/nodes", "/keys", f"/logs/{other}")),
            task.post(f"/nodes/{node.id}/rotate-key"),
            task.post("/register", json=registration, headers=token),
        ]
        return [refusal(response)[0] for response in responses]

    assert codes() == [403] * 14
    ok(_report(task, assignment["task_id"], "success"))
    _age(shared, assignment["task_id"], completed_at=61)
    # A registration by a key that nobody has: there 401 would mean a wrong token.
    assert codes() == [401] * 13 + [410]
    assert shared.task(other)["status"] == "running"


@pytest.mark.both_databases
@pytest.mark.settings(heartbeat_timeout_s=2, redelivery_after_s=0, sweep_every_s=0.1)
def test_key_is_the_same_by_redelivery_and_another_for_another_node(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id, task = _assigned(orchestrator, node)
    orchestrator.restart()
    assert (node.poll() or {})["task_api_key"] == task.headers["X-API-Key"]
    orchestrator.silence(node)
    orchestrator.wait_for_task(task_id, "pending")
    assert refusal(_report(task, task_id)) == ENDED
    other = orchestrator.register("other")
    orchestrator.change(update(Task).values(target_node_id=None))
    assignment = other.poll(int(PROMPTLY_S)) or {}
    assert assignment["task_api_key"] != task.headers["X-API-Key"]
    assert refusal(_report(task, task_id)) == refusal(_log(task, task_id, FIRST)) == ENDED
    ok(_report(orchestrator.client(assignment["task_api_key"]), task_id))
    # The keys of a removed node's tasks end with its own.
    ok(orchestrator.admin.delete(f"/nodes/{other.id}"))
    assert orchestrator.task(task_id)["status"] == "error"
    response = _log(orchestrator.client(assignment["task_api_key"]), task_id, FIRST)
    assert refusal(response) == ENDED


@pytest.mark.settings(sweep_every_s=0.1)
def test_report_with_the_key_of_a_task_starts_it_and_does_not_confirm_its_cancellation(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id, task = _assigned(orchestrator, node)
    unstarted, _ = _assigned(orchestrator, node)
    ok(_report(task, task_id))
    orchestrator.silence(node)
    orchestrator.wait_for_task(unstarted, "pending")
    assert orchestrator.task(task_id)["status"] == "running"
    orchestrator.cancel(task_id)
    assert ok(_report(task, task_id, "success"))["status"] == "cancelled"
    # Its node is still told to stop it, until that has reported the end itself. A new server knows
    # only what is stored.
    orchestrator.restart()
    wait_for(lambda: node.beat()["cancelled_task_ids"] == [task_id])
    node.report(task_id, "error")
    wait_for(lambda: node.beat()["cancelled_task_ids"] == [])


@pytest.mark.settings(failures_per_minute=1)
def test_container_that_goes_on_after_its_end_locks_nobody_out(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id, task = _assigned(orchestrator, node)
    ok(_report(task, task_id, "success"))
    _age(orchestrator, task_id, completed_at=61)
    forged = orchestrator.client(f"{task.headers['X-API-Key'][:-4]}AAAA")
    for _ in range(3):
        assert refusal(_report(task, task_id)) == refusal(_report(forged, task_id)) == ENDED
    assert orchestrator.nodes()


def test_secret_is_made_once_by_processes_that_start_together(
    tmp_path: Path, database_url: str | None
) -> None:
    def load(_: int) -> bytes:
        with closing(Database(tmp_path, database_url)) as database:
            return SigningSecret(database).load()

    with ThreadPoolExecutor(max_workers=4) as pool:
        assert len(set(pool.map(load, range(8)))) == 1


@contextmanager
def _selects(path: Path) -> Iterator[list[tuple[str, Any]]]:
    """Collect the queries of one SQLite database: other servers of this process sweep theirs."""
    seen: list[tuple[str, Any]] = []

    def note(connection: Connection, _: object, query: str, values: Any, *__: object) -> None:  # noqa: ANN401 - DBAPI's
        if connection.engine.url.database == str(path) and query.startswith("SELECT"):
            seen.append((query, values))

    event.listen(Engine, "before_cursor_execute", note)
    yield seen
    event.remove(Engine, "before_cursor_execute", note)


@pytest.mark.settings(sweep_every_s=3600)
def test_keys_are_looked_up_by_index(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id, task = _assigned(orchestrator, node)
    path = orchestrator.settings.data_dir / DATABASE_NAME
    for client in (task, node.http):
        with _selects(path) as seen:
            ok(_report(client, task_id))
        # The key before the body and, since it may be revoked meanwhile, after it, unless it is in
        # memory; the task's row, and its files.
        assert 3 <= len(seen) <= 4
        with closing(sqlite3.connect(path)) as database:
            for statement, parameters in seen:
                plan = database.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
                assert not [row[3] for row in plan if row[3].startswith("SCAN")], statement


# The keys of nodes


def _rotate(
    orchestrator: RunningOrchestrator, node: RegisteredNode, previous: str | None = None
) -> str:
    """Rotate the node's key; return the new one, as soon as heartbeats have it."""
    shown = ok(orchestrator.admin.post(f"/nodes/{node.id}/rotate-key"))
    assert (shown["id"], "api_key" in shown) == (node.id, False)
    wait_for(lambda: node.beat().get("new_api_key") not in {None, previous})
    return str(node.beat()["new_api_key"])


@pytest.mark.both_databases
def test_first_use_of_a_rotated_key_ends_the_old_one_but_for_tasks_assigned_before(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    before, _ = _assigned(orchestrator, node)
    replaced = _rotate(orchestrator, node)
    key = _rotate(orchestrator, node, replaced)
    assert key.startswith("vn_")
    assert key not in orchestrator.stored()
    unused = orchestrator.client(replaced).get("/tasks/pending")
    assert refusal(unused) == (401, "unknown or expired API key")
    poller = Poller(orchestrator, node)
    new = RegisteredNode(node.id, node.name, key, orchestrator.client(key))
    assert "new_api_key" not in new.beat("busy")
    assert poller.task_id(within_s=PROMPTLY_S) is None
    beat = {"node_id": node.id, "status": "idle"}
    wait_for(lambda: node.http.post("/nodes/heartbeat", json=beat).status_code == 401)
    wait_for(lambda: node.http.get("/tasks/pending").status_code == 401)
    assert refusal(node.http.get("/files/any")) == ROTATED
    after = orchestrator.assign(new)
    ok(_report(node.http, before))
    ok(_log(node.http, before, FIRST))
    for response in (_report(node.http, after), _log(node.http, after, FIRST)):
        assert refusal(response)[0] == 401
    ok(_report(node.http, before, "success"))
    _age(orchestrator, before, completed_at=61)
    assert refusal(_report(node.http, before)) == ENDED
    assert new.report(after, "success")["status"] == "success"
    actions = [entry["action"] for entry in orchestrator.audit()]
    assert actions.count("nodes:rotate-key") == 2
    assert actions.count("node:key-replaced") == 1


def test_rotated_key_outlives_a_restart_and_a_repeated_registration(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    key = _rotate(orchestrator, node)
    orchestrator.restart()
    assert node.beat()["new_api_key"] == key
    body = {"hostname": "h", "os_type": "linux"}
    token = {"X-Registration-Token": str(orchestrator.registration_token)}
    registered = ok(orchestrator.client(key).post("/register", json=body, headers=token))
    assert (registered["id"], registered["api_key"]) == (node.id, key)
    assert refusal(node.http.post("/register", json=body, headers=token))[0] == 410
    assert refusal(orchestrator.admin.post("/nodes/unknown/rotate-key"))[0] == 404
    for client in (
        orchestrator.client(key),
        orchestrator.client(orchestrator.create_key()["api_key"]),
    ):
        assert refusal(client.post(f"/nodes/{node.id}/rotate-key"))[0] == 403


# The limit of unreported assignments


@pytest.mark.both_databases
@pytest.mark.settings(max_unreported=2, sweep_every_s=0.1)
def test_node_with_many_unreported_assignments_gets_no_more_until_it_reports(
    orchestrator: RunningOrchestrator, node: RegisteredNode, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = [orchestrator.create_task()["id"] for _ in range(4)]
    assert [node.poll_id() for _ in range(3)] == [*tasks[:2], None]
    message = "node gets no new work until it reports on its tasks"
    wait_for(lambda: message in caplog.text)
    # A task passes by a full node that has waited longer.
    poller = Poller(orchestrator, node)
    other = orchestrator.register("other")
    assert [other.poll_id(1) for _ in range(2)] == tasks[2:]
    waiting = orchestrator.create_task()["id"]
    assert other.poll_id() is None  # it has two as well
    node.report(tasks[0], "running")
    assert poller.task_id(within_s=PROMPTLY_S) == waiting
    assert [record.message for record in caplog.records].count(message) <= 3


@pytest.mark.settings(max_unreported=2, redelivery_after_s=0)
def test_full_node_is_offered_what_it_has_again(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    tasks = {orchestrator.create_task()["id"] for _ in range(3)}
    got = [str(node.poll_id()) for _ in range(6)]
    assert len(set(got)) == 2
    assert set(got) < tasks


@pytest.mark.both_databases
@pytest.mark.settings(max_unreported=1)
def test_poll_that_looked_before_another_one_took_a_task_gets_none(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    orchestrator.create_task()
    with orchestrator.database() as database:
        (look,) = look_for(database, orchestrator.settings, [node.id])
        assert look is not None
        orchestrator.assign(node, priority=1)
        claim = take(database, orchestrator.settings, look)
    assert (claim.task, claim.is_full) == (None, True)
