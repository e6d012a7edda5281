"""Which task a node gets next; choosing and taking it is one transaction.

In this order:
1. an assignment of its own that it has demonstrably lost: unreported, due for redelivery, and not
   among the tasks of a heartbeat that came after the offer;
2. new work: the highest priority, and the oldest within it;
3. an assignment of its own that is unreported and due for redelivery.

An assignment is due `redelivery_after_s` after it was last offered. A node that runs several tasks
polls while the last one is not yet reported: new work must not wait behind that one.

Other server processes may be taking the same tasks this moment. On PostgreSQL a row that somebody
holds is passed over (SKIP LOCKED), and a row that somebody has taken no longer is what was asked
for; on SQLite there is one writer at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.orm import Session
from sqlalchemy.sql.selectable import ForUpdateParameter

from orchestrator.clock import utc_now
from orchestrator.database import Database
from orchestrator.errors import Unauthenticated
from orchestrator.schema import Node, Task
from orchestrator.settings import Settings
from orchestrator.states import TaskStatus
from orchestrator.steps import move
from orchestrator.targeting import Target, matches

_LOOK_AGAIN_S = 15
"""How often a waiting node's queue is looked at though no bell rang."""
_LOOK_AGAIN_AT_LEAST_S = 0.05

_FIRST_LOOK = 20
_LONGEST_LOOK = 5000
"""How many tasks of the queue are looked at at once; most nodes find theirs among the first."""


_AGAINST_REMOVAL: ForUpdateParameter = {"read": True, "key_share": True}


@dataclass(frozen=True)
class Claim:
    """What a look at the queue gave."""

    task: Task | None = None
    look_again_s: float = _LOOK_AGAIN_S


def claim_next(database: Database, settings: Settings, node_id: str) -> Claim:
    """Give the node its next task, which is assigned to it from now on.

    Looks first and begins to write only if there is something to take. Raises Unauthenticated when
    the node has been removed meanwhile.
    """
    now = utc_now()
    with database.reading() as session:
        node = _require(session.get(Node, node_id))
        if not any(_candidates(session, settings, node, now)):
            return Claim(look_again_s=_until_redelivery(session, settings, node, now))

    with database.writing() as session:
        # So that it cannot be removed before its task is assigned.
        node = _require(session.get(Node, node_id, with_for_update=_AGAINST_REMOVAL))
        for numbers in _candidates(session, settings, node, now):
            task = _take_first(session, settings, numbers, node, now)
            if task is not None:
                return Claim(task)
    return Claim(look_again_s=_LOOK_AGAIN_AT_LEAST_S)


def _require(node: Node | None) -> Node:
    if node is None:
        raise Unauthenticated("the node is no longer registered")
    return node


def _candidates(
    session: Session, settings: Settings, node: Node, now: datetime
) -> Iterator[list[int]]:
    due = session.scalars(
        select(Task)
        .where(_unreported(node), Task.offered_at <= _due_before(settings, now))
        .order_by(Task.offered_at)
    ).first()
    if due is not None and _has_lost(node, due):
        yield [due.number]
    yield from _new_work(session, node, now)
    if due is not None:
        yield [due.number]


def _new_work(session: Session, node: Node, now: datetime) -> Iterator[list[int]]:
    queue = (
        select(
            Task.priority,
            Task.number,
            Task.target_node_id,
            Task.target_node_name,
            Task.target_tags,
        )
        .where(
            Task.status == TaskStatus.PENDING,
            or_(Task.target_node_id.is_(None), Task.target_node_id == node.id),
            or_(Task.scheduled_for.is_(None), Task.scheduled_for <= now),
        )
        .order_by(Task.priority.desc(), Task.number)
    )
    length = _FIRST_LOOK
    rows = session.execute(queue.limit(length)).all()
    while rows:
        suitable = [
            number
            for _, number, node_id, node_name, tags in rows
            if matches(Target(node_id, node_name, tags), node.identity)
        ]
        if suitable:
            yield suitable
        if len(rows) < length:
            return
        priority, number = rows[-1][:2]
        later = or_(Task.priority < priority, and_(Task.priority == priority, Task.number > number))
        length = min(4 * length, _LONGEST_LOOK)
        rows = session.execute(queue.where(later).limit(length)).all()


def _unreported(node: Node) -> ColumnElement[bool]:
    return and_(Task.assigned_node_id == node.id, Task.status == TaskStatus.ASSIGNED)


def _due_before(settings: Settings, now: datetime) -> datetime:
    return now - timedelta(seconds=settings.redelivery_after_s)


def _has_lost(node: Node, task: Task) -> bool:
    return (
        task.offered_at is not None
        and node.last_heartbeat > task.offered_at
        and task.id not in node.held_task_ids
    )


def _take_first(
    session: Session, settings: Settings, numbers: list[int], node: Node, now: datetime
) -> Task | None:
    redelivered = and_(_unreported(node), Task.offered_at <= _due_before(settings, now))
    task = session.scalars(
        select(Task)
        .where(Task.number.in_(numbers), or_(Task.status == TaskStatus.PENDING, redelivered))
        .order_by(Task.priority.desc(), Task.number)
        .limit(1)
        .with_for_update(skip_locked=True, of=Task)
    ).one_or_none()
    if task is None:
        return None
    task.offered_at = now
    if task.status is TaskStatus.PENDING:
        task.assigned_node_id = node.id
        move(task, TaskStatus.ASSIGNED, now)
    return task


def _until_redelivery(session: Session, settings: Settings, node: Node, now: datetime) -> float:
    first = session.scalars(select(Task).where(_unreported(node)).order_by(Task.offered_at)).first()
    if first is None or first.offered_at is None:
        return _LOOK_AGAIN_S
    due_in_s = settings.redelivery_after_s - (now - first.offered_at).total_seconds()
    return min(max(due_in_s, _LOOK_AGAIN_AT_LEAST_S), _LOOK_AGAIN_S)
