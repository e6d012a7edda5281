"""How a task ends that is not left to end by itself."""

from __future__ import annotations

import re
import signal
import time

import pytest

from tests.harness.runner_process import RunnerProcess, container_of, containers, is_running
from tests.orchestrator.serving import wait_for
from tests.system.recording import MIB, Json, RecordingOrchestrator


def test_timeout_of_3_seconds_ends_a_container_that_ignores_term(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    task_id = orchestrator.create_task("[ignore-term] [hang]", timeout_seconds=3)["id"]
    runner.start()
    ended = orchestrator.end_of(task_id)
    assert ended["status"] == "error"
    said = re.match(r"timed_out: stopped after (\d+) s", ended["error_message"])
    assert said is not None
    assert int(said[1]) < 55, "by the runner: podman itself would have waited for 63 s"
    runner.wait_until_closed(task_id)
    assert container_of(task_id) not in containers(runner.engine)
    assert runner.starts_of(task_id) == 1


@pytest.mark.parametrize("way", ["null", "missing"])
def test_task_without_timeout_may_take_3600_seconds(
    way: str, any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    def without_timeout(assignment: Json) -> None:
        del assignment["timeout_seconds"]
        if way == "null":
            assignment["timeout_seconds"] = None

    orchestrator.edit_assignment = without_timeout
    task_id = orchestrator.create_task("[wait-for go]")["id"]
    any_runner.start()
    any_runner.wait_for_start_of(task_id)
    (row,) = any_runner.rows("SELECT deadline_uptime_s FROM tasks")
    left_s = row["deadline_uptime_s"] - time.clock_gettime(time.CLOCK_BOOTTIME)
    assert 3600 - 120 < left_s < 3600


def test_task_cancelled_before_its_container_starts_never_starts(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    name = orchestrator.upload_zeros("large.bin", 8 * MIB)
    task_id = orchestrator.create_task("[hang]", files=[name])["id"]
    orchestrator.holds_files = True
    any_runner.start()
    wait_for(lambda: orchestrator.files_held)
    orchestrator.cancel(task_id)
    any_runner.wait_until_closed(task_id)
    (report,) = orchestrator.reports_of(task_id)
    assert report["message"] == "cancelled: before it started"
    assert any_runner.starts_of(task_id) == 0
    assert list((any_runner.task_folder(task_id) / "files").iterdir()) == []
    assert orchestrator.task(task_id)["status"] == "cancelled"


def test_task_cancelled_while_it_runs_is_stopped_and_its_container_gone(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    task_id = orchestrator.create_task("[hang]")["id"]
    runner.start()
    runner.wait_for_start_of(task_id)
    orchestrator.cancel(task_id)
    runner.wait_until_closed(task_id)
    assert container_of(task_id) not in containers(runner.engine)
    (report,) = orchestrator.reports_of(task_id, "success", "error")
    assert report["message"].startswith("cancelled: stopped after")
    assert orchestrator.task(task_id)["status"] == "cancelled"


def test_interrupt_waits_for_the_task_and_takes_no_new_one(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    task_id = orchestrator.create_task("[wait-for go]")["id"]
    any_runner.start()
    any_runner.wait_for_start_of(task_id)
    any_runner.send(signal.SIGINT)
    any_runner.wait_for_log("draining: no new task is taken")
    later = orchestrator.create_task("[print-line for another runner]")["id"]
    assert is_running(any_runner.engine, task_id)
    any_runner.let_go("go")
    assert any_runner.exit_code() == 0
    assert orchestrator.task(task_id)["status"] == "success"
    assert orchestrator.task(later)["status"] == "pending"
    assert container_of(task_id) not in containers(any_runner.engine)


def test_second_interrupt_stops_the_task_and_reports_it_cancelled(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    task_id = orchestrator.create_task("[hang]")["id"]
    runner.start()
    runner.wait_for_start_of(task_id)
    runner.send(signal.SIGINT)
    runner.wait_for_log("draining: no new task is taken")
    runner.send(signal.SIGINT)
    assert runner.exit_code() == 0
    ended = orchestrator.task(task_id)
    assert ended["status"] == "error"
    assert ended["error_message"].startswith("cancelled: stopped after")
    assert container_of(task_id) not in containers(runner.engine)


def test_usr1_waits_for_the_task_and_ends_with_0(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    task_id = orchestrator.create_task("[wait-for go]")["id"]
    any_runner.take_time_for_its_last_word()
    any_runner.start()
    any_runner.wait_for_start_of(task_id)
    any_runner.send(signal.SIGUSR1)
    any_runner.wait_for_log("draining: no new task is taken")
    any_runner.let_go("go")
    assert any_runner.exit_code() == 0
    assert orchestrator.task(task_id)["status"] == "success"
    wait_for(lambda: orchestrator.nodes()[0]["status"] == "offline")
