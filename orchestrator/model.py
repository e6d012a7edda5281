"""The domain: what tasks and nodes can be, roles of keys, targeting, and times."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum

from cronsim import CronSim, CronSimError


class TaskStatus(str, Enum):
    """The status of a task."""

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
        """Return whether the table of transitions allows this step."""
        return following in TRANSITIONS[self]


class NodeStatus(str, Enum):
    """What a node reports of itself; a silent node is shown as `offline`."""

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
"""The statuses in which a node holds the task."""


ADMIN_ID = "admin"
"""The id of the admin key in the database and in the audit log; that of a scoped key is a UUID."""


class Permission(str, Enum):
    """One kind of request that a key may make."""

    CREATE_TASKS = "tasks:create"
    UPLOAD_FILES = "files:upload"
    READ_TASKS = "tasks:read"
    CANCEL_TASKS = "tasks:cancel"
    READ_LOGS = "logs:read"
    READ_OUTPUT = "output:read"
    READ_ARTIFACTS = "artifacts:read"
    CLEAN_UP_TASKS = "tasks:cleanup"
    PURGE_TASKS = "tasks:purge"
    READ_NODES = "nodes:read"
    REMOVE_NODES = "nodes:remove"
    PAUSE_NODES = "nodes:pause"
    ROTATE_NODE_KEYS = "nodes:rotate-key"
    READ_STATISTICS = "statistics:read"
    MANAGE_KEYS = "keys:manage"
    MANAGE_TOKENS = "tokens:manage"


class Role(str, Enum):
    """A named set of permissions; all but the admin see only their own tasks."""

    SUBMITTER = "submitter"
    OPERATOR = "operator"
    ADMIN = "admin"


_SUBMITTING = frozenset({Permission.CREATE_TASKS, Permission.UPLOAD_FILES})

PERMISSIONS: dict[Role, frozenset[Permission]] = {
    Role.SUBMITTER: _SUBMITTING,
    Role.OPERATOR: _SUBMITTING
    | {
        Permission.READ_TASKS,
        Permission.CANCEL_TASKS,
        Permission.READ_LOGS,
        Permission.READ_OUTPUT,
        Permission.READ_ARTIFACTS,
    },
    Role.ADMIN: frozenset(Permission),
}


@dataclass(frozen=True)
class Target:
    """Conditions on the node; one that is None does not restrict."""

    node_id: str | None = None
    node_name: str | None = None
    tags: Mapping[str, str] | None = None


@dataclass(frozen=True)
class NodeIdentity:
    """What targeting compares, as of the node's last registration."""

    id: str
    name: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Reporter:
    """Who reports on tasks: a node, or the holder of a key that is limited to some of its tasks.

    The key of a task is limited to one assignment of that task. A node key that was rotated is
    limited to tasks that were assigned until then.
    """

    node: NodeIdentity
    task_id: str | None = None
    assignment_number: int | None = None
    assigned_until: datetime | None = None

    @property
    def is_node(self) -> bool:
        """Whether it showed the node's own key."""
        return self.task_id is None and self.assigned_until is None


def matches(target: Target, node: NodeIdentity) -> bool:
    """Return whether the node meets every condition of the target."""
    if target.node_id is not None and target.node_id != node.id:
        return False
    if target.node_name is not None and not name_matches(target.node_name, node.name):
        return False
    return all(node.tags.get(key) == wanted for key, wanted in (target.tags or {}).items())


def name_matches(pattern: str, name: str) -> bool:
    """Return whether the pattern matches the whole name, case-sensitively; `*` is any text.

    Nothing is compiled: thousands of tasks may each have a pattern of their own.
    """
    first, *others = pattern.split("*")
    if not others:
        return name == pattern
    *inner, last = others
    if len(name) < len(first) + len(last):
        return False
    if not (name.startswith(first) and name.endswith(last)):
        return False
    start, end = len(first), len(name) - len(last)
    for text in inner:
        # The leftmost place leaves the most room for what follows.
        found = name.find(text, start, end)
        if found < 0:
            return False
        start = found + len(text)
    return True


def lies_within(pattern: str, allowed: Iterable[str]) -> bool:
    """Return whether one of the allowed patterns matches all that this pattern matches.

    That is so if it matches the pattern's own text, with its `*` as an ordinary character.
    """
    return any(name_matches(one, pattern) for one in allowed)


def utc_now() -> datetime:
    """Return the current time as an aware datetime."""
    return datetime.now(timezone.utc)


_NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


def check_expression(expression: str, now: datetime) -> None:
    """Raise ValueError for a cron expression that is invalid, never fires, or fires too often."""
    try:
        times = _times(expression, now)
    except CronSimError as error:
        raise ValueError(f"cannot be read as a cron expression: {error}".lower()) from error
    if len(times.seconds) > 1:
        raise ValueError("fires more than once a minute: give one second, or leave the field out")
    if next_time(expression, now) is None:
        raise ValueError("never fires: no date matches all of its fields")


def _times(expression: str, after: datetime) -> CronSim:
    # Naive, so that cronsim applies no daylight saving.
    naive = after.replace(tzinfo=None)
    return CronSim(_NICKNAMES.get(expression.strip().lower(), expression), naive)


def next_time(expression: str, after: datetime) -> datetime | None:
    """Return the next time of a cron expression in UTC, or None if there is none."""
    try:
        following: datetime = next(_times(expression, after))
    except (StopIteration, OverflowError):
        return None
    return following.replace(tzinfo=after.tzinfo)
