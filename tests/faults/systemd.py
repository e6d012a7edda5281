"""A systemd of a test's own: one service and nothing else, in a container on this host's files.

with Systemd(folder) as systemd:
    systemd.start(SERVICE)
    systemd.show("NRestarts")

The container has this host's root folder, and what it changes there is thrown away with it; only
the test's folder is shared. Its network is this host's.
"""

from __future__ import annotations

import subprocess
import uuid
from typing import TYPE_CHECKING

import pytest

from tests.orchestrator.serving import wait_for
from tools.dev.shell import as_root

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

DEADLINE_S = 120.0
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
    """A service manager as process 1 of a container, from entering to leaving."""

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
