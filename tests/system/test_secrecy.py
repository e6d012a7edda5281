"""No secret where others can read it: arguments, environments, logs, files."""

import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tests.harness.runner_process import RunnerProcess, container_of
from tests.system.recording import RecordingOrchestrator

ENGINE_PROGRAMS = ("podman", "conmon", "docker", "dockerd", "containerd", "containerd-shim")
MODEL_KEY = "model-key-0123456789"


def test_no_secret_is_shown_while_a_task_runs(
    each_runner: RunnerProcess, orchestrator: RecordingOrchestrator, tmp_path: Path
) -> None:
    runner, token = each_runner, str(orchestrator.registration_token)
    one, two = [f"--registration-token={token}"], ["--registration-token", token]
    runner.set_options(registration_token_file=None)
    runner.options += one if runner.engine.name == "podman" else two
    # A folder that others may enter: what is written below must keep to itself.
    runner.home.mkdir(mode=0o755)
    env_file = tmp_path / "container.env"
    env_file.touch(mode=0o600)
    env_file.write_text(f"MODEL_KEY={MODEL_KEY}\n")
    uploaded = orchestrator.upload("data.csv", b"1,2\n")["filename"]
    prompt = "[env NODE_API_KEY] [env MODEL_KEY] [stderr oops] [wait-for go] [fail 1]"
    task_id = orchestrator.create_task(prompt, files=[uploaded])["id"]

    runner.start("-v", f"--env-file={env_file}")
    runner.wait_for_start_of(task_id)
    variables = runner.engine.inspect(container_of(task_id))["Config"]["Env"]
    (key,) = (line.partition("=")[2] for line in variables if line.startswith("NODE_API_KEY="))
    secrets = [token, runner.node_key, key, orchestrator.admin_key, MODEL_KEY]
    shown = dict(shown_by_processes())
    assert_none_in(secrets, shown)
    assert any(place.endswith("environ") for place in shown)
    assert list((runner.state_dir / "run").glob("*.env")) == []

    runner.let_go("go")
    ended = orchestrator.end_of(task_id)
    assert ended["error_message"].splitlines()[0].startswith("failed: exit code 1")
    assert ended["error_message"].count("=***") == 2
    runner.wait_until_closed(task_id)
    assert_none_in(secrets, {"the log": runner.whole_log})
    assert_none_in(secrets, dict(readable_by_others(runner.state_dir, runner.home)))
    assert prompt not in runner.whole_log


def shown_by_processes() -> Iterator[tuple[str, str]]:
    """Yield the arguments of all processes, and the environments of the engines' processes."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile, or belongs to somebody else
            yield f"{folder}/cmdline", (folder / "cmdline").read_text(errors="replace")
            if (folder / "comm").read_text().strip() in ENGINE_PROGRAMS:
                yield f"{folder}/environ", (folder / "environ").read_text(errors="replace")


def readable_by_others(*folders: Path) -> Iterator[tuple[str, str]]:
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
                yield str(path), path.read_text(errors="replace")


def assert_none_in(secrets: list[str], places: dict[str, str]) -> None:
    assert [where for where, text in places.items() if any(s in text for s in secrets)] == []
