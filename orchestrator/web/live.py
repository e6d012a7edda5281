"""The parts of the dashboard; an open page receives those that changed.

They are rendered once a second for each open page. So only what is shown is loaded, and a log,
which may be long, only when a new one has arrived.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader
from sqlalchemy import ColumnElement, Row, Select, case, func, select
from sqlalchemy.orm import Session

from orchestrator.auth import Caller
from orchestrator.db.tables import ApiKey, Log, Node, RegistrationToken, StatusEntry, Task
from orchestrator.model import ADMIN_ID, HELD, NodeStatus, utc_now
from orchestrator.routes.stats import get_statistics
from orchestrator.scope import nodes_of, tasks_of, within
from orchestrator.services import Services

_TASKS_SHOWN = 100
_STEPS_SHOWN = 200
_SHOWN_OF_A_PROMPT = 120
_SHOWN_OF_A_MESSAGE = 2_000
_SHOWN_OF_A_TEXT = 20_000
_BEGINNING = 1_000
"""Characters of a prompt that are loaded for the list: it may begin with blank lines."""

Json = dict[str, Any]


class Viewer:
    """One open page: its parts, and the task that was chosen there."""

    def __init__(self, services: Services, caller: Caller, task_id: str) -> None:
        self._services = services
        self._caller = caller
        self._task_id = task_id
        self._shown: dict[str, str] = {}
        self._log_of: tuple[int, datetime] | None = None
        """The number of the task whose log is shown, and when the log was received."""

    def look(self) -> dict[str, str]:
        """Return the parts that have changed since the last call, as HTML."""
        now, caller = utc_now(), self._caller
        self._services.heartbeats.write()
        numbers = get_statistics(self._services, caller).model_dump()
        with self._services.database.reading() as session:
            named = select(Node).where(nodes_of(session, caller)).order_by(Node.name)
            nodes = {node.id: node for node in session.scalars(named)}
            is_seen = tasks_of(session, caller)
            chosen = select(Task).where(Task.id == self._task_id, is_seen)
            task = session.scalars(chosen).one_or_none()
            keys = within(caller, session.scalars(select(ApiKey).order_by(ApiKey.created_at)))
            oldest_first = select(RegistrationToken).order_by(RegistrationToken.created_at)
            tokens = within(caller, session.scalars(oldest_first))
            rows = session.execute(_newest_tasks().where(is_seen)).all()
            parts = {
                "numbers": _part(
                    "numbers", numbers=[(name.replace("_", " "), n) for name, n in numbers.items()]
                ),
                "chosen": _part("chosen", task=task and _task(session, nodes, keys, task)),
                "log": self._log(session, task),
                "tasks": _part(
                    "tasks",
                    tasks=[_row(nodes, row) for row in rows[:_TASKS_SHOWN]],
                    are_more=len(rows) > _TASKS_SHOWN,
                ),
                "nodes": _part("nodes", nodes=[_node(node, now) for node in nodes.values()]),
                "key-list": _part("keys", keys=[_key(key, now) for key in keys]),
                "token-list": _part("tokens", tokens=[_token(token, now) for token in tokens]),
            }
        changed = {name: html for name, html in parts.items() if self._shown.get(name) != html}
        self._shown = parts
        return changed

    def _log(self, session: Session, task: Task | None) -> str:
        if task is None:
            return ""
        came = session.scalar(select(Log.received_at).where(Log.task_number == task.number))
        if came is None:
            return ""
        if self._log_of == (task.number, came):
            return self._shown["log"]
        self._log_of = (task.number, came)
        text = session.scalars(select(Log.session).where(Log.task_number == task.number)).one()
        return _part("log", log=shown_log(text), task_id=task.id)


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
        "name": node.name,
        "status": (NodeStatus.OFFLINE if is_silent else node.status).value,
        "at": _shown(node.last_heartbeat),
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
        "target": _target(nodes, row),
        "at": _shown(row.created_at),
        "due": row.scheduled_for and _shown(row.scheduled_for),
        "recurrence": row.recurrence,
    }


def _task(session: Session, nodes: dict[str, Node], keys: Sequence[ApiKey], task: Task) -> Json:
    creators = {ADMIN_ID: "the admin key", **{key.id: key.name for key in keys}}
    node = nodes.get(task.assigned_node_id or "")
    outcome = task.result or task.error_message or ""
    steps = session.execute(_newest_steps(task)).all()
    return {
        "id": task.id,
        "prompt": task.prompt[:_SHOWN_OF_A_TEXT],
        "status": task.status.value,
        "is_open": not task.status.is_final,
        "target": _target(nodes, task),
        "node": task.assigned_node_id if node is None else node.name,
        "at": _shown(task.created_at),
        "creator": creators.get(task.created_by, task.created_by),
        "due": task.scheduled_for and _shown(task.scheduled_for),
        "recurrence": task.recurrence,
        "files": task.files,
        "outcome": outcome[:_SHOWN_OF_A_TEXT],
        "history": [_step(step) for step in reversed(steps[:_STEPS_SHOWN])],
        "is_cut": max(len(task.prompt), len(outcome)) > _SHOWN_OF_A_TEXT,
        "are_more_steps": len(steps) > _STEPS_SHOWN,
    }


def _newest_steps(task: Task) -> Select[Any]:
    return (
        select(
            StatusEntry.status,
            StatusEntry.progress,
            func.substr(StatusEntry.message, 1, _SHOWN_OF_A_MESSAGE + 1).label("message"),
            StatusEntry.timestamp,
        )
        .where(StatusEntry.task_number == task.number)
        .order_by(StatusEntry.number.desc())
        .limit(_STEPS_SHOWN + 1)
    )


def _step(step: Row[Any]) -> Json:
    message = step.message or ""
    is_long = len(message) > _SHOWN_OF_A_MESSAGE
    return {
        "status": step.status.value,
        "progress": step.progress,
        "message": message[:_SHOWN_OF_A_MESSAGE] + "…" * is_long,
        "at": _shown(step.timestamp),
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
        "expires": key.expires_at and _shown(key.expires_at),
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
        "expires": token.expires_at and _shown(token.expires_at),
        "uses": token.uses,
        "max_uses": token.max_uses,
    }


def _target(nodes: dict[str, Node], task: Task | Row[Any]) -> str:
    node = nodes.get(task.target_node_id or "")
    tags = [f"{key}={value}" for key, value in (task.target_tags or {}).items()]
    given = [node.name if node else task.target_node_id, task.target_node_name, *tags]
    return ", ".join(one for one in given if one) or "any node"


def _shown(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def _part(template: str, **what: object) -> str:
    return pages().get_template(f"live/{template}.html").render(**what)


@cache
def pages() -> Environment:
    """Return the templates; values are escaped."""
    return Environment(
        loader=PackageLoader("orchestrator.web", "pages"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )


_MESSAGES_SHOWN = 500
_CHARACTERS_SHOWN = 100_000
_SHOWN_OF_A_TITLE = 500


def shown_log(session: str) -> dict[str, Any]:
    """Return a session's title and its last messages; `is_cut` if there is more of it.

    It is stored as received: nothing in it need have the form that agents send.
    """
    content = json.loads(session)
    value = content.get("messages")
    messages = [one for one in (value if isinstance(value, list) else []) if isinstance(one, dict)]
    title = _text(content.get("title", ""))
    shown: list[dict[str, str]] = []
    room = _CHARACTERS_SHOWN
    is_cut = len(messages) > _MESSAGES_SHOWN or len(title) > _SHOWN_OF_A_TITLE
    for message in reversed(messages[-_MESSAGES_SHOWN:]):
        role, content = _text(message.get("role", "")), _text(message.get("content", ""))
        if len(role) + len(content) > room:
            is_cut = True
            role = role[:room]
            content = content[len(content) - (room - len(role)) :]
        shown.append({"role": role, "content": content})
        room -= len(role) + len(content)
        if not room:
            is_cut = True
            break
    return {"title": title[:_SHOWN_OF_A_TITLE], "messages": shown[::-1], "is_cut": is_cut}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
