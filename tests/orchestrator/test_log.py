"""The log: a line for each thing that happens, with its ids, and none for what happens all day."""

import json
import logging
import re
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import psycopg
import pytest

from orchestrator.db.database import Database
from orchestrator.log import JsonFormatter, Sampler, TextFormatter, fields
from orchestrator.sweeper import NodeWatch
from tests.orchestrator.serving import Json, RunningOrchestrator, ok, serve, wait_for

Caplog = pytest.LogCaptureFixture


@pytest.fixture(autouse=True)
def _from_info_on(caplog: Caplog) -> None:
    caplog.set_level(logging.INFO, "orchestrator")


def _events(caplog: Caplog, beginning: str) -> list[tuple[str, str, Json]]:
    # A copy: the server's threads go on logging.
    return [
        (record.levelname, record.message, record.fields)  # type: ignore[attr-defined]
        for record in caplog.get_records("call").copy()
        if record.getMessage().startswith(beginning)
    ]


def test_life_of_a_task_is_one_line_for_each_step(
    orchestrator: RunningOrchestrator, caplog: Caplog
) -> None:
    node = orchestrator.register("worker")
    task = orchestrator.create_task("the-prompt")
    assert node.poll() is not None
    for status in ("running", "running", "analyzing", "success", "success"):
        node.report(task["id"], status, message="the-message", progress=50)
    ids = {"task_id": task["id"], "node_id": node.id}
    [created, assigned, started, ended] = _events(caplog, "task ")
    assert created == (
        "INFO",
        "task created",
        {"task_id": task["id"], "created_by": "admin"},
    )
    assert assigned == ("INFO", "task assigned", ids)
    assert started == ("INFO", "task started", ids)
    assert ended[:2] == ("INFO", "task ended")
    assert ended[2] == {**ids, "status": "success", "duration_s": ended[2]["duration_s"]}
    assert "the-prompt" not in caplog.text
    assert "the-message" not in caplog.text


def test_heartbeats_and_polls_log_nothing(
    orchestrator: RunningOrchestrator, caplog: Caplog
) -> None:
    node = orchestrator.register()
    before = len(caplog.records)
    for _ in range(3):
        node.beat()
        assert node.poll() is None
    assert len(caplog.records) == before


def test_node_is_logged_from_registration_to_removal(
    orchestrator: RunningOrchestrator, caplog: Caplog
) -> None:
    node = orchestrator.register("worker")
    body = {"hostname": "host.example", "os_type": "linux", "name": "worker", "tags": {"a": "b"}}
    token = {"X-Registration-Token": orchestrator.registration_token or ""}
    for _ in range(2):
        ok(node.http.post("/register", json=body, headers=token))
    ok(orchestrator.admin.delete(f"/nodes/{node.id}"))
    ids = {"node_id": node.id, "name": "worker"}
    assert _events(caplog, "node ") == [
        ("INFO", "node registered", {**ids, "client": "127.0.0.1"}),
        ("INFO", "node registered again", {**ids, "client": "127.0.0.1", "changed": "tags"}),
        ("INFO", "node removed", ids),
    ]


def test_cancelled_task_is_logged_with_who_did_it(
    orchestrator: RunningOrchestrator, caplog: Caplog
) -> None:
    task = orchestrator.create_task()
    orchestrator.cancel(task["id"])
    assert _events(caplog, "task cancelled") == [
        (
            "INFO",
            "task cancelled",
            {"task_id": task["id"], "node_id": None, "by": "admin"},
        )
    ]


def test_next_occurrence_is_logged_with_the_task_that_it_repeats(
    orchestrator: RunningOrchestrator, caplog: Caplog
) -> None:
    node = orchestrator.register()
    task = orchestrator.create_task(recurrence="* * * * * *")
    wait_for(node.poll)
    node.report(task["id"], "success")
    _, (_, _, event) = _events(caplog, "task created")
    assert event["repeats"] == task["id"]
    assert event["task_id"] in {one["id"] for one in orchestrator.tasks()}


