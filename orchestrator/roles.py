"""What a scoped key may do: each permission, and which role has it."""

from enum import Enum


class Permission(str, Enum):
    """One kind of call that a key may make."""

    CREATE_TASKS = "tasks:create"
    UPLOAD_FILES = "files:upload"
    READ_TASKS = "tasks:read"
    CANCEL_TASKS = "tasks:cancel"
    READ_LOGS = "logs:read"
    CLEAN_UP_TASKS = "tasks:cleanup"
    READ_NODES = "nodes:read"
    REMOVE_NODES = "nodes:remove"
    READ_STATISTICS = "statistics:read"
    MANAGE_KEYS = "keys:manage"


class Role(str, Enum):
    """A named set of permissions; all but the admin see only tasks of their own."""

    SUBMITTER = "submitter"
    OPERATOR = "operator"
    ADMIN = "admin"


_SUBMITTING = frozenset({Permission.CREATE_TASKS, Permission.UPLOAD_FILES})

PERMISSIONS: dict[Role, frozenset[Permission]] = {
    Role.SUBMITTER: _SUBMITTING,
    Role.OPERATOR: _SUBMITTING
    | {Permission.READ_TASKS, Permission.CANCEL_TASKS, Permission.READ_LOGS},
    Role.ADMIN: frozenset(Permission),
}
