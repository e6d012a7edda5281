"""The way of an agent's reports: MCP over stdio in a container, reporter, orchestrator.

The agent is a program that is scripted by its prompt and speaks through the SDK's client; see
tests/image/scripted_agent.py.
"""

import pytest

from tests.engines import Engine
from tests.harness.runner_process import RunnerProcess, container_of
from tests.orchestrator.serving import wait_for
from tests.system.conftest import Prepare
from tests.system.recording import RecordingOrchestrator
from tools.dev import engines as dev_engines
from tools.dev import images


@pytest.fixture
def runner(engines: list[Engine], prepare: Prepare) -> RunnerProcess:
    """Prepare a runner whose tasks are the agent's; its image is built if it is not there."""
    return prepare(engines[0], image=images.agent(dev_engines.Engine(engines[0].name)))


def test_reports_of_an_agent_are_shown_and_their_trace_is_private(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    task_id = orchestrator.create_task(
        "Count the sales [call get_job_info] [call report_started] [say I count.]"
        '[call report_status {"status": "analyzing", "message": "half of it", "progress": 45}]'
        '[call report_complete {"message": "There are 12."}]'
    )["id"]
    runner.start()
    task = orchestrator.end_of(task_id)
    runner.wait_until_closed(task_id)

    assert (task["status"], task["result"]) == ("success", "There are 12.")
    log = orchestrator.log_of(task_id)
    assert task["crush_session_id"] == log["id"]
    contents = [message["content"] for message in log["messages"]]
    assert contents[0] == task["prompt"]
    assert "I count." in contents
    steps = [
        (step["status"], step.get("message"), step.get("progress")) for step in task["history"]
    ]
    assert ("analyzing", "half of it", 45.0) in steps
    # The runner's start; the agent's start, progress, log and end; the runner repeats the end.
    calls = [call for call in orchestrator.calls if call.path in {"/status", "/logs"}]
    assert [call.path for call in calls] == ["/status"] * 3 + ["/logs", "/status", "/status"]
    ends = orchestrator.reports_of(task_id, "success", "error")
    assert {(end["status"], end["message"]) for end in ends} == {("success", "There are 12.")}

    trace = runner.task_folder(task_id) / "reporter.json"
    assert trace.stat().st_mode & 0o777 == 0o600
    assert trace.stat().st_uid == runner.home.stat().st_uid
    assert runner.node_key not in trace.read_text()


def test_final_report_is_kept_when_the_container_is_killed_while_it_is_sent(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    task_id = orchestrator.create_task(
        'Count the sales [wait-for go] [call report_complete {"message": "12"}]'
    )["id"]
    runner.start()
    runner.wait_for_start_of(task_id)
    orchestrator.stop()
    runner.let_go("go")
    wait_for((runner.task_folder(task_id) / "reporter.json").exists)
    runner.engine.run("kill", container_of(task_id))
    runner.wait_for_log("task has ended")
    orchestrator.start()
    task = orchestrator.end_of(task_id)

    assert task["status"] == "success"
    assert task["result"].startswith("12\n\nIts container, after that: failed: exit code 137")
    assert orchestrator.log_of(task_id)["id"] == task["crush_session_id"]


def test_two_tasks_at_once_with_one_prompt_submit_their_own_sessions(
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
        messages = str(orchestrator.log_of(task_id)["messages"])
        assert [other in messages for other in ids] == [other == task_id for other in ids]