def test_assignment_offered_again_is_logged(
    tmp_path: Path, database_url: str | None, caplog: Caplog
) -> None:
    with serve(tmp_path, database_url=database_url, redelivery_after_s=0) as orchestrator:
        node = orchestrator.register()
        task = orchestrator.create_task()
        assert node.poll()
        assert node.poll()
    ids = {"task_id": task["id"], "node_id": node.id}
    assert _events(caplog, "task offered again") == [("WARNING", "task offered again", ids)]


def test_tasks_of_a_silent_node_are_logged_with_both_ids(
    tmp_path: Path, database_url: str | None, caplog: Caplog
) -> None:
    settings = {"database_url": database_url, "sweep_every_s": 0.1, "lost_after_s": 0}
    with serve(tmp_path, **settings) as orchestrator:
        node = orchestrator.register()
        unstarted = orchestrator.create_task(priority=1)
        lost = orchestrator.create_task(timeout_seconds=1)
        assert node.poll()
        assert node.poll()
        node.report(lost["id"], "running")
        orchestrator.silence(node)
        put_back = wait_for(lambda: _events(caplog, "task put back"))
        given_up = wait_for(lambda: _events(caplog, "task lost"))
    reason = "its node fell silent before it started the task"
    ids = {"task_id": unstarted["id"], "node_id": node.id}
    assert put_back == [("WARNING", "task put back", {**ids, "reason": reason})]
    reason = "its node fell silent, and its time limit is long over"
    ids = {"task_id": lost["id"], "node_id": node.id}
    assert given_up == [("WARNING", "task lost", {**ids, "reason": reason})]


def test_silent_node_is_logged_by_the_server(tmp_path: Path, caplog: Caplog) -> None:
    with serve(tmp_path, sweep_every_s=0.05, heartbeat_timeout_s=0.2) as orchestrator:
        node = orchestrator.register("worker")
        [(level, _, event)] = wait_for(lambda: _events(caplog, "node offline"))
    assert (level, event["node_id"], event["name"]) == ("WARNING", node.id, "worker")


def test_node_that_goes_and_comes_back_is_logged_once_each(
    orchestrator: RunningOrchestrator, caplog: Caplog
) -> None:
    node, leaving = orchestrator.register("worker"), orchestrator.register("leaving")
    leaving.beat("offline")
    settings = replace(orchestrator.settings, heartbeat_timeout_s=45)
    now = datetime.now(timezone.utc)
    in_a_minute = now + timedelta(minutes=1)
    with closing(Database(settings.data_dir, settings.database_url)) as database:
        watch = NodeWatch(database, settings, now - timedelta(hours=1))
        for moment in (now, now, in_a_minute, in_a_minute, now, now):
            watch.log_changes(moment)
        ok(orchestrator.admin.delete(f"/nodes/{leaving.id}"))
        watch.log_changes(now)
        # A server that has just started gives its nodes the time to call.
        NodeWatch(database, settings, in_a_minute).log_changes(in_a_minute)
    worker = {"node_id": node.id, "name": "worker"}
    last_heartbeat = orchestrator.nodes()[0]["last_heartbeat"][:19] + "Z"
    assert [*_events(caplog, "node offline"), *_events(caplog, "node back")] == [
        ("INFO", "node offline", {"node_id": leaving.id, "name": "leaving"}),
        ("WARNING", "node offline", {**worker, "last_heartbeat": last_heartbeat}),
        ("INFO", "node back online", worker),
    ]


