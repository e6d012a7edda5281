"""The options of the command line that no other test here depends on, each by what it changes."""

import os
import platform
import pty
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from tests.engines import Engine
from tests.harness.runner_process import RunnerProcess
from tests.system.recording import RecordingOrchestrator


@pytest.mark.parametrize(("line", "home"), [("{folder}/chosen\n", "chosen"), ("\n", "Victoria")])
def test_victoria_home_is_asked_for_on_a_terminal_with_the_default_offered(
    line: str, home: str, runner: RunnerProcess, tmp_path: Path
) -> None:
    runner.set_options(victoria_home=None)
    runner.environment["HOME"] = str(tmp_path)
    shown = on_a_terminal(runner, line.format(folder=tmp_path))
    assert "[~/Victoria]: " in shown
    assert (tmp_path / home).is_dir()


def test_name_home_and_engine_have_defaults_podman_first_and_else_docker(
    runner: RunnerProcess,
    orchestrator: RecordingOrchestrator,
    engines: list[Engine],
    tmp_path: Path,
) -> None:
    runner.set_options(name=None, victoria_home=None, container_runtime=None)
    runner.environment |= {"PATH": str(tmp_path), "HOME": str(tmp_path / "account")}
    for engine in sorted(engines, key=lambda engine: engine.name):  # docker comes first
        (tmp_path / engine.name).symlink_to(str(shutil.which(engine.name)))
        done = runner.run("--once")
        assert done.exit_code == 0, done.log
        assert f" engine={engine.name} " in done.log
    (node,) = orchestrator.nodes()
    assert node["name"] == node["hostname"] == platform.node()
    assert (tmp_path / "account" / "Victoria").is_dir()


def test_variables_stand_for_the_options(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator, image: str, tmp_path: Path
) -> None:
    env_file = tmp_path / "container.env"
    env_file.write_text("# for the agent\nGREETING=a b c\nJOB_ID=an intruder\n")
    runner.options.clear()
    options = {
        "NAME": "by variable",
        "ORCHESTRATOR_URL": f"{orchestrator.url}/",
        "REGISTRATION_TOKEN": str(orchestrator.registration_token),
        "POLL_INTERVAL": "5",
        "CONTAINER_IMAGE": image,
        "VICTORIA_HOME": str(tmp_path / "a home"),
        "ENV_FILE": str(env_file),
        "CONTAINER_RUNTIME": runner.engine.name,
        "STATE_DIR": str(runner.state_dir),
        "TAG": "env=production gpu=none",
        # Without values: those that the engine itself has.
        "RUN_ARG": "--network=host --env=AWS_PROFILE --env=AWS_SESSION_TOKEN",
        "ENGINE_ENV": "AWS_PROFILE NOT_SET",
        "PULL": "never",
        "ONCE": "true",
    }
    runner.environment |= {f"VICTORIA_RUNNER_{name}": text for name, text in options.items()}
    runner.environment |= {
        "AWS_PROFILE": "of a helper",
        "AWS_SESSION_TOKEN": "none of its business",
    }
    target = {"target_node_name": "by var*", "target_tags": {"env": "production"}}
    prompt = "[env AWS_PROFILE][env AWS_SESSION_TOKEN][env GREETING][env JOB_ID]"
    other = orchestrator.create_task("not ours", target_node_name="by other *")["id"]
    task_id = orchestrator.create_task(prompt, **target)["id"]
    done = runner.run()
    assert done.exit_code == 0, done.log
    inherited = "AWS_PROFILE=of a helper\nAWS_SESSION_TOKEN is not set"
    result = orchestrator.task(task_id)["result"]
    assert result.endswith(f"{inherited}\nGREETING=a b c\nJOB_ID={task_id}")
    assert orchestrator.task(other)["status"] == "pending"
    (node,) = orchestrator.nodes()
    assert node["tags"] == {"env": "production", "gpu": "none"}
    assert (tmp_path / "a home" / "tasks" / task_id / "result.txt").exists()


def test_task_has_a_home_of_its_own_which_is_removed_with_its_folder(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    runner.home.mkdir()
    (runner.home / "given").touch()
    task_id = orchestrator.create_task("[wait-for given][write left by me]")["id"]
    done = runner.run("--once", "--home=task")
    assert done.exit_code == 0, done.log
    assert orchestrator.task(task_id)["status"] == "success", done.log
    own_home = runner.home / "tasks" / ".homes" / task_id
    assert {path.name for path in own_home.iterdir()} == {"given", "left", "tasks"}
    assert {path.name for path in runner.home.iterdir()} == {"given", "tasks"}
    assert (runner.task_folder(task_id) / "result.txt").exists()
    assert runner.run("cleanup", "--older-than=0.0000001").exit_code == 0
    assert not own_home.exists()
    assert not runner.task_folder(task_id).exists()


def test_host_without_an_engine_ends_the_runner_with_the_sentence_of_the_troubleshooting(
    runner: RunnerProcess, tmp_path: Path
) -> None:
    done = runner.run("--container-runtime=auto", environment={"PATH": str(tmp_path)})
    sentence = "RuntimeError: No container runtime found. Install podman or docker."
    assert (done.exit_code, sentence in done.log.splitlines()) == (69, True), done.log


def on_a_terminal(runner: RunnerProcess, line: str) -> str:
    """Run it once on a terminal on which this line is typed; return what the terminal showed."""
    ours, theirs = pty.openpty()
    shown = ""
    try:
        os.write(ours, line.encode())
        runner.start("--once", terminal=theirs)
        os.close(theirs)
        with suppress(OSError):  # the process has closed the terminal
            while True:
                shown += os.read(ours, 4096).decode()
        assert runner.exit_code() == 0, shown
    finally:
        os.close(ours)
    return shown
