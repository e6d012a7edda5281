"""The examples that runners and agents were written against, typed as they are, with curl."""

import json
import subprocess
from typing import Any

import pytest

from tests.orchestrator.serving import RegisteredNode, RunningOrchestrator

JSON_TYPE = ("-H", "Content-Type: application/json")


def _curl(*arguments: str) -> Any:  # noqa: ANN401 - whatever the answer is
    done = subprocess.run(
        ["curl", "-sS", "--fail-with-body", "--noproxy", "*", "-X", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def task_id(orchestrator: RunningOrchestrator, node: RegisteredNode) -> str:
    """Give the id of a task that the node holds."""
    task = orchestrator.create_task()
    node.poll()
    return str(task["id"])


def test_node_registration(orchestrator: RunningOrchestrator) -> None:
    body = """{
    "hostname": "server-01.example.com",
    "name": "prod-runner-01",
    "os_type": "fedora",
    "capabilities": [],
    "tags": {}
  }"""
    token = f"X-Registration-Token: {orchestrator.registration_token}"
    answer = _curl("POST", f"{orchestrator.url}/register", "-H", token, *JSON_TYPE, "-d", body)
    assert {"id", "api_key"} <= set(answer)


def test_poll_for_tasks(orchestrator: RunningOrchestrator, node: RegisteredNode) -> None:
    task = orchestrator.create_task("Analyze the sales data and generate a report")
    url = f"{orchestrator.url}/tasks/pending"
    answer = _curl("GET", url, "-H", f"X-API-Key: {node.api_key}")
    expected = {
        "task_id": task["id"],
        "prompt": "Analyze the sales data and generate a report",
        "orchestrator_url": orchestrator.url,
        "timeout_seconds": 3600,
    }
    assert expected.items() <= answer.items()


def test_report_status(
    orchestrator: RunningOrchestrator, node: RegisteredNode, task_id: str
) -> None:
    body = f"""{{
    "job_id": "{task_id}",
    "status": "running",
    "message": "Processing data files",
    "progress": 45.0
  }}"""
    key = f"X-API-Key: {node.api_key}"
    _curl("POST", f"{orchestrator.url}/status", "-H", key, *JSON_TYPE, "-d", body)
    assert orchestrator.task(task_id)["history"][-1]["progress"] == 45.0


def test_submit_logs(orchestrator: RunningOrchestrator, node: RegisteredNode, task_id: str) -> None:
    body = f"""{{
    "job_id": "{task_id}",
    "session": {{
      "id": "session-uuid",
      "title": "Task Session",
      "messages": [
        {{"role": "user", "content": "...", "created_at": 1234567890}},
        {{"role": "assistant", "content": "...", "created_at": 1234567891}}
      ]
    }}
  }}"""
    key = f"X-API-Key: {node.api_key}"
    answer = _curl("POST", f"{orchestrator.url}/logs", "-H", key, *JSON_TYPE, "-d", body)
    assert answer == json.loads(body)["session"] == orchestrator.log_of(task_id)


def test_create_task(orchestrator: RunningOrchestrator) -> None:
    body = """{
    "prompt": "Run security scan",
    "target_node_name": "client-acme-prod-*",
    "target_tags": {"env": "production"},
    "priority": 10
  }"""
    key = f"X-API-Key: {orchestrator.admin_key}"
    answer = _curl("POST", f"{orchestrator.url}/tasks", "-H", key, *JSON_TYPE, "-d", body)
    assert json.loads(body).items() <= answer.items()


def test_create_task_without_saying_that_it_is_json(orchestrator: RunningOrchestrator) -> None:
    body = '{"prompt": "Analyze data", "target_node_name": "client-acme-*"}'
    key = f"X-API-Key: {orchestrator.admin_key}"
    answer = _curl("POST", f"{orchestrator.url}/tasks", "-H", key, "-d", body)
    assert answer["target_node_name"] == "client-acme-*"
    other, own = orchestrator.register("client-beta-1"), orchestrator.register("client-acme-1")
    assert other.poll() is None
    assert own.poll() is not None
