"""What a task and a node can be, and the one table of what may follow what."""

from enum import Enum


class TaskStatus(str, Enum):
    """Where a task stands."""

    PENDING = "pending"
    ASSIGNED = "assigned"
    RUNNING = "running"
    ANALYZING = "analyzing"
    SUCCESS = "success"
    ERROR = "error"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Nothing follows a final status."""
        return not TRANSITIONS[self]

    def may_become(self, following: "TaskStatus") -> bool:
        """Say whether the table of transitions has this step."""
        return following in TRANSITIONS[self]


class NodeStatus(str, Enum):
    """What a node says of itself; `offline` is also what a silent one is shown as."""

    IDLE = "idle"
    BUSY = "busy"
    OFFLINE = "offline"
    ERROR = "error"


_UNDER_WAY = frozenset(
    {
        TaskStatus.RUNNING,
        TaskStatus.ANALYZING,
        TaskStatus.SUCCESS,
        TaskStatus.ERROR,
        TaskStatus.CANCELLED,
    }
)

TRANSITIONS: dict[TaskStatus, frozenset[TaskStatus]] = {
    TaskStatus.PENDING: frozenset({TaskStatus.ASSIGNED, TaskStatus.CANCELLED}),
    # Back to pending when its node fell silent before it reported anything.
    TaskStatus.ASSIGNED: _UNDER_WAY | {TaskStatus.PENDING},
    # To itself as well: a progress report is a step.
    TaskStatus.RUNNING: _UNDER_WAY,
    TaskStatus.ANALYZING: _UNDER_WAY,
    TaskStatus.SUCCESS: frozenset(),
    TaskStatus.ERROR: frozenset(),
    TaskStatus.CANCELLED: frozenset(),
}

HELD = (TaskStatus.ASSIGNED, TaskStatus.RUNNING, TaskStatus.ANALYZING)
"""The statuses in which a task is in a node's hands."""
