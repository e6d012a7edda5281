"""Which task a node gets next; choosing and taking it is one transaction.

In this order:
1. an assignment of its own that it has demonstrably lost: unreported, due for redelivery, and not
   among the tasks of a heartbeat that came after the offer;
2. new work: the highest priority, and the oldest within it;
3. an assignment of its own that is unreported and due for redelivery.

An assignment is due `redelivery_after_s` after it was last offered. A node that runs several tasks
polls while the last one is not yet reported: new work must not wait behind that one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.orm import Session

from orchestrator.clock import utc_now
from orchestrator.database import Database
from orchestrator.errors import Unauthenticated
from orchestrator.schema import Node, Task
from orchestrator.settings import Settings
from orchestrator.states import TaskStatus
from orchestrator.targeting import Target, matches
from orchestrator.tasks import put_back, record_step

_LOOK_AGAIN_S = 15
"""How often a waiting node's queue is looked at though no bell rang."""
_LOOK_AGAIN_AT_LEAST_S = 0.05


@dataclass(frozen=True)
class Claim:
    """What a look at the queue gave."""

    task: Task | None = None
    put_back: bool = False
    """Tasks of silent nodes went back to the queue: others may want them."""
    look_again_s: float = _LOOK_AGAIN_S


def claim_next(database: Database, settings: Settings, node_id: str) -> Claim:
    """Give the node its next task, which is assigned to it from now on.

    Looks first and takes the write lock only if there is something to take. Raises Unauthenticated
    when the node has been removed meanwhile.
    """
    now = utc_now()
    with database.reading() as session:
        node = _require(session, node_id)
        idle = not _silent_holders(session, settings, now) and not any(
            True for _ in _candidates(session, settings, node, now)
        )
        if idle:
            return Claim(look_again_s=_until_redelivery(session, settings, node, now))

    with database.writing() as session:
        node = _require(session, node_id)
        released = _put_back_unstarted(session, settings, now)
        for task_id in _candidates(session, settings, node, now):
            task = _take(session, task_id, node, now)
            if task is not None:
                return Claim(task, put_back=released)
        return Claim(put_back=released, look_again_s=_LOOK_AGAIN_AT_LEAST_S)


def _require(session: Session, node_id: str) -> Node:
    node = session.get(Node, node_id)
    if node is None:
        raise Unauthenticated("the node is no longer registered")
    return node


def _candidates(session: Session, settings: Settings, node: Node, now: datetime) -> Iterator[str]:
    due_before = now - timedelta(seconds=settings.redelivery_after_s)
    due = session.scalars(
        select(Task)
        .where(_unreported(node), Task.offered_at <= due_before)
        .order_by(Task.offered_at)
    ).first()
    if due is not None and _has_lost(node, due):
        yield due.id
    yield from _new_work(session, node, now)
    if due is not None:
        yield due.id


def _new_work(session: Session, node: Node, now: datetime) -> Iterator[str]:
    queue = session.execute(
        select(Task.id, Task.target_node_id, Task.target_node_name, Task.target_tags)
        .where(
            Task.status == TaskStatus.PENDING,
            or_(Task.target_node_id.is_(None), Task.target_node_id == node.id),
            or_(Task.scheduled_for.is_(None), Task.scheduled_for <= now),
        )
        .order_by(Task.priority.desc(), Task.number)
    )
    for task_id, node_id, node_name, tags in queue:
        if matches(Target(node_id, node_name, tags), node.identity):
            yield task_id


def _unreported(node: Node) -> ColumnElement[bool]:
    return and_(Task.assigned_node_id == node.id, Task.status == TaskStatus.ASSIGNED)


def _has_lost(node: Node, task: Task) -> bool:
    return (
        task.offered_at is not None
        and node.last_heartbeat > task.offered_at
        and task.id not in node.held_task_ids
    )


def _take(session: Session, task_id: str, node: Node, now: datetime) -> Task | None:
    task = session.scalars(
        select(Task)
        .where(
            Task.id == task_id,
            or_(
                Task.status == TaskStatus.PENDING,
                (Task.status == TaskStatus.ASSIGNED) & (Task.assigned_node_id == node.id),
            ),
        )
        # PostgreSQL only: another server process may be taking it this moment.
        .with_for_update(skip_locked=True, of=Task)
    ).one_or_none()
    if task is None:
        return None
    task.offered_at = now
    if task.status is TaskStatus.PENDING:
        task.assigned_node_id = node.id
        record_step(task, TaskStatus.ASSIGNED, now)
    return task


def _until_redelivery(session: Session, settings: Settings, node: Node, now: datetime) -> float:
    first = session.scalars(select(Task).where(_unreported(node)).order_by(Task.offered_at)).first()
    if first is None or first.offered_at is None:
        return _LOOK_AGAIN_S
    due_in_s = settings.redelivery_after_s - (now - first.offered_at).total_seconds()
    return min(max(due_in_s, _LOOK_AGAIN_AT_LEAST_S), _LOOK_AGAIN_S)


def _silent_holders(session: Session, settings: Settings, now: datetime) -> list[Task]:
    silent_since = now - timedelta(seconds=settings.heartbeat_timeout_s)
    return list(
        session.scalars(
            select(Task)
            .join(Node, Node.id == Task.assigned_node_id)
            .where(Task.status == TaskStatus.ASSIGNED, Node.last_heartbeat < silent_since)
        )
    )


def _put_back_unstarted(session: Session, settings: Settings, now: datetime) -> bool:
    tasks = _silent_holders(session, settings, now)
    for task in tasks:
        put_back(task, now, "its node fell silent before it started the task")
    session.flush()
    return bool(tasks)
