"""Why a pending task waits, in one sentence for the person who created it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from orchestrator.db.tables import Node, Task
from orchestrator.model import NodeIdentity, NodeStatus, Target, matches

_LISTED = 5
"""Conditions that the sentence names."""


def waiting_reason(
    session: Session, task: Task, is_visible: ColumnElement[bool], now: datetime
) -> str:
    """Return why a pending task has no node yet, by those of the nodes that the reader may know."""
    if task.scheduled_for is not None and task.scheduled_for > now:
        return f"it is due at {task.scheduled_for:%Y-%m-%dT%H:%M:%SZ}"
    columns = select(Node.id, Node.name, Node.tags, Node.status, Node.offline_at, Node.paused)
    rows = session.execute(columns.where(is_visible)).all()
    if not rows:
        return "no node is registered"
    nodes = [NodeIdentity(row.id, row.name, row.tags) for row in rows]
    states = Counter(
        _state(row.status, row.offline_at, now, is_paused=row.paused)
        for node, row in zip(nodes, rows, strict=True)
        if matches(task.target, node)
    )
    if not states:
        return _mismatch(task.target, nodes)
    free = states.pop("free", 0)
    total = free + states.total()
    if free:
        return f"it waits for its turn: of {_nodes(total)} matching, {free} {_are(free)} free"
    counted = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    return f"none of {_nodes(total)} matching is free: {counted}"


def _state(status: NodeStatus, offline_at: datetime, now: datetime, *, is_paused: bool) -> str:
    if offline_at < now or status is NodeStatus.OFFLINE:
        return "offline"
    if is_paused:
        return "paused"
    if status is NodeStatus.ERROR:
        return "with a problem"
    return "busy" if status is NodeStatus.BUSY else "free"


def _mismatch(target: Target, nodes: Sequence[NodeIdentity]) -> str:
    """Return the conditions that no node meets all of, each with the nodes that fail it."""
    failures = {
        condition: sum(not matches(part, node) for node in nodes)
        for condition, part in _conditions(target).items()
    }
    worst = sorted((item for item in failures.items() if item[1]), key=lambda item: -item[1])
    listed = [f"{condition} fails for {count}" for condition, count in worst[:_LISTED]]
    if len(worst) > _LISTED:
        listed.append(f"and {len(worst) - _LISTED} more conditions")
    return f"none of {_nodes(len(nodes))} matches: {', '.join(listed)}"


def _conditions(target: Target) -> Mapping[str, Target]:
    parts = {}
    if target.node_id is not None:
        parts[f"target_node_id {target.node_id}"] = Target(node_id=target.node_id)
    if target.node_name is not None:
        parts[f"target_node_name {target.node_name!r}"] = Target(node_name=target.node_name)
    for key, value in (target.tags or {}).items():
        parts[f"tag {key}={value}"] = Target(tags={key: value})
    return parts


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
