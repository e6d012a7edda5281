"""The engine hangs, dies, or loses a container: every task ends with its true reason.

What follows from an answer that does not come is in tests/loops; here the calls themselves hang.
"""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.engines import Engine
from tests.faults.daemon import DockerDaemon
from tests.faults.engine import Act, When
from tests.faults.rig import Rig, rigged
from tests.harness.runner_process import container_of

if TYPE_CHECKING:
    from collections.abc import Iterator

ANSWER_S = 6.0
"""Long enough for an engine that does answer, on a busy machine."""
START_S = 12.0
GONE = "lost: container is gone"


@pytest.mark.parametrize("how", ["removed", "killed with its watcher"])
def test_container_that_is_gone_is_lost(how: str, podman_rig: Rig) -> None:
    rig = podman_rig
    # The engine ends it first, and takes a while to remove it on a busy machine.
    rig.set_timings(removal_grace_s=15.0)
    task_id = rig.begin("[hang]")
    if how == "removed":
        rig.runner.engine.run("rm", "--force", "--time=0", container_of(task_id))
    else:
        state = rig.runner.engine.inspect(container_of(task_id))["State"]
        for pid in (state["ConmonPid"], state["Pid"]):
            os.kill(pid, signal.SIGKILL)
    rig.check_ended_once(task_id, GONE)


def test_out_of_memory_is_reported_by_the_flag_of_the_engine(any_rig: Rig) -> None:
    any_rig.runner.set_options(memory="48m")
    task_id = any_rig.orchestrator.create_task("[eat-memory 256]")["id"]
    any_rig.runner.start()
    any_rig.check_ended_once(task_id, "out_of_memory: the kernel ended it")


# An engine that does not answer


def test_task_is_unknown_while_inspect_hangs_and_then_ends_truly(any_rig: Rig) -> None:
    rig = any_rig
    rig.set_timings(engine_timeout_s=ANSWER_S, kill_grace_s=0.5)
    task_id = rig.begin()
    hang = rig.engine.plan("inspect", Act.HANG, always=True)
    rig.runner.let_go("go")
    rig.runner.wait_for_log(f"task {task_id} is unknown until {rig.runner.engine.name} answers")
    assert f"no answer within {ANSWER_S:g} s" in rig.runner.log
    rig.wait_for_beat("error")
    assert rig.orchestrator.reports_of(task_id, "success", "error") == []
    hang.lift()
    rig.check_ended_once(task_id)
    rig.wait_for_beat("idle")


def test_task_starts_once_when_run_hangs_after_it_has_done_everything(any_rig: Rig) -> None:
    rig = any_rig
    # The deadline leaves the real engine time to do it.
    rig.set_timings(engine_run_timeout_s=START_S, kill_grace_s=0.5)
    hang = rig.engine.plan("run", Act.HANG, When.AFTER)
    task_id = rig.orchestrator.create_task("[wait-for go]")["id"]
    rig.runner.start()
    hang.wait()
    rig.wait_for_beat("error")
    rig.runner.wait_for_start_of(task_id)
    rig.runner.let_go("go")
    rig.check_ended_once(task_id)
    assert f"no answer within {START_S:g} s" in rig.runner.log


@pytest.mark.parametrize("call", ["create", "start"])
def test_step_of_a_start_that_hangs_is_given_up_and_the_task_goes_on(
    call: str, podman_rig: Rig
) -> None:
    rig = podman_rig
    rig.set_timings(engine_run_timeout_s=START_S, kill_grace_s=0.5)
    rig.runner.set_options(memory="64m")  # so that podman 4 starts it in two steps
    hang = rig.engine.plan(call, Act.HANG)
    task_id = rig.orchestrator.create_task("[print-line done]")["id"]
    rig.runner.start()
    rig.check_ended_once(task_id)
    assert hang.has_happened


def test_pull_for_a_task_that_hangs_is_given_up(any_rig: Rig, image: str) -> None:
    rig = any_rig
    # The refusal at the start has to come before.
    rig.set_timings(pull_timeout_s=ANSWER_S, kill_grace_s=0.5)
    with rig.image_to_pull(image):
        rig.engine.plan("pull", Act.HANG, always=True)
        task_id = rig.orchestrator.create_task("[print-line done]")["id"]
        name = rig.runner.engine.name
        reason = f"unstartable: cannot do {name} pull: no answer within {ANSWER_S:g} s"
        rig.check_ended_once(task_id, reason, starts=0)


def test_end_is_seen_although_wait_hangs(docker_rig: Rig) -> None:
    # podman's is not called: there the kernel says when a container's processes have ended.
    docker_rig.set_timings(inspect_interval_s=2)
    hang = docker_rig.engine.plan("wait", Act.HANG, always=True)
    task_id = docker_rig.begin()
    docker_rig.runner.let_go("go")
    docker_rig.check_ended_once(task_id)
    assert hang.has_happened


# A daemon that goes away


@pytest.fixture
def daemon(
    engines: list[Engine], image: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DockerDaemon]:
    """Yield a docker daemon that may be ended, with the image in it."""
    folder = Path(tempfile.mkdtemp(prefix="vd-"))
    daemon = DockerDaemon(folder)
    try:
        daemon.start()
        daemon.load(image, engines[0])
        monkeypatch.setenv("DOCKER_HOST", daemon.host)
        yield daemon
    finally:
        daemon.remove()


def test_task_whose_daemon_is_restarted_is_unknown_and_then_reported_truly(
    daemon: DockerDaemon, image: str, tmp_path: Path
) -> None:
    with rigged(tmp_path, Engine("docker"), image) as rig:
        rig.runner.start()
        for how in (signal.SIGTERM, signal.SIGKILL):
            task_id = str(rig.orchestrator.create_task("[wait-for go]")["id"])
            rig.runner.wait_for_start_of(task_id)
            daemon.end(how)
            rig.wait_for_beat("error")
            assert rig.orchestrator.reports_of(task_id, "success", "error") == []
            daemon.start()
            rig.check_ended_once(task_id, "lost: ")

        # The runner itself has taken no harm.
        rig.check_ended_once(rig.orchestrator.create_task("[print-line done]")["id"])
