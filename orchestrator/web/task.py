"""The parts of a task's page; an open page receives those that changed.

They are rendered once a second for each open page. So only what is shown is loaded, and a log,
which may be long, only when a new one has arrived. The page reads the output by itself.
"""

import json
from datetime import datetime, timedelta, timezone
from typing import Any

from sqlalchemy import Row, Select, func, select
from sqlalchemy.orm import Session

from orchestrator.auth import Caller
from orchestrator.db.tables import ApiKey, Artifact, Log, Node, StatusEntry, Task
from orchestrator.model import (
    ADMIN_ID,
    HELD,
    PERMISSIONS,
    Permission,
    Role,
    TaskStatus,
    utc_now,
)
from orchestrator.scheduling.waiting_reason import waiting_reason
from orchestrator.scope import nodes_of, require_task_within
from orchestrator.services import Services
from orchestrator.web.render import Json, changed_parts, render, target_text, time_text

_STEPS_SHOWN = 200
_ARTIFACTS_SHOWN = 500
_SHOWN_OF_A_MESSAGE = 2_000
_SHOWN_OF_A_TEXT = 20_000
_MESSAGES_SHOWN = 500
_CHARACTERS_SHOWN = 100_000
_SHOWN_OF_A_TITLE = 500
_EARLIEST_IN_MS = 10**11
"""A time of an agent that is later, in seconds, would be after the year 5000."""


class TaskViewer:
    """One open page of a task."""

    def __init__(self, services: Services, caller: Caller, task_id: str) -> None:
        self._services = services
        self._caller = caller
        self._task_id = task_id
        self._shown: dict[str, str] = {}
        self._log_received_at: datetime | None = None
        """When the log that is shown was received."""

    def look(self) -> dict[str, str]:
        """Return the parts that have changed since the last call, as HTML. Raises NotFound."""
        now, caller = utc_now(), self._caller
        with self._services.database.reading() as session:
            task = require_task_within(session, caller, self._task_id)
            parts = {
                "facts": render("facts", task=_facts(session, caller, task, now)),
                "history": render("history", **_history(session, task)),
                "artifacts": render("artifacts", **_artifacts(session, task)),
                "log": self._log(session, task),
            }
        changed, self._shown = changed_parts(self._shown, parts), parts
        return changed

    def _log(self, session: Session, task: Task) -> str:
        of_task = Log.task_number == task.number
        received_at = session.scalar(select(Log.received_at).where(of_task))
        if received_at is None:
            return ""
        if self._log_received_at == received_at:
            return self._shown["log"]
        self._log_received_at = received_at
        text = session.scalars(select(Log.session).where(of_task)).one()
        return render("log", log=shown_log(text), task_id=task.id)


def _facts(session: Session, caller: Caller, task: Task, now: datetime) -> Json:
    outcome = task.result or task.error_message or ""
    visible = select(Node.id, Node.name).where(
        nodes_of(session, caller), Node.id.in_([task.assigned_node_id, task.target_node_id])
    )
    node_names = {row.id: row.name for row in session.execute(visible)}
    node_id = task.assigned_node_id or ""
    return {
        "id": task.id,
        "prompt": task.prompt[:_SHOWN_OF_A_TEXT],
        "status": task.status.value,
        "run": task.assignment_number,
        "may": _possible_calls(caller, task),
        "waiting": task.status is TaskStatus.PENDING
        and waiting_reason(session, task, nodes_of(session, caller), now),
        "container": _container_text(task),
        "target": target_text(node_names, task),
        "node": node_names.get(node_id, node_id),
        "at": time_text(task.created_at),
        "creator": _creator(session, caller, task),
        "rerun_of": task.rerun_of,
        "due": task.scheduled_for and time_text(task.scheduled_for),
        "recurrence": task.recurrence,
        "started": task.started_at and time_text(task.started_at),
        "ran": _ran(task),
        "runs_since": task.status in HELD and task.started_at and task.started_at.isoformat(),
        "files": task.files,
        "outcome": outcome[:_SHOWN_OF_A_TEXT],
        "is_cut": max(len(task.prompt), len(outcome)) > _SHOWN_OF_A_TEXT,
    }


def _possible_calls(caller: Caller, task: Task) -> set[str]:
    """Return what the reader's key may do with the task in its state."""
    is_over = task.status.is_final
    calls = {
        "cancel": (Permission.CANCEL_TASKS, not is_over),
        "rerun": (Permission.CREATE_TASKS, is_over),
        "purge": (Permission.PURGE_TASKS, task.status not in HELD),
    }
    permissions = PERMISSIONS[caller.role]
    return {name for name, (needed, fits) in calls.items() if fits and needed in permissions}


