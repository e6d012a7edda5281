"""Claims: which task a node gets next. Choosing and assigning it is one transaction.

In this order:
1. an assignment of its own that it has demonstrably lost: unreported, due for redelivery, and not
   among the tasks of a heartbeat that came after the offer;
2. new work: the highest priority, and the oldest within it;
3. an assignment of its own that is unreported and due for redelivery.

An assignment is due `redelivery_after_s` after it was last offered. A node that runs several tasks
polls while the last one is not yet reported: new work must not wait behind that one. But a node
that has `max_unreported` of them gets no new work: it reports on what it takes, or is no runner.

Other server processes may be taking the same tasks this moment. On PostgreSQL a row that somebody
holds is skipped (SKIP LOCKED), and a row that somebody has taken no longer matches the query; on
SQLite there is one writer at a time.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain

from sqlalchemy import and_, bindparam, func, or_, select
from sqlalchemy.orm import Session

from orchestrator.db.database import Database
from orchestrator.db.tables import Node, Task
from orchestrator.errors import Unauthenticated
from orchestrator.log import log_on_commit
from orchestrator.model import NodeIdentity, Target, TaskStatus, matches, utc_now
from orchestrator.scheduling.heartbeats import Heartbeats
from orchestrator.scheduling.lifecycle import move
from orchestrator.settings import Settings

log = logging.getLogger(__name__)

_FIRST_LOOK = 20
_LONGEST_LOOK = 5000
"""Tasks in one page of the queue; most nodes find theirs on the first."""

# Made once: to make a statement costs more than to run it.
_QUEUE = (
    select(
        Task.priority,
        Task.number,
        Task.target_node_id,
        Task.target_node_name,
        Task.target_tags,
    )
    .where(
        Task.status == TaskStatus.PENDING,
        or_(
            Task.target_node_id.is_(None),
            Task.target_node_id.in_(bindparam("node_ids", expanding=True)),
        ),
        or_(Task.scheduled_for.is_(None), Task.scheduled_for <= bindparam("now")),
    )
    .order_by(Task.priority.desc(), Task.number)
    .limit(bindparam("length"))
)
_LATER = _QUEUE.where(
    or_(
        Task.priority < bindparam("priority"),
        and_(Task.priority == bindparam("priority"), Task.number > bindparam("number")),
    )
)


def pages(
    session: Session, node_ids: Sequence[str], now: datetime
) -> Iterator[list[tuple[int, Target]]]:
    """Yield number and target of the tasks that are due, a growing page at a time.

    Tasks that are for one node by its id are there if it is one of these.
    """
    asked: dict[str, object] = {"node_ids": node_ids, "now": now, "length": _FIRST_LOOK}
    length = _FIRST_LOOK
    rows = session.execute(_QUEUE, asked).all()
    while rows:
        yield [
            (number, Target(node_id, node_name, tags))
            for _, number, node_id, node_name, tags in rows
        ]
        if len(rows) < length:
            return
        priority, number = rows[-1][:2]
        length = min(4 * length, _LONGEST_LOOK)
        place = {"length": length, "priority": priority, "number": number}
        rows = session.execute(_LATER, {**asked, **place}).all()


_LOOK_AGAIN_S = 30
"""How often the queue is looked at for a held poll that nothing woke.

