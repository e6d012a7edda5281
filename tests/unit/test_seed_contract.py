"""The check against the seed's contract lets through nothing that does not fit."""

import json
from typing import Any

import pytest

from tests.harness.seed_contract import Message, Violation, check_request, check_response

NODE_ID, TASK_ID = "7d0c6c3e-5f0a-4b53-9f0e-2a4d1c8b7e61", "b1f2a0c4-3d5e-4f67-8a9b-0c1d2e3f4a5b"
BEAT: dict[str, Any] = {"node_id": NODE_ID, "status": "idle"}
NODE: dict[str, Any] = {"id": NODE_ID, "last_heartbeat": "2026-03-02T08:00:00.25Z"}
RUNNING = {"job_id": TASK_ID, "status": "running"}


def _request(target: str, body: object, method: str = "POST", header: str = "x-api-key") -> Message:
    return Message(method, target, {header: "a-key"}, json.dumps(body).encode())


def _log(**message: object) -> Message:
    return _request("/logs", {"job_id": TASK_ID, "session": {"messages": [message], "cost": 0.5}})


def _beat(**fields: object) -> Message:
    return _request("/nodes/heartbeat", {**BEAT, **fields})


def _response(target: str, body: object, method: str = "GET") -> Message:
    headers = {"content-type": "application/json; charset=utf-8"}
    return Message(method, target, headers, json.dumps(body).encode())


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (_beat(current_task_id=None), "current_task_id"),
        (_beat(status="asleep"), "asleep"),
        (_request("/nodes/heartbeat", {"status": "idle"}), "required"),
        (_request("/nodes/heartbeat", BEAT, header="x-other"), "credentials"),
        (_request("/status", {"task_id": TASK_ID, "status": "running"}), "job_id"),
        (_request("/status", {**RUNNING, "timestamp": "today"}), "today"),
        (_request("/status", {**RUNNING, "progress": float("nan")}), "NaN"),
        (_log(created_at=1.5), "messages.0.created_at"),
        (_request("/tasks/17", None, "GET"), "task_id"),
    ],
)
def test_request_that_does_not_fit_is_a_violation(message: Message, reason: str) -> None:
    with pytest.raises(Violation, match=reason):
        check_request(message)


def test_ids_of_a_test_stand_for_uuids() -> None:
    check_request(_beat(node_id="node-1"), known_ids={"node-1"})
    with pytest.raises(Violation, match="node_id"):
        check_request(_beat(node_id="node-1"), known_ids={"node-2"})


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (_response("/nodes", [{**NODE, "current_task_id": None}]), r"body\.0\.current_task_id"),
        (_response("/nodes?limit=1", [{**NODE, "last_heartbeat": "2026-13-02T08:00:00Z"}]), "13"),
        (_response("/tasks/pending", {"task_id": TASK_ID, "prompt": "do it"}), "orchestrator_url"),
        (_response("/register", NODE, "POST"), "api_key"),
        (_response(f"/tasks/{TASK_ID}", {"created_by": "admin"}), "created_by"),
        (_response("/dashboard", "no page"), "Content-Type"),
    ],
)
def test_response_that_does_not_fit_is_a_violation(message: Message, reason: str) -> None:
    with pytest.raises(Violation, match=reason):
        check_response(message, 200)
