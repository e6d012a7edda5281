"""The domain: frozen values and enums that every part of the runner shares.

Fields that end in `_at` are seconds since the epoch. `deadline_uptime_s` is seconds since the boot
that `boot_id` names.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple

from runner.redaction import Secret

_TASK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
MOST_MESSAGE_CHARS = 100_000
"""Of a status, as the reference orchestrator takes them; a longer one would be refused."""


class TaskState(str, Enum):
    """The state of a task in this runner's journal."""

    ACCEPTED = "accepted"
    """In the journal. Files and image are being fetched; no container was requested yet."""
    STARTING = "starting"
    """A container may have been requested; only the engine knows whether there is one."""
    RUNNING = "running"
    """The engine has said that the container runs."""
    ENDED = "ended"
    """The outcome is written down with the reports to deliver, or with a note that the log of the
    agent's session was not looked for yet: then the reports follow."""
    CLOSED = "closed"
    """Every report is delivered or parked, and the container is removed."""


TRANSITIONS: Mapping[TaskState, frozenset[TaskState]] = MappingProxyType(
    {
        TaskState.ACCEPTED: frozenset({TaskState.STARTING, TaskState.ENDED}),
        TaskState.STARTING: frozenset({TaskState.RUNNING, TaskState.ENDED}),
        TaskState.RUNNING: frozenset({TaskState.ENDED}),
        TaskState.ENDED: frozenset({TaskState.CLOSED}),
        TaskState.CLOSED: frozenset(),
    }
)


def check_transition(before: TaskState, after: TaskState) -> None:
    """Check that `TRANSITIONS` allows this step.

    Raises:
        ValueError: it does not. That is a defect of the runner.
    """
    if after not in TRANSITIONS[before]:
        raise ValueError(f"cannot move a task: no way from {before.value} to {after.value}")


class TaskStatus(str, Enum):
    """The status of a task at the orchestrator, in the words of its API."""

    PENDING = "pending"
    """It waits for a node."""
    ASSIGNED = "assigned"
    """Offered to a node that has not reported on it yet."""
    RUNNING = "running"
    """Its node has claimed it."""
    ANALYZING = "analyzing"
    """The agent in its container says that it works on the result."""
    SUCCESS = "success"
    ERROR = "error"
    CANCELLED = "cancelled"

    def __str__(self) -> str:  # an f-string shows the name from Python 3.12 on, and the word before
        return self.value

    @property
    def is_final(self) -> bool:
        """Whether no other status follows."""
        return self in {TaskStatus.SUCCESS, TaskStatus.ERROR, TaskStatus.CANCELLED}


class EndReason(str, Enum):
    """Why a task ended. The message of every `error` report begins with one of these words."""

    COMPLETED = "completed"
    """The container exited by itself with code 0."""
    FAILED = "failed"
    """The container exited by itself with another code."""
    TIMED_OUT = "timed_out"
    """The timeout of the task passed; the runner or the engine stopped the container."""
    CANCELLED = "cancelled"
    """The orchestrator or an operator cancelled the task."""
    OUT_OF_MEMORY = "out_of_memory"
    """The kernel killed the container for lack of memory, by the engine's own flag."""
    REJECTED = "rejected"
    """The assignment is invalid, or the policy of this host forbids it."""
    UNSTARTABLE = "unstartable"
    """Its files, its image or its container could not be provided."""
    LOST = "lost"
    """The container vanished, or its exit was not recorded."""

    @property
    def status(self) -> TaskStatus:
        """The final status to report: success or error."""
        return TaskStatus.SUCCESS if self is EndReason.COMPLETED else TaskStatus.ERROR


def state_diagram() -> str:
    """Return `TRANSITIONS` as a Mermaid state diagram; docs/architecture.md holds a copy."""
    lines = ["stateDiagram-v2", f"    [*] --> {TaskState.ACCEPTED.value}"]
    for before in TaskState:
        lines += [
            f"    {before.value} --> {after.value}"
            for after in TaskState
            if after in TRANSITIONS[before]
        ]
    lines.append(f"    {TaskState.CLOSED.value} --> [*]")
    return "\n".join(lines)


