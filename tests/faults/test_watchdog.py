"""A runner that is stuck is restarted by a real systemd; one that only waits is left alone."""

import shlex
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.engine import Act
from tests.faults.rig import Rig
from tests.harness.proxy import Fault, Kind
from tests.harness.runner_process import DEADLINE_S, ROOT
from tests.orchestrator.serving import wait_for
from tools.dev.engines import Engine
from tools.dev.shell import Result

PODMAN = Engine("podman", rootful=True)
NAME = "victoria-runner.service"
WATCHDOG_S = 6
FAILURES = 3
# systemd wants control groups of its own, where it may write.
BOOT = """\
umount -R /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
exec /lib/systemd/systemd --unit=idle.target
"""
IDLE = "[Unit]\nDefaultDependencies=no\n"
UNIT = """\
[Unit]
DefaultDependencies=no
StartLimitIntervalSec=0
[Service]
Type=notify
NotifyAccess=main
WatchdogSec={watchdog_s}
Restart=always
RestartSec=1
RestartPreventExitStatus=2 77 78
KillMode=mixed
TimeoutStopSec=5
WorkingDirectory={root}
EnvironmentFile={folder}/environment
ExecStart={command}
StandardOutput=append:{folder}/service.log
"""
STORAGE = '[storage]\ndriver = "overlay"\ngraphroot = "{0}/graph"\nrunroot = "/run/containers"\n'


class Service:
    """The runner of a rig as the only service of a systemd in a container.

    The container has this host's root folder, and what it changes there is thrown away with it;
    only the test's folder is shared. Its network is this host's.
    """

    def __init__(self, rig: Rig, folder: Path) -> None:
        self._rig, self._folder, self._units = rig, folder, folder / "units"
        self._container = f"systemd-{uuid.uuid4().hex[:12]}"
        self._units.mkdir()
        (self._units / "idle.target").write_text(IDLE)
        options = [
            *("--detach", "--name", self._container, "--privileged", "--network=host"),
            *("--systemd=false", "--env=container=podman", "--cgroupns=private"),
            *("--tmpfs=/run:rw,notmpcopyup", f"--volume={self._units}:/run/systemd/system"),
            f"--volume={self._folder}:{self._folder}",
        ]
        error = "cannot boot systemd in a container, which needs root and podman"
        PODMAN.run("run", *options, "--rootfs", "/:O", "/bin/sh", "-c", BOOT, error=error)
        wait_for(lambda: "idle.target" in self._systemctl("list-units").output, DEADLINE_S)

    def remove(self) -> None:
        PODMAN.run("rm", "--force", "--time=0", self._container, error="cannot remove systemd")

    def start(self) -> None:
        """Write the unit as the rig has it now, and start it; return when it is ready."""
        # Its engine has no image, and runs no task; without one, no work would be asked for.
        self._rig.engine.plan("image", Act.FAIL, exit_code=0, message="", always=True)
        runner, folder, storage = self._rig.runner, self._folder, self._folder / "storage.conf"
        storage.write_text(STORAGE.format(folder))
        own = {"HOME": str(folder), "CONTAINERS_STORAGE_CONF": str(storage)}
        variables = {**runner.environment, **own}.items()
        lines = (f"{name}={shlex.quote(text)}\n" for name, text in variables)
        (folder / "environment").write_text("".join(lines))
        command = " ".join([*runner.command, *runner.options])
        unit = UNIT.format(watchdog_s=WATCHDOG_S, root=ROOT, folder=folder, command=command)
        (self._units / NAME).write_text(unit)
        self._systemctl("daemon-reload", error="cannot load the unit")
        self._systemctl("start", NAME, error="cannot start the runner")

    def freeze(self) -> None:
        number = f"--signal={signal.SIGSTOP.value}"
        self._systemctl("kill", "--kill-who=main", number, NAME, error="cannot freeze the runner")

    @property
    def restarts(self) -> int:
        return int(self._systemctl("show", "--value", "--property=NRestarts", NAME).last_line)

    @property
    def log(self) -> str:
        return (self._folder / "service.log").read_text()

    def wait_for_restart(self) -> None:
        """Wait until systemd has ended it for the watchdog's sake, and started it again."""
        wait_for(lambda: self.restarts, DEADLINE_S)
        wait_for(lambda: self.log.count("INFO starting") > 1, DEADLINE_S)

    def wait_through_failures(self, text: str) -> None:
        """Wait until the log has a text more often, and the watchdog would have acted by then."""
        seen = self.log.count(text)
        until = time.monotonic() + 2 * WATCHDOG_S

        def is_over() -> bool:
            return time.monotonic() > until and self.log.count(text) >= seen + FAILURES

        wait_for(is_over, 2 * WATCHDOG_S + DEADLINE_S)

    def _systemctl(self, *arguments: str, error: str | None = None) -> Result:
        call = ("exec", self._container, "systemctl", "--no-pager", *arguments)
        return PODMAN.run(*call, error=error)


@pytest.fixture
def service(podman_rig: Rig, tmp_path: Path) -> Iterator[Service]:
    service = Service(podman_rig, tmp_path)
    try:
        yield service
    finally:
        service.remove()


@pytest.mark.long
def test_runner_whose_process_is_frozen_is_restarted(service: Service, podman_rig: Rig) -> None:
    service.start()
    podman_rig.wait_for_beat("idle")
    service.freeze()
    service.wait_for_restart()
    podman_rig.wait_for_beat("idle")
    assert len(podman_rig.orchestrator.nodes()) == 1


@pytest.mark.long
def test_runner_with_one_loop_that_is_stuck_is_restarted(service: Service, podman_rig: Rig) -> None:
    podman_rig.runner.set_timings(host_check_timeout_s=1.0)
    service.start()
    podman_rig.wait_for_beat("idle")
    podman_rig.disks_hang.touch()
    wait_for(lambda: service.restarts, DEADLINE_S)  # and again, as long as the disk hangs
    assert "a loop is stuck loops=poll" in service.log
    podman_rig.disks_hang.unlink()
    service.wait_for_restart()
    seen = len(podman_rig.orchestrator.calls)
    podman_rig.orchestrator.wait_for_call("GET", "/tasks/pending", since=seen)


@pytest.mark.long
def test_orchestrator_that_is_away_trips_no_watchdog(service: Service, podman_rig: Rig) -> None:
    rig = podman_rig
    rig.runner.set_timings(call_timeout_s=4.0, connect_timeout_s=4.0, long_poll_s=1)
    rig.proxy.refuse()
    service.start()
    service.wait_through_failures("cannot register: ")
    rig.proxy.accept()
    rig.wait_for_beat("idle")
    rig.proxy.plan("*", "*", *[Fault(Kind.HOLD_REQUEST)] * 100)
    service.wait_through_failures("Error polling for tasks: ")
    rig.proxy.clear()
    rig.wait_for_beat("idle")
    assert service.restarts == 0
    assert "stuck" not in service.log