Longer than our runner's long poll, whose next request looks anyway: thousands of looks add up.
"""
_LOOK_AGAIN_AT_LEAST_S = 0.05
_FULL_LOOK_AGAIN_S = 1
"""How often it is seen whether a node that gets no new work has reported since."""

REMOVED = "the node is no longer registered"

# Statements are made once: to make one costs more than to run it.
_POLLS = select(
    Node.id,
    Node.name,
    Node.tags,
    Node.last_heartbeat,
    Node.held_task_ids,
    Node.api_key_hash,
    Node.paused,
).where(Node.id.in_(bindparam("node_ids", expanding=True)))
_OLDEST = (
    select(
        Task.assigned_node_id.label("node_id"),
        func.min(Task.offered_at).label("at"),
        func.count().label("count"),
    )
    .where(
        Task.assigned_node_id.in_(bindparam("node_ids", expanding=True)),
        Task.status == TaskStatus.ASSIGNED,
    )
    .group_by(Task.assigned_node_id)
    .subquery()
)
_OFFERS = (
    select(Task.number, Task.id, Task.assigned_node_id, Task.offered_at, _OLDEST.c.count)
    .join(
        _OLDEST,
        and_(Task.assigned_node_id == _OLDEST.c.node_id, Task.offered_at == _OLDEST.c.at),
    )
    .where(Task.status == TaskStatus.ASSIGNED)
    .order_by(Task.number)
)


@dataclass(frozen=True)
class Claim:
    """A task for the node, or when to look again."""

    task: Task | None = None
    look_again_s: float = _LOOK_AGAIN_S
    is_full: bool = False
    """Whether the node gets no new work."""
    is_over: bool = False
    """Whether the node gets nothing at all by this request."""


@dataclass(frozen=True)
class _Offer:
    """An assignment that its node has not reported on, and when it last went out."""

    number: int
    task_id: str
    at: datetime
    unreported: int
    """How many such assignments the node has."""


@dataclass(frozen=True)
class _Poll:
    """A node that polls, with its last heartbeat and offers."""

    identity: NodeIdentity
    key_hash: str
    is_paused: bool
    is_full: bool
    """Whether it gets no new work: it is paused, or has too many unreported assignments."""
    last_heartbeat: datetime
    held_task_ids: list[str]
    due: _Offer | None
    """Its oldest assignment that is unreported and due for redelivery."""

    @property
    def lost(self) -> _Offer | None:
        """The offer that it has demonstrably lost: a heartbeat after the offer lacks it."""
        if self.due is None or self.due.task_id in self.held_task_ids:
            return None
        return self.due if self.last_heartbeat > self.due.at else None


@dataclass(frozen=True)
class Look:
    """The result of one look: tasks that the node might take, or when to look again."""

    asking: _Poll
    seen: list[int]
    look_again_s: float = _LOOK_AGAIN_S

    @property
    def node(self) -> NodeIdentity:
        """The node as its row had it."""
        return self.asking.identity

    @property
    def key_hash(self) -> str:
        """The hash of the node's key, which may have been rotated since it asked."""
        return self.asking.key_hash

    @property
    def is_full(self) -> bool:
        """Whether the node gets no new work, so that none was looked for."""
        return self.asking.is_full


def look_for(
    database: Database,
    settings: Settings,
    node_ids: Sequence[str],
    heartbeats: Heartbeats | None = None,
) -> list[Look | None]:
    """Look at the queue once for all these nodes; return None for one that was removed.

    `heartbeats` are those of this process, of which some may not be written yet.
    """
    now = utc_now()
    asked = {"node_ids": sorted(set(node_ids))}
    with database.reading() as session:
        offers: dict[str, _Offer] = {}
        for number, task_id, node_id, at, count in session.execute(_OFFERS, asked):
            if node_id is not None and at is not None:
                offers.setdefault(node_id, _Offer(number, task_id, at, count))
        due_before = _due_before(settings, now)
        asking = [
            _Poll(
                NodeIdentity(node_id, name, tags),
                key_hash,
                is_paused,
                is_paused
                or (node_id in offers and offers[node_id].unreported >= settings.max_unreported),
                *_newest(heartbeats, node_id, last_heartbeat, held),
                offers[node_id] if node_id in offers and offers[node_id].at <= due_before else None,
            )
            for node_id, name, tags, last_heartbeat, held, key_hash, is_paused in session.execute(
                _POLLS, asked
            )
        ]
        seen = _seen(session, asking, now)
    looks = {
        one.identity.id: Look(
            one,
            seen.get(one.identity.id, []),
            min(
                _until_redelivery(settings, offers.get(one.identity.id), now),
                # The end of a pause is announced.
                _FULL_LOOK_AGAIN_S if one.is_full and not one.is_paused else _LOOK_AGAIN_S,
            ),
        )
        for one in asking
    }
    return [looks.get(node_id) for node_id in node_ids]


def _newest(
    heartbeats: Heartbeats | None,
    node_id: str,
    written_at: datetime,
    held_task_ids: list[str],
) -> tuple[datetime, list[str]]:
    """Return time and tasks of a node's last heartbeat, which may not be written yet."""
    beat = None if heartbeats is None else heartbeats.last(node_id)
    if beat is None or beat.at < written_at:
        return written_at, held_task_ids
    return beat.at, beat.held_task_ids


