"""A task's states, the transitions allowed between them, and the reasons for which it ends."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType


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
