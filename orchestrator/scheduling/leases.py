"""Leases: unstarted tasks of a silent node return to the queue, running ones end as lost.

A node that is online may still have lost a task. So a task over its time limit ends as lost also if
its node's last heartbeat lacks it.
"""

from __future__ import annotations

# SQLAlchemy 2.0 and 2.1 say differently what a Select is made of: annotations are not evaluated.
from datetime import datetime, timedelta

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from orchestrator.db.tables import Node, Task
from orchestrator.model import TaskStatus
from orchestrator.scheduling.lifecycle import give_up, put_back
from orchestrator.settings import Settings

_RUNNING = (TaskStatus.RUNNING, TaskStatus.ANALYZING)
_AT_ONCE = 500
"""Tasks in one transaction; the rest waits for the next sweep."""


def has_ended(session: Session, settings: Settings, now: datetime) -> bool:
    """Return whether any lease has expired."""
    if session.scalars(_unstarted(settings, now).limit(1)).first() is not None:
        return True
    overdue = session.execute(_overdue(settings, now))
    return any(_is_lost(now, task, node) for task, node in overdue)


def end_leases(session: Session, settings: Settings, now: datetime) -> list[Task]:
    """End expired leases; return the tasks that are back in the queue."""
    # Several processes sweep: rows that another one has locked are left to it.
    unstarted = _unstarted(settings, now).limit(_AT_ONCE)
    returned = session.scalars(unstarted.with_for_update(skip_locked=True, of=Task)).all()
    for task in returned:
        put_back(session, task, now, "its node fell silent before it started the task")
    overdue = _overdue(settings, now).with_for_update(skip_locked=True, of=Task)
    for task, node in session.execute(overdue).all():
        if _is_lost(now, task, node):
            give_up(session, task, now, _reason(now, node))
    return list(returned)


def _unstarted(settings: Settings, now: datetime) -> Select[Task]:
    return (
        select(Task)
        .join(Node, Node.id == Task.assigned_node_id)
        .where(
            Task.status == TaskStatus.ASSIGNED,
            Node.offline_at < now,
            # It has called since its last heartbeat if it was assigned the task since.
            Task.offered_at < now - timedelta(seconds=settings.heartbeat_timeout_s),
        )
        .order_by(Task.number)
    )


def _overdue(settings: Settings, now: datetime) -> Select[Task, Node]:
    latest = now - timedelta(seconds=settings.lost_after_s)
    return (
        select(Task, Node)
        .outerjoin(Node, Node.id == Task.assigned_node_id)
        .where(Task.status.in_(_RUNNING), Task.overdue_at <= latest)
        .order_by(Task.number)
        .limit(_AT_ONCE)
    )


def _is_lost(now: datetime, task: Task, node: Node | None) -> bool:
    if node is None or node.offline_at < now:
        return True
    return task.id not in node.held_task_ids


def _reason(now: datetime, node: Node | None) -> str:
    if node is None or node.offline_at < now:
        return "its node fell silent, and its time limit is long over"
    return "its node no longer has it, and its time limit is long over"
