"""The stream that the dashboard shows: only what has changed, of limited size, for admins alone."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
from sqlalchemy import insert, select, update

from orchestrator.db.database import Database
from orchestrator.db.tables import ApiKey, StatusEntry, Task
from orchestrator.model import TaskStatus, utc_now
from tests.orchestrator.serving import Json, RegisteredNode, RunningOrchestrator, ok, refusal

Events = Iterator[tuple[str, str]]


@contextmanager
def _live(orchestrator: RunningOrchestrator, task_id: str = "") -> Iterator[Events]:
    path = f"/dashboard/live?task_id={task_id}"
    with orchestrator.admin.stream("GET", path) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        yield _events(response.iter_lines())


def _events(lines: Iterator[str]) -> Events:
    for line in lines:
        if line.startswith("data: "):
            event = json.loads(line.removeprefix("data: "))
            yield event["part"], event["html"]


def _first_parts(events: Events) -> dict[str, str]:
    parts: dict[str, str] = {}
    for part, html in events:
        parts[part] = html
        if part == "key-list":
            break
    return parts


def _first_look(orchestrator: RunningOrchestrator, task_id: str = "") -> dict[str, str]:
    with _live(orchestrator, task_id) as events:
        return _first_parts(events)


def _message(content: object) -> Json:
    return {"role": "user", "content": content}


def _send_log(node: RegisteredNode, task_id: str, *messages: object) -> None:
    node.send_log(task_id, {"title": "t", "messages": messages})


@pytest.mark.both_databases
def test_stream_has_nodes_tasks_keys_and_the_chosen_task(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    times = {"recurrence": "0 8 * * mon", "scheduled_for": "2099-01-02T03:04:05Z"}
    fields = {"target_node_id": node.id, "target_tags": {"a": "b"}}
    task_id = orchestrator.create_task("the-prompt", **fields, **times)["id"]
    orchestrator.create_key(name="the-key")
    parts = _first_look(orchestrator, task_id)
    assert node.name in parts["nodes"]
    assert "the-key" in parts["key-list"]
    for part in ("chosen", "tasks"):
        for text in ("the-prompt", "a=b", "2099-01-02 03:04:05 UTC", "0 8 * * mon", node.name):
            assert text in parts[part], (part, text)
        assert node.id not in parts[part]
    assert ">Cancel<" in parts["chosen"]
    assert ">Cancel<" not in "".join(_first_look(orchestrator, "unknown").values())


def test_only_what_has_changed_is_sent_again(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id = orchestrator.assign(node)
    _send_log(node, task_id, _message("first log"))
    with _live(orchestrator, task_id) as events:
        parts = _first_parts(events)
        assert list(parts) == ["numbers", "chosen", "log", "tasks", "nodes", "key-list"]
        assert "first log" in parts["log"]
        orchestrator.register("another")
        # In one look, or in two: the numbers are read before the rest.
        assert {next(events)[0] for _ in range(2)} == {"numbers", "nodes"}
        _send_log(node, task_id, _message("second log"))
        part, html = next(events)
        assert part == "log"
        assert "second log" in html


@pytest.mark.both_databases
def test_look_costs_little_though_a_task_has_many_reports(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id = orchestrator.assign(node)
    node.report(task_id, "running", message="the first of many", progress=1)
    _add_reports(orchestrator, 50_000)
    node.report(task_id, "running", message="the last of many", progress=33)
    for chosen in ("", task_id):
        with _live(orchestrator, chosen) as events:
            began = time.process_time()
            parts = _first_parts(events)
            assert time.process_time() - began < 0.5
        assert "33&nbsp;%" in parts["tasks"]
    assert "the last of many" in parts["chosen"]
    assert "the first of many" not in parts["chosen"]
    assert parts["chosen"].count("<li>") == 200
    assert f"GET /tasks/{task_id}" in parts["chosen"]
    # A task that has ended shows no progress.
    node.report(task_id, "success")
    assert "33&nbsp;%" not in _first_look(orchestrator)["tasks"]


def test_long_log_is_truncated_to_its_end(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id = orchestrator.assign(node)
    numbered = [_message(f"message {number}.") for number in range(1000)]
    large = _message("x" * 9_000_000 + "the end")
    many = [_message(f"{number}.") for number in range(100_000)]
    for messages, end in (([*numbered, large], "the end"), (many, "99999.")):
        _send_log(node, task_id, *messages)
        log = _first_look(orchestrator, task_id)["log"]
        assert end in log
        assert f"GET /logs/{task_id}" in log
        assert len(log) < 250_000


def test_log_of_few_fields_is_shown(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id = orchestrator.assign(node)
    _send_log(node, task_id, {"content": "alone", "further": [1]}, {}, {"content": None})
    log = _first_look(orchestrator, task_id)["log"]
    assert "alone" in log
    assert "GET /logs/" not in log


def test_long_texts_of_a_task_are_truncated(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id = orchestrator.assign(node, prompt="p" * 500_000)
    node.report(task_id, "success", message="m" * 500_000)
    parts = _first_look(orchestrator, task_id)
    assert len(parts["chosen"]) < 50_000
    assert f"GET /tasks/{task_id}" in parts["chosen"]


def test_stream_ends_when_the_server_stops(orchestrator: RunningOrchestrator) -> None:
    with orchestrator.admin.stream("GET", "/dashboard/live") as response:
        lines = response.iter_lines()
        next(lines)
        orchestrator.stop()
        list(lines)


def test_stream_and_preview_are_for_admins_alone(shared: RunningOrchestrator) -> None:
    scoped = shared.create_key(role="operator")["api_key"]
    for client in (shared.client(scoped), shared.register().http):
        assert refusal(client.get("/dashboard/live"))[0] == 403
        assert refusal(client.post("/dashboard/matches", json={}))[0] == 403
    assert refusal(shared.client().get("/dashboard/live"))[0] == 401


def test_page_needs_no_key_and_loads_nothing_from_elsewhere(shared: RunningOrchestrator) -> None:
    first, second = (shared.client().get("/dashboard") for _ in range(2))
    assert first.status_code == 200
    policy = first.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    # Each response has a nonce of its own.
    assert policy != second.headers["Content-Security-Policy"]
    assert "http" not in first.text.replace(shared.url, "")


def test_keys_are_shown_with_their_limits(orchestrator: RunningOrchestrator) -> None:
    key = orchestrator.create_key(description="its purpose", rate_limit=7, expires_in_days=1)
    shown = _first_look(orchestrator)["key-list"]
    for text in ("its purpose", ">7<", key["expires_at"][:10], "submitter"):
        assert text in shown
    past = utc_now() - timedelta(days=1)
    orchestrator.change(update(ApiKey).values(expires_at=past))
    shown = _first_look(orchestrator)["key-list"]
    assert "expired" in shown
    assert "submitter" not in shown


def test_task_shows_the_name_of_the_key_that_created_it(orchestrator: RunningOrchestrator) -> None:
    key = orchestrator.create_key(name="acme-ci")
    holder = orchestrator.client(key["api_key"])
    created = ok(holder.post("/tasks", json={"prompt": "p"}))
    assert created["created_by"] == key["key_id"]
    assert "acme-ci" in _first_look(orchestrator, created["id"])["chosen"]
    by_admin = orchestrator.create_task()["id"]
    assert "the admin key" in _first_look(orchestrator, by_admin)["chosen"]


def test_list_shows_that_there_are_more_tasks(orchestrator: RunningOrchestrator) -> None:
    for _ in range(100):
        orchestrator.create_task()
    assert "GET /tasks" not in _first_look(orchestrator)["tasks"]
    orchestrator.create_task("the newest")
    shown = _first_look(orchestrator)["tasks"]
    assert "GET /tasks" in shown
    assert "the newest" in shown
    assert shown.count("data-select") == 100


def _add_reports(orchestrator: RunningOrchestrator, count: int) -> None:
    database = Database(orchestrator.settings.data_dir, orchestrator.settings.database_url)
    with database.writing() as session:
        row = {
            "task_number": session.scalars(select(Task.number)).one(),
            "status": TaskStatus.RUNNING,
            "message": "m" * 1000,
            "progress": 2.0,
            "timestamp": utc_now(),
        }
        session.execute(insert(StatusEntry), [row] * count)
    database.close()
