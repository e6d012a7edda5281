"""What the dashboard is fed with: a stream of what there is to show, for admins alone."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from sqlalchemy import insert, select, update

from orchestrator.db.database import Database
from orchestrator.db.tables import ApiKey, StatusEntry, Task
from orchestrator.model import TaskStatus, utc_now
from tests.orchestrator.serving import RegisteredNode, RunningOrchestrator, ok, refusal

Events = Iterator[tuple[str, str]]


@contextmanager
def _live(orchestrator: RunningOrchestrator, task_id: str = "") -> Iterator[Events]:
    path = f"/dashboard/live?task_id={task_id}"
    with orchestrator.admin.stream("GET", path) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        yield _events(answer.iter_lines())


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


def test_stream_has_nodes_tasks_keys_and_the_chosen_task(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task = orchestrator.create_task("the-prompt", recurrence="0 0 1 1 *", target_tags={"a": "b"})
    body = {"name": "the-key", "description": "d"}
    ok(orchestrator.admin.post("/keys", json=body))
    shown = "".join(_first_look(orchestrator, task["id"]).values())
    for text in (node.name, "the-prompt", "a=b", "0 0 1 1 *", "the-key"):
        assert text in shown
    assert ">Cancel<" in shown
    assert ">Cancel<" not in "".join(_first_look(orchestrator, "unknown").values())


def test_only_what_has_changed_is_sent_again(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task = orchestrator.create_task()
    node.poll()
    _send_log(node, task["id"], {"role": "user", "content": "first log"})
    with _live(orchestrator, task["id"]) as events:
        parts = _first_parts(events)
        assert list(parts) == ["numbers", "chosen", "log", "tasks", "nodes", "key-list"]
        assert "first log" in parts["log"]
        orchestrator.register("another")
        # In one look, or in two: the numbers are read before the rest.
        assert {next(events)[0] for _ in range(2)} == {"numbers", "nodes"}
        _send_log(node, task["id"], {"role": "user", "content": "second log"})
        part, html = next(events)
        assert part == "log"
        assert "second log" in html


def test_look_costs_little_though_a_task_reports_much(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task = orchestrator.create_task()
    node.poll()
    node.report(task["id"], "running", message="the first of many", progress=1)
    _add_reports(orchestrator, 50_000)
    node.report(task["id"], "running", message="the last of many", progress=33)
    for chosen in ("", task["id"]):
        with _live(orchestrator, chosen) as events:
            began = time.process_time()
            parts = _first_parts(events)
            assert time.process_time() - began < 0.5
        assert "33&nbsp;%" in parts["tasks"]
    assert "the last of many" in parts["chosen"]
    assert "the first of many" not in parts["chosen"]
    assert parts["chosen"].count("<li>") == 200
    assert f"GET /tasks/{task['id']}" in parts["chosen"]


def test_end_of_a_long_log_is_shown_and_where_the_whole_is(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task = orchestrator.create_task()
    node.poll()
    _send_log(
        node,
        task["id"],
        *({"role": "user", "content": f"message {number}."} for number in range(1000)),
        {"role": "assistant", "content": "x" * 9_000_000 + "the end"},
    )
    log = _first_look(orchestrator, task["id"])["log"]
    assert "the end" in log
    assert f"GET /logs/{task['id']}" in log
    assert len(log) < 250_000
    _send_log(node, task["id"], *({"role": "user", "content": f"{n}."} for n in range(100_000)))
    log = _first_look(orchestrator, task["id"])["log"]
    assert "99999." in log
    assert len(log) < 250_000


def test_log_of_any_form_is_shown(orchestrator: RunningOrchestrator, node: RegisteredNode) -> None:
    task = orchestrator.create_task()
    node.poll()
    _send_log(
        node, task["id"], {"role": 7, "content": [{"text": "nested"}]}, None, {"content": None}
    )
    log = _first_look(orchestrator, task["id"])["log"]
    assert "nested" in log
    assert "GET /logs/" not in log


def test_long_texts_of_a_task_are_cut_and_said_so(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task = orchestrator.create_task("p" * 500_000)
    node.poll()
    node.report(task["id"], "success", message="m" * 500_000)
    parts = _first_look(orchestrator, task["id"])
    assert len(parts["chosen"]) < 50_000
    assert f"GET /tasks/{task['id']}" in parts["chosen"]


def test_stream_ends_when_the_server_stops(orchestrator: RunningOrchestrator) -> None:
    with orchestrator.admin.stream("GET", "/dashboard/live") as answer:
        lines = answer.iter_lines()
        next(lines)
        orchestrator.stop()
        list(lines)


def test_stream_and_preview_are_the_admins_alone(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    body = {"name": "n", "description": "d", "role": "operator"}
    scoped = ok(orchestrator.admin.post("/keys", json=body))["api_key"]
    for client in (orchestrator.client(scoped), node.http):
        assert refusal(client.get("/dashboard/live"))[0] == 403
        assert refusal(client.post("/dashboard/matches", json={}))[0] == 403
    assert refusal(orchestrator.client().get("/dashboard/live"))[0] == 401


def test_preview_counts_whom_a_target_fits(orchestrator: RunningOrchestrator) -> None:
    for name in ("client-acme-1", "client-acme-2", "client-beta-1"):
        orchestrator.register(name, tags={"n": name[-1]})
    body = {"target_node_name": "client-acme-*", "target_tags": {"n": "1"}}
    answer = orchestrator.admin.post("/dashboard/matches", json=body)
    assert ok(answer) == {"matching": 1, "total": 3}


def test_page_needs_no_key_and_allows_nothing_from_elsewhere(
    orchestrator: RunningOrchestrator,
) -> None:
    first, second = (orchestrator.client().get("/dashboard") for _ in range(2))
    assert first.status_code == 200
    policy = first.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    # The nonce is good for one answer.
    assert policy != second.headers["Content-Security-Policy"]
    assert "http" not in first.text.replace(orchestrator.url, "")


def test_due_time_repetition_and_the_name_of_the_node_are_shown(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    fields = {"target_node_id": node.id, "scheduled_for": "2099-01-02T03:04:05Z"}
    task = orchestrator.create_task(recurrence="0 8 * * mon", **fields)
    parts = _first_look(orchestrator, task["id"])
    for part in ("chosen", "tasks"):
        for text in ("2099-01-02 03:04:05 UTC", "0 8 * * mon", node.name):
            assert text in parts[part], (part, text)
        assert node.id not in parts[part]


def test_what_has_ended_has_no_progress(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task = orchestrator.create_task()
    node.poll()
    node.report(task["id"], "running", progress=50)
    assert "50&nbsp;%" in _first_look(orchestrator)["tasks"]
    node.report(task["id"], "success")
    assert "50&nbsp;%" not in _first_look(orchestrator)["tasks"]


def test_keys_are_shown_with_their_limits(orchestrator: RunningOrchestrator) -> None:
    body = {"name": "a", "description": "what it is for", "rate_limit": 7, "expires_in_days": 1}
    key = ok(orchestrator.admin.post("/keys", json=body))
    shown = _first_look(orchestrator)["key-list"]
    for text in ("what it is for", ">7<", key["expires_at"][:10], "submitter"):
        assert text in shown
    past = utc_now() - timedelta(days=1)
    orchestrator.change(update(ApiKey).values(expires_at=past))
    shown = _first_look(orchestrator)["key-list"]
    assert "expired" in shown
    assert "submitter" not in shown


def test_list_says_that_there_are_more_tasks(orchestrator: RunningOrchestrator) -> None:
    for _ in range(100):
        orchestrator.create_task()
    assert "GET /tasks" not in _first_look(orchestrator)["tasks"]
    orchestrator.create_task("the newest")
    shown = _first_look(orchestrator)["tasks"]
    assert "GET /tasks" in shown
    assert "the newest" in shown
    assert shown.count("data-select") == 100


def _send_log(node: RegisteredNode, task_id: str, *messages: object) -> None:
    session = {"title": "t", "messages": messages}
    ok(node.http.post("/logs", json={"task_id": task_id, "session": session}))


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
