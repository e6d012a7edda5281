"""Why a pending task waits, in one sentence for the person who created it.

The database counts, since there may be thousands of nodes.
"""

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import ColumnElement, case, func, literal, not_, or_, select
from sqlalchemy.orm import Session

from orchestrator.db.conditions import has_tag, matches_pattern
from orchestrator.db.tables import Node, Task
from orchestrator.model import NodeStatus, Target
from orchestrator.schemas.types import MAX_TARGET_TAGS

_LISTED = 5
"""Conditions that the sentence names."""
_MOST_COUNTED = MAX_TARGET_TAGS + 2
"""With the node's id and name. Older versions have taken more, and SQLite takes no such statement.
"""
_FREE = "free"


def waiting_reason(
    session: Session, task: Task, is_visible: ColumnElement[bool], now: datetime
) -> str:
    """Return why a pending task has no node yet, by those of the nodes that the reader may know."""
    if task.scheduled_for is not None and task.scheduled_for > now:
        return f"it is due at {task.scheduled_for:%Y-%m-%dT%H:%M:%SZ}"
    conditions = _conditions(session, task.target)
    if len(conditions) > _MOST_COUNTED:
        return f"its target has {len(conditions)} conditions, too many to count nodes by"
    state = _state(now).label("state")
    counted = select(state, func.count()).where(is_visible, *conditions.values()).group_by("state")
    states = {row[0]: row[1] for row in session.execute(counted)}
    if not states:
        return _mismatch(session, conditions, is_visible)
    total = sum(states.values())
    free = states.pop(_FREE, 0)
    if free:
        are = "is" if free == 1 else "are"
        return f"it waits for its turn: of {_nodes(total)} matching, {free} {are} free"
    listed = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    return f"none of {_nodes(total)} matching is free: {listed}"


def _state(now: datetime) -> ColumnElement[str]:
    return case(
        (or_(Node.offline_at < now, Node.status == NodeStatus.OFFLINE), literal("offline")),
        (Node.paused, literal("paused")),
        (Node.status == NodeStatus.ERROR, literal("with a problem")),
        (Node.status == NodeStatus.BUSY, literal("busy")),
        else_=literal(_FREE),
    )


def _mismatch(
    session: Session,
    conditions: Mapping[str, ColumnElement[bool]],
    is_visible: ColumnElement[bool],
) -> str:
    """Return the conditions that no node meets all of, each with the nodes that fail it."""
    failing = [func.count().filter(not_(condition)) for condition in conditions.values()]
    counted = select(func.count(), *failing).select_from(Node).where(is_visible)
    total, *counts = session.execute(counted).one()
    if not total:
        return "no node is registered"
    failures = [pair for pair in zip(conditions, counts, strict=True) if pair[1]]
    failures.sort(key=lambda pair: -pair[1])
    listed = [f"{condition} fails for {count}" for condition, count in failures[:_LISTED]]
    if len(failures) > _LISTED:
        listed.append(f"and {len(failures) - _LISTED} more conditions")
    return f"none of {_nodes(total)} matches: {', '.join(listed)}"


def _conditions(session: Session, target: Target) -> dict[str, ColumnElement[bool]]:
    """Return what `model.matches` compares, each condition by its name."""
    conditions: dict[str, ColumnElement[bool]] = {}
    if target.node_id is not None:
        conditions[f"target_node_id {target.node_id}"] = Node.id == target.node_id
    if target.node_name is not None:
        matching = matches_pattern(session, Node.name, target.node_name)
        conditions[f"target_node_name {target.node_name!r}"] = matching
    for key, value in (target.tags or {}).items():
        conditions[f"tag {key}={value}"] = has_tag(session, Node.tags, key, value)
    return conditions


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"
