"""The options of the command line, each by what it changes in the world."""

from __future__ import annotations

import os
import platform
import pty
import select
import shutil
from pathlib import Path

import pytest

from tests.engines import Engine
from tests.harness.runner_process import DEADLINE_S, RunnerProcess, container_of
from tests.orchestrator.serving import wait_for
from tests.system.recording import RecordingOrchestrator


def test_option_name_is_what_targeting_matches(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    other = orchestrator.create_task("not mine", target_node_name="client-beta-*")["id"]
    ours = orchestrator.create_task("mine", target_node_name="client-acme-*")["id"]
    answer = any_runner.run("--once", "--name=client-acme-prod-1")
    assert answer.exit_code == 0, answer.log
    assert orchestrator.task(ours)["status"] == "success"
    assert orchestrator.task(other)["status"] == "pending"
    assert [node["name"] for node in orchestrator.nodes()] == ["client-acme-prod-1"]


def test_option_name_is_the_host_name_when_omitted(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    omit(any_runner, "--name")
    assert any_runner.run("--once").exit_code == 0
    (node,) = orchestrator.nodes()
    assert node["name"] == node["hostname"] == platform.node()


def test_option_orchestrator_url_is_where_the_node_registers(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    # The slash at its end is how many write a URL.
    answer = any_runner.run("--once", f"--orchestrator-url={orchestrator.url}/")
    assert answer.exit_code == 0, answer.log
    assert [call.path for call in orchestrator.calls][:1] == ["/register"]


def test_option_orchestrator_url_is_required(any_runner: RunnerProcess) -> None:
    omit(any_runner, "--orchestrator-url")
    answer = any_runner.run("--once")
    assert answer.exit_code == 2
    assert "Missing option '--orchestrator-url'" in answer.log


def test_option_registration_token_opens_the_registration(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    omit(any_runner, "--registration-token-file")
    answer = any_runner.run("--once", "--registration-token", str(orchestrator.registration_token))
    assert answer.exit_code == 0, answer.log
    assert len(orchestrator.nodes()) == 1


def test_option_registration_token_is_required(any_runner: RunnerProcess) -> None:
    omit(any_runner, "--registration-token-file")
    answer = any_runner.run("--once")
    assert answer.exit_code == 2
    assert "Missing option '--registration-token-file' (or '--registration-token')" in answer.log


def test_option_registration_token_file_opens_the_registration(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    answer = any_runner.run("--once")
    assert answer.exit_code == 0, answer.log
    (call,) = orchestrator.calls_of("POST", "/register")
    assert call.headers["x-registration-token"] == orchestrator.registration_token


def test_option_poll_interval_is_how_often_an_orchestrator_that_holds_nothing_is_asked(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    orchestrator.holds_requests = False
    any_runner.start("--poll-interval=0.3")
    wait_for(lambda: len(orchestrator.calls_of("GET", "/tasks/pending")) >= 5)
    any_runner.kill()
    orchestrator.nodes()  # what the runner has sent was written down before this was answered

    before = len(orchestrator.calls_of("GET", "/tasks/pending"))
    any_runner.start("--poll-interval=3600", "--heartbeat-interval=0.3")
    wait_for(lambda: len(orchestrator.calls_of("GET", "/tasks/pending")) > before)
    beats = len(orchestrator.calls_of("POST", "/nodes/heartbeat"))
    wait_for(lambda: len(orchestrator.calls_of("POST", "/nodes/heartbeat")) >= beats + 5)
    assert len(orchestrator.calls_of("GET", "/tasks/pending")) == before + 1


def test_option_container_image_is_what_runs(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator, image: str
) -> None:
    other_name = "localhost/victoria-stand-in-by-another-name:1"
    any_runner.engine.run("tag", image, other_name)
    try:
        task_id = orchestrator.create_task("[wait-for go]")["id"]
        any_runner.start(f"--container-image={other_name}")
        any_runner.wait_for_start_of(task_id)
        told = any_runner.engine.inspect(container_of(task_id))
        assert other_name in {told.get("ImageName"), told["Config"]["Image"]}
        any_runner.let_go("go")
        any_runner.wait_until_closed(task_id)
    finally:
        any_runner.engine.run("image", "rm", other_name)


def test_option_victoria_home_is_the_folder_that_tasks_share_with_the_host(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator, tmp_path: Path
) -> None:
    home = tmp_path / "A Home of Its Own"
    orchestrator.create_task("[write reports/q3.txt done]")
    answer = any_runner.run("--once", f"--victoria-home={home}")
    assert answer.exit_code == 0, answer.log
    assert (home / "reports" / "q3.txt").read_text() == "done"
    assert not any_runner.home.exists()


def test_option_victoria_home_is_asked_for_on_a_terminal_with_the_default_offered(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator, tmp_path: Path
) -> None:
    omit(any_runner, "--victoria-home")
    chosen = tmp_path / "chosen"
    said = on_a_terminal(any_runner, f"{chosen}\n")
    assert "[~/Victoria]: " in said
    assert chosen.is_dir()
    assert len(orchestrator.calls_of("GET", "/tasks/pending")) == 1


def test_option_victoria_home_is_the_default_when_the_terminal_gives_an_empty_line(
    any_runner: RunnerProcess, tmp_path: Path
) -> None:
    omit(any_runner, "--victoria-home")
    any_runner.environment["HOME"] = str(tmp_path / "account")
    on_a_terminal(any_runner, "\n")
    assert (tmp_path / "account" / "Victoria").is_dir()


def test_option_victoria_home_is_the_default_without_a_terminal(
    any_runner: RunnerProcess, tmp_path: Path
) -> None:
    omit(any_runner, "--victoria-home")
    any_runner.environment["HOME"] = str(tmp_path / "account")
    answer = any_runner.run("--once")
    assert answer.exit_code == 0, answer.log
    assert (tmp_path / "account" / "Victoria").is_dir()


def test_option_env_file_is_what_the_container_sees(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator, tmp_path: Path
) -> None:
    env_file = tmp_path / "container.env"
    env_file.write_text("# for the agent\nSALES_REGION=a b c\nJOB_ID=an intruder\n")
    prompt = "[env SALES_REGION] [env JOB_ID]"
    task_id = orchestrator.create_task(prompt)["id"]
    answer = runner.run("--once", f"--env-file={env_file}")
    assert answer.exit_code == 0, answer.log
    lines = orchestrator.task(task_id)["result"].splitlines()
    assert lines[1:] == ["SALES_REGION=a b c", f"JOB_ID={task_id}"]


def test_option_container_runtime_is_the_engine_that_runs_tasks(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator, engines: list[Engine]
) -> None:
    task_id = orchestrator.create_task("[wait-for go]")["id"]
    runner.start(f"--container-runtime={runner.engine.name}")
    runner.wait_for_start_of(task_id)
    holding = [
        engine.name for engine in engines if container_of(task_id) in engine.containers().values()
    ]
    assert holding == [runner.engine.name]
    runner.let_go("go")
    runner.wait_until_closed(task_id)


def test_option_container_runtime_auto_takes_podman_and_else_docker(
    any_runner: RunnerProcess,
    orchestrator: RecordingOrchestrator,
    engines: list[Engine],
    tmp_path: Path,
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    any_runner.environment["PATH"] = str(programs)
    for engine in sorted(engines, key=lambda engine: engine.name):  # docker comes first
        program = shutil.which(engine.name)
        assert program is not None
        (programs / engine.name).symlink_to(program)
        answer = any_runner.run("--once", "--container-runtime=auto")
        assert f" engine={engine.name} " in answer.log
    assert len(orchestrator.nodes()) == 1


def test_variables_stand_for_the_options(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator, image: str, tmp_path: Path
) -> None:
    env_file = tmp_path / "container.env"
    env_file.write_text("GREETING=hello\n")
    any_runner.options.clear()
    any_runner.environment |= {
        "VICTORIA_RUNNER_NAME": "by variable",
        "VICTORIA_RUNNER_ORCHESTRATOR_URL": orchestrator.url,
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
    task_id = orchestrator.create_task("[env GREETING]", target_tags={"env": "production"})["id"]
    answer = any_runner.run()
    assert answer.exit_code == 0, answer.log
    assert orchestrator.task(task_id)["result"].endswith("GREETING=hello")
    (node,) = orchestrator.nodes()
    assert node["name"] == "by variable"
    assert node["tags"] == {"env": "production", "gpu": "none"}
    assert (tmp_path / "a home" / "tasks" / task_id / "result.txt").exists()


def test_help_names_every_option_of_the_seed_with_its_default(any_runner: RunnerProcess) -> None:
    any_runner.options.clear()
    help_text = " ".join(any_runner.run("--help").output.split())
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
        _, found, text = help_text.partition(f" {option} ")
        assert found, option
        assert default in text.partition(" --")[0], option


@pytest.mark.parametrize(
    ("option", "field", "value"),
    [
        ("--name=another", "name", "another"),
        ("--tag=gpu=yes", "tags", {"gpu": "yes"}),
        ("--capability=gpu", "capabilities", ["gpu"]),
    ],
)
def test_node_stays_the_same_under_another_description(
    option: str,
    field: str,
    value: object,
    any_runner: RunnerProcess,
    orchestrator: RecordingOrchestrator,
) -> None:
    for expected, arguments in ((1, []), (1, []), (2, [option]), (2, [option])):
        assert any_runner.run("--once", *arguments).exit_code == 0
        assert len(orchestrator.calls_of("POST", "/register")) == expected
    (node,) = orchestrator.nodes()
    assert node[field] == value


def omit(runner: RunnerProcess, option: str) -> None:
    """Start the runner without one of the options that tests give it otherwise."""
    runner.options[:] = [text for text in runner.options if not text.startswith(f"{option}=")]


def on_a_terminal(runner: RunnerProcess, answer: str) -> str:
    """Run it once on a terminal, answer its question, and return what stood on the terminal."""
    ours, theirs = pty.openpty()
    try:
        runner.start("--once", terminal=theirs)
        os.close(theirs)
        said = ""
        while select.select([ours], [], [], DEADLINE_S)[0]:
            try:
                said += os.read(ours, 4096).decode()
            except OSError:  # the process has let go of the terminal
                break
            if said.endswith("]: "):
                os.write(ours, answer.encode())
        assert runner.exit_code() == 0, said
    finally:
        os.close(ours)
    return said
