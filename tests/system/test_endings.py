"""How a task ends that is not left to end by itself."""

from __future__ import annotations

import re
import signal

from tests.harness.runner_process import RunnerProcess, container_of, containers, is_running
from tests.system.recording import RecordingOrchestrator


def test_task_that_times_out_or_is_cancelled_is_stopped_and_its_container_gone(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    stubborn = orchestrator.create_task("[ignore-term] [hang]", timeout_seconds=3)["id"]
    any_runner.set_timings(stop_grace_s=1)
    any_runner.start()
    timed_out = re.match(r"timed_out: stopped after (\d+) s", error_of(orchestrator, stubborn))
    assert timed_out is not None
    assert int(timed_out[1]) < 55, "by the runner: podman itself would have waited for 63 s"

    cancelled = orchestrator.create_task("[hang]")["id"]
    any_runner.wait_for_start_of(cancelled)
    orchestrator.cancel(cancelled)
    any_runner.wait_until_closed(cancelled)
    (report,) = orchestrator.reports_of(cancelled, "success", "error")
    assert report["message"].startswith("cancelled: stopped after")
    assert orchestrator.task(cancelled)["status"] == "cancelled"

    for task_id in (stubborn, cancelled):
        assert container_of(task_id) not in containers(any_runner.engine)
        assert any_runner.starts_of(task_id) == 1


def test_interrupt_takes_no_new_task_and_a_second_stops_the_one_that_runs(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    task_id = orchestrator.create_task("[hang]")["id"]
    any_runner.start()
    any_runner.wait_for_start_of(task_id)
    any_runner.send(signal.SIGINT)
    any_runner.wait_for_log("draining: no new task is taken")
    later = orchestrator.create_task("[print-line for another runner]")["id"]
    orchestrator.wait_for_call("POST", "/nodes/heartbeat", since=len(orchestrator.calls))
    assert is_running(any_runner.engine, task_id)

    any_runner.send(signal.SIGINT)
    assert any_runner.exit_code() == 0
    assert error_of(orchestrator, task_id).startswith("cancelled: stopped after")
    assert orchestrator.task(later)["status"] == "pending"
    assert container_of(task_id) not in containers(any_runner.engine)


def error_of(orchestrator: RecordingOrchestrator, task_id: str) -> str:
    """Wait for the end of a task, which must be an error; return its message."""
    task = orchestrator.end_of(task_id)
    assert task["status"] == "error"
    return str(task["error_message"])
