"""Calls of the engine that outlive the runner, or report what is not so, start nothing twice."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.engine import Act, When
from tests.faults.rig import Rig
from tests.harness.runner_process import DEADLINE_S, container_of, containers
from tests.orchestrator.serving import wait_for

STAYS_AWAY_S = 2
# An engine that has read all it was given, and gets stuck before it takes the container's name.
STUCK_ENGINE = """\
#!{python} -IS
import os, shutil, sys, time
folder, arguments = {folder!r}, sys.argv[1:]
try:
    if arguments[0] == {call!r}:
        os.mkdir(folder + "/stuck")
        for index, argument in enumerate(arguments):
            if argument == "--env-file":
                arguments[index + 1] = shutil.copy(arguments[index + 1], folder + "/read.env")
        os.chdir("/")
        while not os.path.exists(folder + "/released"):
            time.sleep(0.01)
except FileExistsError:
    pass
os.execv({real!r}, [{real!r}, *arguments])
"""
# A runtime that starts the container and kills the engine before it has noted that.
DEADLY_RUNTIME = """\
#!/bin/sh
case " $* " in
*" start "*) '{real}' "$@"; kill -9 $PPID ;;
*) exec '{real}' "$@" ;;
esac
"""
ENGINE_WITH_RUNTIME = """\
#!/bin/sh
if [ "$1" = run ] && mkdir '{folder}/used' 2>/dev/null; then
  exec '{real}' --runtime '{folder}/runtime' "$@"
fi
exec '{real}' "$@"
"""


def install(program: Path, text: str) -> None:
    program.write_text(text)
    program.chmod(0o755)


def put_first(rig: Rig, folder: Path, engine: str, **values: str) -> None:
    """Put a program first on the runner's PATH, in the place of its engine."""
    name = rig.runner.engine.name
    text = engine.format(folder=str(folder), real=shutil.which(name), **values)
    install(folder / name, text)
    rig.runner.environment["PATH"] = f"{folder}:{rig.engine.search_path}"


def kill_at_a_stuck_call(rig: Rig, folder: Path, call: str) -> str:
    """Start a task whose engine gets stuck at this call, and kill the runner; return its id."""
    rig.runner.set_timings(leftover_start_grace_s=3)
    put_first(rig, folder, STUCK_ENGINE, python=sys.executable, call=call)
    task_id = rig.start()
    wait_for((folder / "stuck").exists, DEADLINE_S)
    rig.runner.kill()
    return task_id


def test_start_that_is_stuck_when_the_runner_is_killed_does_not_happen_later(
    each_rig: Rig, tmp_path: Path
) -> None:
    task_id = kill_at_a_stuck_call(each_rig, tmp_path, "run")
    each_rig.runner.start()
    each_rig.check_ended_once(task_id)
    (tmp_path / "released").touch()
    with pytest.raises(TimeoutError):
        wait_for(lambda: container_of(task_id) in containers(each_rig.runner.engine), STAYS_AWAY_S)
    assert each_rig.runner.starts_of(task_id) == 1


@pytest.mark.long
def test_second_step_that_is_stuck_when_the_runner_is_killed_does_not_happen_later(
    podman_rig: Rig, tmp_path: Path
) -> None:
    rig = podman_rig
    rig.runner.set_options(memory="64m")
    task_id = kill_at_a_stuck_call(rig, tmp_path, "start")
    rig.runner.environment["PATH"] = rig.engine.search_path
    removing = rig.engine.plan("rm", Act.BLOCK, needs="--force")
    rig.runner.start()
    removing.wait()  # it has ended and is still there: another start would run it once more
    (tmp_path / "released").touch()
    with pytest.raises(TimeoutError):
        wait_for(lambda: rig.runner.starts_of(task_id) > 1, STAYS_AWAY_S)
    removing.release()
    rig.check_ended_once(task_id)


def test_container_is_not_started_again_when_the_engine_died_before_it_noted_the_start(
    podman_rig: Rig, tmp_path: Path
) -> None:
    # docker's daemon starts containers, and is not a child of ours
    runtime = podman_rig.runner.engine.run("info", "--format", "{{.Host.OCIRuntime.Path}}").strip()
    install(tmp_path / "runtime", DEADLY_RUNTIME.format(real=runtime))
    put_first(podman_rig, tmp_path, ENGINE_WITH_RUNTIME)
    podman_rig.check_ended_once(podman_rig.start(), "lost: ")


@pytest.mark.long
def test_runner_that_is_terminated_lets_a_start_under_way_come_to_its_end(rig: Rig) -> None:
    starting = rig.engine.plan("run", Act.BLOCK)
    task_id = rig.start()
    starting.wait()
    rig.runner.send(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        rig.runner.exit_code(1)
    starting.release()
    assert rig.runner.exit_code() == 0
    wait_for(lambda: rig.runner.starts_of(task_id), DEADLINE_S)
    rig.runner.start()
    rig.check_ended_once(task_id)


def test_container_that_runs_although_the_engine_refused_to_start_it_is_the_task(rig: Rig) -> None:
    refused = rig.engine.plan("run", Act.FAIL, When.AFTER)
    task_id = rig.begin("[wait-for go][print-line done]")
    assert refused.has_happened
    rig.runner.kill()
    rig.runner.let_go("go")
    rig.runner.start()
    rig.check_ended_once(task_id)


@pytest.mark.long
def test_container_that_is_removed_before_the_engine_has_reported_that_it_runs_is_lost(
    rig: Rig,
) -> None:
    message = "Error: unable to connect to Podman socket"
    starting = rig.engine.plan("run", Act.BLOCK, When.AFTER)
    unknown = rig.engine.plan("inspect", Act.FAIL, message=message, always=True)
    # Long enough for the engine to do it, on a busy machine.
    rig.runner.set_timings(engine_run_timeout_s=12.0)
    task_id = rig.start("[wait-for go]")
    starting.wait()
    unknown.wait()  # the start has met its deadline
    # In three steps: `kill` does not wait for the end, and `rm` refuses what runs.
    for call in ("kill", "wait", "rm"):
        rig.runner.engine.run(call, container_of(task_id))
    unknown.lift()
    rig.check_ended_once(task_id, "lost: ")


def test_inspection_that_is_refused_after_a_create_is_not_a_refusal_to_start(
    podman_rig: Rig,
) -> None:
    rig = podman_rig
    rig.runner.set_options(memory="64m")
    task_id = rig.orchestrator.create_task("[print-line done]")["id"]
    refused = rig.engine.plan("inspect", Act.FAIL)
    rig.runner.start()
    refused.wait()
    rig.check_ended_once(task_id)
