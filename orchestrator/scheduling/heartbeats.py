"""Heartbeats: the last one of each node, in memory, and written once a second for all.

The server also decides how often a node sends them (extension `pace`). A node with a task beats
often, since cancellations and leases go by it. The others share what is left of a number of
heartbeats a second, so the more there are, the longer their interval; three of its own intervals
without a heartbeat make a node offline.
"""

import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import and_, bindparam, or_, select, update
from sqlalchemy.orm import Session

from orchestrator.db.database import Database
from orchestrator.db.tables import Base, Node, Task
from orchestrator.model import NodeStatus, TaskStatus
from orchestrator.settings import Settings

HEARTBEATS_PER_S = 100
"""What the nodes of one process may send together."""
INTERVALS_UNTIL_OFFLINE = 3

_BUSY_INTERVAL_S = 15.0
_SHORTEST_S, _LONGEST_S = 5, 300
"""What a node may be told."""
_LEAST_PER_S = 10
"""Left for nodes without a task, however many have one."""

UNCONFIRMED_CANCEL_FOR = timedelta(days=1)
"""How long a cancellation is repeated to a node that neither holds nor confirms the task."""
_CLOCKS_AGREE_WITHIN = timedelta(minutes=1)
_KEPT_FOR = timedelta(hours=1)
"""How long the last heartbeat of a node that is offline stays in memory."""
_HELD_AT_ONCE = 5000
"""Task ids in one statement."""

_NODES = Base.metadata.tables[Node.__tablename__]
_UPDATE = (
    update(_NODES)
    .where(
        _NODES.c.id == bindparam("node_id"),
        # Of a node that calls several processes in turn, the newest counts; unless the clock was
        # set back.
        or_(
            _NODES.c.last_heartbeat <= bindparam("at"),
            _NODES.c.last_heartbeat > bindparam("in_the_future"),
        ),
    )
    .values(
        status=bindparam("new_status"),
        current_task_id=bindparam("new_task_id"),
        held_task_ids=bindparam("new_held"),
        last_heartbeat=bindparam("at"),
        offline_at=bindparam("new_offline_at"),
    )
)
_CANCELLED = and_(Task.status == TaskStatus.CANCELLED, Task.assigned_node_id.is_not(None))
_UNCONFIRMED = (
    select(Task.assigned_node_id, Task.id)
    .where(
        _CANCELLED,
        Task.node_ended_at.is_(None),
        Task.completed_at > bindparam("unconfirmed_since"),
    )
    .order_by(Task.number)
)
_HELD = select(Task.assigned_node_id, Task.id).where(
    _CANCELLED, Task.id.in_(bindparam("held", expanding=True))
)
_UNREPORTED = select(Task.assigned_node_id, Task.id).where(Task.status == TaskStatus.ASSIGNED)


@dataclass(frozen=True, slots=True)
class Beat:
    """One heartbeat of a node."""

    node_id: str
    status: NodeStatus
    current_task_id: str | None
    held_task_ids: list[str]
    at: datetime
    offline_at: datetime
    """When the node is offline, unless another heartbeat comes before."""
    parked_reports: int = 0


@dataclass(frozen=True)
class Pace:
    """How often nodes send heartbeats, in seconds, before it is rounded and limited for them."""

    usual_s: float
    """While the fleet is small: three of them are the heartbeat timeout."""
    idle_s: float
    """Of nodes without a task."""

    @classmethod
    def for_fleet(cls, heartbeat_timeout_s: float, idle_nodes: int, busy_nodes: int) -> "Pace":
        """Return the pace at which so many nodes send `HEARTBEATS_PER_S` at most."""
        usual_s = heartbeat_timeout_s / INTERVALS_UNTIL_OFFLINE
        left = HEARTBEATS_PER_S - busy_nodes / min(usual_s, _BUSY_INTERVAL_S)
        stretched_s = min(idle_nodes / max(left, _LEAST_PER_S), _LONGEST_S)
        return cls(usual_s, max(usual_s, stretched_s))

    def interval_s(self, *, has_task: bool) -> float:
        """Return the interval of a node."""
        return min(self.usual_s, _BUSY_INTERVAL_S) if has_task else self.idle_s

    def offline_after(self, *, has_task: bool) -> timedelta:
        """Return the time without a heartbeat after which a node is offline."""
        interval_s = max(self.usual_s, self.interval_s(has_task=has_task))
        return timedelta(seconds=INTERVALS_UNTIL_OFFLINE * interval_s)

    def announced_s(self, *, has_task: bool) -> int:
        """Return the interval that a node is told, in whole seconds."""
        interval_s = math.ceil(self.interval_s(has_task=has_task))
        return min(max(interval_s, _SHORTEST_S), _LONGEST_S)


