"""The engine hangs, dies, or loses a container: every task ends with its true reason.

What follows from a silent engine is in tests/loops; here the calls themselves hang.
"""

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines import Engine
from tests.faults.engine import Act, When
from tests.faults.rig import Rig, RigOn
from tests.harness.runner_process import DEADLINE_S, container_of
from tests.orchestrator.serving import wait_for
from tools.dev import engines as dev_engines
from tools.dev.shell import as_root

ANSWER_S = 6.0  # long enough for an engine that does answer, on a busy machine
START_S = 12.0


def test_container_that_is_killed_with_its_watcher_is_lost(podman_rig: Rig) -> None:
    task_id = podman_rig.begin("[hang]")
    state = podman_rig.runner.engine.inspect(container_of(task_id))["State"]
    for pid in (state["ConmonPid"], state["Pid"]):
        os.kill(pid, signal.SIGKILL)
    podman_rig.check_ended_once(task_id, "lost: container is gone")


@pytest.mark.long
def test_task_is_unknown_while_inspect_hangs_and_then_ends_truly(rig: Rig) -> None:
    rig.runner.set_timings(engine_timeout_s=ANSWER_S, kill_grace_s=0.5)
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


@pytest.mark.long
def test_task_starts_once_when_run_hangs_after_it_has_done_everything(rig: Rig) -> None:
    # The deadline leaves the real engine time to do it.
    rig.runner.set_timings(engine_run_timeout_s=START_S, kill_grace_s=0.5)
    hang = rig.engine.plan("run", Act.HANG, When.AFTER)
    task_id = rig.start("[wait-for go]")
    hang.wait()
    rig.wait_for_beat("error")
    rig.runner.wait_for_start_of(task_id)
    rig.runner.let_go("go")
    rig.check_ended_once(task_id)
    assert f"no answer within {START_S:g} s" in rig.runner.log


@pytest.mark.long
@pytest.mark.parametrize("call", ["create", "start"])
def test_step_of_a_start_that_hangs_is_given_up_and_the_task_goes_on(
    call: str, podman_rig: Rig
) -> None:
    rig = podman_rig
    rig.runner.set_timings(engine_run_timeout_s=START_S, kill_grace_s=0.5)
    rig.runner.set_options(memory="64m")  # so that podman 4 starts it in two steps
    hang = rig.engine.plan(call, Act.HANG)
    rig.check_ended_once(rig.start())
    assert hang.has_happened


@pytest.mark.long
def test_pull_that_hangs_is_given_up_and_the_task_has_the_image_that_is_here(
    rig: Rig, image: str
) -> None:
    # The answer at the start has to come before.
    rig.runner.set_timings(pull_timeout_s=ANSWER_S, newer_image_timeout_s=1, kill_grace_s=0.5)
    with rig.image_to_pull(image):
        rig.engine.plan("pull", Act.HANG, always=True)
        rig.check_ended_once(rig.orchestrator.create_task("[print-line done]")["id"])
        name = rig.runner.engine.name
        rig.runner.wait_for_log(f"cannot do {name} pull: no answer within {ANSWER_S:g} s; tasks")


def test_end_is_seen_although_wait_hangs(docker_rig: Rig) -> None:
    # podman's is not called: there the kernel says when a container's processes have ended.
    docker_rig.runner.set_timings(inspect_interval_s=2)
    hang = docker_rig.engine.plan("wait", Act.HANG, always=True)
    task_id = docker_rig.begin()
    docker_rig.runner.let_go("go")
    docker_rig.check_ended_once(task_id)
    assert hang.has_happened


def run_as_root(*command: str) -> None:
    subprocess.run(as_root([*command]), check=True)


class DockerDaemon:
    """A docker daemon of a test's own, without live-restore, with its store in a folder."""

    def __init__(self) -> None:
        # The path must be short, for there is a socket in it.
        self._folder = Path(tempfile.mkdtemp(prefix="vd-"))
        self._process: subprocess.Popen[bytes] | None = None
        self.engine = dev_engines.Engine("docker", {"DOCKER_HOST": f"unix://{self._folder}/sock"})

    def start(self) -> None:
        folder = self._folder
        command = [
            *("dockerd", f"--host=unix://{folder}/sock", f"--group={os.getgid()}"),
            *(f"--data-root={folder}/data", f"--exec-root={folder}/exec"),
            # What works on a machine that allows little, too.
            *(f"--pidfile={folder}/pid", *dev_engines.DOCKERD_FLAGS[-1]),
        ]
        with (folder / "log").open("ab") as log:
            self._process = subprocess.Popen(as_root(command), stdout=log, stderr=log)
        wait_for(self._answers, DEADLINE_S)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "log").read_text()[-2000:]
        return dev_engines.docker_answers(self.engine)

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        pid = (self._folder / "pid").read_text().strip()
        run_as_root("kill", f"-{how.value}", pid)
        self._process.wait(DEADLINE_S)
        # Its containerd has gone with it; where nobody reaps, a zombie would pass for it.
        run_as_root("rm", "-f", f"{self._folder}/exec/containerd/containerd.pid")

    def remove(self) -> None:
        """End it and remove its folder, in which it leaves mounts."""
        self.end()
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for place in reversed(mounts):
            if place.startswith(f"{self._folder}/"):
                run_as_root("umount", "--lazy", place)
        run_as_root("rm", "-rf", str(self._folder))


@pytest.fixture
def daemon(
    engines: list[Engine], image: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DockerDaemon]:
    """Yield a docker daemon that may be ended, with the image in it."""
    daemon = DockerDaemon()
    try:
        daemon.start()
        daemon.engine.copy_from(dev_engines.Engine(engines[0].name), image)
        monkeypatch.setenv("DOCKER_HOST", daemon.engine.env["DOCKER_HOST"])
        yield daemon
    finally:
        daemon.remove()


@pytest.mark.long
def test_task_whose_daemon_is_restarted_is_unknown_and_then_reported_truly(
    daemon: DockerDaemon, rig_on: RigOn
) -> None:
    rig = rig_on(Engine("docker"))
    rig.runner.start()
    for how in (signal.SIGTERM, signal.SIGKILL):
        task_id = str(rig.orchestrator.create_task("[wait-for go]")["id"])
        rig.runner.wait_for_start_of(task_id)
        daemon.end(how)
        rig.wait_for_beat("error")
        assert rig.orchestrator.reports_of(task_id, "success", "error") == []
        daemon.start()
        rig.check_ended_once(task_id, "lost: ")

    rig.check_ended_once(rig.orchestrator.create_task("[print-line done]")["id"])