def take(database: Database, settings: Settings, look: Look) -> Claim:
    """Assign the node one of the tasks that were seen, or another if other nodes have them now.

    Raises Unauthenticated when the node has been removed meanwhile.
    """
    now = utc_now()
    asking = look.asking
    with database.writing() as session:
        held = _hold(session, asking.identity.id)
        if held[:2] != (asking.identity, asking.key_hash):
            # It has registered again since the look: what was seen may not be for it any more.
            return Claim(look_again_s=_LOOK_AGAIN_AT_LEAST_S)
        _, _, is_paused, unreported = held
        if (is_paused or unreported >= settings.max_unreported) and not look.is_full:
            # It polls several times at once; on PostgreSQL each of these may get one too many.
            return Claim(look_again_s=_FULL_LOOK_AGAIN_S, is_full=True)
        # Usually one of those that were seen is still free. If not, the whole queue is searched.
        for numbers in chain([look.seen], _candidates(session, asking, now)):
            task = _take_first(session, settings, numbers, asking.identity.id, now)
            if task is not None:
                return Claim(task)
    return Claim(look_again_s=_LOOK_AGAIN_AT_LEAST_S)


def _seen(session: Session, asking: Sequence[_Poll], now: datetime) -> dict[str, list[int]]:
    seen = {one.identity.id: [one.lost.number] for one in asking if one.lost is not None}
    looking = [one for one in asking if one.identity.id not in seen and not one.is_full]
    for page in pages(session, [one.identity.id for one in looking], now) if looking else ():
        for one in looking:
            suitable = [number for number, target in page if matches(target, one.identity)]
            if suitable:
                seen[one.identity.id] = suitable
        looking = [one for one in looking if one.identity.id not in seen]
        if not looking:
            break
    due = {one.identity.id: [one.due.number] for one in asking if one.due is not None}
    return {**due, **seen}


_UNREPORTED = (
    select(func.count())
    .where(Task.assigned_node_id == bindparam("node_id"), Task.status == TaskStatus.ASSIGNED)
    .scalar_subquery()
)
_HELD_NODE = (
    select(Node.name, Node.tags, Node.api_key_hash, Node.paused, _UNREPORTED)
    .where(Node.id == bindparam("node_id"))
    # So that it cannot be removed or paused before its task is assigned.
    .with_for_update(read=True, key_share=True, of=Node)
)


def _hold(session: Session, node_id: str) -> tuple[NodeIdentity, str, bool, int]:
    row = session.execute(_HELD_NODE, {"node_id": node_id}).one_or_none()
    if row is None:
        raise Unauthenticated(REMOVED)
    name, tags, key_hash, is_paused, unreported = row
    return NodeIdentity(node_id, name, tags), key_hash, is_paused, unreported


def _candidates(session: Session, asking: _Poll, now: datetime) -> Iterator[list[int]]:
    if asking.lost is not None:
        yield [asking.lost.number]
    for page in () if asking.is_full else pages(session, [asking.identity.id], now):
        suitable = [number for number, target in page if matches(target, asking.identity)]
        if suitable:
            yield suitable
    if asking.due is not None:
        yield [asking.due.number]


def _due_before(settings: Settings, now: datetime) -> datetime:
    return now - timedelta(seconds=settings.redelivery_after_s)


def _take_first(
    session: Session, settings: Settings, numbers: list[int], node_id: str, now: datetime
) -> Task | None:
    redelivered = and_(
        Task.assigned_node_id == node_id,
        Task.status == TaskStatus.ASSIGNED,
        Task.offered_at <= _due_before(settings, now),
    )
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
    ids = {"task_id": task.id, "node_id": node_id}
    if task.status is TaskStatus.PENDING:
        task.assigned_node_id = node_id
        task.assigned_at = now
        task.assignment_number += 1
        move(task, TaskStatus.ASSIGNED, now)
        log_on_commit(session, log, "task assigned", ids)
    else:
        log_on_commit(session, log, "task offered again", ids, logging.WARNING)
    return task


def _until_redelivery(settings: Settings, offer: _Offer | None, now: datetime) -> float:
    if offer is None:
        return _LOOK_AGAIN_S
    due_in_s = settings.redelivery_after_s - (now - offer.at).total_seconds()
    return min(max(due_in_s, _LOOK_AGAIN_AT_LEAST_S), _LOOK_AGAIN_S)
