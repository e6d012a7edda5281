"""The log: a line for each thing that happens, with its ids, and none for what happens all day."""

import json
import logging
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import partial

import pytest

from orchestrator.log import JsonFormatter, Outage, Sampler, TextFormatter, fields
from orchestrator.sweeper import NodeWatch
from tests.orchestrator.serving import Json, RegisteredNode, RunningOrchestrator, ok, wait_for

Log = Callable[[str], list[tuple[str, str, Json]]]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Log:
    """Return what reads the events with a beginning: level, message and fields of each."""
    caplog.set_level(logging.INFO, "orchestrator")

    def events(beginning: str) -> list[tuple[str, str, Json]]:
        # A copy: the server's threads go on logging.
        return [
            (record.levelname, record.message, getattr(record, "fields", {}))
            for record in caplog.get_records("call").copy()
            if record.getMessage().startswith(beginning)
        ]

    return events


def test_each_step_of_a_task_is_one_line(
    orchestrator: RunningOrchestrator, node: RegisteredNode, log: Log
) -> None:
    task_id = orchestrator.assign(node)
    for status in ("running", "running", "analyzing", "success", "success"):
        node.report(task_id, status, message="the-message", progress=50)
    ids = {"task_id": task_id, "node_id": node.id}
    [*steps, (level, message, end)] = log("task ")
    assert steps == [
        ("INFO", "task created", {"task_id": task_id, "created_by": "admin"}),
        ("INFO", "task assigned", ids),
        ("INFO", "task started", ids),
    ]
    assert (level, message) == ("INFO", "task ended")
    assert end == {**ids, "status": "success", "duration_s": end["duration_s"]}
    assert "the-message" not in str(log(""))


def test_heartbeats_and_polls_log_nothing(node: RegisteredNode, log: Log) -> None:
    events = log("")
    for _ in range(3):
        node.beat()
        assert node.poll() is None
    assert log("") == events


def test_registration_and_removal_are_logged(orchestrator: RunningOrchestrator, log: Log) -> None:
    node = orchestrator.register("worker")
    body = {"hostname": "host.example", "os_type": "linux", "name": "worker", "tags": {"a": "b"}}
    token = {"X-Registration-Token": orchestrator.registration_token or ""}
    for _ in range(2):
        ok(node.http.post("/register", json=body, headers=token))
    ok(orchestrator.admin.delete(f"/nodes/{node.id}"))
    ids = {"node_id": node.id, "name": "worker"}
    assert log("node ") == [
        ("INFO", "node registered", {**ids, "client": "127.0.0.1"}),
        ("INFO", "node registered again", {**ids, "client": "127.0.0.1", "changed": "tags"}),
        ("INFO", "node removed", ids),
    ]


def test_next_occurrence_is_logged(
    orchestrator: RunningOrchestrator, node: RegisteredNode, log: Log
) -> None:
    task = orchestrator.create_task(recurrence="@daily", scheduled_for=orchestrator.moment())
    wait_for(node.poll)
    node.report(task["id"], "success")
    _, (_, _, event) = log("task created")
    assert event["repeats"] == task["id"]
    assert event["task_id"] in {one["id"] for one in orchestrator.tasks()}


@pytest.mark.both_databases
@pytest.mark.settings(redelivery_after_s=0.3)
def test_repeated_offer_ends_a_held_request_and_is_logged(
    orchestrator: RunningOrchestrator, node: RegisteredNode, log: Log
) -> None:
    task_id = orchestrator.assign(node)
    assert node.poll_id(wait_s=60) == task_id
    ids = {"task_id": task_id, "node_id": node.id}
    assert log("task offered again") == [("WARNING", "task offered again", ids)]


@pytest.mark.both_databases
@pytest.mark.settings(sweep_every_s=0.1, lost_after_s=0)
def test_tasks_of_a_silent_node_are_logged(
    orchestrator: RunningOrchestrator, node: RegisteredNode, log: Log
) -> None:
    unstarted = orchestrator.assign(node)
    lost = orchestrator.assign(node, "running", timeout_seconds=1)
    orchestrator.silence(node)
    for message, task_id, reason in (
        ("task put back", unstarted, "its node fell silent before it started the task"),
        ("task lost", lost, "its node fell silent, and its time limit is long over"),
    ):
        ids = {"task_id": task_id, "node_id": node.id, "reason": reason}
        assert wait_for(partial(log, message)) == [("WARNING", message, ids)]


@pytest.mark.settings(sweep_every_s=0.05, heartbeat_timeout_s=0.2)
def test_silent_node_is_logged_by_the_server(node: RegisteredNode, log: Log) -> None:
    [(level, _, event)] = wait_for(lambda: log("node offline"))
    assert (level, event["node_id"], event["name"]) == ("WARNING", node.id, node.name)


