"""The parts of the dashboard; an open page receives those that changed.

They are rendered once a second for each open page, so only what is shown is loaded.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, case, func, select

from orchestrator.auth import Caller
from orchestrator.db.tables import ApiKey, Node, RegistrationToken, StatusEntry, Task
from orchestrator.model import HELD, NodeStatus, utc_now
from orchestrator.routes.stats import get_statistics
from orchestrator.scope import nodes_of, tasks_of, within
from orchestrator.services import Services
from orchestrator.web.render import Json, changed_parts, render, target_text, time_text

_TASKS_SHOWN = 100
_SHOWN_OF_A_PROMPT = 120
_BEGINNING = 1_000
"""Characters of a prompt that are loaded for the list: it may begin with blank lines."""


class Viewer:
    """One open page."""

    def __init__(self, services: Services, caller: Caller) -> None:
        self._services = services
        self._caller = caller
        self._shown: dict[str, str] = {}

    def look(self) -> dict[str, str]:
        """Return the parts that have changed since the last call, as HTML."""
        now, caller = utc_now(), self._caller
        self._services.heartbeats.write()
        numbers = get_statistics(self._services, caller).model_dump()
        with self._services.database.reading() as session:
            named = select(Node).where(nodes_of(session, caller)).order_by(Node.name)
            nodes = {node.id: node for node in session.scalars(named)}
            is_seen = tasks_of(session, caller)
            keys = within(caller, session.scalars(select(ApiKey).order_by(ApiKey.created_at)))
            oldest_first = select(RegistrationToken).order_by(RegistrationToken.created_at)
            tokens = within(caller, session.scalars(oldest_first))
            rows = session.execute(_newest_tasks().where(is_seen)).all()
            parts = {
                "numbers": render(
                    "numbers", numbers=[(name.replace("_", " "), n) for name, n in numbers.items()]
                ),
                "tasks": render(
                    "tasks",
                    tasks=[_row(nodes, row) for row in rows[:_TASKS_SHOWN]],
                    are_more=len(rows) > _TASKS_SHOWN,
                ),
                "nodes": render("nodes", nodes=[_node(node, now) for node in nodes.values()]),
                "key-list": render("keys", keys=[_key(key, now) for key in keys]),
                "token-list": render("tokens", tokens=[_token(token, now) for token in tokens]),
            }
        changed, self._shown = changed_parts(self._shown, parts), parts
        return changed


def _newest_tasks() -> Select[Any]:
    return (
        select(
            Task.id,
            func.substr(Task.prompt, 1, _BEGINNING).label("prompt"),
            Task.status,
            _progress().label("progress"),
            Task.target_node_id,
            Task.target_node_name,
            Task.target_tags,
            Task.created_at,
            Task.scheduled_for,
            Task.recurrence,
        )
        .order_by(Task.number.desc())
        # One more than is shown, to know whether there are more.
        .limit(_TASKS_SHOWN + 1)
    )


def _progress() -> ColumnElement[float | None]:
    latest = (
        select(StatusEntry.progress)
        .where(StatusEntry.task_number == Task.number, StatusEntry.progress.is_not(None))
        .order_by(StatusEntry.number.desc())
        .limit(1)
        .scalar_subquery()
    )
    # A task that has ended is not half done, and one back in the queue starts over.
    return case((Task.status.in_(HELD), latest))


def _node(node: Node, now: datetime) -> Json:
    is_silent = node.offline_at < now
    return {
        "id": node.id,
        "name": node.name,
        "is_paused": node.paused,
        "status": (NodeStatus.OFFLINE if is_silent else node.status).value,
        "at": time_text(node.last_heartbeat),
        "tags": node.tags,
    }


def _row(nodes: dict[str, Node], row: Row[Any]) -> Json:
    prompt = row.prompt.strip()
    is_long = len(prompt) > _SHOWN_OF_A_PROMPT or len(row.prompt) == _BEGINNING
    return {
        "id": row.id,
        "prompt": prompt[:_SHOWN_OF_A_PROMPT] + "…" * is_long,
        "status": row.status.value,
        "progress": row.progress,
        "target": target_text({key: node.name for key, node in nodes.items()}, row),
        "at": time_text(row.created_at),
        "due": row.scheduled_for and time_text(row.scheduled_for),
        "recurrence": row.recurrence,
    }


def _key(key: ApiKey, now: datetime) -> Json:
    is_over = key.expires_at is not None and key.expires_at <= now
    return {
        "id": key.id,
        "name": key.name,
        "description": key.description,
        "prefix": key.prefix,
        "patterns": key.allowed_node_patterns,
        "role": "revoked" if not key.enabled else "expired" if is_over else key.role.value,
        "expires": key.expires_at and time_text(key.expires_at),
        "rate_limit": key.rate_limit,
        "enabled": key.enabled,
    }


def _token(token: RegistrationToken, now: datetime) -> Json:
    state = "expired" if token.is_expired(now) else "used up" if token.is_used_up else "valid"
    return {
        "id": token.id,
        "name": token.name,
        "prefix": token.prefix,
        "patterns": token.allowed_node_patterns,
        "state": state,
        "expires": token.expires_at and time_text(token.expires_at),
        "uses": token.uses,
        "max_uses": token.max_uses,
    }
