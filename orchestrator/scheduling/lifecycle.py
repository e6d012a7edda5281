"""The steps in a task's life, as `model.TRANSITIONS` allows them, and repeated tasks.

Each occurrence of a repeated task is a task of its own, and its end queues the next one. So
occurrences of one series never overlap, missed times are not made up for, and cancelling the
pending one ends the series, as does revoking or deleting the key that created it.
"""

import logging
import uuid
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from orchestrator.db import output
from orchestrator.db.tables import ApiKey, StatusEntry, Task, TaskFile
from orchestrator.errors import Conflict, NotAllowed, NotFound, Unauthenticated
from orchestrator.log import log_on_commit
from orchestrator.model import ADMIN_ID, HELD, Reporter, TaskStatus, next_time

REPORTS_AFTER_END = timedelta(minutes=1)
"""How long a task's key still works: an agent may send its log after its final status."""
TASK_KEY_ENDED = "the key has ended: its task has, or it was assigned again"

log = logging.getLogger(__name__)


def move(
    task: Task,
    status: TaskStatus,
    timestamp: datetime,
    *,
    message: str | None = None,
    progress: float | None = None,
) -> None:
    """Change a task's status and add the step to its history.

    Raises Conflict for a step that the table of transitions does not have.
    """
    # A task that is being created has no status yet.
    if task.status is not None and not task.status.may_become(status):
        raise Conflict(f"cannot make the task {status.value}: it is {task.status.value} already")
    task.status = status
    task.further_steps.add(
        StatusEntry(status=status, message=message, progress=progress, timestamp=timestamp)
    )


def begin(task: Task, now: datetime) -> None:
    """Start a task's time limit, if it has one, unless it runs already."""
    if task.started_at is not None:
        return
    task.started_at = now
    if task.timeout_seconds:
        task.overdue_at = now + timedelta(seconds=task.timeout_seconds)


def end(session: Session, task: Task, now: datetime) -> None:
    """Complete a task that has a final status; queue the next one if it is repeated."""
    task.completed_at = now
    is_over = task.status is TaskStatus.CANCELLED or not _may_recur(session, task)
    following = None if is_over else successor(task, now)
    if following is not None:
        move(following, TaskStatus.PENDING, now)
        session.add(following)
        ids = {"task_id": following.id, "created_by": task.created_by, "repeats": task.id}
        log_on_commit(session, log, "task created", ids)


def cancel(session: Session, task: Task, now: datetime, key_id: str) -> None:
    """Cancel a task with this key. Raises Conflict if it has ended."""
    move(task, TaskStatus.CANCELLED, now)
    end(session, task, now)
    ids = {"task_id": task.id, "node_id": task.assigned_node_id, "by": key_id}
    log_on_commit(session, log, "task cancelled", ids)


def put_back(session: Session, task: Task, now: datetime, reason: str) -> None:
    """Return an assigned task that was not started to the queue."""
    move(task, TaskStatus.PENDING, now, message=reason)
    ids = {"task_id": task.id, "node_id": task.assigned_node_id, "reason": reason}
    log_on_commit(session, log, "task put back", ids, logging.WARNING)
    task.assigned_node_id = None
    task.offered_at = None
    output.discard(session, task.number)


def give_up(session: Session, task: Task, now: datetime, reason: str) -> None:
    """End a task as lost: its node will not report on it any more."""
    move(task, TaskStatus.ERROR, now, message=f"lost: {reason}")
    task.error_message = f"lost: {reason}"
    ids = {"task_id": task.id, "node_id": task.assigned_node_id, "reason": reason}
    log_on_commit(session, log, "task lost", ids, logging.WARNING)
    end(session, task, now)


def take_from(session: Session, node_id: str, now: datetime) -> list[Task]:
    """Take the tasks of a node that is being removed; return those back in the queue."""
    held = select(Task).where(Task.assigned_node_id == node_id, Task.status.in_(HELD))
    unstarted = []
    for task in session.scalars(held.with_for_update(of=Task)).all():
        if task.status.may_become(TaskStatus.PENDING):
            put_back(session, task, now, "its node was removed before the task was started")
            unstarted.append(task)
        else:
            give_up(session, task, now, "its node was removed while the task ran")
    return unstarted


def require_task(session: Session, task_id: str, *, to_change: bool = False) -> Task:
    """Return a task, its row locked if it is to be changed. Raises NotFound."""
    wanted = select(Task).where(Task.id == task_id)
    if to_change:
        wanted = wanted.with_for_update(of=Task)
    else:
        wanted = wanted.options(selectinload(Task.history))
    task = session.scalars(wanted).one_or_none()
    if task is None:
        raise NotFound("there is no such task")
    return task


def require_task_of(session: Session, task_id: str, reporter: Reporter, now: datetime) -> Task:
    """Return a task that may be reported on, its row locked.

    Raises NotFound, NotAllowed, or Unauthenticated if the key that was shown has ended.
    """
    if reporter.task_id not in {None, task_id}:
        raise NotAllowed("the key is for another task")
    task = require_task(session, task_id, to_change=True)
    if task.assigned_node_id != reporter.node.id:
        raise NotAllowed("the task is not assigned to this node")
    if reporter.is_node:
        return task
    is_same = reporter.assignment_number in {None, task.assignment_number}
    if not is_same or not takes_reports(task.status, task.completed_at, now):
        raise Unauthenticated(TASK_KEY_ENDED)
    if reporter.assigned_until is not None and (
        task.assigned_at is None or task.assigned_at > reporter.assigned_until
    ):
        raise Unauthenticated("the key was rotated before the task was assigned: use the new one")
    return task


def takes_reports(status: TaskStatus, completed_at: datetime | None, now: datetime) -> bool:
    """Return whether a task's own key may still report on it."""
    if status in HELD:
        return True
    return completed_at is not None and now - completed_at <= REPORTS_AFTER_END


def _may_recur(session: Session, task: Task) -> bool:
    """Return whether the task is repeated, and its key neither revoked nor deleted."""
    if not task.recurrence or task.created_by == ADMIN_ID:
        return bool(task.recurrence)
    # Locked against its revocation, which then finds the next occurrence.
    is_enabled = select(ApiKey.enabled).where(ApiKey.id == task.created_by)
    return bool(session.scalars(is_enabled.with_for_update(read=True)).first())


def successor(task: Task, now: datetime) -> Task | None:
    """Return the next occurrence of a task that has just ended, not yet queued."""
    due = next_time(task.recurrence, now) if task.recurrence else None
    if due is None:
        return None
    following = copy_of(task, now, task.created_by)
    following.scheduled_for, following.recurrence = due, task.recurrence
    return following


def copy_of(task: Task, now: datetime, key_id: str) -> Task:
    """Return a new task of the same content, created by this key: to run once, and not queued."""
    return Task(
        id=str(uuid.uuid4()),
        prompt=task.prompt,
        target_node_id=task.target_node_id,
        target_node_name=task.target_node_name,
        target_tags=task.target_tags,
        priority=task.priority,
        timeout_seconds=task.timeout_seconds,
        created_at=now,
        created_by=key_id,
        file_links=[
            TaskFile(position=link.position, filename=link.filename) for link in task.file_links
        ],
    )