class Limits(NamedTuple):
    """The resources that a task's container may use; None leaves it to the engine."""

    memory: str | None = None
    """In the form of the engine's `--memory`: a number with b, k, m or g."""
    cpus: str | None = None
    """In the form of the engine's `--cpus`: a number of cores, which may have a fraction."""
    gpus: str | None = None
    """`all`, or the indices of devices, separated by commas."""


UNLIMITED = Limits()


class HomeMode(str, Enum):
    """What a container sees as its Victoria home."""

    SHARED = "shared"
    """The host's Victoria home, as all other tasks do."""
    TASK = "task"
    """A copy of it that is this task's alone."""


class PullPolicy(str, Enum):
    """When the image is pulled before a task, in the engines' own words."""

    NEWER = "newer"
    """Ask the registry each time; use the local image when it does not answer."""
    MISSING = "missing"
    """Pull only an image that is not on this host."""
    ALWAYS = "always"
    """Pull each time; the task does not start when the registry does not answer."""
    NEVER = "never"
    """Use only an image that is on this host."""


class Hardening(str, Enum):
    """Which rights are taken away from a container."""

    STRICT = "strict"
    """All capabilities too, and writing outside of the Victoria home, /tmp and /run."""
    DEFAULT = "default"
    """Those that no agent needs: new privileges, processes without end, three capabilities."""
    ENGINE = "engine"
    """None but those that the engine takes away by itself."""


class PromptAs(str, Enum):
    """How a container gets its task's prompt."""

    ARGUMENT = "argument"
    """By `--task`: every user of this host can read it in `ps`."""
    FILE = "file"
    """By the file that TASK_PROMPT_FILE names; the image must know that variable."""


@dataclass(frozen=True)
class Identity:
    """The node that this runner is at the orchestrator, and its key."""

    node_id: str
    api_key: Secret
    is_task_key: bool = False
    """Whether the key is one task's, from its container: only that task is reported with it."""


@dataclass(frozen=True)
class Registration:
    """An identity, what the node was described as, and what its orchestrator can do."""

    identity: Identity
    description: Mapping[str, object] | None
    """As `POST /register` took it; None for an identity that came from a container."""
    extensions: frozenset[str] = frozenset()
    """Those that the orchestrator named last."""


@dataclass(frozen=True)
class TaskFile:
    """A file that comes with a task; `sha256` is lower-case hex, None when not given."""

    name: str
    """The name by which the orchestrator has it."""
    sha256: str | None
    original_name: str | None = None
    """The name under which it was uploaded, with a number if another has it; None: unknown."""

    @property
    def local_name(self) -> str:
        """Its name in the task's folder, and so in the container."""
        return self.original_name or self.name


MAX_TIMEOUT_S = 366 * 24 * 3600
"""In the journal this is no limit."""


