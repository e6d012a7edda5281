"""A runner that is stuck is restarted by a real systemd; one that only waits is left alone."""

from __future__ import annotations

import shlex
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.faults.engine import Act
from tests.faults.systemd import Systemd
from tests.faults.test_engine_faults import wait_for_beat
from tests.harness.proxy import Fault
from tests.harness.runner_process import DEADLINE_S, ROOT
from tests.orchestrator.serving import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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
REGISTERING, POLLING = "cannot register: ", "Error polling for tasks: "


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
        """Have its process do nothing any more."""
        self._systemd.kill(NAME, signal.SIGSTOP)

    def wait_for_restart(self) -> None:
        """Wait until systemd has ended it for the watchdog's sake, and started it again."""
        wait_for(lambda: self.restarts, DEADLINE_S)
        wait_for(lambda: self.log.count("INFO starting") > 1, DEADLINE_S)

    def wait_through_failures(self, text: str) -> None:
        """Wait until the log has a text some more times, and the watchdog could have bitten."""
        seen = self.log.count(text)
        until = time.monotonic() + 2 * WATCHDOG_S

        def has_been_patient() -> bool:
            return time.monotonic() > until and self.log.count(text) >= seen + FAILURES

        wait_for(has_been_patient, 2 * WATCHDOG_S + DEADLINE_S)


@pytest.fixture
def service(podman_rig: Rig, tmp_path: Path) -> Iterator[Service]:
    """Give the rig's runner as a service that is fed every six seconds, or restarted."""
    with Systemd(tmp_path) as systemd:
        yield Service(podman_rig, systemd, tmp_path)


def test_runner_whose_process_is_frozen_is_restarted(service: Service, podman_rig: Rig) -> None:
    service.start()
    wait_for_beat(podman_rig, "idle")
    service.freeze()
    service.wait_for_restart()
    wait_for_beat(podman_rig, "idle")
    assert len(podman_rig.orchestrator.nodes()) == 1


def test_runner_with_one_loop_that_is_stuck_is_restarted(service: Service, podman_rig: Rig) -> None:
    podman_rig.set_timings(host_check_timeout_s=1.0)
    service.start()
    wait_for_beat(podman_rig, "idle")
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
    service.wait_through_failures(REGISTERING)
    rig.proxy.accept()
    wait_for_beat(rig, "idle")
    rig.proxy.refuse()
    service.wait_through_failures(POLLING)
    rig.proxy.plan("*", "*", *[Fault.hold_request()] * 100)
    rig.proxy.accept()
    service.wait_through_failures(POLLING)
    rig.proxy.clear()
    wait_for_beat(rig, "idle")
    assert service.restarts == 0
    assert "stuck" not in service.log
