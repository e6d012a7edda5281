"""The domain: states, outcomes, tasks, reports and what else all parts of the runner speak of.

Moments are seconds since the epoch, but for `deadline_uptime_s`, which counts from the boot named
in `boot_id`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple

from runner.redaction import Secret

TASK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


class TaskState(str, Enum):
    """Where a task is on its way through this runner, as the journal says it."""

    ACCEPTED = "accepted"
    """Written down; its files and image are being fetched. No container was asked for."""
    STARTING = "starting"
    """The engine may have been asked for a container; whether there is one, it knows."""
    RUNNING = "running"
    """The engine said that the container runs."""
    ENDED = "ended"
    """The end is written down together with the reports that are to be delivered."""
    CLOSED = "closed"
    """Every report is delivered or parked, and the container is gone."""


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
    """Let an allowed transition pass.

    Raises:
        ValueError: the transition is not in the table. That is a defect of ours.
    """
    if after not in TRANSITIONS[before]:
        raise ValueError(f"cannot move a task: no way from {before.value} to {after.value}")


class EndReason(str, Enum):
    """Why a task ended. The message of every `error` report begins with one of these words."""

    COMPLETED = "completed"
    """The container ended by itself with exit code 0."""
    FAILED = "failed"
    """The container ended by itself with another exit code."""
    TIMED_OUT = "timed_out"
    """The time limit was up; the runner or the engine ended the container."""
    CANCELLED = "cancelled"
    """The orchestrator or an operator called it off."""
    OUT_OF_MEMORY = "out_of_memory"
    """The kernel ended the container for want of memory, by the engine's own flag."""
    REJECTED = "rejected"
    """The assignment cannot be obeyed, or local policy forbids it."""
    UNSTARTABLE = "unstartable"
    """Its files, its image or its container could not be had."""
    LOST = "lost"
    """The container vanished, or its end was not recorded by anyone."""

    @property
    def status(self) -> str:
        """The word that `POST /status` takes for this end: success or error."""
        return "success" if self is EndReason.COMPLETED else "error"


def state_diagram() -> str:
    """Draw the transition table as a Mermaid state diagram; docs/architecture.md holds a copy."""
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
    """What a task's container may use; None leaves it to the engine."""

    memory: str | None = None
    """As the engine's `--memory` takes it: a number with b, k, m or g."""
    cpus: str | None = None
    """As the engine's `--cpus` takes it: a number of cores, with a fraction if wanted."""
    gpus: str | None = None
    """`all`, or the devices' indices with commas between them."""


UNLIMITED = Limits()


class PullPolicy(str, Enum):
    """When the image is fetched before a task, in the engines' own words."""

    NEWER = "newer"
    """Ask the registry each time; go on with the image at hand when it does not answer."""
    MISSING = "missing"
    """Fetch only what is not on this host."""
    ALWAYS = "always"
    """Fetch each time; without an answer the task does not start."""
    NEVER = "never"
    """Use only what is on this host."""


@dataclass(frozen=True)
class Identity:
    """Who the runner is to the orchestrator."""

    node_id: str
    api_key: Secret


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
    """One file that comes with a task; `sha256` is lower-case hex, None when not given."""

    name: str
    sha256: str | None


@dataclass(frozen=True)
class Assignment:
    """A task that may be run: every field has been checked."""

    task_id: str
    prompt: str
    orchestrator_url: str
    timeout_s: float
    files: tuple[TaskFile, ...] = ()

    def to_json(self) -> str:
        """Write it down in the orchestrator's own field names, for `parse_assignment` to read."""
        checksums = [file.sha256 for file in self.files]
        return json.dumps(
            {
                "task_id": self.task_id,
                "prompt": self.prompt,
                "orchestrator_url": self.orchestrator_url,
                "timeout_seconds": self.timeout_s,
                "files": [file.name for file in self.files],
                "file_checksums": checksums if all(checksums) else None,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Assignment:
        """Read what `to_json` wrote, unchecked: it was checked before it was written down.

        A later version may check more strictly, and what is under way must not fail by that.
        """
        raw = json.loads(text)
        names = raw["files"]
        checksums = raw["file_checksums"] or [None] * len(names)
        return cls(
            task_id=raw["task_id"],
            prompt=raw["prompt"],
            orchestrator_url=raw["orchestrator_url"],
            timeout_s=raw["timeout_seconds"],
            files=tuple(TaskFile(*pair) for pair in zip(names, checksums, strict=True)),
        )


def is_task_id(text: str) -> bool:
    """Tell whether a text may stand as a task's id in paths and names."""
    return TASK_ID.fullmatch(text) is not None


@dataclass(frozen=True)
class Task:
    """A task as the journal knows it; None where it has not come to that yet."""

    task_id: str
    state: TaskState
    orchestrator_url: str
    assignment: Assignment | None
    accepted_at: float
    identity: Identity | None = None
    """Who took it on; None when that identity was refused since."""
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

    @property
    def outcome(self) -> Outcome | None:
        """Give how it ended, if it has."""
        if self.end_reason is None:
            return None
        return Outcome(self.end_reason, self.message or "", self.exit_code)


@dataclass(frozen=True)
class Report:
    """One thing to tell the orchestrator: `path` is status or logs, `body` what is posted there."""

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
        """Tell a task's log, which may be long and may be missed, from its status."""
        return self.path == "logs"


@dataclass(frozen=True)
class Outcome:
    """How a task ended; `message` is what the operator and the orchestrator are told."""

    reason: EndReason
    message: str
    exit_code: int | None = None


def status_body(task_id: str, status: str, message: str | None, now: float) -> dict[str, object]:
    """Give what `POST /status` takes; `now` is in seconds since the epoch."""
    return {
        "job_id": task_id,
        "task_id": task_id,
        "status": status,
        "message": message,
        "timestamp": datetime.fromtimestamp(now, timezone.utc).isoformat(),
    }


def log_body(task_id: str, session: Mapping[str, object]) -> dict[str, object]:
    """Give what `POST /logs` takes."""
    return {"job_id": task_id, "task_id": task_id, "session": session}
