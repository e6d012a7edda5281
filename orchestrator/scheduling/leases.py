"""Leases: unstarted tasks of a silent node return to the queue, running ones end as lost.

A node that is online may still have lost a task. So a task over its time limit ends as lost also if
its node's last heartbeat lacks it.

The silence of a node counts from the moment when this server could hear it. What was assigned or
started before the server was away is judged only once its node has had time to call again.
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
_SHORTEST_GAP_S, _LONGEST_GAP_S = 2.0, 15.0
"""A gap is longer than the interval of heartbeats, a third of their timeout, within these."""

RUNNER_BACKOFF_S = 90
"""How long our runner may take to deliver an outcome after an outage: an attempt that hangs for
30 s, and 60 s until the next one."""


class Presence:
    """Since when this server has heard its nodes without a gap.

    It was away if there is more time between two sweeps than a sweep takes: it was stopped or
    suspended, its database did not answer, or its clock was set. Several processes on one database
    each go by their own presence: one that was there all the time has heard what nodes sent.
    """

    def __init__(self, settings: Settings, started_at: datetime) -> None:
        self.since = started_at
        self._swept_at = started_at
        self._heartbeat_timeout = timedelta(seconds=settings.heartbeat_timeout_s)
        self._patience = max(
            timedelta(seconds=settings.lost_after_s),
            self._heartbeat_timeout + timedelta(seconds=RUNNER_BACKOFF_S),
        )
        gap_s = min(max(settings.heartbeat_timeout_s / 3, _SHORTEST_GAP_S), _LONGEST_GAP_S)
        self._longest_gap = timedelta(seconds=settings.sweep_every_s + gap_s)

    def note_sweep(self, now: datetime) -> timedelta | None:
        """Note that the server is there; return for how long it was away, if it was.

        That is negative if its clock was set back.
        """
        gap, self._swept_at = now - self._swept_at, now
        if abs(gap) <= self._longest_gap:
            return None
        self.since = now
        return gap

    def has_heard_nodes(self, now: datetime) -> bool:
        """Return whether every node has had the time for a heartbeat."""
        return now - self.since >= self._heartbeat_timeout

    def has_heard_outcomes(self, now: datetime) -> bool:
        """Return whether every node has had the time to deliver what it kept meanwhile."""
        return now - self.since >= self._patience


def has_ended(session: Session, settings: Settings, presence: Presence, now: datetime) -> bool:
    """Return whether any lease has expired."""
    if session.scalars(_unstarted(settings, presence, now).limit(1)).first() is not None:
        return True
    overdue = session.execute(_overdue(settings, presence, now))
    return any(_is_lost(now, task, node) for task, node in overdue)


def end_leases(
    session: Session, settings: Settings, presence: Presence, now: datetime
) -> list[Task]:
    """End expired leases; return the tasks that are back in the queue."""
    # Several processes sweep: rows that another one has locked are left to it.
    unstarted = _unstarted(settings, presence, now).limit(_AT_ONCE)
    returned = session.scalars(unstarted.with_for_update(skip_locked=True, of=Task)).all()
    for task in returned:
        put_back(session, task, now, "its node fell silent before it started the task")
    overdue = _overdue(settings, presence, now).with_for_update(skip_locked=True, of=Task)
    for task, node in session.execute(overdue).all():
        if _is_lost(now, task, node):
            give_up(session, task, now, _reason(now, node))
    return list(returned)


def _unstarted(settings: Settings, presence: Presence, now: datetime) -> Select[Task]:
    unstarted = (
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
    if presence.has_heard_nodes(now):
        return unstarted
    return unstarted.where(Task.assigned_at >= presence.since)


def _overdue(settings: Settings, presence: Presence, now: datetime) -> Select[Task, Node]:
    latest = now - timedelta(seconds=settings.lost_after_s)
    overdue = (
        select(Task, Node)
        .outerjoin(Node, Node.id == Task.assigned_node_id)
        .where(Task.status.in_(_RUNNING), Task.overdue_at <= latest)
        .order_by(Task.number)
        .limit(_AT_ONCE)
    )
    if presence.has_heard_outcomes(now):
        return overdue
    return overdue.where(Task.started_at >= presence.since)


def _is_lost(now: datetime, task: Task, node: Node | None) -> bool:
    if node is None or node.offline_at < now:
        return True
    return task.id not in node.held_task_ids


def _reason(now: datetime, node: Node | None) -> str:
    if node is None or node.offline_at < now:
        return "its node fell silent, and its time limit is long over"
    return "its node no longer has it, and its time limit is long over"
