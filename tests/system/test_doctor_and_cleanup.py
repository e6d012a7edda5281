"""The two commands beside running, while a runner is at work."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.harness.runner_process import RunnerProcess, is_running
from tests.system.recording import RecordingOrchestrator

DAY_S = 24 * 3600
FAR = "https://orchestrator.example.com"
BEHIND_PROXY = (
    f"FAIL orchestrator: {FAR} does not answer through the proxy 127.0.0.1:9: Connection refused; "
    "check the proxy, or name orchestrator.example.com in NO_PROXY"
)
PROXY = {"HTTPS_PROXY": "http://me:secret-of-the-proxy@127.0.0.1:9"}
IMAGE = "localhost/victoria-nowhere:1"


def test_doctor_reports_that_all_is_well_and_shows_the_running_task(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    assert "ok   registration: not registered yet" in any_runner.run("doctor").output.splitlines()
    task_id = orchestrator.create_task("a confidential prompt [wait-for go]")["id"]
    any_runner.start()
    any_runner.wait_for_start_of(task_id)

    answer = any_runner.run("doctor")
    assert answer.exit_code == 0, answer.output
    lines = answer.output.splitlines()
    assert any(line.startswith(f"ok   engine: {any_runner.engine.name} ") for line in lines)
    assert "ok   journal: 1 open tasks" in lines
    assert any(line.startswith(f"ok   orchestrator: {orchestrator.url} answers") for line in lines)
    assert f"     task {task_id}: running" in lines

    report = json.loads(any_runner.run("--name", "other", "doctor", "--json").output)
    assert report["ok"] is True
    assert {check["what"] for check in report["checks"]} >= {
        *("journal", "engine", "image", "--victoria-home", "--state-dir", "orchestrator"),
        *("clock", "registration", "outbox"),
    }
    assert f"registered as {any_runner.node_id}, under another name" in str(report["checks"])
    (task,) = report["tasks"]
    assert (task["task_id"], task["state"]) == (task_id, "running")
    assert "confidential" not in json.dumps(report)
    assert any_runner.node_key not in json.dumps(report)


@pytest.mark.parametrize(
    ("options", "variables", "exit_code", "complaint"),
    [
        (
            [],
            {"PATH": "/nowhere"},
            69,
            "FAIL engine: No container runtime found. Install podman or docker.",
        ),
        (
            ["--orchestrator-url=http://127.0.0.1:9"],
            {},
            75,
            "FAIL orchestrator: http://127.0.0.1:9 does not answer: Connection refused; check",
        ),
        (
            [f"--orchestrator-url={FAR}"],
            PROXY,
            75,
            BEHIND_PROXY,
        ),
        (
            ["--min-free-disk=1000T"],
            {},
            75,
            "must stay free; free some space there or lower --min-free-disk",
        ),
        (
            [f"--container-image={IMAGE}"],
            {},
            75,
            f"FAIL image: cannot find the image {IMAGE} on this host",
        ),
    ],
    ids=["no engine", "no orchestrator", "proxy that does not answer", "short disk", "no image"],
)
def test_doctor_names_what_is_missing_in_a_sentence_without_a_secret(
    options: list[str],
    variables: dict[str, str],
    exit_code: int,
    complaint: str,
    any_runner: RunnerProcess,
) -> None:
    any_runner.home.mkdir()
    answer = any_runner.run(*options, "doctor", environment=variables)
    assert (answer.exit_code, complaint in answer.output) == (exit_code, True), answer.output
    assert "secret-of-the-proxy" not in answer.output


def test_cleanup_removes_what_finished_tasks_left_and_nothing_of_a_running_one(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    runner = any_runner
    finished = orchestrator.create_task("[print-line done]")["id"]
    runner.start()
    runner.wait_until_closed(finished)
    running = orchestrator.create_task("[wait-for go]")["id"]
    runner.wait_for_start_of(running)
    young = runner.home / "tasks" / "young-task"
    young.mkdir()
    (runner.home / "kept.txt").touch()
    for task_id in (finished, running):
        make_old(runner.task_folder(task_id), days=8)

    rehearsal = runner.run("cleanup", "--dry-run")
    assert rehearsal.exit_code == 0, rehearsal.log
    assert rehearsal.output.splitlines() == [f"would remove {runner.task_folder(finished)} (0 MiB)"]
    assert runner.task_folder(finished).is_dir()

    assert runner.run("cleanup", "--older-than=9").output == ""
    done = runner.run("cleanup")
    assert done.exit_code == 0, done.log
    assert done.output.splitlines() == [f"removed {runner.task_folder(finished)} (0 MiB)"]
    assert not runner.task_folder(finished).exists()
    assert runner.task_folder(running).is_dir()
    assert young.is_dir()
    assert (runner.home / "kept.txt").exists()
    assert is_running(runner.engine, running)


def make_old(folder: Path, days: float) -> None:
    """Have a folder, and all that is in it, look untouched for so long."""
    moment = time.time() - days * DAY_S
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (moment, moment))
