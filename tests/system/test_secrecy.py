"""No secret where others can read it: arguments, environments, logs, files."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.runner_process import RunnerProcess
from tests.system.recording import RecordingOrchestrator

ENGINE_PROGRAMS = ("podman", "conmon", "docker", "dockerd", "containerd", "containerd-shim", "runc")


def test_no_secret_is_shown_while_a_task_runs(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator, tmp_path: Path
) -> None:
    assert_nothing_is_shown(runner, orchestrator, tmp_path)


@pytest.mark.parametrize("way", ["flag", "flag with =", "variable"])
def test_no_secret_is_shown_when_the_token_is_not_in_a_file(
    way: str, any_runner: RunnerProcess, orchestrator: RecordingOrchestrator, tmp_path: Path
) -> None:
    token = str(orchestrator.registration_token)
    any_runner.options[:] = [text for text in any_runner.options if "token" not in text]
    if way == "flag":
        any_runner.options += ["--registration-token", token]
    elif way == "flag with =":
        any_runner.options.append(f"--registration-token={token}")
    else:
        any_runner.environment["VICTORIA_RUNNER_REGISTRATION_TOKEN"] = token
    assert_nothing_is_shown(any_runner, orchestrator, tmp_path)


def assert_nothing_is_shown(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator, tmp_path: Path
) -> None:
    """Run a task that has every secret there is, and look everywhere."""
    # A folder that others may enter: what is written below must keep to itself.
    runner.home.mkdir(mode=0o755)
    env_file = tmp_path / "container.env"
    env_file.touch(mode=0o600)
    env_file.write_text("MODEL_KEY=model-key-0123456789\n")
    uploaded = orchestrator.upload("data.csv", b"1,2\n")["filename"]
    prompt = "[env NODE_API_KEY] [env MODEL_KEY] [stderr oops] [wait-for go] [fail 1]"
    task_id = orchestrator.create_task(prompt, files=[uploaded])["id"]

    runner.start("-v", f"--env-file={env_file}")
    runner.wait_for_start_of(task_id)
    given = [
        str(orchestrator.registration_token),
        runner.node_key,
        orchestrator.admin_key,
        "model-key-0123456789",
    ]
    assert_none_in(given, dict(arguments_of_all()))
    assert_none_in(given, dict(environments_of(*ENGINE_PROGRAMS)))
    assert list((runner.state_dir / "run").glob("*.env")) == []

    runner.let_go("go")
    ended = orchestrator.end_of(task_id)
    assert ended["error_message"].splitlines()[0].startswith("failed: exit code 1")
    assert ended["error_message"].count("=***") == 2
    runner.wait_until_closed(task_id)
    assert_none_in(given, {"the log": runner.whole_log})
    assert_none_in(given, dict(readable_by_others(runner.state_dir, runner.home)))
    assert prompt not in runner.whole_log


def test_state_folder_is_0700_and_the_journal_0600(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    any_runner.start()
    orchestrator.wait_for_call("GET", "/tasks/pending")
    assert mode_of(any_runner.state_dir) == 0o700
    assert mode_of(any_runner.home) == 0o700
    assert mode_of(any_runner.state_dir / "run") == 0o700
    journals = list(any_runner.state_dir.glob("journal.sqlite3*"))
    assert {mode_of(path) for path in journals} == {0o600}
    assert any_runner.state_dir / "journal.sqlite3" in journals


def arguments_of_all() -> Iterator[tuple[str, str]]:
    """Give the arguments of every process, as anybody on the host can see them."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            yield str(folder), (folder / "cmdline").read_text(errors="replace").replace("\0", " ")
        except OSError:  # it has ended meanwhile
            continue


def environments_of(*programs: str) -> Iterator[tuple[str, str]]:
    """Give the environments of the engines' processes."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "comm").read_text().strip()
            if name in {program[:15] for program in programs}:
                yield f"{folder} {name}", (folder / "environ").read_text(errors="replace")
        except OSError:  # it has ended meanwhile, or belongs to somebody else
            continue


def readable_by_others(*folders: Path) -> Iterator[tuple[str, str]]:
    """Give the contents of the files that others may read, if the folders above let them."""
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and mode_of(path) & (stat.S_IRGRP | stat.S_IROTH):
                yield str(path), path.read_text(errors="replace")


def assert_none_in(secrets: list[str], places: dict[str, str]) -> None:
    """Look for every secret in every place; there must be places."""
    assert places
    assert [where for where, text in places.items() if any(s in text for s in secrets)] == []


def mode_of(path: Path) -> int:
    """Give the permissions."""
    return stat.S_IMODE(path.stat().st_mode)
