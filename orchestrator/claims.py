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
from itertools import chain

from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.orm import Session

from orchestrator.clock import utc_now
from orchestrator.database import Database
from orchestrator.errors import Unauthenticated
from orchestrator.schema import Node, Task
from orchestrator.settings import Settings
from orchestrator.states import TaskStatus
from orchestrator.steps import move
from orchestrator.targeting import Target, matches

_LOOK_AGAIN_S = 30
"""How often a waiting node's queue is looked at though no bell rang.

Longer than our runner waits, whose next request looks anyway: thousands of looks add up.
"""
_LOOK_AGAIN_AT_LEAST_S = 0.05

_FIRST_LOOK = 20
_LONGEST_LOOK = 5000
"""How many tasks of the queue are looked at at once; most nodes find theirs among the first."""

_REMOVED = "the node is no longer registered"


@dataclass(frozen=True)
class Claim:
    """What a look at the queue gave."""

    task: Task | None = None
    look_again_s: float = _LOOK_AGAIN_S


@dataclass(frozen=True)
class _Offer:
    """An assignment that its node has not reported on, and when it last went out."""

    number: int
    task_id: str
    at: datetime


def claim_next(database: Database, settings: Settings, node_id: str) -> Claim:
    """Give the node its next task, which is assigned to it from now on.

    Looks first and begins to write only if there is something to take. Raises Unauthenticated when
    the node has been removed meanwhile.
    """
    now = utc_now()
    with database.reading() as session:
        node = session.get(Node, node_id)
        if node is None:
            raise Unauthenticated(_REMOVED)
        offer = _oldest_offer(session, node_id)
        seen = next(_candidates(session, settings, node, offer, now), None)
    if seen is None:
        return Claim(look_again_s=_until_redelivery(settings, offer, now))

    with database.writing() as session:
        _hold(session, node_id)
        # Mostly one of those that were seen is still to be had. If not, all others are looked at.
        for numbers in chain([seen], _candidates(session, settings, node, offer, now)):
            task = _take_first(session, settings, numbers, node, now)
            if task is not None:
                return Claim(task)
    return Claim(look_again_s=_LOOK_AGAIN_AT_LEAST_S)


def _hold(session: Session, node_id: str) -> None:
    # So that it cannot be removed before its task is assigned.
    held = select(Node.id).where(Node.id == node_id).with_for_update(read=True, key_share=True)
    if session.scalar(held) is None:
        raise Unauthenticated(_REMOVED)


def _oldest_offer(session: Session, node_id: str) -> _Offer | None:
    oldest = (
        select(Task.number, Task.id, Task.offered_at)
        .where(_unreported(node_id))
        .order_by(Task.offered_at)
        .limit(1)
    )
    for number, task_id, at in session.execute(oldest):
        return None if at is None else _Offer(number, task_id, at)
    return None


def _candidates(
    session: Session, settings: Settings, node: Node, offer: _Offer | None, now: datetime
) -> Iterator[list[int]]:
    due = None if offer is None or offer.at > _due_before(settings, now) else offer
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


def _unreported(node_id: str) -> ColumnElement[bool]:
    return and_(Task.assigned_node_id == node_id, Task.status == TaskStatus.ASSIGNED)


def _due_before(settings: Settings, now: datetime) -> datetime:
    return now - timedelta(seconds=settings.redelivery_after_s)


def _has_lost(node: Node, offer: _Offer) -> bool:
    return node.last_heartbeat > offer.at and offer.task_id not in node.held_task_ids


def _take_first(
    session: Session, settings: Settings, numbers: list[int], node: Node, now: datetime
) -> Task | None:
    redelivered = and_(_unreported(node.id), Task.offered_at <= _due_before(settings, now))
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


def _until_redelivery(settings: Settings, offer: _Offer | None, now: datetime) -> float:
    if offer is None:
        return _LOOK_AGAIN_S
    due_in_s = settings.redelivery_after_s - (now - offer.at).total_seconds()
    return min(max(due_in_s, _LOOK_AGAIN_AT_LEAST_S), _LOOK_AGAIN_S)
