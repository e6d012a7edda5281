"""A docker daemon of a test's own, which may be ended in the middle of a task."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.orchestrator.serving import wait_for
from tools.dev.shell import as_root

if TYPE_CHECKING:
    from tests.engines import Engine

START_DEADLINE_S = 120.0
# What works on a machine that allows little, too.
_FLAGS = (
    *("--iptables=false", "--bridge=none", "--host-gateway-ip=127.0.0.1"),
    *("--exec-opt=native.cgroupdriver=cgroupfs", "--storage-driver=vfs"),
)


class DockerDaemon:
    """dockerd without live-restore, with its store in a folder."""

    def __init__(self, folder: Path) -> None:
        """Start nothing yet; the folder's path must be short, for there is a socket in it."""
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.host = f"unix://{folder}/sock"
        """What DOCKER_HOST is to be."""

    def start(self) -> None:
        """Start it; return when it answers."""
        folder = self._folder
        with (folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                as_root(
                    [
                        *("dockerd", f"--host={self.host}", f"--group={os.getgid()}"),
                        *(f"--data-root={folder}/data", f"--exec-root={folder}/exec"),
                        *(f"--pidfile={folder}/pid", *_FLAGS),
                    ]
                ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_for(self._answers, START_DEADLINE_S)

    def load(self, image: str, source: Engine) -> None:
        """Bring an image in from another engine."""
        archive = self._folder / "image.tar"
        with archive.open("wb") as file:
            form = ["--format", "docker-archive"] if source.name == "podman" else []
            subprocess.run([source.name, "save", *form, image], stdout=file, check=True)
        self._docker("load", "--input", str(archive)).check_returncode()
        archive.unlink()

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it, if it runs."""
        if self._process is None or self._process.poll() is not None:
            return
        pid = (self._folder / "pid").read_text().strip()
        subprocess.run(as_root(["kill", f"-{how.value}", pid]), check=True)
        self._process.wait(START_DEADLINE_S)
        # Its containerd has gone with it; where nobody reaps, a zombie would pass for it.
        pid_file = self._folder / "exec" / "containerd" / "containerd.pid"
        subprocess.run(as_root(["rm", "-f", str(pid_file)]), check=True)

    def remove(self) -> None:
        """End it and remove its folder, in which it leaves mounts."""
        self.end()
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for place in reversed(mounts):
            if place.startswith(f"{self._folder}/"):
                subprocess.run(as_root(["umount", "--lazy", place]), check=True)
        subprocess.run(as_root(["rm", "-rf", str(self._folder)]), check=True)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "log").read_text()[-2000:]
        return self._docker("info").returncode == 0

    def _docker(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["docker", f"--host={self.host}", *arguments],
            capture_output=True,
            timeout=START_DEADLINE_S,
            check=False,
        )
