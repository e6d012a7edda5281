"""No task is lost and none runs twice, whatever ends the runner or the orchestrator."""

from __future__ import annotations

import signal
import time

from tests.harness.runner_process import RunnerProcess, container_of, containers, is_running
from tests.orchestrator.serving import wait_for
from tests.system.recording import MIB, RecordingOrchestrator

TERM_DEADLINE_S = 25
"""Two seconds are promised, on a machine that is not busy with tests; nothing else that a runner
waits for at its end is over sooner than this."""


def test_killed_runner_leaves_its_task_to_the_next_which_reports_it_once(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    task_id = orchestrator.create_task("[wait-for go]")["id"]
    runner.start()
    runner.wait_for_start_of(task_id)
    container_id = runner.engine.inspect(container_of(task_id))["Id"]
    node_id = runner.node_id
    runner.kill()
    assert is_running(runner.engine, task_id)

    runner.start()
    runner.wait_for_log("task is adopted")
    assert runner.engine.inspect(container_of(task_id))["Id"] == container_id
    runner.let_go("go")
    assert orchestrator.end_of(task_id)["status"] == "success"
    runner.wait_until_closed(task_id)

    assert runner.starts_of(task_id) == 1
    assert len(orchestrator.reports_of(task_id, "success", "error")) == 1
    assert runner.rows("SELECT container_id FROM tasks") == [{"container_id": container_id}]
    assert runner.node_id == node_id
    assert [node["id"] for node in orchestrator.nodes()] == [node_id]
    assert container_of(task_id) not in containers(runner.engine)


def test_task_that_ends_while_no_runner_lives_is_reported_by_the_next(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    task_id = orchestrator.create_task("[wait-for go] [fail 7]")["id"]
    runner.start()
    runner.wait_for_start_of(task_id)
    runner.kill()
    runner.let_go("go")
    runner.engine.run("wait", container_of(task_id))
    runner.start()
    ended = orchestrator.end_of(task_id)
    assert ended["status"] == "error"
    assert ended["error_message"].startswith("failed: exit code 7")
    assert runner.starts_of(task_id) == 1


def test_runner_killed_during_a_download_begins_again_and_runs_the_task_once(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    name = orchestrator.upload_zeros("large.bin", 8 * MIB)
    task_id = orchestrator.create_task("[print-line it ran]", files=[name])["id"]
    orchestrator.holds_files = True
    any_runner.start()
    wait_for(lambda: orchestrator.files_held)
    any_runner.kill()
    assert any_runner.state_of(task_id) == "accepted"
    orchestrator.holds_files = False
    any_runner.start()
    assert orchestrator.end_of(task_id)["status"] == "success"
    assert any_runner.starts_of(task_id) == 1
    kept = [path.name for path in (any_runner.task_folder(task_id) / "files").iterdir()]
    assert kept == [name]


def test_term_returns_at_once_and_leaves_the_container_to_the_next_runner(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    task_id = orchestrator.create_task("[wait-for go]")["id"]
    runner.take_time_for_its_last_word()
    runner.start()
    runner.wait_for_start_of(task_id)
    asked_at = time.monotonic()
    runner.send(signal.SIGTERM)
    assert runner.exit_code(TERM_DEADLINE_S) == 0
    print(f"TERM took {time.monotonic() - asked_at:.2f} s")  # noqa: T201 - shown by pytest -rP
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


def test_end_of_a_task_during_an_outage_is_reported_after_it(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    task_id = orchestrator.create_task("[wait-for go]")["id"]
    any_runner.start()
    any_runner.wait_for_start_of(task_id)
    orchestrator.stop()
    any_runner.let_go("go")
    any_runner.wait_for_log("cannot deliver a report")
    orchestrator.start()
    assert orchestrator.end_of(task_id)["status"] == "success"
    any_runner.wait_until_closed(task_id)
    assert any_runner.starts_of(task_id) == 1


def test_end_of_a_task_is_reported_when_the_runner_was_restarted_within_the_outage(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    task_id = orchestrator.create_task("[wait-for go]")["id"]
    any_runner.start()
    any_runner.wait_for_start_of(task_id)
    orchestrator.stop()
    any_runner.let_go("go")
    any_runner.wait_for_log("cannot deliver a report")
    any_runner.send(signal.SIGTERM)
    assert any_runner.exit_code(TERM_DEADLINE_S) == 0
    any_runner.start()
    any_runner.wait_for_log("task is taken over")
    assert any_runner.state_of(task_id) == "ended"
    orchestrator.start()
    assert orchestrator.end_of(task_id)["status"] == "success"
    any_runner.wait_until_closed(task_id)
    assert any_runner.starts_of(task_id) == 1
    assert len(orchestrator.nodes()) == 1


def test_node_that_was_removed_registers_anew_and_works_on(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    any_runner.start()
    orchestrator.wait_for_call("GET", "/tasks/pending")
    removed = any_runner.node_id
    assert orchestrator.admin.delete(f"/nodes/{removed}").status_code == 200
    task_id = orchestrator.create_task("for the new node")["id"]
    assert orchestrator.end_of(task_id)["status"] == "success"
    (node,) = orchestrator.nodes()
    assert node["id"] == any_runner.node_id != removed


def test_task_that_ran_for_a_removed_node_is_ended_and_never_run_again(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    task_id = orchestrator.create_task("[wait-for go]")["id"]
    any_runner.start()
    any_runner.wait_for_start_of(task_id)
    assert orchestrator.admin.delete(f"/nodes/{any_runner.node_id}").status_code == 200
    assert orchestrator.end_of(task_id)["error_message"].startswith("lost: its node was removed")
    any_runner.let_go("go")
    any_runner.wait_until_closed(task_id)
    assert any_runner.starts_of(task_id) == 1
    assert container_of(task_id) not in containers(any_runner.engine)


def test_task_cancelled_while_no_runner_lives_is_stopped_by_the_next(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    task_id = orchestrator.create_task("[hang]")["id"]
    runner.start()
    runner.wait_for_start_of(task_id)
    runner.kill()
    orchestrator.cancel(task_id)
    runner.start()
    runner.wait_until_closed(task_id)
    assert container_of(task_id) not in containers(runner.engine)
    assert runner.starts_of(task_id) == 1


def test_time_limit_goes_on_while_no_runner_lives(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    # So long that the runner is killed before.
    task_id = orchestrator.create_task("[hang]", timeout_seconds=20)["id"]
    any_runner.start()
    any_runner.wait_for_start_of(task_id)
    any_runner.kill()
    (row,) = any_runner.rows("SELECT deadline_uptime_s FROM tasks")
    wait_for(lambda: time.clock_gettime(time.CLOCK_BOOTTIME) > row["deadline_uptime_s"])
    assert is_running(any_runner.engine, task_id)
    any_runner.start()
    assert orchestrator.end_of(task_id)["error_message"].startswith("timed_out: stopped after")
    assert any_runner.rows("SELECT deadline_uptime_s FROM tasks") == [row]


def test_task_goes_on_and_is_reported_when_the_journal_was_lost_in_between(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    task_id = orchestrator.create_task("[wait-for go]")["id"]
    runner.start()
    runner.wait_for_start_of(task_id)
    runner.kill()
    for path in runner.state_dir.glob("journal.sqlite3*"):
        path.unlink()
    runner.start()
    runner.wait_for_log("task is adopted from its container")
    runner.let_go("go")
    assert orchestrator.end_of(task_id)["status"] == "success"
    runner.wait_until_closed(task_id)
    assert runner.starts_of(task_id) == 1
    assert len(orchestrator.reports_of(task_id, "success", "error")) == 1


def test_container_of_ours_that_the_journal_does_not_know_is_not_touched_at_once(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator, image: str
) -> None:
    runner_id = "5b7d3c1e-0000-4000-8000-00000000abcd"
    runner.state_dir.mkdir(mode=0o700)
    (runner.state_dir / "runner-id").write_text(f"{runner_id}\n")
    orchestrator.task_ids.append("unknown-task")
    label = f"victoria-runner.runner-id={runner_id}"
    options = ["--network=host", "--name", container_of("unknown-task"), "--label", label]
    arguments = ["--accept-license", "--task", "[hang]"]
    runner.engine.run("run", "--detach", *options, image, *arguments)

    runner.start()
    runner.wait_for_log("containers of this runner that its journal does not know")
    assert container_of("unknown-task") in runner.log
    task_id = orchestrator.create_task("[print-line beside it]")["id"]
    assert orchestrator.end_of(task_id)["status"] == "success"
    runner.send(signal.SIGTERM)
    assert runner.exit_code() == 0
    assert is_running(runner.engine, "unknown-task")
    assert orchestrator.reports_of("unknown-task") == []
