"""The sweeper: expires leases, starts scheduled tasks, and notices silent nodes.

Ends by being cancelled. A sweep that fails is logged, and the next one does its work.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

import anyio
import anyio.lowlevel
from anyio import to_thread
from sqlalchemy import Text, and_, cast, func, or_, select
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.db.audit import prune
from orchestrator.db.database import Database
from orchestrator.db.tables import Node, Task
from orchestrator.log import Outage, fields
from orchestrator.model import NodeStatus, Target, TaskStatus, utc_now
from orchestrator.scheduling.leases import Presence, end_leases, has_ended
from orchestrator.scheduling.waiting import WorkAvailable
from orchestrator.services import Services

_FORGET_EVERY = timedelta(hours=1)
_OVERLAP = timedelta(seconds=10)
_LOOK_AT_ALL_EVERY = timedelta(seconds=30)
"""Should an announcement be lost, its task is found by this."""
_WAKE_AT_ONCE_S = 0.01

SWEEP = "sweep"
log = logging.getLogger(__name__)


async def sweep(services: Services, clock: Callable[[], datetime] = utc_now) -> None:
    """Sweep for as long as the server lives."""
    seen_until = clock()
    forgotten_at = all_seen_at = seen_until
    presence = Presence(services.settings, seen_until)
    nodes = NodeWatch(services.database, presence)
    full = FullNodes(services.settings.max_unreported)
    defects = Outage(log, "sweeps succeed again")
    while True:
        await anyio.sleep(services.settings.sweep_every_s)
        now = clock()
        try:
            unreported = await _refresh(services, now)
            gap = presence.note_sweep(now)
            if gap is not None:
                for_s = round(gap.total_seconds())
                log.warning("server was away, or its clock set", extra=fields(for_s=for_s))
            await to_thread.run_sync(_end_leases, services, presence, now)
            looks_at_all = gap is not None or now - all_seen_at > _LOOK_AT_ALL_EVERY
            # Some are written a moment after their time.
            since = None if looks_at_all else seen_until - _OVERLAP
            due = await to_thread.run_sync(_due, services, since, now)
            await _wake(services, due)
            seen_until = now
            all_seen_at = now if since is None else all_seen_at
            if services.settings.logs_nodes:
                full.log_changes(unreported)
                await to_thread.run_sync(nodes.log_changes, now)
            if now - forgotten_at > _FORGET_EVERY:
                await to_thread.run_sync(_forget_old, services, now)
                forgotten_at = now
        except SQLAlchemyError as error:
            event = f"cannot sweep, trying again: {str(getattr(error, 'orig', error)).strip()}"
            services.database.outage.note(SWEEP, event, services.settings.sweep_every_s)
        except Exception as error:  # noqa: BLE001 - logged with its traceback
            # One whole sweep: a defect in it, or a row that makes no sense, must not be the last.
            event = "a sweep failed, trying again"
            defects.note(SWEEP, event, services.settings.sweep_every_s, error=error)
        else:
            services.database.outage.end(SWEEP)
            defects.end(SWEEP)


async def _wake(services: Services, due: list[tuple[WorkAvailable, int]]) -> None:
    """Wake nodes for what is due, and let calls be answered in between: there may be thousands."""
    pauses_at = time.monotonic() + _WAKE_AT_ONCE_S
    for work, count in due:
        services.waiters.wake_for(work, count)
        if time.monotonic() > pauses_at:
            await anyio.lowlevel.checkpoint()
            pauses_at = time.monotonic() + _WAKE_AT_ONCE_S


async def _refresh(services: Services, now: datetime) -> Counter[str]:
    """Write the heartbeats of the last second, and read what the next ones will be told.

    Return how many unreported assignments each node has.
    """
    for node_id in services.breaks.silent(time.monotonic()):
        services.heartbeats.set_offline(node_id, now)
    services.heartbeats.adjust_pace(now)
    services.cancelled.begin_refresh()
    services.unreported.begin_refresh()
    await to_thread.run_sync(services.heartbeats.write)
    refreshed = await to_thread.run_sync(services.heartbeats.read_tasks, now)
    services.cancelled.end_refresh(refreshed.cancelled)
    for node_id in services.unreported.end_refresh(refreshed.unreported):
        # Another process may have assigned it a task; it has to know when to offer it again.
        services.waiters.wake_node(node_id)
    return Counter(node_id for node_id, _ in refreshed.unreported)


def _end_leases(services: Services, presence: Presence, now: datetime) -> None:
    with services.database.reading() as session:
        if not has_ended(session, services.settings, presence, now):
            return
    with services.database.writing() as session:
        for task in end_leases(session, services.settings, presence, now):
            services.announcer.announce(session, WorkAvailable(task.id, task.target))


class FullNodes:
    """Logs which nodes get no new work, once each time."""

    def __init__(self, max_unreported: int) -> None:
        self._max_unreported = max_unreported
        self._full: set[str] = set()

    def log_changes(self, unreported: Mapping[str, int]) -> None:
        """Log the nodes that have come to the limit since the last call."""
        full = {node_id for node_id, count in unreported.items() if count >= self._max_unreported}
        for node_id in full - self._full:
            ids = {"node_id": node_id, "unreported": unreported[node_id]}
            log.warning("node gets no new work until it reports on its tasks", extra=fields(**ids))
        self._full = full


class NodeWatch:
    """Logs which nodes go offline and which come back.

    After a start, and after the server was away, every node has one heartbeat timeout to show up,
    so that a restart of the server does not log each of them twice.
    """

    def __init__(self, database: Database, presence: Presence) -> None:
        self._database = database
        self._presence = presence
        self._offline: set[str] = set()
        """Ids of the nodes that were offline at the last call."""

    def log_changes(self, now: datetime) -> None:
        """Log what has changed since the last call."""
        if not self._presence.has_heard_nodes(now):
            return
        is_offline = or_(Node.offline_at < now, Node.status == NodeStatus.OFFLINE)
        columns = select(Node.id, Node.name, Node.status, Node.last_heartbeat)
        with self._database.reading() as session:
            offline = {row.id: row for row in session.execute(columns.where(is_offline))}
            left = self._offline.difference(offline)
            # Those that are missing were removed.
            nodes = session.execute(select(Node.id, Node.name)) if left else ()
            returned = [(node_id, name) for node_id, name in nodes if node_id in left]
        for node_id, row in offline.items():
            if node_id in self._offline:
                continue
            ids = {"node_id": node_id, "name": row.name}
            if row.status is NodeStatus.OFFLINE:
                log.info("node offline", extra=fields(**ids))
            else:
                at = f"{row.last_heartbeat:%Y-%m-%dT%H:%M:%SZ}"
                log.warning("node offline", extra=fields(**ids, last_heartbeat=at))
        for node_id, name in returned:
            log.info("node back online", extra=fields(node_id=node_id, name=name))
        self._offline = set(offline)


def _due(
    services: Services, since: datetime | None, now: datetime
) -> list[tuple[WorkAvailable, int]]:
    """Return the targets of pending tasks that became due after `since`, each with its number.

    For None, of all that are due. A task of each target stands for all of them.
    """
    is_due = Task.scheduled_for <= now
    if since is None:
        is_due = or_(Task.scheduled_for.is_(None), is_due)
    else:
        is_due = and_(Task.scheduled_for > since, is_due)
    # PostgreSQL compares no JSON, only its text.
    conditions = (Task.target_node_id, Task.target_node_name, cast(Task.target_tags, Text))
    due = (
        select(func.min(Task.id), func.count(), *conditions)
        .where(Task.status == TaskStatus.PENDING, is_due)
        .group_by(*conditions)
    )
    with services.database.reading() as session:
        return [
            (
                WorkAvailable(task_id, Target(node_id, name, json.loads(tags) if tags else None)),
                count,
            )
            for task_id, count, node_id, name, tags in session.execute(due)
        ]


def _forget_old(services: Services, now: datetime) -> None:
    with services.database.writing() as session:
        prune(session, now)