@dataclass(frozen=True)
class Assignment:
    """A task that may be run: every field was checked by `parse_assignment`."""

    task_id: str
    prompt: str
    orchestrator_url: str
    timeout_s: float
    """Infinite if the task has no limit."""
    files: tuple[TaskFile, ...] = ()
    task_key: Secret | None = None
    """The container's key, with which only this task is reported; None: it gets the node's."""

    def to_json(self) -> str:
        """Return the assignment, its key included, as JSON in the field names of the API."""
        checksums = [file.sha256 for file in self.files]
        # Not a column: the version before reads the journal as well, and ignores this field.
        key = {} if self.task_key is None else {"task_api_key": self.task_key.reveal()}
        originals = [file.original_name for file in self.files]
        return json.dumps(
            {
                "task_id": self.task_id,
                "prompt": self.prompt,
                "orchestrator_url": self.orchestrator_url,
                "timeout_seconds": min(self.timeout_s, MAX_TIMEOUT_S),
                "files": [file.name for file in self.files],
                "file_checksums": checksums if any(checksums) else None,
                **({"original_names": originals} if any(originals) else {}),
                **key,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Assignment:
        """Parse what `to_json` returned, without checking it again.

        A later version may check more strictly, and must not fail a task that is under way.
        """
        raw = json.loads(text)
        timeout_s = raw["timeout_seconds"]
        names = raw["files"]
        unknown = [None] * len(names)
        checksums = raw["file_checksums"] or unknown
        originals = raw.get("original_names") or unknown
        return cls(
            task_id=raw["task_id"],
            prompt=raw["prompt"],
            orchestrator_url=raw["orchestrator_url"],
            # To the version before, 0 is no time at all.
            timeout_s=timeout_s if timeout_s < MAX_TIMEOUT_S else math.inf,
            files=tuple(TaskFile(*file) for file in zip(names, checksums, originals, strict=True)),
            task_key=Secret(raw["task_api_key"]) if "task_api_key" in raw else None,
        )


def is_task_id(text: str) -> bool:
    """Return whether a text can be a task's id, which is part of paths and names."""
    return _TASK_ID.fullmatch(text) is not None


@dataclass(frozen=True)
class Task:
    """A task in the journal; a field is None until it is known."""

    task_id: str
    state: TaskState
    orchestrator_url: str
    assignment: Assignment | None
    accepted_at: float
    identity: Identity | None = None
    """The node that accepted it; None once that identity was refused."""
    boot_id: str | None = None
    engine: str | None = None
    container_id: str | None = None
    started_at: float | None = None
    deadline_uptime_s: float | None = None
    stop_reason: EndReason | None = None
    stop_asked_at: float | None = None
    end_reason: EndReason | None = None
    exit_code: int | None = None
    message: str | None = None
    ended_at: float | None = None
    is_log_pending: bool = False
    """Whether its final reports wait until the log of the agent's session was looked for."""
    prompt_digest: str | None = None
    """In place of a closed task's prompt; None if unknown, or closed by an earlier version."""

    @property
    def outcome(self) -> Outcome | None:
        """The outcome; None until the task has ended."""
        if self.end_reason is None:
            return None
        return Outcome(self.end_reason, self.message or "", self.exit_code)


OUTPUT = "output"
"""The extension by which a node sends what its tasks print, and the path of these reports."""
ARTIFACTS = "artifacts"
"""The extension by which it sends the files that a task makes, and the path of that report."""


@dataclass(frozen=True)
class Report:
    """A report for the outbox: `body` is posted to `path`.

    That is `status`, `logs` or, of a chunk of output, `output`. With the path `artifacts` it is the
    progress of an upload, and not sent itself.
    """

    path: str
    body: Mapping[str, object]


@dataclass(frozen=True)
class OutboxEntry:
    """A report in the outbox, without its body, which may be long."""

    row: int
    task_id: str
    path: str
    orchestrator_url: str
    created_at: float
    attempts: int
    next_attempt_at: float
    parked: str | None

    @property
    def is_log(self) -> bool:
        """Whether it is a task's log, which may be long and may be given up, or its status."""
        return self.path == "logs"

    @property
    def is_artifacts(self) -> bool:
        """Whether it stands for a task's artifacts, which are uploaded before its status."""
        return self.path == ARTIFACTS

    @property
    def is_output(self) -> bool:
        """Whether it is a chunk of a task's output."""
        return self.path == OUTPUT


@dataclass(frozen=True)
class OutputProgress:
    """How far a task's output is in the outbox, or delivered."""

    anchor: str = ""
    skip: int = 0
    """The next place in the engine's log, see `engine.base.OutputPosition`."""
    length: int = 0
    """The bytes of the redacted text so far: the offset of the next chunk."""
    is_done: bool = False
    """Whether its last chunk is there, or it was given up."""


@dataclass(frozen=True)
class Outcome:
    """How a task ended; `message` is for the operator and the orchestrator."""

    reason: EndReason
    message: str
    exit_code: int | None = None


def status_body(
    task_id: str, status: TaskStatus, message: str | None, now: float
) -> dict[str, object]:
    """Return a body for `POST /status`; `now` is in seconds since the epoch."""
    return {
        "job_id": task_id,
        "task_id": task_id,
        "status": status.value,
        "message": message,
        "timestamp": datetime.fromtimestamp(now, timezone.utc).isoformat(),
    }


def log_body(task_id: str, session: Mapping[str, object]) -> dict[str, object]:
    """Return a body for `POST /logs`."""
    return {"job_id": task_id, "task_id": task_id, "session": session}


def output_chunk(offset: int, text: str, *, is_done: bool = False) -> Report:
    """Return a chunk of a task's output; `offset` counts UTF-8 bytes."""
    done = {"done": True} if is_done else {}
    return Report(OUTPUT, {"offset": offset, "text": text, **done})
