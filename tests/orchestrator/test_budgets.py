"""Budgets: what one caller cannot take from the others, and that honest ones do not notice."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from fastapi import APIRouter, FastAPI
from pydantic import BaseModel, Field
from sqlalchemy import update

from orchestrator.budgets import Allowance, BodiesInFlight, DiskReserve, HistoryBudget
from orchestrator.db.tables import Task
from orchestrator.errors import OutOfSpace, TooMany
from orchestrator.routes.bodies import JsonRoute, has_more_values
from runner.model import MOST_MESSAGE_CHARS
from tests.orchestrator.contract_file import CONTRACT
from tests.orchestrator.serving import (
    PROMPTLY_S,
    RegisteredNode,
    RunningOrchestrator,
    ok,
    refusal,
    wait_for,
)

JSON_TYPE = {"Content-Type": "application/json"}
SCHEMA = yaml.safe_load(CONTRACT.read_text(encoding="utf-8"))
MIB = 1024**2


def _calls_with_json() -> list[tuple[str, str]]:
    return [
        (method.upper(), path)
        for path, operations in SCHEMA["paths"].items()
        for method, operation in operations.items()
        if "application/json" in operation.get("requestBody", {}).get("content", {})
    ]


@pytest.mark.parametrize(("method", "path"), [*_calls_with_json(), ("POST", "/dashboard/matches")])
def test_key_is_checked_before_the_body_is_parsed(
    shared: RunningOrchestrator, method: str, path: str
) -> None:
    for client in (shared.client(), shared.client("wrong")):
        # With a key it would be 422.
        response = client.request(method, path, content=b"{bad", headers=JSON_TYPE)
        assert refusal(response)[0] == 401


@pytest.mark.parametrize("path", ["/logs", "/tasks", "/register"])
def test_endless_body_without_a_key_is_413_without_a_traceback(
    shared: RunningOrchestrator, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    body = (b"x" * MIB for _ in range(11))
    response = shared.client("wrong").post(path, content=body, headers=JSON_TYPE)
    assert refusal(response)[0] == 413
    assert not [record for record in caplog.records if record.exc_info]


class _Recorded(BaseModel):
    text: str
    thread: int = Field(default_factory=lambda _: threading.get_ident())


_router = APIRouter(route_class=JsonRoute)


@_router.post("/recorded")
async def _record(body: _Recorded) -> dict[str, object]:
    return {"length": len(body.text), "in_loop": body.thread == threading.get_ident()}


class _WithRecorder(RunningOrchestrator):
    def application(self) -> FastAPI:
        app = super().application()
        app.include_router(_router)
        return app


def test_large_body_is_parsed_in_a_thread(tmp_path: Path) -> None:
    with _WithRecorder(tmp_path) as orchestrator:
        for length, is_in_loop in ((60_000, True), (70_000, False)):
            body = ok(orchestrator.client().post("/recorded", json={"text": "x" * length}))
            assert body == {"length": length, "in_loop": is_in_loop}


@pytest.mark.parametrize(
    ("raw", "values"),
    [
        (b"[[],[]]", 4),
        (b'{"a": 1, "b": [2, 3]}', 4),
        (b'["[{,", "\\"[,", "\\\\", "\\\\\\"{"]', 4),
        ('["grüß[", "日,本"]'.encode(), 2),
        (b'"' * 100, 0),
    ],
)
def test_values_are_counted_outside_of_strings(raw: bytes, values: int) -> None:
    counted = next(limit for limit in range(100) if not has_more_values(raw, limit))
    assert counted in ({values} if raw != b'"' * 100 else range(100))


def test_log_of_very_many_values_is_413_and_one_of_much_text_is_stored(
    shared: RunningOrchestrator,
) -> None:
    node = shared.register()
    task_id = shared.assign(node)
    body = b'{"task_id": "%s", "session": {"a": [%s{}]}}' % (task_id.encode(), b"{}," * 50_000)
    sentence = "body has more than 70000 values"
    response = node.http.post("/logs", content=body, headers=JSON_TYPE)
    assert refusal(response) == (413, sentence)
    session = {"title": '[{,"' * 300_000}
    assert node.send_log(task_id, session) == session == shared.log_of(task_id)


def test_runners_keep_within_the_limits_of_the_contract() -> None:
    schemas = SCHEMA["components"]["schemas"]
    message = json.dumps(schemas["Report"]["properties"]["message"])
    assert f'"maxLength": {MOST_MESSAGE_CHARS}' in message


@pytest.mark.both_databases
def test_longest_message_is_stored_whole(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id, message = orchestrator.assign(node), "😀" * MOST_MESSAGE_CHARS
    node.report(task_id, "success", message=message, crush_session_id="s" * 1000)
    ended = orchestrator.task(task_id)
    assert (ended["result"], ended["crush_session_id"]) == (message, "s" * 255)


@pytest.mark.settings(task_steps=2)
def test_further_steps_take_effect_and_are_not_stored_but_the_last(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id = orchestrator.assign(node)
    for status in ("running", "running", "running", "analyzing"):
        assert node.report(task_id, status)["status"] == status
    assert orchestrator.task(task_id)["status"] == "analyzing"
    node.report(task_id, "success", message="the end")
    ended = orchestrator.task(task_id)
    statuses = [entry["status"] for entry in ended["history"]]
    assert statuses == ["pending", "assigned", "running", "running", "success"]
    assert ended["result"] == "the end"


def test_messages_of_a_task_are_limited_together() -> None:
    budget = HistoryBudget(100, max_chars=10)
    taken = [budget.take("a", message) for message in ("123456", "12345", "1234", None, "1")]
    assert taken == [True, False, True, True, False]
    budget.forget("a")
    assert budget.take("a", "1")


@pytest.mark.settings(task_log_bytes=100)
def test_logs_of_a_task_are_limited_and_later_ones_are_taken(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id, session = orchestrator.assign(node), {"title": "x" * 60}
    node.send_log(task_id, session)
    response = node.http.post("/logs", json={"task_id": task_id, "session": {"title": "y" * 60}})
    assert refusal(response) == (429, "a task's logs are limited to 100 bytes an hour")
    assert int(response.headers["Retry-After"]) > 60
    assert orchestrator.log_of(task_id) == session


@pytest.mark.settings(task_output_bytes=100)
def test_output_of_a_task_is_limited_and_what_is_held_stays(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    path = f"/tasks/{orchestrator.assign(node)}/output"
    ok(node.http.post(path, json={"offset": 0, "text": "x" * 60}))
    response = node.http.post(path, json={"offset": 60, "text": "y" * 60})
    assert refusal(response) == (429, "a task's output is limited to 100 bytes an hour")
    assert int(response.headers["Retry-After"]) > 60
    assert ok(node.http.post(path, json={"offset": 60, "text": "", "done": True}))["length"] == 60
    assert orchestrator.admin.get(path).text == "x" * 60


@pytest.mark.settings(node_output_bytes=100)
def test_output_of_a_node_is_limited_whatever_task_it_is_of(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    first, second = (f"/tasks/{orchestrator.assign(node)}/output" for _ in range(2))
    ok(node.http.post(first, json={"offset": 0, "text": "x" * 60}))
    response = node.http.post(second, json={"offset": 0, "text": "y" * 60})
    sentence = "a node's output is limited to 100 bytes an hour (--node-output-bytes)"
    assert refusal(response) == (429, sentence)
    assert int(response.headers["Retry-After"]) > 60
    assert orchestrator.admin.get(second).text == ""
    other = orchestrator.register("other")
    third = f"/tasks/{orchestrator.assign(other)}/output"
    ok(other.http.post(third, json={"offset": 0, "text": "z" * 60}))


@pytest.mark.settings(node_calls_per_minute=3)
def test_flood_of_reports_is_429_and_heartbeats_and_polls_go_on(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    body = {"task_id": "none", "status": "running"}
    responses = [node.http.post("/status", json=body) for _ in range(4)]
    assert [response.status_code for response in responses] == [404, 404, 404, 429]
    assert refusal(responses[3])[1] == "the node is limited to 3 calls of a kind a minute"
    assert refusal(node.http.get("/files/any"))[0] == 429
    for _ in range(3):
        assert (node.beat()["status"], node.poll()) == ("idle", None)
    assert refusal(node.http.get("/tasks/pending"))[0] == 429
    other = orchestrator.register("other")
    assert refusal(other.http.post("/status", json=body))[0] == 404


def test_allowance_is_limited_and_so_is_the_number_of_its_keys() -> None:
    allowance = Allowance(100, 3600, "no more")
    for _ in range(100):
        allowance.charge("a")
    with pytest.raises(TooMany, match="no more"):
        allowance.charge("a")
    for number in range(100_010):
        allowance.charge(str(number))
    assert len(allowance) < 100_000


def test_use_of_more_than_an_allowance_takes_all_of_it() -> None:
    allowance = Allowance(100, 3600, "no more")
    allowance.charge("a", 200)
    with pytest.raises(TooMany) as refused:
        allowance.charge("a", 200)
    assert refused.value.retry_after.total_seconds() == pytest.approx(3600, abs=60)


def test_allowance_comes_back() -> None:
    allowance = Allowance(100, 0.2, "no more")
    allowance.charge("a", 100)

    def is_back() -> bool:
        try:
            allowance.charge("a", 100)
        except TooMany:
            return False
        return True

    wait_for(is_back)


def test_oldest_of_too_many_held_polls_is_answered(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    with ThreadPoolExecutor(5) as pool:
        held = []
        for _ in range(4):
            held.append(pool.submit(node.poll_id, 60))
            wait_for(lambda: orchestrator.waiting_count == len(held))
        held.append(pool.submit(node.poll_id, 60))
        assert held.pop(0).result(PROMPTLY_S) is None
        created = {orchestrator.create_task()["id"] for _ in held}
        assert {one.result(PROMPTLY_S) for one in held} == created


@pytest.mark.both_databases
@pytest.mark.settings(key_pending_tasks=2)
def test_pending_tasks_of_a_scoped_key_are_limited(orchestrator: RunningOrchestrator) -> None:
    key = orchestrator.create_key(role="operator")
    scoped, body = orchestrator.client(key["api_key"]), {"prompt": "p"}
    first = ok(scoped.post("/tasks", json=body))["id"]
    ok(scoped.post("/tasks", json=body))
    response = scoped.post("/tasks", json=body)
    assert refusal(response)[0] == 429
    assert refusal(response)[1].startswith("the key has 2 pending tasks, as many as it may")
    assert int(response.headers["Retry-After"]) == 30
    orchestrator.create_task()
    ok(scoped.delete(f"/tasks/{first}"))
    ok(scoped.post("/tasks", json=body))


def test_disk_at_its_reserve_takes_what_must_not_be_lost(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id, other = orchestrator.assign(node, "running"), orchestrator.assign(node)
    orchestrator.settings = replace(orchestrator.settings, min_free_bytes=2**62)
    orchestrator.restart()
    status: dict[str, object] = {"task_id": task_id, "status": "running"}
    log = {"task_id": task_id, "session": {}}
    registration = {"hostname": "h", "os_type": "linux"}
    token = {"X-Registration-Token": str(orchestrator.registration_token)}
    refused = [
        node.http.post("/status", json={**status, "message": "m"}),
        node.http.post("/logs", json=log),
        node.http.post(f"/tasks/{task_id}/output", json={"offset": 0, "text": "x"}),
        orchestrator.admin.post("/tasks", json={"prompt": "p"}),
        orchestrator.admin.post("/keys", json={"name": "n", "description": "d"}),
        orchestrator.admin.post("/upload", files={"file": b"x"}),
        orchestrator.client().post("/register", json=registration, headers=token),
    ]
    assert [refusal(response)[0] for response in refused] == [507] * 7
    assert node.beat("busy", current_task_id=task_id)["status"] == "busy"
    assert node.report(other, "running", message="the claim")["status"] == "running"
    assert node.report(task_id, "analyzing")["status"] == "analyzing"
    ok(node.http.post(f"/tasks/{task_id}/output", json={"offset": 0, "text": "", "done": True}))
    assert node.report(task_id, "success", message="m")["status"] == "success"
    assert orchestrator.cancel(other)["status"] == "cancelled"


def test_unused_pages_of_the_database_count_as_free(tmp_path: Path) -> None:
    reserve = DiskReserve(tmp_path, 2**62, lambda: 2**62)
    reserve.check()
    with pytest.raises(OutOfSpace):
        DiskReserve(tmp_path, 2**62, lambda: 0).check()
    DiskReserve(None, 2**62, lambda: 0).check()


def test_database_knows_its_unused_pages(orchestrator: RunningOrchestrator) -> None:
    for _ in range(20):
        orchestrator.cancel(orchestrator.create_task("p" * 125_000)["id"])
    with orchestrator.database() as database:
        assert database.unused_bytes() < MIB
        ok(orchestrator.admin.post("/tasks/cleanup?days=0"))
        assert database.unused_bytes() > 2 * MIB


def test_tags_that_an_older_version_has_taken_are_served(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    task_id = orchestrator.create_task()["id"]
    tags = {f"tag-{number}": "x" * 1000 for number in range(1000)}
    orchestrator.change(update(Task).values(target_tags=tags, target_node_name="*-" * 100))
    orchestrator.restart()
    assert node.poll() is None
    assert orchestrator.task(task_id)["target_tags"] == tags


def test_bodies_of_one_caller_are_limited_together() -> None:
    in_flight = BodiesInFlight(max_bytes=20 * MIB)
    with in_flight.hold("a", 10 * MIB), in_flight.hold("b", 30 * MIB):
        with pytest.raises(TooMany, match="at once"):
            in_flight.hold("a", 11 * MIB)
        with in_flight.hold("a", 10 * MIB), pytest.raises(TooMany, match="at once"):
            in_flight.hold("a", 0)
        in_flight.hold("a", 10 * MIB).__exit__(None, None, None)
    assert len(in_flight) == 0


def test_bodies_are_no_longer_counted_once_they_are_answered(shared: RunningOrchestrator) -> None:
    node = shared.register()
    # Together more than may be sent at once.
    for _ in range(8):
        response = node.http.post("/logs", content=b"x" * 9 * MIB, headers=JSON_TYPE)
        assert refusal(response) == (422, "body is not valid JSON")
