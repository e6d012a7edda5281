"""No secret where others can read it: arguments, environments, logs, files."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from tests.harness.runner_process import RunnerProcess
from tests.system.recording import RecordingOrchestrator

ENGINE_PROGRAMS = ("podman", "conmon", "docker", "dockerd", "containerd", "containerd-shim", "runc")


def test_no_secret_is_shown_while_a_task_runs(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator, tmp_path: Path
) -> None:
    if runner.engine.name == "podman":  # with docker it is in a file, as everywhere else
        give_token(runner, orchestrator, "--registration-token={}")
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
    secrets = [
        str(orchestrator.registration_token),
        runner.node_key,
        orchestrator.admin_key,
        "model-key-0123456789",
    ]
    assert_none_in(secrets, dict(arguments_of_all()))
    assert_none_in(secrets, dict(environments_of(*ENGINE_PROGRAMS)))
    assert list((runner.state_dir / "run").glob("*.env")) == []

    runner.let_go("go")
    ended = orchestrator.end_of(task_id)
    assert ended["error_message"].splitlines()[0].startswith("failed: exit code 1")
    assert ended["error_message"].count("=***") == 2
    runner.wait_until_closed(task_id)
    assert_none_in(secrets, {"the log": runner.whole_log})
    assert_none_in(secrets, dict(readable_by_others(runner.state_dir, runner.home)))
    assert prompt not in runner.whole_log


def test_token_is_not_in_the_arguments_and_what_is_stored_is_private(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    give_token(any_runner, orchestrator, "--registration-token", "{}")
    any_runner.start()
    orchestrator.wait_for_call("GET", "/tasks/pending")
    assert_none_in([str(orchestrator.registration_token)], dict(arguments_of_all()))
    assert mode_of(any_runner.state_dir) == 0o700
    assert mode_of(any_runner.home) == 0o700
    assert mode_of(any_runner.state_dir / "run") == 0o700
    journals = list(any_runner.state_dir.glob("journal.sqlite3*"))
    assert {mode_of(path) for path in journals} == {0o600}
    assert any_runner.state_dir / "journal.sqlite3" in journals


def give_token(runner: RunnerProcess, orchestrator: RecordingOrchestrator, *arguments: str) -> None:
    """Start the runner with its token in these arguments instead of in a file."""
    token = str(orchestrator.registration_token)
    runner.set_options(registration_token_file=None)
    runner.options += [text.format(token) for text in arguments]


def arguments_of_all() -> Iterator[tuple[str, str]]:
    """Yield the arguments of every process, which anybody on the host can see."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            yield str(folder), (folder / "cmdline").read_text(errors="replace").replace("\0", " ")
        except OSError:  # it has ended meanwhile
            continue


def environments_of(*programs: str) -> Iterator[tuple[str, str]]:
    """Yield the environments of the engines' processes."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "comm").read_text().strip()
            if name in {program[:15] for program in programs}:
                yield f"{folder} {name}", (folder / "environ").read_text(errors="replace")
        except OSError:  # it has ended meanwhile, or belongs to somebody else
            continue


def readable_by_others(*folders: Path) -> Iterator[tuple[str, str]]:
    """Yield the contents of the files that others may read."""
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and mode_of(path) & (stat.S_IRGRP | stat.S_IROTH):
                yield str(path), path.read_text(errors="replace")


def assert_none_in(secrets: list[str], places: dict[str, str]) -> None:
    """Check that no secret is in any place; there must be places."""
    assert places
    assert [where for where, text in places.items() if any(s in text for s in secrets)] == []


def mode_of(path: Path) -> int:
    """Return the permissions."""
    return stat.S_IMODE(path.stat().st_mode)
