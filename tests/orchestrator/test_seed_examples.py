"""The examples that runners and agents were written against, typed unchanged, with curl."""

import json
import subprocess
from typing import Any

from tests.orchestrator.serving import RunningOrchestrator

REGISTRATION = """{
    "hostname": "server-01.example.com",
    "name": "prod-runner-01",
    "os_type": "fedora",
    "capabilities": [],
    "tags": {}
  }"""
STATUS = """{
    "job_id": "TASK",
    "status": "running",
    "message": "Processing data files",
    "progress": 45.0
  }"""
LOG = """{
    "job_id": "TASK",
    "session": {
      "id": "session-uuid",
      "title": "Task Session",
      "messages": [
        {"role": "user", "content": "...", "created_at": 1234567890},
        {"role": "assistant", "content": "...", "created_at": 1234567891}
      ]
    }
  }"""
TASK = """{
    "prompt": "Run security scan",
    "target_node_name": "client-acme-prod-*",
    "target_tags": {"env": "production"},
    "priority": 10
  }"""
TASK_OF_UNKNOWN_TYPE = '{"prompt": "Analyze data", "target_node_name": "client-acme-*"}'
JSON_TYPE = "Content-Type: application/json"


def _curl(url: str, *headers: str, body: str | None = None) -> Any:  # noqa: ANN401 - any JSON
    arguments = [argument for header in headers for argument in ("-H", header)]
    arguments += ["-X", "GET"] if body is None else ["-X", "POST", "-d", body]
    command = ["curl", "-sS", "--fail-with-body", "--noproxy", "*", url, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_node_registration(shared: RunningOrchestrator) -> None:
    token = f"X-Registration-Token: {shared.registration_token}"
    body = _curl(f"{shared.url}/register", token, JSON_TYPE, body=REGISTRATION)
    assert {"id", "api_key"} <= set(body)


def test_poll_for_tasks(shared: RunningOrchestrator) -> None:
    node, prompt = shared.register(), "Analyze the sales data and generate a report"
    task = shared.create_task(prompt, target_node_id=node.id)
    body = _curl(f"{shared.url}/tasks/pending", f"X-API-Key: {node.api_key}")
    expected = {"task_id": task["id"], "prompt": prompt, "orchestrator_url": shared.url}
    assert {**expected, "timeout_seconds": 3600}.items() <= body.items()


def test_report_status_and_submit_logs(shared: RunningOrchestrator) -> None:
    node = shared.register()
    task_id, key = shared.assign(node), f"X-API-Key: {node.api_key}"
    status, log = STATUS.replace("TASK", task_id), LOG.replace("TASK", task_id)
    _curl(f"{shared.url}/status", key, JSON_TYPE, body=status)
    assert shared.task(task_id)["history"][-1]["progress"] == 45.0
    stored = _curl(f"{shared.url}/logs", key, JSON_TYPE, body=log)
    assert stored == json.loads(log)["session"] == shared.log_of(task_id)


def test_create_task(shared: RunningOrchestrator) -> None:
    key = f"X-API-Key: {shared.admin_key}"
    body = _curl(f"{shared.url}/tasks", key, JSON_TYPE, body=TASK)
    assert json.loads(TASK).items() <= body.items()


def test_create_task_without_a_content_type_of_json(shared: RunningOrchestrator) -> None:
    key = f"X-API-Key: {shared.admin_key}"
    body = _curl(f"{shared.url}/tasks", key, body=TASK_OF_UNKNOWN_TYPE)
    other, own = shared.register("client-beta-1"), shared.register("client-acme-1")
    assert other.poll() is None
    assert own.poll_id() == body["id"]
