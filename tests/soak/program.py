"""A process that is killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0


@dataclass
class Program:
    """A process that comes and goes, and its log."""

    log_path: Path
    command: list[str]
    environment: dict[str, str]
    sessions: list[int] = field(default_factory=list)
    """Every start is a session of its own, which its children share."""
    _process: subprocess.Popen[bytes] | None = None

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """What the last start ended with; None while it runs."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """Start it, in a session of its own."""
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.sessions.append(self._process.pid)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def wait(self, deadline_s: float = DEADLINE_S) -> None:
        """Wait for its end."""
        if self._process is not None:
            self._process.wait(deadline_s)

    def end(self) -> None:
        """Kill it, and whatever its starts have left behind."""
        self.signal(signal.SIGKILL)
        self.wait()
        for pid in self.left_behind():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def left_behind(self) -> list[int]:
        """Return the processes of its sessions; conmon has a session of its own."""
        pids = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, ValueError, IndexError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) in self.sessions and fields[0] != "Z":
                    pids.append(int(folder.name))
        return pids

    def log_size(self) -> int:
        """Return how much it has logged, in bytes."""
        return self.log_path.stat().st_size if self.log_path.exists() else 0

    def logged_since(self, start: int) -> str:
        """Return what it has logged after so many bytes."""
        with self.log_path.open("rb") as log:
            log.seek(start)
            return log.read().decode(errors="replace")
