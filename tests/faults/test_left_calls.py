"""Calls of the engine that outlive the runner, or say what is not so, start nothing twice."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.engine import Act, When
from tests.faults.rig import Rig
from tests.harness.runner_process import DEADLINE_S, container_of, containers
from tests.orchestrator.serving import wait_for

STAYS_AWAY_S = 2
# An engine that has read all it was given, and gets stuck before it takes the container's name.
_STUCK_ENGINE = """\
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
_DEADLY_RUNTIME = """\
#!/bin/sh
case " $* " in
*" start "*) '{real}' "$@"; kill -9 $PPID ;;
*) exec '{real}' "$@" ;;
esac
"""
_ENGINE_WITH_RUNTIME = """\
#!/bin/sh
if [ "$1" = run ] && mkdir '{folder}/used' 2>/dev/null; then
  exec '{real}' --runtime '{folder}/runtime' "$@"
fi
exec '{real}' "$@"
"""


@dataclass(frozen=True)
class StuckEngine:
    """An engine whose first call of one name gets stuck; it stands first on the runner's PATH."""

    folder: Path

    def wait(self) -> None:
        """Wait until a call is stuck."""
        wait_for((self.folder / "stuck").exists, DEADLINE_S)

    def release(self) -> None:
        """Let it go on."""
        (self.folder / "released").touch()


def _get_stuck(rig: Rig, folder: Path, call: str) -> StuckEngine:
    folder.mkdir()
    kind = rig.runner.engine.name
    real = shutil.which(kind)
    assert real is not None
    program = folder / kind
    program.write_text(
        _STUCK_ENGINE.format(python=sys.executable, folder=str(folder), call=call, real=real)
    )
    program.chmod(0o755)
    rig.runner.environment["PATH"] = f"{folder}:{rig.runner.environment['PATH']}"
    return StuckEngine(folder)


def test_start_that_is_stuck_when_the_runner_is_killed_does_not_happen_later(
    rig: Rig, tmp_path: Path
) -> None:
    rig.set_timings(leftover_start_grace_s=3)
    task_id = rig.orchestrator.create_task("[print-line done]")["id"]
    stuck = _get_stuck(rig, tmp_path / "stuck-engine", "run")
    rig.runner.start()
    stuck.wait()
    rig.runner.kill()
    rig.runner.start()
    rig.check_ended_once(task_id)
    stuck.release()
    with pytest.raises(TimeoutError):
        wait_for(lambda: container_of(task_id) in containers(rig.runner.engine), STAYS_AWAY_S)
    assert rig.runner.starts_of(task_id) == 1


def test_second_step_that_is_stuck_when_the_runner_is_killed_does_not_happen_later(
    podman_rig: Rig, tmp_path: Path
) -> None:
    rig = podman_rig
    rig.set_timings(leftover_start_grace_s=3)
    rig.runner.set_options(memory="64m")
    task_id = rig.orchestrator.create_task("[print-line done]")["id"]
    stuck = _get_stuck(rig, tmp_path / "stuck-engine", "start")
    rig.runner.start()
    stuck.wait()
    rig.runner.kill()
    rig.runner.environment["PATH"] = rig.engine.search_path
    removing = rig.engine.plan("rm", Act.BLOCK, needs="--force")
    rig.runner.start()
    removing.wait()  # it has ended and is still there: another start would run it once more
    stuck.release()
    with pytest.raises(TimeoutError):
        wait_for(lambda: rig.runner.starts_of(task_id) > 1, STAYS_AWAY_S)
    removing.release()
    rig.check_ended_once(task_id)


def test_container_is_not_started_again_when_the_engine_died_before_it_noted_the_start(
    podman_rig: Rig, tmp_path: Path
) -> None:
    # docker's daemon starts containers, and is no child of ours
    rig, engine = podman_rig, podman_rig.runner.engine
    folder = tmp_path / "engine-with-runtime"
    folder.mkdir()
    runtime = engine.run("info", "--format", "{{.Host.OCIRuntime.Path}}").strip()
    real = shutil.which(engine.name)
    for name, text in (
        ("runtime", _DEADLY_RUNTIME.format(real=runtime)),
        ("podman", _ENGINE_WITH_RUNTIME.format(folder=folder, real=real)),
    ):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    rig.runner.environment["PATH"] = f"{folder}:{rig.runner.environment['PATH']}"
    task_id = rig.orchestrator.create_task("[print-line done]")["id"]
    rig.runner.start()
    rig.check_ended_once(task_id, "lost: ")


def test_runner_that_is_terminated_lets_a_start_under_way_come_to_its_end(any_rig: Rig) -> None:
    rig = any_rig
    task_id = rig.orchestrator.create_task("[print-line done]")["id"]
    starting = rig.engine.plan("run", Act.BLOCK)
    rig.runner.start()
    starting.wait()
    rig.runner.send(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        rig.runner.exit_code(1)
    starting.release()
    assert rig.runner.exit_code() == 0
    wait_for(lambda: rig.runner.starts_of(task_id), DEADLINE_S)
    rig.runner.start()
    rig.check_ended_once(task_id)


def test_container_that_runs_although_the_engine_refused_to_start_it_is_the_task(
    any_rig: Rig,
) -> None:
    rig = any_rig
    task_id = rig.orchestrator.create_task("[wait-for go][print-line done]")["id"]
    refused = rig.engine.plan("run", Act.FAIL, When.AFTER)
    rig.runner.start()
    refused.wait()
    rig.runner.wait_for_start_of(task_id)
    rig.runner.kill()
    rig.runner.let_go("go")
    rig.runner.start()
    rig.check_ended_once(task_id)


def test_container_that_is_removed_before_the_engine_has_said_that_it_runs_is_lost(
    any_rig: Rig,
) -> None:
    rig = any_rig
    task_id = rig.orchestrator.create_task("[wait-for go]")["id"]
    says = "Error: unable to connect to Podman socket"
    starting = rig.engine.plan("run", Act.BLOCK, When.AFTER)
    unknown = rig.engine.plan("inspect", Act.FAIL, says=says, always=True)
    # Long enough for the engine to do it, on a busy machine.
    rig.set_timings(engine_run_timeout_s=12.0)
    rig.runner.start()
    starting.wait()
    wait_for(lambda: unknown.has_happened, DEADLINE_S)  # the start has met its deadline
    # In three steps: `kill` does not wait for the end, and `rm` refuses what runs.
    for call in ("kill", "wait", "rm"):
        rig.runner.engine.run(call, container_of(task_id))
    unknown.lift()
    rig.check_ended_once(task_id, "lost: ")


def test_refused_look_at_what_was_made_is_no_refusal_to_start_it(podman_rig: Rig) -> None:
    rig = podman_rig
    rig.runner.set_options(memory="64m")
    task_id = rig.orchestrator.create_task("[print-line done]")["id"]
    rig.engine.plan("inspect", Act.FAIL, needs=container_of(task_id))
    rig.runner.start()
    wait_for(lambda: rig.engine.counts["inspect fail before"], DEADLINE_S)
    rig.check_ended_once(task_id)
