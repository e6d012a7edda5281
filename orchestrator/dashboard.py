"""The page for people. It needs no key; what it shows does, and comes as server-sent events.

One stream is one call with a key, and so one entry in the audit; it ends after a minute, so that a
key that has ended shows no more than that.
"""

import json
import secrets
import time
from collections.abc import AsyncIterator
from datetime import datetime
from functools import cache
from typing import Any

import anyio
from fastapi import APIRouter, Depends
from jinja2 import Environment, PackageLoader
from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, StreamingResponse

from orchestrator.auth import allowed_to
from orchestrator.clock import utc_now
from orchestrator.fields import RequestBody, ShortText
from orchestrator.leases import silent_before
from orchestrator.problems import problems
from orchestrator.roles import Permission
from orchestrator.schema import ApiKey, Log, Node, Task
from orchestrator.services import Services, ServicesParam
from orchestrator.states import NodeStatus
from orchestrator.statistics import get_statistics
from orchestrator.targeting import Target, matches

_TASKS_SHOWN = 100
_STREAM_S = 60
_LOOK_EVERY_S = 1.0
_SHOWN_OF_A_PROMPT = 120

router = APIRouter(tags=["system"])
_ADMIN = [Depends(allowed_to(Permission.READ_STATISTICS))]

Json = dict[str, Any]


class TargetOfTask(RequestBody):
    """Whom a task would be for."""

    target_node_name: ShortText | None = None
    target_tags: dict[ShortText, ShortText] | None = None


@router.get("/dashboard", response_class=HTMLResponse)
def show_dashboard() -> HTMLResponse:
    """Show the page; it asks for the admin key and shows nodes, tasks and keys with it."""
    nonce = secrets.token_urlsafe(16)
    allowed = f"script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'"
    page = _pages().get_template("dashboard.html").render(nonce=nonce)
    return HTMLResponse(
        page,
        headers={
            "Content-Security-Policy": f"default-src 'none'; {allowed}; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        },
    )


@router.get(
    "/dashboard/live",
    include_in_schema=False,
    dependencies=_ADMIN,
    responses=problems(401, 403, 429),
)
async def stream_fleet(services: ServicesParam, task_id: str = "") -> StreamingResponse:
    """Stream what the page shows, whenever it changes."""
    return StreamingResponse(
        _events(services, task_id),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@router.post("/dashboard/matches", include_in_schema=False, dependencies=_ADMIN)
def count_matches(services: ServicesParam, target: TargetOfTask) -> dict[str, int]:
    """Say how many of the nodes a task with this target could go to."""
    wanted = Target(None, target.target_node_name, target.target_tags)
    with services.database.reading() as session:
        nodes = session.scalars(select(Node)).all()
    matching = sum(matches(wanted, node.identity) for node in nodes)
    return {"matching": matching, "total": len(nodes)}


async def _events(services: Services, task_id: str) -> AsyncIterator[str]:
    ends_at = time.monotonic() + _STREAM_S
    shown = None
    while time.monotonic() < ends_at and not services.waiters.closed:
        html = await run_in_threadpool(_render, services, task_id)
        # A line that says nothing tells the server that the reader is gone.
        yield f"data: {json.dumps(html)}\n\n" if html != shown else ": still here\n\n"
        shown = html
        await anyio.sleep(_LOOK_EVERY_S)


def _render(services: Services, task_id: str) -> str:
    now = utc_now()
    numbers = get_statistics(services).model_dump()
    recent = select(Task).order_by(Task.number.desc()).limit(_TASKS_SHOWN)
    with services.database.reading() as session:
        nodes = {node.id: node for node in session.scalars(select(Node).order_by(Node.name))}
        tasks = session.scalars(recent.options(selectinload(Task.history))).all()
        keys = session.scalars(select(ApiKey).order_by(ApiKey.created_at)).all()
        return (
            _pages()
            .get_template("live.html")
            .render(
                numbers=[(name.replace("_", " "), count) for name, count in numbers.items()],
                nodes=[_node(services, node, now) for node in nodes.values()],
                tasks=[_row(task) for task in tasks],
                task=_task(session, nodes, task_id),
                keys=[_key(key) for key in keys],
            )
        )


def _node(services: Services, node: Node, now: datetime) -> Json:
    is_silent = node.last_heartbeat < silent_before(services.settings, now)
    return {
        "name": node.name,
        "status": (NodeStatus.OFFLINE if is_silent else node.status).value,
        "at": _shown(node.last_heartbeat),
        "tags": node.tags,
    }


def _row(task: Task) -> Json:
    prompt = task.prompt.strip()
    is_long = len(prompt) > _SHOWN_OF_A_PROMPT
    told = [step.progress for step in task.history if step.progress is not None]
    return {
        "id": task.id,
        "prompt": prompt[:_SHOWN_OF_A_PROMPT] + "…" * is_long,
        "status": task.status.value,
        "progress": told[-1] if told else None,
        "target": _target(task),
        "at": _shown(task.created_at),
    }


def _task(session: Session, nodes: dict[str, Node], task_id: str) -> Json | None:
    task = session.scalars(select(Task).where(Task.id == task_id)).one_or_none()
    if task is None:
        return None
    log = session.get(Log, task.number)
    node = nodes.get(task.assigned_node_id or "")
    return {
        "id": task.id,
        "prompt": task.prompt,
        "status": task.status.value,
        "is_open": not task.status.is_final,
        "target": _target(task),
        "node": task.assigned_node_id if node is None else node.name,
        "recurrence": task.recurrence,
        "files": task.files,
        "outcome": task.result or task.error_message,
        "history": [
            {
                "status": step.status.value,
                "progress": step.progress,
                "message": step.message,
                "at": _shown(step.timestamp),
            }
            for step in task.history
        ],
        "log": None if log is None else _log(json.loads(log.session)),
    }


def _log(session: Json) -> Json:
    # Kept as it came: nothing in it need have the form that agents give it.
    messages = session.get("messages")
    return {
        "title": session.get("title", ""),
        "messages": [
            {"role": one.get("role", ""), "content": one.get("content", "")}
            for one in (messages if isinstance(messages, list) else [])
            if isinstance(one, dict)
        ],
    }


def _key(key: ApiKey) -> Json:
    return {
        "id": key.id,
        "name": key.name,
        "prefix": key.prefix,
        "patterns": key.allowed_node_patterns,
        "role": key.role.value,
        "enabled": key.enabled,
    }


def _target(task: Task) -> str:
    tags = [f"{key}={value}" for key, value in (task.target_tags or {}).items()]
    given = [task.target_node_id, task.target_node_name, *tags]
    return ", ".join(one for one in given if one) or "any node"


def _shown(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


@cache
def _pages() -> Environment:
    return Environment(
        loader=PackageLoader("orchestrator", "pages"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
