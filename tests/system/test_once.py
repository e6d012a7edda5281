"""`--once`, `--max-tasks`, and one runner for one state folder."""

from __future__ import annotations

from collections.abc import Callable

from tests.engines import Engine
from tests.harness.runner_process import RunnerProcess, container_of, containers
from tests.orchestrator.serving import wait_for
from tests.system.recording import RecordingOrchestrator


def test_once_with_work_runs_one_task_and_ends_with_0(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    first = orchestrator.create_task("[print-line once]")["id"]
    second = orchestrator.create_task("[print-line twice]")["id"]
    answer = any_runner.run("--once")
    assert answer.exit_code == 0, answer.log
    assert orchestrator.task(first)["status"] == "success"
    assert orchestrator.task(second)["status"] == "pending"
    assert container_of(first) not in containers(any_runner.engine)


def test_once_without_work_ends_with_0(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    answer = any_runner.run("--once")
    assert answer.exit_code == 0, answer.log
    assert len(orchestrator.calls_of("GET", "/tasks/pending")) == 1


def test_once_with_a_failed_task_ends_with_0_for_it_was_reported(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    task_id = orchestrator.create_task("[fail 3]")["id"]
    assert any_runner.run("--once").exit_code == 0
    assert orchestrator.task(task_id)["error_message"].startswith("failed: exit code 3")


def test_once_without_an_orchestrator_ends_with_75(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    assert any_runner.run("--once").exit_code == 0
    orchestrator.stop()
    answer = any_runner.run("--once")
    assert answer.exit_code == 75
    assert "Error polling for tasks: Connection refused" in answer.log


def test_once_without_an_orchestrator_to_register_with_ends_with_75(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    orchestrator.stop()
    answer = any_runner.run("--once")
    assert answer.exit_code == 75
    assert "cannot register: Connection refused" in answer.log


def test_one_task_runs_at_a_time_unless_more_are_allowed(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    first = orchestrator.create_task("[wait-for go]")["id"]
    second = orchestrator.create_task("[print-line next]")["id"]
    any_runner.start()
    any_runner.wait_for_start_of(first)
    beats = len(orchestrator.calls_of("POST", "/nodes/heartbeat"))
    wait_for(lambda: len(orchestrator.calls_of("POST", "/nodes/heartbeat")) >= beats + 3)
    assert orchestrator.task(second)["status"] == "pending"
    any_runner.let_go("go")
    assert orchestrator.end_of(second)["status"] == "success"


def test_max_tasks_of_2_runs_two_at_once(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    # Neither ends before the other has begun, and both are told.
    one = orchestrator.create_task("[write one x] [wait-for two] [wait-for go]")["id"]
    two = orchestrator.create_task("[write two x] [wait-for one] [wait-for go]")["id"]

    def told() -> list[set[str]]:
        beats = [call.json() for call in orchestrator.calls_of("POST", "/nodes/heartbeat")]
        return [set(beat["task_ids"]) for beat in beats]

    any_runner.start("--max-tasks=2")
    wait_for(lambda: {one, two} in told())
    any_runner.let_go("go")
    assert orchestrator.end_of(one)["status"] == "success"
    assert orchestrator.end_of(two)["status"] == "success"


def test_second_runner_with_the_same_state_folder_ends_with_75_and_says_why(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    any_runner.start()
    orchestrator.wait_for_call("GET", "/tasks/pending")
    answer = any_runner.run()
    assert answer.exit_code == 75
    assert (
        f"victoria-runner: cannot use the state folder {any_runner.state_dir}: another runner is "
        "using it; stop that one, or give this one a --state-dir of its own" in answer.log
    )
    assert len(orchestrator.nodes()) == 1


def test_two_runners_with_folders_of_their_own_share_an_engine(
    engines: list[Engine],
    prepare: Callable[[Engine, str], RunnerProcess],
    orchestrator: RecordingOrchestrator,
) -> None:
    first, second = prepare(engines[0], "first"), prepare(engines[0], "second")
    one = orchestrator.create_task("[wait-for go]", target_node_name="first")["id"]
    two = orchestrator.create_task("[wait-for go]", target_node_name="second")["id"]
    for runner, name in ((first, "first"), (second, "second")):
        runner.start(f"--name={name}")
    first.wait_for_start_of(one)
    second.wait_for_start_of(two)
    second.kill()
    second.start("--name=second")
    second.wait_for_log("task is adopted")
    for runner in (first, second):
        runner.let_go("go")
    assert orchestrator.end_of(one)["status"] == "success"
    assert orchestrator.end_of(two)["status"] == "success"
    assert "does not know" not in first.log + second.log


def test_two_runners_of_one_name_are_two_nodes_and_share_what_is_for_that_name(
    engines: list[Engine],
    prepare: Callable[[Engine, str], RunnerProcess],
    orchestrator: RecordingOrchestrator,
) -> None:
    runners = [prepare(engines[0], folder) for folder in ("first", "second")]
    # One slot each: neither can have taken both.
    ids = [
        orchestrator.create_task("[wait-for go]", target_node_name="twins")["id"] for _ in range(2)
    ]
    for runner in runners:
        runner.start("--name=twins")
    wait_for(lambda: all(orchestrator.reports_of(task_id, "running") for task_id in ids))
    for runner in runners:
        runner.let_go("go")
    ended = [orchestrator.end_of(task_id) for task_id in ids]
    assert [task["status"] for task in ended] == ["success", "success"]
    assert {task["assigned_node_id"] for task in ended} == {runner.node_id for runner in runners}
    assert [node["name"] for node in orchestrator.nodes()] == ["twins", "twins"]
    for task_id in ids:
        assert sum(runner.starts_of(task_id) for runner in runners) == 1
