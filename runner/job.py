"""The task that a container works on, as a process inside finds it: variables and process 1."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runner.api import Identity
from runner.assignment import is_task_id
from runner.errors import ConfigurationError
from runner.marks import SECRETS_VARIABLE
from runner.settings import Secret

DEFAULT_HOME = "/workspace/Victoria"

_PROCESSES = Path("/proc")
_MOST_BYTES = 1 << 20
_HEADER_SAFE = re.compile(r"[\x21-\x7e]*")


@dataclass(frozen=True)
class Job:
    """What the reporter knows of its task."""

    task_id: str
    orchestrator_url: str
    identity: Identity
    """The node that the container may speak for; its key is empty where none was given."""
    home: Path
    started_at: float
    """When the container started, in seconds since the epoch."""
    prompt: str | None
    """What the agent was asked, where it can still be seen."""
    named_secrets: tuple[Secret, ...] = ()
    """The values of those variables that the runner's operator gave to the container."""

    @property
    def secrets(self) -> list[str]:
        """Give the texts that nothing that is told of the task may carry."""
        texts = [secret.reveal() for secret in (self.identity.api_key, *self.named_secrets)]
        # The engines keep the quotes of a value; who prints it may not.
        return [*texts, *(text.strip("\"'") for text in texts)]

    @property
    def database(self) -> Path:
        """Where Crush keeps its sessions."""
        return self.home / ".crush" / "crush.db"


def missing_in(variables: Mapping[str, str]) -> str | None:
    """Name what is not set and without which there is nobody to report to."""
    if not variables.get("ORCHESTRATOR_URL"):
        return "ORCHESTRATOR_URL"
    return None if variables.get("JOB_ID") or variables.get("TASK_ID") else "JOB_ID"


def job_in(variables: Mapping[str, str], processes: Path = _PROCESSES) -> Job:
    """Read the job, of which nothing is missing.

    Raises:
        ConfigurationError: a variable cannot be used.
    """
    task_id = variables.get("JOB_ID") or variables["TASK_ID"]
    if not is_task_id(task_id):
        raise ConfigurationError(f"cannot use JOB_ID {task_id[:80]!r}: it is no task's id")
    url = variables["ORCHESTRATOR_URL"].rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(f"cannot use ORCHESTRATOR_URL {url[:80]!r}: it is no http URL")
    key = variables.get("NODE_API_KEY", "")
    if not _HEADER_SAFE.fullmatch(key):
        raise ConfigurationError("cannot use NODE_API_KEY: it has characters that no key has")
    return Job(
        task_id=task_id,
        orchestrator_url=url,
        identity=Identity("", Secret(key)),
        home=Path(variables.get("VICTORIA_HOME") or DEFAULT_HOME),
        started_at=_started_at(processes),
        prompt=_prompt(processes),
        named_secrets=tuple(
            Secret(variables[name])
            for name in variables.get(SECRETS_VARIABLE, "").split()
            if name in variables
        ),
    )


def _started_at(processes: Path) -> float:
    """Tell when process 1 began, which is the container's start; or else this process."""
    for process in ("1", "self"):
        try:
            told = (processes / process / "stat").read_text(encoding="utf-8", errors="replace")
            ticks = int(told.rpartition(")")[2].split()[19])  # starttime, proc(5)
        except (OSError, ValueError, IndexError):
            continue
        lived_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        return time.time() - lived_s
    return time.time()


def _prompt(processes: Path) -> str | None:
    """Read what follows `--task` in the arguments of process 1."""
    try:
        with (processes / "1" / "cmdline").open("rb") as file:
            arguments = file.read(_MOST_BYTES).split(b"\0")
        return arguments[arguments.index(b"--task") + 1].decode("utf-8", "replace") or None
    except (OSError, ValueError, IndexError):
        return None
