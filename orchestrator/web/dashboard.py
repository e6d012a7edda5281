"""The dashboard and the page of each task. A page needs no key; its data does.

The data comes as server-sent events.

A stream is one request with a key, and so one entry in the audit. It ends after a minute, so that
an expired key shows no more than that.
"""

import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Protocol

import anyio
from fastapi import APIRouter, Depends
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, StreamingResponse

from orchestrator.auth import Caller, allowed_to
from orchestrator.db.tables import Node
from orchestrator.errors import NotFound
from orchestrator.model import Permission, Target, matches
from orchestrator.routes import TaskId
from orchestrator.routes.bodies import JsonRoute
from orchestrator.schemas.problems import problems
from orchestrator.schemas.types import Pattern, RequestBody, TargetTags
from orchestrator.scope import nodes_of
from orchestrator.services import Services, ServicesParam
from orchestrator.web.live import Viewer
from orchestrator.web.render import pages
from orchestrator.web.task import TaskViewer

_STREAM_S = 60
_LOOK_EVERY_S = 1.0
_FORBIDDEN = "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"

router = APIRouter(tags=["system"], route_class=JsonRoute)
_Admin = Annotated[Caller, Depends(allowed_to(Permission.READ_STATISTICS))]
_Reader = Annotated[Caller, Depends(allowed_to(Permission.READ_TASKS))]


class _Viewer(Protocol):
    """What an open page shows."""

    def look(self) -> dict[str, str]:
        """Return the parts that have changed since the last call. Raises NotFound."""


class TargetOfTask(RequestBody):
    """The conditions of a task that is being written."""

    target_node_name: Pattern | None = None
    target_tags: TargetTags | None = None


@router.get("/dashboard", response_class=HTMLResponse)
def show_dashboard() -> HTMLResponse:
    """Return the page, which asks for the admin key and shows nodes, tasks and keys with it."""
    return _page("dashboard.html")


@router.get("/dashboard/tasks/{task_id}", include_in_schema=False, response_class=HTMLResponse)
def show_task(task_id: TaskId) -> HTMLResponse:
    """Return the page of a task, which asks for a key and shows what the key may read of it."""
    return _page("task.html", task_id=task_id)


@router.get("/dashboard/live", include_in_schema=False, responses=problems(401, 403, 429))
async def stream_fleet(services: ServicesParam, caller: _Admin) -> StreamingResponse:
    """Stream the parts of the page as they change."""
    return await _stream(services, caller, Viewer(services, caller))


@router.get(
    "/dashboard/tasks/{task_id}/live",
    include_in_schema=False,
    responses=problems(401, 403, 404, 429),
)
async def stream_task(
    services: ServicesParam, caller: _Reader, task_id: TaskId
) -> StreamingResponse:
    """Stream the parts of a task's page as they change, except its output."""
    return await _stream(services, caller, TaskViewer(services, caller, task_id))


@router.post("/dashboard/matches", include_in_schema=False)
def count_matches(services: ServicesParam, caller: _Admin, target: TargetOfTask) -> dict[str, int]:
    """Return how many nodes meet the conditions."""
    wanted = Target(None, target.target_node_name, target.target_tags)
    with services.database.reading() as session:
        nodes = session.scalars(select(Node).where(nodes_of(session, caller))).all()
    matching = sum(matches(wanted, node.identity) for node in nodes)
    return {"matching": matching, "total": len(nodes)}


def _page(template: str, **what: str) -> HTMLResponse:
    nonce = secrets.token_urlsafe(16)
    allowed = f"script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'"
    page = pages().get_template(template).render(nonce=nonce, **what)
    return HTMLResponse(
        page,
        headers={
            "Content-Security-Policy": f"default-src 'none'; {allowed}; {_FORBIDDEN}",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        },
    )


async def _stream(services: Services, caller: Caller, viewer: _Viewer) -> StreamingResponse:
    services.page_streams.check(caller.key_id)
    # The first look decides whether there is anything to show.
    first = await run_in_threadpool(viewer.look)
    return StreamingResponse(
        _events(services, caller, viewer, first),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _events(
    services: Services, caller: Caller, viewer: _Viewer, changed: dict[str, str]
) -> AsyncIterator[str]:
    ends_at = time.monotonic() + _STREAM_S
    # Purged meanwhile, as the response to the page's next request says.
    with services.page_streams.hold(caller.key_id), suppress(NotFound):
        while time.monotonic() < ends_at and not services.waiters.closed:
            for part, html in changed.items():
                yield f"data: {json.dumps({'part': part, 'html': html})}\n\n"
            if not changed:
                # Writing something is how the server notices that the reader is gone.
                yield ": still here\n\n"
            await anyio.sleep(_LOOK_EVERY_S)
            changed = await run_in_threadpool(viewer.look)
