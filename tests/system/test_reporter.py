"""The whole way of an agent's reports: MCP over stdio in a container, reporter, orchestrator.

The agent is a program that is scripted by its prompt and speaks through the SDK's client; see
tests/image/scripted_agent.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.workspace.handover import read_reporter_state
from tests.engines import Engine
from tests.harness.runner_process import RunnerProcess, container_of, process_on
from tests.orchestrator.serving import wait_for
from tests.system.recording import Json, RecordingOrchestrator
from tools.dev import engines, images, shell

SIX = "report_status report_started report_complete report_error submit_crush_logs get_job_info"


@pytest.fixture(scope="session")
def agent_image(engine: Engine) -> str:
    """Name the agent's image, built if it is not there."""
    try:
        return images.agent(engines.Engine(engine.name))
    except shell.SetupError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def runner(
    engine: Engine, agent_image: str, tmp_path: Path, orchestrator: RecordingOrchestrator
) -> Iterator[RunnerProcess]:
    """Prepare a runner whose tasks are given to the agent."""
    process = process_on(engine, agent_image, tmp_path / "runner", orchestrator)
    yield process
    process.clean()


def answers(task: Json) -> list[Json]:
    """Give what the agent was answered, as its container's last lines show it."""
    lines = (task["result"] or task["error_message"]).splitlines()
    return [json.loads(line.partition(" answers ")[2]) for line in lines if " answers " in line]


def paths(orchestrator: RecordingOrchestrator) -> list[str]:
    """Give where reports went, in their order."""
    return [call.path for call in orchestrator.calls if call.path in {"/status", "/logs"}]


def test_agent_lists_six_tools_and_its_reports_are_shown(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    task_id = orchestrator.create_task(
        "Count the sales [tools] [call get_job_info] [call report_started] [say I count.]"
        '[call report_status {"status": "analyzing", "message": "half of it", "progress": 45}]'
        '[call report_complete {"message": "There are 12."}]'
    )["id"]
    runner.start()
    task = orchestrator.end_of(task_id)
    runner.wait_until_closed(task_id)

    assert (task["status"], task["result"]) == ("success", "There are 12.")
    log = orchestrator.log_of(task_id)
    assert task["crush_session_id"] == log["id"]
    assert log["messages"][0]["content"] == task["prompt"]
    assert any(message["content"] == "I count." for message in log["messages"])
    steps = [(step["status"], step["message"], step["progress"]) for step in task["history"]]
    assert ("analyzing", "half of it", 45.0) in steps
    # The runner's start; the agent's start, progress, log and end; the runner repeats the end.
    assert paths(orchestrator) == ["/status"] * 3 + ["/logs", "/status", "/status"]
    ends = orchestrator.reports_of(task_id, "success", "error")
    assert {(end["status"], end["message"]) for end in ends} == {("success", "There are 12.")}
    for call in orchestrator.calls:
        if call.path in {"/status", "/logs"}:
            assert (call.json()["job_id"], call.json()["task_id"]) == (task_id, task_id)


def test_log_of_an_agent_that_does_not_report_is_handed_in_before_the_end(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    task_id = orchestrator.create_task("Count the sales [tools] [say There are 12.]")["id"]
    runner.start()
    task = orchestrator.end_of(task_id)
    runner.wait_until_closed(task_id)

    assert task["result"].endswith(f"\n{SIX}")
    assert paths(orchestrator) == ["/status", "/logs", "/status"]
    messages = orchestrator.log_of(task_id)["messages"]
    assert [message["content"] for message in messages][-1] == "There are 12."


def test_wrong_arguments_are_answered_and_nothing_is_sent(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    task_id = orchestrator.create_task(
        'Report badly [call report_status {"status": "done"}]'
        '[call report_status {"status": "running", "progress": 101}]'
        '[call report_error {"error_message": ""}]'
        '[call submit_crush_logs {"session_id": "another"}] [fail 3]'
    )["id"]
    runner.start()
    task = orchestrator.end_of(task_id)
    runner.wait_until_closed(task_id)

    found = answers(task)
    assert [answer["sent"] for answer in found] == [False] * 4
    assert all(answer["error"] for answer in found)
    assert task["error_message"].startswith("failed: exit code 3")
    assert paths(orchestrator) == ["/status", "/logs", "/status"]


def test_final_word_that_could_not_be_sent_is_delivered_by_the_runner(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    task_id = orchestrator.create_task(
        'Count the sales [wait-for go] [call report_error {"error_message": "no sales"}]'
    )["id"]
    runner.start()
    runner.wait_for_start_of(task_id)
    orchestrator.stop()
    runner.let_go("go")
    runner.wait_for_log("task has ended")
    left = read_reporter_state(runner.home, task_id)
    orchestrator.start()
    task = orchestrator.end_of(task_id)
    runner.wait_until_closed(task_id)

    assert left.final is not None
    assert (left.final.is_sent, left.log_digest) == (False, None)
    assert task["status"] == "error"
    assert task["error_message"].startswith(
        "no sales\n\nIts container, after that: completed: exit code 0"
    )
    assert orchestrator.log_of(task_id)["id"] == task["crush_session_id"]


def test_final_word_is_kept_when_the_container_is_killed_while_it_is_sent(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    task_id = orchestrator.create_task(
        'Count the sales [wait-for go] [call report_complete {"message": "12"}]'
    )["id"]
    runner.start()
    runner.wait_for_start_of(task_id)
    orchestrator.stop()
    runner.let_go("go")
    trace = runner.task_folder(task_id) / "reporter.json"
    wait_for(trace.exists)
    runner.engine.run("kill", container_of(task_id))
    runner.wait_for_log("task has ended")
    orchestrator.start()
    task = orchestrator.end_of(task_id)

    assert task["status"] == "success"
    assert task["result"].startswith("12\n\nIts container, after that: failed: exit code 137")


def test_two_tasks_at_once_hand_in_their_own_sessions(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    ids = [
        orchestrator.create_task(f"Count {what} [wait-for go] [call report_complete]")["id"]
        for what in ("apples", "pears")
    ]
    runner.start("--max-tasks=2")
    for task_id in ids:
        runner.wait_for_start_of(task_id)
    runner.let_go("go")
    tasks = [orchestrator.end_of(task_id) for task_id in ids]

    for task in tasks:
        log = orchestrator.log_of(task["id"])
        assert log["messages"][0]["content"] == task["prompt"]
        assert log["id"] == task["crush_session_id"]


def test_two_tasks_with_one_prompt_hand_in_their_own_sessions(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    prompt = "Count [call get_job_info] [wait-for go] [call report_complete]"
    ids = [orchestrator.create_task(prompt)["id"] for _ in range(2)]
    runner.start("--max-tasks=2")
    for task_id in ids:
        runner.wait_for_start_of(task_id)
    runner.let_go("go")
    for task_id in ids:
        orchestrator.end_of(task_id)

    for task_id in ids:
        told = str(orchestrator.log_of(task_id)["messages"])
        assert [other in told for other in ids] == [other == task_id for other in ids]


def test_trace_is_for_the_eyes_of_the_homes_owner(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    task_id = orchestrator.create_task("Count [call report_complete]")["id"]
    runner.start()
    orchestrator.end_of(task_id)

    trace = (runner.task_folder(task_id) / "reporter.json").stat()
    assert trace.st_mode & 0o777 == 0o600
    assert trace.st_uid == runner.home.stat().st_uid
    assert runner.node_key not in (runner.task_folder(task_id) / "reporter.json").read_text()
