"""What of the fleet a key reads and changes.

A key below the role `admin`: the tasks that it created. An admin key that is limited to patterns:
the nodes within them, the tasks that target such nodes, and its own tasks. The rest does not exist
for it.
"""

from collections.abc import Iterable
from typing import TypeVar

from sqlalchemy import ColumnElement, false, or_, select, true
from sqlalchemy.orm import InstrumentedAttribute, Session

from orchestrator.auth import Caller
from orchestrator.db.conditions import matches_pattern
from orchestrator.db.tables import ApiKey, AuditEntry, Node, RegistrationToken, Task
from orchestrator.errors import NotFound
from orchestrator.model import Role
from orchestrator.scheduling.lifecycle import require_task

Row = TypeVar("Row", ApiKey, RegistrationToken)


def nodes_of(session: Session, caller: Caller) -> ColumnElement[bool]:
    """Return the condition on nodes that this key reads and removes."""
    return _lies_within(session, Node.name, caller)


def tasks_of(session: Session, caller: Caller) -> ColumnElement[bool]:
    """Return the condition on tasks that this key reads, cancels and deletes."""
    is_own = Task.created_by == caller.key_id
    if caller.role is not Role.ADMIN:
        return is_own
    if not caller.is_limited:
        return true()
    nodes = select(Node.id).where(nodes_of(session, caller))
    within = _lies_within(session, Task.target_node_name, caller)
    return or_(is_own, within, Task.target_node_id.in_(nodes))


def entries_of(session: Session, caller: Caller) -> ColumnElement[bool]:
    """Return the condition on entries of the audit that this key reads."""
    if not caller.is_limited:
        return true()
    nodes = select(Node.id).where(nodes_of(session, caller))
    keys = within(caller, session.scalars(select(ApiKey)))
    tokens = within(caller, session.scalars(select(RegistrationToken)))
    ids = [*(key.id for key in keys), *(token.id for token in tokens)]
    return or_(AuditEntry.key_id.in_(ids), AuditEntry.key_id.in_(nodes))


def within(caller: Caller, rows: Iterable[Row]) -> list[Row]:
    """Return the keys or tokens whose patterns the key's own cover."""
    return [row for row in rows if caller.covers(row.allowed_node_patterns)]


def require_task_within(
    session: Session, caller: Caller, task_id: str, *, to_change: bool = False
) -> Task:
    """Return a task that this key may read, its row locked if it is to be changed.

    Raises NotFound.
    """
    task = require_task(session, task_id, to_change=to_change)
    is_within = select(Task.id).where(Task.number == task.number, tasks_of(session, caller))
    if session.scalars(is_within).first() is None:
        raise NotFound("there is no such task")
    return task


def require_node_within(
    session: Session, caller: Caller, node_id: str, *, to_change: bool = False
) -> Node:
    """Return a node that this key may read, its row locked if it is to be changed.

    Raises NotFound.
    """
    wanted = select(Node).where(Node.id == node_id, nodes_of(session, caller))
    node = session.scalars(wanted.with_for_update() if to_change else wanted).one_or_none()
    if node is None:
        raise NotFound("there is no such node")
    return node


def _lies_within(
    session: Session,
    column: InstrumentedAttribute[str] | InstrumentedAttribute[str | None],
    caller: Caller,
) -> ColumnElement[bool]:
    """Return the condition that a pattern of the key matches a column, as `lies_within` does."""
    if not caller.is_limited:
        return true()
    patterns = caller.allowed_node_patterns
    return or_(false(), *(matches_pattern(session, column, one) for one in patterns))
