"""What systemd is notified of, and what is kept from containers."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.harness.runner_process import RunnerProcess
from tests.orchestrator.serving import wait_for
from tests.system.recording import RecordingOrchestrator

WATCHDOG_USEC = "1500000"
"""It is fed every half second then, and the kernel keeps five seconds for a slow listener."""


def test_systemd_is_notified_of_readiness_tasks_and_life_and_of_the_stop_after_a_drain(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator, tmp_path: Path
) -> None:
    runner = any_runner
    runner.set_timings(offline_timeout_s=20)
    with service_manager(tmp_path / "notify") as heard:
        runner.environment |= {
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "WATCHDOG_USEC": WATCHDOG_USEC,
        }
        task_id = orchestrator.create_task(
            "[wait-for go][env NOTIFY_SOCKET][env WATCHDOG_USEC][env TASK_FILES_DIR]"
        )["id"]
        runner.start()
        runner.wait_for_start_of(task_id)
        runner.send(signal.SIGUSR1)
        runner.wait_for_log("draining: no new task is taken")
        fed = heard().count("WATCHDOG=1")
        wait_for(lambda: heard().count("WATCHDOG=1") >= fed + 3)
        # systemd would give it no longer than TimeoutStopSec after this.
        assert "STOPPING=1" not in heard()
        runner.let_go("go")
        assert runner.exit_code() == 0
        wait_for(lambda: heard()[-1] == "STOPPING=1")
        messages = heard()
    assert "STATUS=0 of 1 tasks running" in messages
    assert "STATUS=1 of 1 tasks running" in messages
    assert messages.count("READY=1") == 1
    task = orchestrator.task(task_id)
    assert task["status"] == "success"
    assert task["result"].splitlines()[1:] == [
        "NOTIFY_SOCKET is not set",
        "WATCHDOG_USEC is not set",
        "TASK_FILES_DIR is not set",
    ]
    wait_for(lambda: orchestrator.nodes()[0]["status"] == "offline")


@contextmanager
def service_manager(path: Path) -> Iterator[Callable[[], list[str]]]:
    """Listen as systemd does; yield what returns all messages so far."""
    messages: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))

        def listen() -> None:
            # All the while: the kernel keeps no more than ten messages for a slow reader.
            while message := listener.recv(4096).decode():
                messages.append(message)

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield lambda: list(messages)
        finally:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker:
                speaker.sendto(b"", str(path))
            thread.join()
