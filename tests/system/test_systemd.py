"""What systemd is told, and what it leaves to nobody else."""

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


def test_systemd_is_told_of_readiness_status_life_and_stop(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator, tmp_path: Path
) -> None:
    with service_manager(tmp_path / "notify") as heard:
        runner.environment |= {
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "WATCHDOG_USEC": WATCHDOG_USEC,
        }
        task_id = orchestrator.create_task("[env NOTIFY_SOCKET] [env WATCHDOG_USEC]")["id"]
        runner.start()
        wait_for(lambda: "READY=1" in heard())
        ended = orchestrator.end_of(task_id)
        assert ended["result"].splitlines()[1:] == [
            "NOTIFY_SOCKET is not set",
            "WATCHDOG_USEC is not set",
        ]
        wait_for(lambda: heard()[-1:] == ["WATCHDOG=1"])
        runner.send(signal.SIGTERM)
        assert runner.exit_code() == 0
        wait_for(lambda: heard()[-1] == "STOPPING=1")
        said = heard()
    assert "STATUS=0 of 1 tasks running" in said
    assert "STATUS=1 of 1 tasks running" in said
    assert said.count("READY=1") == 1


def test_draining_is_no_stop_yet_and_keeps_the_watchdog_fed(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator, tmp_path: Path
) -> None:
    with service_manager(tmp_path / "notify") as heard:
        any_runner.environment |= {
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "WATCHDOG_USEC": WATCHDOG_USEC,
        }
        task_id = orchestrator.create_task("[wait-for go]")["id"]
        any_runner.start()
        any_runner.wait_for_start_of(task_id)
        any_runner.send(signal.SIGUSR1)
        any_runner.wait_for_log("draining: no new task is taken")
        fed = heard().count("WATCHDOG=1")
        wait_for(lambda: heard().count("WATCHDOG=1") >= fed + 3)
        # systemd would give it no longer than TimeoutStopSec after this.
        assert "STOPPING=1" not in heard()
        any_runner.let_go("go")
        assert any_runner.exit_code() == 0
        wait_for(lambda: heard()[-1] == "STOPPING=1")


@contextmanager
def service_manager(path: Path) -> Iterator[Callable[[], list[str]]]:
    """Listen as systemd does; gives what tells everything heard so far."""
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
