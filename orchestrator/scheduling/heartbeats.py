"""Heartbeats: those that arrive at the same time are stored in one transaction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import and_, bindparam, or_, select, update
from sqlalchemy.orm import Session

from orchestrator.db.database import Database
from orchestrator.db.tables import Base, Node, Task
from orchestrator.model import NodeStatus, TaskStatus, utc_now
from orchestrator.schemas.bodies import HeartbeatResponse, NodeView

_UNCONFIRMED_CANCEL_FOR = timedelta(days=1)
"""How long a cancellation is repeated to a node that neither holds nor confirms the task."""

_HELD_AT_ONCE = 5000
"""Task ids in one statement."""

# Statements are made once: to make one costs more than to run it.
_NODES = Base.metadata.tables[Node.__tablename__]
_UPDATE = (
    update(_NODES)
    .where(_NODES.c.id == bindparam("node_id"))
    .values(
        status=bindparam("new_status"),
        current_task_id=bindparam("new_task_id"),
        held_task_ids=bindparam("new_held"),
        last_heartbeat=bindparam("now"),
    )
)
_SHOW = select(_NODES).where(_NODES.c.id.in_(bindparam("node_ids", expanding=True)))
_UNCONFIRMED = and_(
    Task.node_ended_at.is_(None), Task.completed_at > bindparam("unconfirmed_since")
)
_CANCELLED = (
    select(Task.id, Task.assigned_node_id, _UNCONFIRMED.label("is_unconfirmed"))
    .where(
        Task.assigned_node_id.in_(bindparam("node_ids", expanding=True)),
        Task.status == TaskStatus.CANCELLED,
        or_(_UNCONFIRMED, Task.id.in_(bindparam("held", expanding=True))),
    )
    .order_by(Task.number)
)


@dataclass(frozen=True)
class Beat:
    """One heartbeat of a node."""

    node_id: str
    status: NodeStatus
    current_task_id: str | None
    held_task_ids: list[str]


def store_all(database: Database, beats: Sequence[Beat]) -> list[HeartbeatResponse | None]:
    """Store the heartbeats; return for each its node and the tasks to stop.

    The result is None where the node no longer exists.
    """
    now = utc_now()
    with database.writing_relaxed() as session:
        _store(session, beats, now)
        asked = {"node_ids": sorted({beat.node_id for beat in beats})}
        nodes = {node.id: node for node in session.execute(_SHOW, asked)}
        cancelled = _cancelled(session, beats, now)
    return [
        None
        if beat.node_id not in nodes
        else HeartbeatResponse(
            **NodeView.model_validate(nodes[beat.node_id]).model_dump(),
            cancelled_task_ids=ids,
        )
        for beat, ids in zip(beats, cancelled, strict=True)
    ]


def _store(session: Session, beats: Sequence[Beat], now: datetime) -> None:
    # In one order, since another process may store heartbeats of the same nodes.
    in_order = sorted(beats, key=lambda beat: beat.node_id)
    rows = [
        {
            "node_id": beat.node_id,
            "new_status": beat.status,
            "new_task_id": beat.current_task_id,
            "new_held": beat.held_task_ids,
            "now": now,
        }
        for beat in in_order
    ]
    session.connection().execute(_UPDATE, rows)


def _cancelled(session: Session, beats: Sequence[Beat], now: datetime) -> list[list[str]]:
    asked: Mapping[str, object] = {
        "node_ids": sorted({beat.node_id for beat in beats}),
        "unconfirmed_since": now - _UNCONFIRMED_CANCEL_FOR,
    }
    held = sorted({task_id for beat in beats for task_id in beat.held_task_ids})
    # One node may report any number of tasks; that must not fail the batch of all.
    pieces = [held[start : start + _HELD_AT_ONCE] for start in range(0, len(held), _HELD_AT_ONCE)]
    found = {
        row.id: row
        for piece in pieces or [[]]
        for row in session.execute(_CANCELLED, {**asked, "held": piece})
    }
    return [
        [
            row.id
            for row in found.values()
            if row.assigned_node_id == beat.node_id
            and (row.is_unconfirmed or row.id in beat.held_task_ids)
        ]
        for beat in beats
    ]
