"""How a task ends that is not left to end by itself, and how a runner ends."""

import re
import signal
import socket
from contextlib import suppress
from pathlib import Path

from tests.engines import Engine
from tests.harness.runner_process import RunnerProcess, container_of, containers, is_running
from tests.orchestrator.serving import wait_for
from tests.system.conftest import Prepare
from tests.system.recording import RecordingOrchestrator

TERM_DEADLINE_S = 25
"""Two seconds are promised on an idle machine; what else could be waited for takes longer."""


def test_task_that_times_out_or_is_cancelled_is_stopped_and_its_container_gone(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    stubborn = orchestrator.create_task("[ignore-term] [hang]", timeout_seconds=3)["id"]
    runner.set_timings(stop_grace_s=1)
    runner.start()
    message = orchestrator.end_of(stubborn)["error_message"]
    timed_out = re.match(r"timed_out: stopped after (\d+) s", message)
    assert timed_out is not None
    assert int(timed_out[1]) < 55, "by the runner: podman itself would have waited for 63 s"

    cancelled = orchestrator.create_task("[hang]")["id"]
    runner.wait_for_start_of(cancelled)
    orchestrator.cancel(cancelled)
    runner.wait_until_closed(cancelled)
    (report,) = orchestrator.reports_of(cancelled, "success", "error")
    assert report["message"].startswith("cancelled: stopped after")
    assert orchestrator.task(cancelled)["status"] == "cancelled"

    for task_id in (stubborn, cancelled):
        assert container_of(task_id) not in containers(runner.engine)
        assert runner.starts_of(task_id) == 1


def test_interrupt_takes_no_new_task_and_a_second_stops_the_one_that_runs(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    task_id = orchestrator.create_task("[hang]")["id"]
    runner.start()
    runner.wait_for_start_of(task_id)
    runner.send(signal.SIGINT)
    runner.wait_for_log("draining: no new task is taken")
    later = orchestrator.create_task("[print-line for another runner]")["id"]
    orchestrator.wait_for_call("POST", "/nodes/heartbeat", since=len(orchestrator.calls))
    assert is_running(runner.engine, task_id)

    runner.send(signal.SIGINT)
    assert runner.exit_code() == 0
    assert "cancelled: stopped after" in orchestrator.end_of(task_id)["error_message"]
    assert orchestrator.task(later)["status"] == "pending"
    assert container_of(task_id) not in containers(runner.engine)


def test_term_returns_at_once_and_leaves_the_container_to_the_next_runner(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    task_id = orchestrator.create_task("[wait-for go]")["id"]
    runner.set_timings(offline_timeout_s=20)  # a second is little on a busy machine
    runner.start()
    runner.wait_for_start_of(task_id)
    runner.send(signal.SIGTERM)
    assert runner.exit_code(TERM_DEADLINE_S) == 0
    assert "containers keep running for the next runner tasks_left_running=1" in runner.log
    assert is_running(runner.engine, task_id)
    assert orchestrator.nodes()[0]["status"] == "offline"
    assert orchestrator.reports_of(task_id, "success", "error") == []

    runner.start()
    runner.wait_for_log("task is adopted")
    runner.let_go("go")
    assert orchestrator.end_of(task_id)["status"] == "success"
    assert runner.starts_of(task_id) == 1


def test_once_runs_one_task_and_ends_with_0_though_it_failed_for_it_was_reported(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    first = orchestrator.create_task("[fail 3]")["id"]
    second = orchestrator.create_task("[print-line twice]")["id"]
    done = runner.run("--once")
    assert done.exit_code == 0, done.log
    assert orchestrator.task(first)["error_message"].startswith("failed: exit code 3")
    assert orchestrator.task(second)["status"] == "pending"
    assert container_of(first) not in containers(runner.engine)


def test_two_runners_of_one_name_are_two_nodes_that_share_an_engine_and_the_tasks_for_that_name(
    engines: list[Engine], prepare: Prepare, orchestrator: RecordingOrchestrator
) -> None:
    runners = [prepare(engines[0], folder) for folder in ("first", "second")]
    # One slot each: neither can have taken both.
    fields = {"prompt": "[wait-for go]", "target_node_name": "twins"}
    ids = [orchestrator.create_task(**fields)["id"] for _ in runners]
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
    assert [task["status"] for task in ended] == ["success"] * 2
    assert {task["assigned_node_id"] for task in ended} == {runner.node_id for runner in runners}
    assert [node["name"] for node in orchestrator.nodes()] == ["twins"] * 2
    assert [sum(runner.starts_of(task_id) for runner in runners) for task_id in ids] == [1, 1]
    assert not any("does not know" in runner.whole_log for runner in runners)


def test_systemd_is_notified_of_life_during_a_drain_and_of_the_stop_after_it(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator, tmp_path: Path
) -> None:
    path = str(tmp_path / "notify")
    runner.environment |= {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "1500000"}
    messages: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as manager:
        manager.bind(path)

        def count(message: str) -> int:
            with suppress(BlockingIOError):
                while True:
                    messages.append(manager.recv(4096).decode())
            return messages.count(message)

        task_id = orchestrator.create_task("[wait-for go][env NOTIFY_SOCKET]")["id"]
        runner.start()
        # All the while: the kernel keeps no more than ten messages for a slow reader.
        wait_for(lambda: count("STATUS=1 of 1 tasks running"))
        runner.send(signal.SIGUSR1)
        runner.wait_for_log("draining: no new task is taken")
        fed = count("WATCHDOG=1")
        wait_for(lambda: count("WATCHDOG=1") >= fed + 3)
        # systemd would give it no longer than TimeoutStopSec after this.
        assert "STOPPING=1" not in messages
        runner.let_go("go")
        wait_for(lambda: count("STOPPING=1"))
        assert runner.exit_code() == 0
        assert count("STOPPING=1") == count("READY=1") == 1
    assert orchestrator.task(task_id)["result"].endswith("NOTIFY_SOCKET is not set")
