"""The task that this container works on, and its agent's session in Crush's database."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import anyio

from runner.crush.sessions import (
    Candidates,
    CrushError,
    SessionQuery,
    find_sessions,
    read_session,
    session_mark,
)
from runner.errors import ConfigurationError, RunnerError, Unavailable
from runner.model import Identity, is_task_id
from runner.redaction import Secret, proxy_secrets, secrets_in
from runner.timing import ReporterTimings

DEFAULT_HOME = "/workspace/Victoria"
_PROCESSES = Path("/proc")
_MOST_BYTES = 1 << 20
_HEADER_SAFE = re.compile(r"[\x21-\x7e]*")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What the reporter knows of its task."""

    task_id: str
    orchestrator_url: str
    identity: Identity
    """Only its key counts: the task's own, or the node's. Empty where none was given."""
    home: Path
    started_at: float
    """When the container started, in seconds since the epoch."""
    prompt: str | None
    """What the agent was asked, where it can still be seen."""
    artifacts_dir: str | None = None
    """The folder for the files that the task makes; None where the runner names none."""
    named_secrets: tuple[Secret, ...] = ()
    """The values of those variables that the runner's operator gave to the container, and the
    passwords of its proxies."""

    @property
    def secrets(self) -> list[str]:
        """Return the texts to redact from reports and logs."""
        texts = [secret.reveal() for secret in (self.identity.api_key, *self.named_secrets)]
        # The engines keep a value's quotes; a program that prints it may drop them.
        return [*texts, *(text.strip("\"'") for text in texts)]

    @property
    def database(self) -> Path:
        """The path of Crush's database."""
        return self.home / ".crush" / "crush.db"


def missing_in(variables: Mapping[str, str]) -> str | None:
    """Return the name of a required variable that is not set."""
    if not variables.get("ORCHESTRATOR_URL"):
        return "ORCHESTRATOR_URL"
    return None if variables.get("JOB_ID") or variables.get("TASK_ID") else "JOB_ID"


def job_in(variables: Mapping[str, str], processes: Path = _PROCESSES) -> Job:
    """Parse the variables of a job, none of which is missing.

    Raises:
        ConfigurationError: a variable cannot be used.
    """
    task_id = variables.get("JOB_ID") or variables["TASK_ID"]
    if not is_task_id(task_id):
        raise ConfigurationError(f"cannot use JOB_ID {task_id[:80]!r}: it is not a task id")
    url = variables["ORCHESTRATOR_URL"].rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(f"cannot use ORCHESTRATOR_URL {url[:80]!r}: it is not an http URL")
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
        artifacts_dir=variables.get("TASK_ARTIFACTS_DIR") or None,
        named_secrets=(*secrets_in(variables), *proxy_secrets(variables)),
    )


def _started_at(processes: Path) -> float:
    """Return the start time of process 1, which is the container's, or else of this process."""
    for process in ("1", "self"):
        try:
            stat = (processes / process / "stat").read_text(encoding="utf-8", errors="replace")
            ticks = int(stat.rpartition(")")[2].split()[19])  # starttime, proc(5)
        except (OSError, ValueError, IndexError):
            continue
        lived_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        return time.time() - lived_s
    return time.time()


def _prompt(processes: Path) -> str | None:
    """Return what follows `--task` in the arguments of process 1, as one of them or in the next."""
    try:
        with (processes / "1" / "cmdline").open("rb") as file:
            arguments = iter(file.read(_MOST_BYTES).split(b"\0"))
    except OSError:
        return None
    for argument in arguments:
        name, equals, prompt = argument.partition(b"=")
        if name == b"--task":
            prompt = prompt if equals else next(arguments, b"")
            return prompt.decode("utf-8", "replace") or None
    return None


class NothingToHandIn(RunnerError):
    """No session is certain to be this task's."""


class JobSession:
    """The session of the task's agent, looked up when it is needed until it is known."""

    def __init__(self, job: Job, timings: ReporterTimings) -> None:
        self._job = job
        self._wanted = SessionQuery(job.started_at, None, job.prompt, session_mark(job.task_id))
        self._timeout_s = timings.session_id_timeout_s
        self._id: str | None = None

    async def known_id(self) -> str | None:
        """Return its id, or None after a short timeout: a report is sent without it as well."""
        if self._id is None:
            with anyio.move_on_after(self._timeout_s):
                try:
                    candidates = await find_sessions(self._job.database, self._wanted)
                    self._id = candidates.ids[0] if candidates.certain else None
                except CrushError as error:
                    log.warning("%s", error)
        return self._id

    async def read(self, session_id: str | None, until: float) -> Mapping[str, object]:
        """Return the task's latest session, or the one that is named, as `POST /logs` takes it.

        Raises:
            NothingToHandIn: this task has no such session.
            CrushError: the database cannot be read.
            Unavailable: it takes until after `until`, a time on the event loop's clock.
        """
        try:
            with anyio.fail_after(max(0.0, until - anyio.current_time())):
                return await self._read(session_id)
        except TimeoutError:
            raise Unavailable("reading the Crush database takes too long") from None

    async def _read(self, session_id: str | None) -> Mapping[str, object]:
        candidates = await find_sessions(self._job.database, self._wanted)
        if session_id is None:
            session_id = self._latest(candidates)
        if session_id not in candidates.ids:
            raise NothingToHandIn(f"this task has no session {session_id[:80]!r}")
        session = await read_session(self._job.database, session_id, secrets=self._job.secrets)
        if session is None:
            raise NothingToHandIn(f"the session {session_id!r} is gone")
        return session

    def _latest(self, candidates: Candidates) -> str:
        if not candidates.ids:
            raise NothingToHandIn(f"{self._job.database} has no session of this task")
        if not candidates.certain:
            raise NothingToHandIn(
                f"{len(candidates.ids)} sessions could be this task's; now that you have read "
                f"{session_mark(self._job.task_id)}, call this tool again"
            )
        return candidates.ids[0]
