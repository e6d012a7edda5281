"""The two commands beside running, while a runner is at work."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from tests.harness.runner_process import RunnerProcess, is_running
from tests.system.recording import RecordingOrchestrator

DAY_S = 24 * 3600


def test_doctor_finds_everything_well_and_shows_the_task_at_work(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    task_id = orchestrator.create_task("a confidential prompt [wait-for go]")["id"]
    runner.start()
    runner.wait_for_start_of(task_id)

    answer = runner.run("doctor")
    assert answer.exit_code == 0, answer.output
    lines = answer.output.splitlines()
    assert any(line.startswith(f"ok   engine: {runner.engine.name} ") for line in lines)
    assert "ok   journal: 1 open tasks" in lines
    assert any(line.startswith(f"ok   orchestrator: {orchestrator.url} answers") for line in lines)
    assert f"     task {task_id}: running" in lines

    told = json.loads(runner.run("doctor", "--json").output)
    assert told["ok"] is True
    assert {check["what"] for check in told["checks"]} >= {
        "journal",
        "engine",
        "image",
        "--victoria-home",
        "--state-dir",
        "orchestrator",
        "clock",
        "registration",
        "outbox",
    }
    (task,) = told["tasks"]
    assert (task["task_id"], task["state"]) == (task_id, "running")
    assert "confidential" not in json.dumps(told)
    assert runner.node_key not in json.dumps(told)


def test_doctor_tells_whether_the_node_is_registered_with_these_options(
    runner: RunnerProcess,
) -> None:
    assert "ok   registration: not registered yet" in (runner.run("doctor").output.splitlines())
    runner.start()
    runner.wait_for_log("registered ")
    told = json.loads(runner.run("doctor", "--json").output)
    assert f"registered as {told['node_id']}" in str(told["checks"])
    changed = json.loads(runner.run("--name", "other", "doctor", "--json").output)
    assert changed["node_id"] == told["node_id"]
    assert f"registered as {told['node_id']}, under another name" in str(changed["checks"])


def test_doctor_without_an_engine_says_so_and_ends_with_69(
    any_runner: RunnerProcess, tmp_path: Path
) -> None:
    any_runner.environment["PATH"] = str(tmp_path)
    complaint = "FAIL engine: No container runtime found. Install podman or docker."
    assert_doctor_complains(any_runner, [], complaint, exit_code=69)


def test_doctor_without_an_orchestrator_says_so_and_ends_with_75(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    orchestrator.stop()
    complaint = f"FAIL orchestrator: {orchestrator.url} does not answer: Connection refused; check"
    assert_doctor_complains(any_runner, [], complaint, exit_code=75)


def test_doctor_names_the_proxy_through_which_nothing_answers_and_no_password(
    any_runner: RunnerProcess,
) -> None:
    any_runner.environment["HTTPS_PROXY"] = "http://me:secret-of-the-proxy@127.0.0.1:9"
    url = "https://orchestrator.example.com"
    complaint = (
        f"FAIL orchestrator: {url} does not answer through the proxy 127.0.0.1:9: "
        "Connection refused; check the proxy, or name orchestrator.example.com in NO_PROXY"
    )
    options = ["--orchestrator-url", url]
    assert_doctor_complains(any_runner, options, complaint, exit_code=75)
    assert "secret-of-the-proxy" not in any_runner.run(*options, "doctor").output


def test_doctor_without_enough_disk_says_so_and_ends_with_75(any_runner: RunnerProcess) -> None:
    any_runner.home.mkdir()
    complaint = "are to stay free; free some space there or lower --min-free-disk"
    assert_doctor_complains(any_runner, ["--min-free-disk=1000T"], complaint, exit_code=75)


def test_doctor_misses_an_image_that_is_not_to_be_fetched(any_runner: RunnerProcess) -> None:
    image = "localhost/victoria-nowhere:1"
    options = [f"--container-image={image}", "--pull=never"]
    complaint = f"FAIL image: cannot find the image {image} on this host"
    assert_doctor_complains(any_runner, options, complaint, exit_code=75)


def test_cleanup_removes_what_finished_tasks_left_and_nothing_of_a_running_one(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
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
    runner.let_go("go")
    assert orchestrator.end_of(running)["status"] == "success"


def assert_doctor_complains(
    runner: RunnerProcess, options: list[str], complaint: str, *, exit_code: int
) -> None:
    """Have it look, as text and as JSON."""
    answer = runner.run(*options, "doctor")
    assert complaint in answer.output
    assert answer.exit_code == exit_code
    answer = runner.run(*options, "doctor", "--json")
    told = json.loads(answer.output)
    assert told["ok"] is False
    assert [check["what"] for check in told["checks"] if not check["ok"]]
    assert answer.exit_code == exit_code


def make_old(folder: Path, days: float) -> None:
    """Have a folder and all that is in it look as if nobody had touched it for so long."""
    moment = time.time() - days * DAY_S
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (moment, moment))