def test_refused_requests_are_logged_but_a_flood_is_not(
    orchestrator: RunningOrchestrator, caplog: Caplog
) -> None:
    task = orchestrator.create_task()
    orchestrator.cancel(task["id"])
    for _ in range(3):
        orchestrator.admin.delete(f"/tasks/{task['id']}")
    stranger = orchestrator.client("a-wrong-key")
    for _ in range(3):
        stranger.get("/nodes")
        stranger.post("/logs", json={})
    refused = [
        (level, event["status"], event["method"], event["path"])
        for level, _, event in _events(caplog, "request refused")
    ]
    assert refused == [
        ("INFO", 409, "DELETE", f"/tasks/{task['id']}"),
        ("WARNING", 401, "GET", "/nodes"),
    ]
    _, (_, _, event) = _events(caplog, "request refused")
    assert event["client"] == "127.0.0.1"
    assert event["reason"] == "unknown or expired API key"
    assert event["omitted"] == 2
    assert "a-wrong-key" not in caplog.text


def test_wrong_key_of_a_log_is_logged(orchestrator: RunningOrchestrator, caplog: Caplog) -> None:
    orchestrator.client("a-wrong-key").post("/logs", json={})
    [(level, _, event)] = _events(caplog, "request refused")
    assert (level, event["status"], event["path"]) == ("WARNING", 401, "/logs")


def test_database_that_does_not_answer_is_logged_once_a_minute(
    tmp_path: Path, postgresql_url: str, caplog: Caplog
) -> None:
    end_sessions = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'victoria-orchestrator' AND datname = current_database()"
    )
    with serve(tmp_path, database_url=postgresql_url, sweep_every_s=3600) as orchestrator:
        for _ in range(3):
            orchestrator.nodes()
            with psycopg.connect(postgresql_url, autocommit=True) as connection:
                connection.execute(end_sessions)
            assert orchestrator.admin.get("/nodes").status_code == 503
    assert caplog.text.count("the database does not answer") == 1


def test_keys_and_files_are_logged_with_who_did_it(
    orchestrator: RunningOrchestrator, caplog: Caplog
) -> None:
    key = ok(orchestrator.admin.post("/keys", json={"name": "n", "description": "d"}))
    ok(orchestrator.admin.post(f"/keys/{key['key_id']}/rotate"))
    ok(orchestrator.admin.post(f"/keys/{key['key_id']}/revoke"))
    ok(orchestrator.admin.delete(f"/keys/{key['key_id']}"))
    assert [(message, event["key_id"]) for _, message, event in _events(caplog, "key ")] == [
        (f"key {change}", key["key_id"]) for change in ("created", "rotated", "revoked", "deleted")
    ]
    file = orchestrator.upload("name.txt", b"abc")
    [(level, _, event)] = _events(caplog, "file uploaded")
    assert level == "INFO"
    assert (event["filename"], event["size"]) == (file["filename"], 3)


def test_sampler_takes_one_of_a_kind_a_minute_and_a_hundred_of_all() -> None:
    sampler, now = Sampler(), datetime.now(timezone.utc)
    assert [sampler.take(("a",), now) for _ in range(3)] == [0, None, None]
    assert sampler.take(("b",), now) == 2
    assert sum(sampler.take((number,), now) is not None for number in range(1000)) == 98
    assert sampler.take(("a",), now + timedelta(minutes=1)) == 902


def test_text_is_one_line_with_utc_level_message_and_fields() -> None:
    record = logging.makeLogRecord(
        {"levelname": "INFO", "msg": "node registered", "created": 0.5}
        | fields(node_id="1", name="two\nlines \x1b[31m")
    )
    assert TextFormatter().format(record) == (
        '1970-01-01T00:00:00.500Z INFO node registered node_id=1 name="two\\nlines \\u001b[31m"'
    )


def test_json_is_one_object_on_one_line() -> None:
    record = logging.makeLogRecord(
        {"levelname": "INFO", "name": "orchestrator.x", "msg": "node registered", "created": 0.5}
        | fields(node_id="1", name="two\nlines")
    )
    line = JsonFormatter().format(record)
    assert not re.search(r"\n", line)
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.500Z",
        "level": "INFO",
        "logger": "orchestrator.x",
        "message": "node registered",
        "node_id": "1",
        "name": "two\nlines",
    }
