"""No task is lost and none runs twice, whatever ends the runner or the orchestrator."""

from __future__ import annotations

import signal
import time

from tests.harness.runner_process import RunnerProcess, container_of, containers, is_running
from tests.system.recording import RecordingOrchestrator

TERM_DEADLINE_S = 25
"""Two seconds are promised, on a machine that is not busy with tests; nothing else that a runner
waits for at its end is over sooner than this."""


def test_term_returns_at_once_and_leaves_the_container_to_the_next_runner(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    runner = any_runner
    task_id = orchestrator.create_task("[wait-for go]")["id"]
    runner.set_timings(offline_timeout_s=20)  # a second is little on a busy machine
    runner.start()
    runner.wait_for_start_of(task_id)
    sent_at = time.monotonic()
    runner.send(signal.SIGTERM)
    assert runner.exit_code(TERM_DEADLINE_S) == 0
    print(f"TERM took {time.monotonic() - sent_at:.2f} s")  # noqa: T201 - shown by pytest -rP
    assert "stopping; containers keep running for the next runner tasks_left_running=1" in (
        runner.log
    )
    assert is_running(runner.engine, task_id)
    assert orchestrator.nodes()[0]["status"] == "offline"
    assert orchestrator.reports_of(task_id, "success", "error") == []

    runner.start()
    runner.wait_for_log("task is adopted")
    runner.let_go("go")
    assert orchestrator.end_of(task_id)["status"] == "success"
    assert runner.starts_of(task_id) == 1


def test_task_of_a_removed_node_is_never_run_again_and_a_new_node_works_on(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    task_id = orchestrator.create_task("[wait-for go]")["id"]
    any_runner.start()
    any_runner.wait_for_start_of(task_id)
    removed = any_runner.node_id
    assert orchestrator.admin.delete(f"/nodes/{removed}").status_code == 200
    assert orchestrator.end_of(task_id)["error_message"].startswith("lost: its node was removed")
    later = orchestrator.create_task("for the new node")["id"]
    any_runner.let_go("go")
    any_runner.wait_until_closed(task_id)
    assert orchestrator.end_of(later)["status"] == "success"

    assert any_runner.starts_of(task_id) == 1
    assert container_of(task_id) not in containers(any_runner.engine)
    (node,) = orchestrator.nodes()
    assert node["id"] == any_runner.node_id != removed