class TasksByNode:
    """Ids of tasks by node: what the database had lately, and what has changed since.

    Used in the event loop's thread only.
    """

    def __init__(self) -> None:
        self._ids: dict[str, dict[str, None]] = {}
        self._changes: list[tuple[str, str, bool]] = []

    def of(self, node_id: str) -> list[str]:
        """Return the ids of a node's tasks."""
        return list(self._ids.get(node_id, ()))

    def add(self, node_id: str, task_id: str) -> None:
        """Add a task, as the database has it by now."""
        self._change(node_id, task_id, is_there=True)
        self._changes.append((node_id, task_id, True))

    def remove(self, node_id: str, task_id: str) -> None:
        """Remove a task, as the database has it by now."""
        self._change(node_id, task_id, is_there=False)
        self._changes.append((node_id, task_id, False))

    def begin_refresh(self) -> None:
        """Begin: what changes from now on may be missing in what is read."""
        self._changes.clear()

    def end_refresh(self, rows: Iterable[tuple[str, str]]) -> set[str]:
        """Replace all by what was read, and by what has changed meanwhile.

        Return the nodes that had no task before.
        """
        before, self._ids = self._ids, {}
        for node_id, task_id in rows:
            self._change(node_id, task_id, is_there=True)
        for node_id, task_id, is_there in self._changes:
            self._change(node_id, task_id, is_there=is_there)
        return self._ids.keys() - before.keys()

    def _change(self, node_id: str, task_id: str, *, is_there: bool) -> None:
        if is_there:
            self._ids.setdefault(node_id, {})[task_id] = None
        elif node_id in self._ids:
            self._ids[node_id].pop(task_id, None)


@dataclass(frozen=True)
class Refreshed:
    """What the database has for nodes: (node id, task id)."""

    cancelled: list[tuple[str, str]]
    unreported: list[tuple[str, str]]


class Heartbeats:
    """The last heartbeat of every node that this process has heard."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._timeout_s = settings.heartbeat_timeout_s
        self._last: dict[str, Beat] = {}
        self._unwritten: dict[str, Beat] = {}
        self._given_up: dict[str, Beat] = {}
        """The heartbeats of nodes that `set_offline` made offline before their time."""
        self._lock = threading.Lock()
        """For the two dicts, and only for moments."""
        self._write_lock = threading.Lock()
        self.pace = Pace.for_fleet(self._timeout_s, 0, 0)

    def record(self, beat: Beat) -> None:
        """Store a heartbeat; it is written within a second."""
        self._given_up.pop(beat.node_id, None)
        with self._lock:
            self._last[beat.node_id] = self._unwritten[beat.node_id] = beat

    def last(self, node_id: str) -> Beat | None:
        """Return a node's last heartbeat, if it came to this process."""
        return self._last.get(node_id)

    def set_offline(self, node_id: str, now: datetime) -> None:
        """Make a node offline now, without waiting for the end of its interval."""
        beat = self._last.get(node_id)
        if beat is not None and beat.offline_at > now:
            self.record(replace(beat, offline_at=now))
            self._given_up[node_id] = beat

    def revive(self, node_id: str) -> None:
        """Take `set_offline` back: the node has called."""
        beat = self._given_up.get(node_id)
        if beat is not None:
            self.record(beat)

    def adjust_pace(self, now: datetime) -> None:
        """Set the pace by the number of nodes that are online at this process."""
        gone = [beat.node_id for beat in self._last.values() if beat.offline_at < now - _KEPT_FOR]
        with self._lock:
            for node_id in gone:
                del self._last[node_id]
        busy = [bool(beat.held_task_ids) for beat in self._last.values() if beat.offline_at > now]
        self.pace = Pace.for_fleet(self._timeout_s, len(busy) - sum(busy), sum(busy))

    def write(self) -> None:
        """Write the heartbeats that are not written yet; returns once they are. In any thread."""
        with self._write_lock:
            with self._lock:
                beats, self._unwritten = self._unwritten, {}
            if not beats:
                return
            try:
                with self._database.writing_relaxed() as session:
                    _store(session, beats.values())
            except Exception:
                with self._lock:
                    self._unwritten = {**beats, **self._unwritten}
                raise

    def read_tasks(self, now: datetime) -> Refreshed:
        """Read which tasks are cancelled and unconfirmed, and which are unreported. In a thread."""
        with self._lock:
            held = {
                (beat.node_id, task_id)
                for beat in self._last.values()
                for task_id in beat.held_task_ids
            }
        ids = sorted({task_id for _, task_id in held})
        pieces = [ids[start : start + _HELD_AT_ONCE] for start in range(0, len(ids), _HELD_AT_ONCE)]
        since = now - UNCONFIRMED_CANCEL_FOR
        with self._database.reading() as session:
            rows = list(session.execute(_UNCONFIRMED, {"unconfirmed_since": since}))
            for piece in pieces:
                matching = session.execute(_HELD, {"held": piece})
                rows += [row for row in matching if (row[0], row[1]) in held]
            unreported = list(session.execute(_UNREPORTED))
        return Refreshed(
            cancelled=[(str(node_id), task_id) for node_id, task_id in rows],
            unreported=[(str(node_id), task_id) for node_id, task_id in unreported],
        )


def _store(session: Session, beats: Iterable[Beat]) -> None:
    rows = [
        {
            "node_id": beat.node_id,
            "new_status": beat.status,
            "new_task_id": beat.current_task_id,
            "new_held": beat.held_task_ids,
            "at": beat.at,
            "in_the_future": beat.at + _CLOCKS_AGREE_WITHIN,
            "new_offline_at": beat.offline_at,
        }
        # In one order, since another process may store heartbeats of the same nodes.
        for beat in sorted(beats, key=lambda beat: beat.node_id)
    ]
    session.connection().execute(_UPDATE, rows)
