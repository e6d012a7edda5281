"""The texts that the seed's troubleshooting explains, word for word."""

from __future__ import annotations

import secrets
from pathlib import Path

from tests.harness.runner_process import RunnerProcess
from tests.system.recording import RecordingOrchestrator


def test_container_runtime_not_found(any_runner: RunnerProcess, tmp_path: Path) -> None:
    answer = any_runner.run("--container-runtime=auto", environment={"PATH": str(tmp_path)})
    assert answer.exit_code == 69
    expected = "RuntimeError: No container runtime found. Install podman or docker."
    assert expected in answer.log.splitlines()


def test_registration_failed_by_an_invalid_token(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    wrong = secrets.token_hex(12)
    (any_runner.folder / "token").write_text(wrong)
    answer = any_runner.run()
    assert answer.exit_code == 77
    assert "Registration failed - invalid registration token" in answer.log
    assert wrong not in answer.log
    assert orchestrator.nodes() == []


def test_connection_refused(any_runner: RunnerProcess, orchestrator: RecordingOrchestrator) -> None:
    any_runner.start()
    orchestrator.wait_for_call("GET", "/tasks/pending")
    orchestrator.stop()
    any_runner.wait_for_log("Error polling for tasks: Connection refused")
    orchestrator.start()
    task_id = orchestrator.create_task("after the outage")["id"]
    assert orchestrator.end_of(task_id)["status"] == "success"
