"""The streams that the pages show: only what has changed, of limited size, for who may read it."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from fastapi import FastAPI
from sqlalchemy import insert, select, update

from orchestrator.budgets import MAX_STREAMS
from orchestrator.db.tables import ApiKey, StatusEntry, Task
from orchestrator.model import ADMIN_ID, TaskStatus, utc_now
from orchestrator.services import services_of
from orchestrator.web.task import duration_text, shown_log, size_text
from tests.orchestrator.serving import (
    Json,
    RegisteredNode,
    RunningOrchestrator,
    ok,
    refusal,
    wait_for,
)

Events = Iterator[tuple[str, str]]


@contextmanager
def _live(orchestrator: RunningOrchestrator, task_id: str = "") -> Iterator[Events]:
    path = f"/dashboard/tasks/{task_id}/live" if task_id else "/dashboard/live"
    with orchestrator.admin.stream("GET", path) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        lines = (line for line in response.iter_lines() if line.startswith("data: "))
        events = (json.loads(line.removeprefix("data: ")) for line in lines)
        yield ((event["part"], event["html"]) for event in events)


def _first_parts(events: Events) -> dict[str, str]:
    parts: dict[str, str] = {}
    while not {"token-list", "log"} & set(parts):
        part, html = next(events)
        parts[part] = html
    return parts


def _first_look(orchestrator: RunningOrchestrator, task_id: str = "") -> dict[str, str]:
    with _live(orchestrator, task_id) as events:
        return _first_parts(events)


def _send_log(node: RegisteredNode, task_id: str, *contents: object) -> None:
    messages = [{"role": "user", "content": content} for content in contents]
    node.send_log(task_id, {"title": "t", "messages": messages})


@pytest.mark.both_databases
def test_streams_have_nodes_tasks_keys_and_the_facts_of_a_task(
    orchestrator: RunningOrchestrator,
) -> None:
    node = orchestrator.register()
    key = orchestrator.create_key(name="the-key")
    times = {"recurrence": "0 8 * * mon", "scheduled_for": "2099-01-02T03:04:05Z"}
    body = {"prompt": "the-prompt", "target_node_id": node.id, "target_tags": {"a": "b"}, **times}
    task_id = ok(orchestrator.client(key["api_key"]).post("/tasks", json=body))["id"]
    fleet, task = _first_look(orchestrator), _first_look(orchestrator, task_id)
    assert node.name in fleet["nodes"]
    assert "the-key" in fleet["key-list"]
    for html in (task["facts"], fleet["tasks"]):
        for text in ("the-prompt", "a=b", "2099-01-02 03:04:05 UTC", "0 8 * * mon", node.name):
            assert text in html, text
    assert node.id not in task["facts"]
    for text in (">Cancel<", "the-key", "it is due at 2099-01-02T03:04:05Z"):
        assert text in task["facts"]
    by_admin = orchestrator.create_task()["id"]
    assert "the admin key" in _first_look(orchestrator, by_admin)["facts"]
    assert refusal(orchestrator.admin.get("/dashboard/tasks/unknown/live"))[0] == 404


def test_only_what_has_changed_is_sent_again(orchestrator: RunningOrchestrator) -> None:
    node = orchestrator.register()
    task_id = orchestrator.assign(node, "running")
    _send_log(node, task_id, "first log")
    with _live(orchestrator, task_id) as events:
        parts = _first_parts(events)
        assert list(parts) == ["facts", "history", "artifacts", "log"]
        assert "first log" in parts["log"]
        assert "task logs" not in parts["log"]
        _send_log(node, task_id, "x" * 1_000_000 + "second log")
        part, html = next(events)
        assert (part, "second log" in html, f"task logs {task_id}" in html) == ("log", True, True)
        node.put_artifact(task_id, "a.txt", b"a")
        assert next(events)[0] == "artifacts"
        node.report(task_id, "success")
        ok(orchestrator.admin.post(f"/tasks/{task_id}/purge"))
        # Then the stream ends, and the page's next request is answered with 404.
        assert {part for part, _ in events} <= {"facts", "history"}
    with _live(orchestrator) as events:
        parts = _first_parts(events)
        assert list(parts) == ["numbers", "tasks", "nodes", "key-list", "token-list"]
        orchestrator.register("another")
        # In one look, or in two: the numbers are read before the rest.
        assert {next(events)[0] for _ in range(2)} == {"numbers", "nodes"}


@pytest.mark.both_databases
def test_look_is_cheap_though_tasks_have_many_reports(
    orchestrator: RunningOrchestrator,
) -> None:
    node = orchestrator.register()
    task_id = orchestrator.assign(node)
    node.report(task_id, "running", message="the first of many", progress=1)
    row = {"status": TaskStatus.RUNNING, "message": "m" * 1000, "progress": 2.0}
    with orchestrator.database() as database, database.writing() as session:
        row |= {"task_number": session.scalars(select(Task.number)).one(), "timestamp": utc_now()}
        session.execute(insert(StatusEntry), [row] * 50_000)
    node.report(task_id, "running", message="the last of many", progress=33)
    for task in ("", task_id):
        with _live(orchestrator, task) as events:
            began = time.process_time()
            parts = _first_parts(events)
            assert time.process_time() - began < 0.5
        assert "33&nbsp;%" in parts["history" if task else "tasks"]
    history = parts["history"]
    assert ("the last of many" in history, "the first of many" in history) == (True, False)
    assert (history.count("<li>"), history.count(f"task show {task_id}")) == (200, 1)
    # A task that has ended shows no progress.
    node.report(task_id, "success")
    assert "33&nbsp;%" not in _first_look(orchestrator)["tasks"]


@pytest.mark.parametrize(
    "contents",
    [[*map(str, range(1000)), "x" * 9_000_000 + "the end"], [*map(str, range(100_000)), "the end"]],
    ids=["long message", "many messages"],
)
def test_long_log_is_truncated_to_its_end(contents: list[str]) -> None:
    log = shown_log(json.dumps({"messages": [{"content": content} for content in contents]}))
    assert (log["is_cut"], log["messages"][-1]["content"][-7:]) == (True, "the end")
    assert len(json.dumps(log)) < 250_000


def test_log_of_few_fields_is_shown() -> None:
    messages: list[Json] = [{"content": "alone", "further": [1]}, {}, {"content": None}]
    contents = [one["content"] for one in shown_log(json.dumps({"messages": messages}))["messages"]]
    assert contents == ["alone", "", "null"]


def test_times_of_a_log_are_shown_whatever_their_unit_and_only_times() -> None:
    for value, shown in (
        (1_790_000_000, "2026-09-21 14:13:20 UTC"),
        (1_790_000_000_000, "2026-09-21 14:13:20 UTC"),
        (1e300, None),
        (0, None),
        ("1790000000", None),
    ):
        log = shown_log(json.dumps({"messages": [{"content": "c", "created_at": value}]}))
        assert log["messages"][0]["at"] == shown, value


def test_durations_and_sizes_are_texts_for_people() -> None:
    durations = [-1, 2.34, 59.99, 61, 3599.7, 7384]
    texts = [duration_text(timedelta(seconds=seconds)) for seconds in durations]
    assert texts == ["0.0 s", "2.3 s", "1 min 0 s", "1 min 1 s", "1 h 0 min", "2 h 3 min"]
    sizes = [0, 999, 1000, 15_000, 999_960, 2_500_000, 4_000_000_000_000]
    shown = ["0 B", "999 B", "1.0 kB", "15.0 kB", "1.0 MB", "2.5 MB", "4000.0 GB"]
    assert [size_text(size) for size in sizes] == shown


def test_cancelled_task_shows_when_its_container_is_gone(orchestrator: RunningOrchestrator) -> None:
    node = orchestrator.register()
    waiting = orchestrator.create_task(target_node_name="another")["id"]
    running = orchestrator.assign(node, "running")
    for task_id in (waiting, running):
        orchestrator.cancel(task_id)
    assert "no node had the task" in _first_look(orchestrator, waiting)["facts"]
    assert "may still run" in _first_look(orchestrator, running)["facts"]
    node.report(running, "error", message="was cancelled")
    ended_at = orchestrator.task(running)["node_ended_at"][:19].replace("T", " ")
    assert (
        f"gone: its node reported this at {ended_at}" in _first_look(orchestrator, running)["facts"]
    )


def test_long_texts_of_a_task_are_truncated(orchestrator: RunningOrchestrator) -> None:
    node = orchestrator.register()
    task_id = orchestrator.assign(node, prompt="p" * 131_000)
    node.report(task_id, "success", message="m" * 100_000)
    facts = _first_look(orchestrator, task_id)["facts"]
    assert len(facts) < 50_000
    assert f"task show {task_id}" in facts


def test_list_of_tasks_is_limited_and_shows_it(orchestrator: RunningOrchestrator) -> None:
    for _ in range(100):
        orchestrator.create_task()
    assert "task list --all" not in _first_look(orchestrator)["tasks"]
    orchestrator.create_task("the newest")
    shown = _first_look(orchestrator)["tasks"]
    assert ("task list --all" in shown, "the newest" in shown) == (True, True)
    assert shown.count("<a ") == 100


def test_expired_key_is_shown_as_expired(orchestrator: RunningOrchestrator) -> None:
    orchestrator.create_key(expires_in_days=1)
    assert "submitter" in _first_look(orchestrator)["key-list"]
    orchestrator.change(update(ApiKey).values(expires_at=utc_now() - timedelta(days=1)))
    shown = _first_look(orchestrator)["key-list"]
    assert ("expired" in shown, "submitter" in shown) == (True, False)


def test_stream_ends_when_the_server_stops(orchestrator: RunningOrchestrator) -> None:
    with orchestrator.admin.stream("GET", "/dashboard/live") as response:
        lines = response.iter_lines()
        next(lines)
        orchestrator.stop()
        list(lines)


class _Watched(RunningOrchestrator):
    """One whose streams a test can count, and add to."""

    def application(self) -> FastAPI:
        self.app = super().application()
        return self.app


def test_open_pages_of_a_key_are_limited(tmp_path: Path) -> None:
    with _Watched(tmp_path) as orchestrator, ExitStack() as others:
        task_id = orchestrator.create_task()["id"]
        streams = services_of(orchestrator.app).page_streams
        with _live(orchestrator, task_id) as events:
            next(events)
            for _ in range(MAX_STREAMS - 1):
                others.enter_context(streams.hold(ADMIN_ID))
            sentence = f"the key has {MAX_STREAMS} pages open, as many as it may: close some"
            for path in (f"/dashboard/tasks/{task_id}/live", "/dashboard/live"):
                assert refusal(orchestrator.admin.get(path)) == (429, sentence)
        others.close()
        wait_for(lambda: len(streams) == 0)


def test_streams_are_for_who_may_read_what_they_show(shared: RunningOrchestrator) -> None:
    operator, submitter = (shared.create_key(role=role) for role in ("operator", "submitter"))
    clients = [shared.client(key["api_key"]) for key in (operator, submitter)]
    clients.append(shared.register().http)
    for client in clients:
        assert refusal(client.get("/dashboard/live"))[0] == 403
        assert refusal(client.post("/dashboard/matches", json={}))[0] == 403
    own = ok(clients[1].post("/tasks", json={"prompt": "p"}))["id"]
    codes = [refusal(client.get(f"/dashboard/tasks/{own}/live"))[0] for client in clients]
    assert codes == [404, 403, 403]
    for path in ("/dashboard/live", f"/dashboard/tasks/{own}/live"):
        assert refusal(shared.client().get(path))[0] == 401


@pytest.mark.parametrize("path", ["/dashboard", "/dashboard/tasks/some-id"])
def test_page_allows_only_its_own_scripts_by_a_new_nonce(
    shared: RunningOrchestrator, path: str
) -> None:
    first, second = (shared.client().get(path) for _ in range(2))
    policies = [page.headers["Content-Security-Policy"] for page in (first, second)]
    assert policies[0].startswith("default-src 'none'")
    assert policies[0] != policies[1]
    assert policies[0].endswith("; frame-ancestors 'none'; base-uri 'none'; form-action 'none'")
    assert "http" not in first.text.replace(shared.url, "")
