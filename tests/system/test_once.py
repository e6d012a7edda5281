"""`--once`, `--max-tasks`, and how many runners a state folder, an engine and a name may have."""

from __future__ import annotations

from collections.abc import Callable

from tests.engines import Engine
from tests.harness.runner_process import RunnerProcess, container_of, containers
from tests.orchestrator.serving import wait_for
from tests.system.recording import RecordingOrchestrator


def test_once_runs_one_task_and_ends_with_0_though_it_failed_for_it_was_reported(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    first = orchestrator.create_task("[fail 3]")["id"]
    second = orchestrator.create_task("[print-line twice]")["id"]
    answer = any_runner.run("--once")
    assert answer.exit_code == 0, answer.log
    assert orchestrator.task(first)["error_message"].startswith("failed: exit code 3")
    assert orchestrator.task(second)["status"] == "pending"
    assert container_of(first) not in containers(any_runner.engine)


def test_max_tasks_of_2_runs_two_at_once_and_not_a_third(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    # Neither ends before the other has begun, and both are named by a heartbeat.
    one = orchestrator.create_task("[write one x] [wait-for two] [wait-for go]")["id"]
    two = orchestrator.create_task("[write two x] [wait-for one] [wait-for go]")["id"]
    third = orchestrator.create_task("[print-line next]")["id"]

    def beats() -> list[set[str]]:
        calls = [call.json() for call in orchestrator.calls_of("POST", "/nodes/heartbeat")]
        return [set(beat["task_ids"]) for beat in calls]

    any_runner.start("--max-tasks=2")
    wait_for(lambda: {one, two} in beats())
    assert orchestrator.task(third)["status"] == "pending"
    any_runner.let_go("go")
    for task_id in (one, two, third):
        assert orchestrator.end_of(task_id)["status"] == "success"


def test_second_runner_on_a_state_folder_ends_with_75_and_the_first_works_on(
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
    task_id = orchestrator.create_task("[print-line done]")["id"]
    assert orchestrator.end_of(task_id)["status"] == "success"


def test_two_runners_of_one_name_are_two_nodes_that_share_an_engine_and_the_tasks_for_that_name(
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
    second = runners[1]
    (its_task,) = [task_id for task_id in ids if second.state_of(task_id)]
    second.wait_for_start_of(its_task)
    second.kill()
    second.start("--name=twins")
    second.wait_for_log("task is adopted")
    for runner in runners:
        runner.let_go("go")
    ended = [orchestrator.end_of(task_id) for task_id in ids]
    assert [task["status"] for task in ended] == ["success", "success"]
    assert {task["assigned_node_id"] for task in ended} == {runner.node_id for runner in runners}
    assert [node["name"] for node in orchestrator.nodes()] == ["twins", "twins"]
    for task_id in ids:
        assert sum(runner.starts_of(task_id) for runner in runners) == 1
    assert not any("does not know" in runner.whole_log for runner in runners)
