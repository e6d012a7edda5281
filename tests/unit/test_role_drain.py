"""The role's module that drains a service: over a process that stands for the runner."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.role import Programs, load

drain = load("library/victoria_runner_drain.py")
Runner = Callable[..., "subprocess.Popen[str]"]

RUNNER = """
import signal, sys, time
noted = []
def note(number, frame):
    noted.append(signal.Signals(number).name)
    print(noted[-1], flush=True)
    if noted[-1] in sys.argv[1].split(",") and noted.count(noted[-1]) == int(sys.argv[2]):
        sys.exit()
def listen():
    for number in (signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, note)
if sys.argv[3:]:
    print("ready", flush=True)
    time.sleep(float(sys.argv[3]))
    listen()
else:
    listen()
    print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    programs = Programs(folder)
    shown(programs, pid=0)
    return programs


@pytest.fixture
def runner(programs: Programs) -> Iterator[Runner]:
    """Yield the function that starts a runner which exits at its Nth signal of a kind."""
    started: list[subprocess.Popen[str]] = []

    def start(signals: str, count: int = 1, *starting_s: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", RUNNER, signals, str(count), *starting_s]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        shown(programs, pid=process.pid)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def shown(programs: Programs, *, pid: int, state: str = "active") -> None:
    """Let systemctl show a service with this process, while it runs."""
    programs.make(
        "systemctl",
        f"""
        [ "$1" = show ] || exit 0
        if [ {pid} != 0 ] && grep -qs '^State:.[^Z]' /proc/{pid}/status; then
            printf '%s\\n' MainPID={pid} ActiveState={state} LoadState=loaded
        elif [ {pid} = 0 ] && [ {state} != active ]; then
            printf '%s\\n' MainPID=0 ActiveState={state} LoadState=loaded
        else
            printf '%s\\n' MainPID=0 ActiveState=inactive LoadState=loaded
        fi""",
    )


def service(tmp_path: Path) -> Any:  # noqa: ANN401 - the module is loaded by its path
    return drain.Service("victoria-runner.service", tmp_path / "drop-in")


def verbs(programs: Programs) -> list[str]:
    return [call.split()[1] for call in programs.calls() if call.split()[1] != "show"]


def test_runner_is_asked_to_drain_and_systemd_not_to_restart_it(
    tmp_path: Path, programs: Programs, runner: Runner
) -> None:
    process = runner("SIGUSR1")
    one = service(tmp_path)
    assert drain.drain(one, is_check=False)
    assert one.wait(20)
    assert process.wait(20) == 0
    assert one.drop_in.read_text() == "[Service]\nRestart=no\n"
    assert verbs(programs) == ["daemon-reload"]


@pytest.mark.parametrize("change", ["draining", "cancelled"])
def test_runner_that_is_starting_is_not_killed(
    tmp_path: Path, programs: Programs, runner: Runner, change: str
) -> None:
    """A signal that it does not handle yet would end it, and leave its tasks without a runner."""
    process = runner("SIGUSR1,SIGINT", 1, "2")
    one = service(tmp_path)
    assert drain.CHANGES[change](one, is_check=False)
    assert one.wait(20)
    assert process.wait(20) == 0
    assert verbs(programs) == ["daemon-reload"]


def test_runner_that_never_listens_is_left_and_named(
    tmp_path: Path, programs: Programs, runner: Runner
) -> None:
    process = runner("SIGUSR1", 1, "60")
    with pytest.raises(drain.Failed, match=r"it is still starting; run this again"):
        service(tmp_path).send(signal.SIGUSR1, start_timeout_s=0)
    assert process.poll() is None
    assert verbs(programs) == []


def test_drop_in_that_systemd_has_not_read_is_read(tmp_path: Path, programs: Programs) -> None:
    one = service(tmp_path)
    one.forbid_restart()
    programs.make("systemctl", "echo NeedDaemonReload=yes")
    assert one.forbid_restart()
    assert verbs(programs) == ["daemon-reload", "daemon-reload"]


def test_draining_again_changes_nothing_and_waits_on(
    tmp_path: Path, programs: Programs, runner: Runner
) -> None:
    runner("SIGUSR1", 2)
    one = service(tmp_path)
    assert drain.drain(one, is_check=False)
    assert not one.wait(0)
    assert not drain.drain(one, is_check=False)
    assert one.wait(20)
    assert verbs(programs) == ["daemon-reload"]


def test_check_mode_of_a_drain_touches_nothing(
    tmp_path: Path, programs: Programs, runner: Runner
) -> None:
    process = runner("SIGUSR1")
    one = service(tmp_path)
    assert drain.drain(one, is_check=True)
    assert not one.drop_in.exists()
    assert process.poll() is None
    assert verbs(programs) == []


def test_cancelling_interrupts_twice(tmp_path: Path, programs: Programs, runner: Runner) -> None:
    process = runner("SIGINT", 2)
    one = service(tmp_path)
    began = time.monotonic()
    assert drain.cancel(one, is_check=False)
    assert one.wait(20)
    assert time.monotonic() - began < 30
    assert process.stdout is not None
    assert process.stdout.read().split() == ["SIGINT", "SIGINT"]
    assert verbs(programs) == ["daemon-reload"]


def test_crashed_runner_that_systemd_would_start_again_is_stopped(
    tmp_path: Path, programs: Programs
) -> None:
    shown(programs, pid=0, state="activating")
    assert drain.drain(service(tmp_path), is_check=False)
    assert verbs(programs) == ["daemon-reload", "stop"]


def test_host_without_a_running_runner_is_drained(tmp_path: Path, programs: Programs) -> None:
    one = service(tmp_path)
    assert not drain.drain(one, is_check=False)
    assert not drain.cancel(one, is_check=False)
    assert one.wait(0)
    assert verbs(programs) == []


def test_return_to_service_removes_the_drop_in_and_starts(
    tmp_path: Path, programs: Programs
) -> None:
    one = service(tmp_path)
    one.forbid_restart()
    assert drain.return_to_service(one, is_check=True)
    assert one.drop_in.exists()
    assert drain.return_to_service(one, is_check=False)
    assert not one.drop_in.parent.exists()
    assert verbs(programs) == ["daemon-reload", "daemon-reload", "restart"]


def test_return_to_service_of_a_runner_in_service_changes_nothing(
    tmp_path: Path, programs: Programs, runner: Runner
) -> None:
    runner("SIGUSR1")
    assert not drain.return_to_service(service(tmp_path), is_check=False)
    assert verbs(programs) == []


def test_return_to_service_without_a_runner_names_the_remedy(
    tmp_path: Path, programs: Programs
) -> None:
    programs.make("systemctl", "printf '%s\\n' ActiveState=inactive LoadState=not-found")
    with pytest.raises(drain.Failed, match=r"it is not on this host; run site\.yml"):
        drain.return_to_service(service(tmp_path), is_check=False)
