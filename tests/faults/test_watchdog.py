"""A runner that is stuck is restarted by a real systemd; one that only waits is left alone."""

from __future__ import annotations

import shlex
import signal
import subprocess
import time
import uuid
from typing import TYPE_CHECKING

import pytest

from tests.faults.engine import Act
from tests.harness.proxy import Fault, Kind
from tests.harness.runner_process import DEADLINE_S, ROOT
from tests.orchestrator.serving import wait_for
from tools.dev.shell import as_root

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

    from tests.faults.rig import Rig

NAME = "victoria-runner.service"
WATCHDOG_S = 6
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
StandardError=inherit
"""
STORAGE = '[storage]\ndriver = "overlay"\ngraphroot = "{0}/graph"\nrunroot = "/run/containers"\n'
FAILURES = 3


# systemd wants control groups of its own, where it may write.
_BOOT = """\
umount -R /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
exec /lib/systemd/systemd --unit=idle.target
"""
_IDLE = """\
[Unit]
Description=Nothing at all
DefaultDependencies=no
"""


class Systemd:
    """A systemd of a test's own: one service and nothing else, in a container on this host's files.

    The container has this host's root folder, and what it changes there is thrown away with it;
    only the test's folder is shared. Its network is this host's.
    """

    def __init__(self, folder: Path) -> None:
        """Share that folder with it."""
        self._folder = folder
        self._units = folder / "units"
        self._name = f"systemd-{uuid.uuid4().hex[:12]}"

    def __enter__(self) -> Self:
        """Boot it."""
        self._units.mkdir()
        (self._units / "idle.target").write_text(_IDLE)
        options = [
            *("--detach", "--name", self._name, "--privileged", "--network=host"),
            *("--systemd=false", "--env=container=podman", "--cgroupns=private"),
            *("--tmpfs=/run:rw,notmpcopyup", f"--volume={self._units}:/run/systemd/system"),
            f"--volume={self._folder}:{self._folder}",
        ]
        done = self._podman("run", *options, "--rootfs", "/:O", "/bin/sh", "-c", _BOOT)
        if done.returncode:
            pytest.fail(
                f"cannot boot systemd in a container, which needs root and podman: {done.stderr}",
                pytrace=False,
            )
        wait_for(lambda: "idle.target" in self._systemctl("list-units").stdout, DEADLINE_S)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End it, and everything in it."""
        self._podman("rm", "--force", "--time=0", self._name).check_returncode()

    def start(self, name: str, unit: str) -> None:
        """Start a service, whose unit is given as text; return when it is ready."""
        (self._units / name).write_text(unit)
        self._systemctl("daemon-reload").check_returncode()
        started = self._systemctl("start", name)
        assert started.returncode == 0, started.stderr

    def show(self, name: str, what: str) -> str:
        """Return a property of a service, such as NRestarts."""
        shown = self._systemctl("show", "--value", f"--property={what}", name)
        return shown.stdout.strip()

    def kill(self, name: str, number: int) -> None:
        """Send the main process of a service a signal."""
        self._systemctl("kill", "--kill-who=main", f"--signal={number}", name).check_returncode()

    def _systemctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._podman("exec", self._name, "systemctl", "--no-pager", *arguments)

    def _podman(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            as_root(["podman", *arguments]),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )


class Service:
    """The runner of a rig, as a service of systemd."""

    def __init__(self, rig: Rig, systemd: Systemd, folder: Path) -> None:
        """Start nothing yet."""
        self._rig = rig
        self._systemd = systemd
        self._folder = folder

    def start(self) -> None:
        """Write the unit as the rig has it now, and start it."""
        # Its engine has no image, and runs no task; without one, no work would be asked for.
        self._rig.engine.plan("image", Act.FAIL, exit_code=0, says="", always=True)
        (self._folder / "storage.conf").write_text(STORAGE.format(self._folder))
        variables = {
            **self._rig.runner.environment,
            "HOME": str(self._folder),
            "CONTAINERS_STORAGE_CONF": str(self._folder / "storage.conf"),
        }
        lines = (f"{name}={shlex.quote(text)}\n" for name, text in variables.items())
        (self._folder / "environment").write_text("".join(lines))
        unit = UNIT.format(
            watchdog_s=WATCHDOG_S,
            root=ROOT,
            folder=self._folder,
            command=" ".join([*self._rig.runner.command, *self._rig.runner.options]),
        )
        self._systemd.start(NAME, unit)

    @property
    def restarts(self) -> int:
        """How often systemd has restarted it."""
        return int(self._systemd.show(NAME, "NRestarts"))

    @property
    def log(self) -> str:
        """What the runner has logged."""
        return (self._folder / "service.log").read_text()

    def freeze(self) -> None:
        """Stop its process without ending it."""
        self._systemd.kill(NAME, signal.SIGSTOP)

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


@pytest.fixture
def service(podman_rig: Rig, tmp_path: Path) -> Iterator[Service]:
    """Yield the rig's runner as a service that is restarted unless it feeds the watchdog."""
    with Systemd(tmp_path) as systemd:
        yield Service(podman_rig, systemd, tmp_path)


def test_runner_whose_process_is_frozen_is_restarted(service: Service, podman_rig: Rig) -> None:
    service.start()
    podman_rig.wait_for_beat("idle")
    service.freeze()
    service.wait_for_restart()
    podman_rig.wait_for_beat("idle")
    assert len(podman_rig.orchestrator.nodes()) == 1


def test_runner_with_one_loop_that_is_stuck_is_restarted(service: Service, podman_rig: Rig) -> None:
    podman_rig.set_timings(host_check_timeout_s=1.0)
    service.start()
    podman_rig.wait_for_beat("idle")
    podman_rig.disks_hang.touch()
    wait_for(lambda: service.restarts, DEADLINE_S)  # and again, as long as the disk hangs
    assert "a loop is stuck loops=poll" in service.log
    podman_rig.disks_hang.unlink()
    service.wait_for_restart()
    asked = len(podman_rig.orchestrator.calls_of("GET", "/tasks/pending"))
    wait_for(
        lambda: len(podman_rig.orchestrator.calls_of("GET", "/tasks/pending")) > asked, DEADLINE_S
    )


def test_orchestrator_that_is_away_trips_no_watchdog(service: Service, podman_rig: Rig) -> None:
    rig = podman_rig
    rig.set_timings(call_timeout_s=4.0, connect_timeout_s=4.0, long_poll_s=1)
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