def _container_text(task: Task) -> str | None:
    """Return what is known of the container of a task that was cancelled."""
    if task.status is not TaskStatus.CANCELLED:
        return None
    if task.assigned_node_id is None:
        return "none: no node had the task"
    if task.node_ended_at is None:
        return "may still run: its node has not reported its end yet"
    return f"gone: its node reported this at {time_text(task.node_ended_at)}"


def _ran(task: Task) -> str | None:
    if task.started_at is None or task.completed_at is None:
        return None
    return duration_text(task.completed_at - task.started_at)


def _creator(session: Session, caller: Caller, task: Task) -> str:
    if task.created_by == ADMIN_ID:
        return "the admin key"
    key = session.get(ApiKey, task.created_by)
    is_admin = caller.role is Role.ADMIN
    if key is None or not (
        key.id == caller.key_id or (is_admin and caller.covers(key.allowed_node_patterns))
    ):
        return task.created_by
    return key.name


def _history(session: Session, task: Task) -> Json:
    rows = session.execute(_newest_steps(task)).all()
    shown = rows[:_STEPS_SHOWN][::-1]
    ends = [*(row.timestamp for row in shown[1:]), None]
    outcome = task.result or task.error_message
    return {
        "steps": [_step(row, end, outcome) for row, end in zip(shown, ends, strict=True)],
        "is_open": not task.status.is_final,
        "are_more": len(rows) > _STEPS_SHOWN,
        "task_id": task.id,
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


def _step(step: Row[Any], end: datetime | None, outcome: str | None) -> Json:
    message = step.message or ""
    if step.status.is_final and outcome and outcome.startswith(message):
        message = message.partition("\n")[0]  # The outcome is shown in full.
    is_long = len(message) > _SHOWN_OF_A_MESSAGE
    return {
        "status": step.status.value,
        "progress": step.progress,
        "message": message[:_SHOWN_OF_A_MESSAGE] + "…" * is_long,
        "at": time_text(step.timestamp),
        "since": step.timestamp.isoformat(),
        "took": end and duration_text(end - step.timestamp),
    }


def duration_text(duration: timedelta) -> str:
    """Return a duration for people; one of a clock that was set back is none."""
    seconds = max(duration.total_seconds(), 0)
    # What would be rounded to 60 seconds is a minute.
    if seconds < 59.95:  # noqa: PLR2004
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _artifacts(session: Session, task: Task) -> Json:
    rows = session.execute(
        select(Artifact.path, Artifact.size, Artifact.checksum, Artifact.created_at)
        .where(Artifact.task_number == task.number)
        .order_by(Artifact.path)
        .limit(_ARTIFACTS_SHOWN + 1)
    ).all()
    artifacts = [
        {
            "path": row.path,
            "size": size_text(row.size),
            "checksum": row.checksum,
            "at": time_text(row.created_at),
        }
        # Each database has an order of its own.
        for row in sorted(rows[:_ARTIFACTS_SHOWN], key=lambda row: str(row.path))
    ]
    are_more = len(rows) > _ARTIFACTS_SHOWN
    return {"artifacts": artifacts, "are_more": are_more, "task_id": task.id}


def size_text(size: int) -> str:
    """Return a number of bytes for people."""
    if size < 1000:  # noqa: PLR2004 - below the first unit
        return f"{size} B"
    for unit, name in ((10**9, "GB"), (10**6, "MB")):
        # What would be rounded to 1000 of one unit is 1 of the next.
        if size >= unit * 0.99995:
            return f"{size / unit:.1f} {name}"
    return f"{size / 1000:.1f} kB"


def shown_log(session: str) -> Json:
    """Return a session's title and its last messages; `is_cut` if there is more of it.

    It is stored as received: nothing in it need have the form that agents send.
    """
    content = json.loads(session)
    value = content.get("messages")
    messages = [one for one in (value if isinstance(value, list) else []) if isinstance(one, dict)]
    title = _text(content.get("title", ""))
    shown: list[Json] = []
    room = _CHARACTERS_SHOWN
    is_cut = len(messages) > _MESSAGES_SHOWN or len(title) > _SHOWN_OF_A_TITLE
    for message in reversed(messages[-_MESSAGES_SHOWN:]):
        role, content = _text(message.get("role", "")), _text(message.get("content", ""))
        if len(role) + len(content) > room:
            is_cut = True
            role = role[:room]
            content = content[len(content) - (room - len(role)) :]
        shown.append({"role": role, "content": content, "at": _moment(message.get("created_at"))})
        room -= len(role) + len(content)
        if not room:
            is_cut = True
            break
    return {"title": title[:_SHOWN_OF_A_TITLE], "messages": shown[::-1], "is_cut": is_cut}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _moment(value: object) -> str | None:
    """Return an agent's time, which is in seconds or, with some versions, in milliseconds."""
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        return None
    seconds = value / 1000 if value > _EARLIEST_IN_MS else value
    try:
        return time_text(datetime.fromtimestamp(seconds, timezone.utc))
    except (ValueError, OverflowError, OSError):
        return None