def test_node_is_logged_as_it_goes_and_comes(orchestrator: RunningOrchestrator, log: Log) -> None:
    node, leaving = orchestrator.register("worker"), orchestrator.register("leaving")
    leaving.beat("offline")
    orchestrator.nodes()  # its heartbeat is written by now
    settings, now = orchestrator.settings, datetime.now(timezone.utc)
    later = now + timedelta(hours=2)  # a test's heartbeat timeout is an hour
    with orchestrator.database() as database:
        watch = NodeWatch(database, settings, now - timedelta(hours=2))
        for moment in (now, now, later, later, now, now):
            watch.log_changes(moment)
        ok(orchestrator.admin.delete(f"/nodes/{leaving.id}"))
        watch.log_changes(now)
        # A server that has just started gives its nodes the time to call.
        NodeWatch(database, settings, later).log_changes(later)
    worker = {"node_id": node.id, "name": "worker"}
    last_heartbeat = orchestrator.nodes()[0]["last_heartbeat"][:19] + "Z"
    assert log("node offline") + log("node back") == [
        ("INFO", "node offline", {"node_id": leaving.id, "name": "leaving"}),
        ("WARNING", "node offline", {**worker, "last_heartbeat": last_heartbeat}),
        ("INFO", "node back online", worker),
    ]


def test_flood_of_refusals_is_logged_once(orchestrator: RunningOrchestrator, log: Log) -> None:
    task_id = orchestrator.create_task()["id"]
    path, stranger = f"/tasks/{task_id}", orchestrator.client("a-wrong-key")
    for _ in range(4):
        orchestrator.admin.delete(path)
    cancellation = {"task_id": task_id, "node_id": None, "by": "admin"}
    assert log("task cancelled") == [("INFO", "task cancelled", cancellation)]
    for _ in range(3):
        stranger.post("/logs", json={})
    client = {"client": "127.0.0.1"}
    conflict, unknown = log("request refused")
    assert conflict[0] == "INFO"
    assert conflict[2].items() >= {"status": 409, "method": "DELETE", "path": path}.items()
    expected = {"status": 401, "method": "POST", "path": "/logs", "omitted": 2, **client}
    reason = "unknown or expired API key"
    assert unknown == ("WARNING", "request refused", {**expected, "reason": reason})


def test_keys_and_files_are_logged(orchestrator: RunningOrchestrator, log: Log) -> None:
    key_id = orchestrator.create_key()["key_id"]
    path = f"/keys/{key_id}"
    for call in (("POST", f"{path}/rotate"), ("POST", f"{path}/revoke"), ("DELETE", path)):
        ok(orchestrator.admin.request(*call))
    assert [(message, event["key_id"]) for _, message, event in log("key ")] == [
        (f"key {change}", key_id) for change in ("created", "rotated", "revoked", "deleted")
    ]
    name = orchestrator.upload("name.txt", b"abc")["filename"]
    [(level, _, event)] = log("file uploaded")
    assert (level, event["filename"], event["size"]) == ("INFO", name, 3)


def test_sampler_takes_one_of_a_kind_a_minute_and_a_hundred_of_all() -> None:
    sampler, now = Sampler(), datetime.now(timezone.utc)
    assert [sampler.take(("a",), now) for _ in range(3)] == [0, None, None]
    assert sampler.take(("b",), now) == 2
    assert sum(sampler.take((number,), now) is not None for number in range(1000)) == 98
    assert sampler.take(("a",), now + timedelta(minutes=1)) == 902


def test_outage_is_a_line_then_one_every_ten_minutes_then_one(log: Log) -> None:
    now_s = 0.0
    outage = Outage(logging.getLogger("orchestrator.x"), "it is over", lambda: now_s)
    for _ in range(25):
        outage.note("sweep", "the database is away", 1.0)
        outage.note("listen", "the database is away", 1.0)
        now_s += 60
    outage.end("listen")
    assert log("it is over") == [], "the sweep fails"
    outage.end("sweep")
    lines = log("the database is away")
    assert [facts["lasted_s"] for _, _, facts in lines] == [0, 600, 1200]
    assert {level for level, _, _ in lines} == {"ERROR"}
    ((level, _, facts),) = log("it is over")
    assert (level, facts["lasted_s"], facts["failures"]) == ("INFO", 1500, 50)
    assert not outage.is_open


def test_event_is_one_line_of_text_or_json_whatever_is_in_it() -> None:
    event = {"levelname": "INFO", "name": "orchestrator.x", "msg": "node registered"}
    values = fields(node_id="1", name="two\nlines \x1b[31m")
    record = logging.makeLogRecord({**event, **values, "created": 0.5})
    assert TextFormatter().format(record) == (
        '1970-01-01T00:00:00.500Z INFO node registered node_id=1 name="two\\nlines \\u001b[31m"'
    )
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.500Z",
        "level": "INFO",
        "logger": "orchestrator.x",
        "message": "node registered",
        "node_id": "1",
        "name": "two\nlines \x1b[31m",
    }
