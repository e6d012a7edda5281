"""The options of the command line that no other test here depends on, each by what it changes."""

from __future__ import annotations

import os
import platform
import pty
import select
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from runner.cli import command
from tests.engines import Engine
from tests.harness.runner_process import DEADLINE_S, RunnerProcess
from tests.system.recording import RecordingOrchestrator


@pytest.mark.parametrize(("line", "home"), [("{folder}/chosen\n", "chosen"), ("\n", "Victoria")])
def test_victoria_home_is_asked_for_on_a_terminal_with_the_default_offered(
    line: str,
    home: str,
    any_runner: RunnerProcess,
    orchestrator: RecordingOrchestrator,
    tmp_path: Path,
) -> None:
    any_runner.set_options(victoria_home=None)
    any_runner.environment["HOME"] = str(tmp_path)
    shown = on_a_terminal(any_runner, line.format(folder=tmp_path))
    assert "[~/Victoria]: " in shown
    assert (tmp_path / home).is_dir()
    assert len(orchestrator.calls_of("GET", "/tasks/pending")) == 1


def test_name_home_and_engine_have_defaults_podman_first_and_else_docker(
    any_runner: RunnerProcess,
    orchestrator: RecordingOrchestrator,
    engines: list[Engine],
    tmp_path: Path,
) -> None:
    any_runner.set_options(name=None, victoria_home=None, container_runtime=None)
    programs = tmp_path / "programs"
    programs.mkdir()
    any_runner.environment |= {"PATH": str(programs), "HOME": str(tmp_path / "account")}
    for engine in sorted(engines, key=lambda engine: engine.name):  # docker comes first
        program = shutil.which(engine.name)
        assert program is not None
        (programs / engine.name).symlink_to(program)
        answer = any_runner.run("--once")
        assert answer.exit_code == 0, answer.log
        assert f" engine={engine.name} " in answer.log
    (node,) = orchestrator.nodes()
    assert node["name"] == node["hostname"] == platform.node()
    assert (tmp_path / "account" / "Victoria").is_dir()


def test_variables_stand_for_the_options(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator, image: str, tmp_path: Path
) -> None:
    env_file = tmp_path / "container.env"
    env_file.write_text("# for the agent\nGREETING=a b c\nJOB_ID=an intruder\n")
    any_runner.options.clear()
    any_runner.environment |= {
        "VICTORIA_RUNNER_NAME": "by variable",
        "VICTORIA_RUNNER_ORCHESTRATOR_URL": f"{orchestrator.url}/",
        "VICTORIA_RUNNER_REGISTRATION_TOKEN": str(orchestrator.registration_token),
        "VICTORIA_RUNNER_POLL_INTERVAL": "5",
        "VICTORIA_RUNNER_CONTAINER_IMAGE": image,
        "VICTORIA_RUNNER_VICTORIA_HOME": str(tmp_path / "a home"),
        "VICTORIA_RUNNER_ENV_FILE": str(env_file),
        "VICTORIA_RUNNER_CONTAINER_RUNTIME": any_runner.engine.name,
        "VICTORIA_RUNNER_STATE_DIR": str(any_runner.state_dir),
        "VICTORIA_RUNNER_TAG": "env=production gpu=none",
        "VICTORIA_RUNNER_RUN_ARG": "--network=host",
        "VICTORIA_RUNNER_PULL": "never",
        "VICTORIA_RUNNER_ONCE": "true",
    }
    other = orchestrator.create_task("not ours", target_node_name="by other *")["id"]
    task_id = orchestrator.create_task(
        "[env GREETING][env JOB_ID]",
        target_node_name="by var*",
        target_tags={"env": "production"},
    )["id"]
    answer = any_runner.run()
    assert answer.exit_code == 0, answer.log
    assert orchestrator.task(task_id)["result"].endswith(f"GREETING=a b c\nJOB_ID={task_id}")
    assert orchestrator.task(other)["status"] == "pending"
    (node,) = orchestrator.nodes()
    assert node["name"] == "by variable"
    assert node["tags"] == {"env": "production", "gpu": "none"}
    assert (tmp_path / "a home" / "tasks" / task_id / "result.txt").exists()


def test_help_names_every_option_of_the_seed_with_its_default() -> None:
    help_text = " ".join(CliRunner().invoke(command, ["--help"]).output.split())
    for option, default in {
        "--name": "host name",
        "--orchestrator-url": "Required",
        "--registration-token": "Required",
        "--poll-interval": "30",
        "--container-image": "ghcr.io/elcanotek/victoria-terminal:latest",
        "--victoria-home": "~/Victoria",
        "--env-file": "",
        "--container-runtime": "auto",
    }.items():
        _, separator, text = help_text.partition(f" {option} ")
        assert separator, option
        assert default in text.partition(" --")[0], option


def on_a_terminal(runner: RunnerProcess, answer: str) -> str:
    """Run it once on a terminal, answer its question, and return what the terminal showed."""
    ours, theirs = pty.openpty()
    try:
        runner.start("--once", terminal=theirs)
        os.close(theirs)
        shown = ""
        while select.select([ours], [], [], DEADLINE_S)[0]:
            try:
                shown += os.read(ours, 4096).decode()
            except OSError:  # the process has closed the terminal
                break
            if shown.endswith("]: "):
                os.write(ours, answer.encode())
        assert runner.exit_code() == 0, shown
    finally:
        os.close(ours)
    return shown
