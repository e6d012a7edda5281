"""The output of tasks: sent by their nodes in chunks, read whole or as it comes.

A stream of events is one request with a key, and so one entry in the audit. It ends after a minute,
so that an expired key shows no more than that; clients go on with `Last-Event-ID`.
"""

import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import PlainTextResponse
from sqlalchemy import RowMapping, bindparam, select
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from orchestrator.auth import Caller, NodeParam, allowed_to
from orchestrator.db.output import Piece, append, note_watcher, read, text_of
from orchestrator.db.tables import Task, TaskOutput
from orchestrator.model import NodeIdentity, Permission, Reporter, utc_now
from orchestrator.routes import TaskId
from orchestrator.routes.bodies import JsonRoute
from orchestrator.scheduling.lifecycle import require_task_of
from orchestrator.schemas.bodies import MAX_OFFSET, OutputChunk, OutputConflict, OutputResponse
from orchestrator.schemas.problems import problems
from orchestrator.scope import require_task_within
from orchestrator.services import Services, ServicesParam

_STREAM_S = 60
_LOOK_EVERY_S = 1.0
_WATCHED_FOR = timedelta(seconds=30)
"""How long after its last look a stream counts as one that somebody watches."""
_NOTE_WATCHER_EVERY_S = 10
_REST_WITHIN = timedelta(seconds=10)
"""After its node has reported the end, how long the rest of the output is waited for."""
_NODE_ENDS_WITHIN = timedelta(seconds=60)
"""After its end, how long the node's own report of it: of a cancelled task it comes later."""

_EVENTS = "text/event-stream"

router = APIRouter(route_class=JsonRoute, tags=["output"])


@router.post(
    "/tasks/{task_id}/output",
    responses={**problems(401, 403, 404, 413, 422, 429, 507), 409: {"model": OutputConflict}},
)
async def send_output(
    services: ServicesParam, node: NodeParam, task_id: TaskId, chunk: OutputChunk
) -> OutputResponse:
    """Add to the output of a task that this node has been given, also after the task's end.

    A chunk that is held already changes nothing. One that begins elsewhere than at the length held,
    or adds to an output that was `done`, is refused with 409, which has the `length`.
    """
    async with services.output_writers:
        return await run_in_threadpool(_store, services, node, task_id, chunk)


def _store(
    services: Services, node: NodeIdentity, task_id: str, chunk: OutputChunk
) -> OutputResponse:
    data, now = chunk.text.encode(), utc_now()
    if data:
        services.reserve.check()
    with services.database.writing() as session:
        task = require_task_of(session, task_id, Reporter(node), now)
        services.output_bytes.charge(task_id, len(data))
        services.node_output_bytes.charge(node.id, len(data))
        output = append(session, task.number, chunk.offset, data, is_done=bool(chunk.done))
        is_watched = output.watched_until is not None and output.watched_until > now
    services.output_pace.note(task_id, is_done=output.is_done)
    return OutputResponse(
        length=output.length,
        interval_seconds=services.output_pace.interval_s(is_watched=is_watched),
    )


_TEXT: dict[str, Any] = {"schema": {"type": "string"}}
_OUTPUT: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"text/plain": _TEXT, _EVENTS: _TEXT},
        "headers": {
            "X-Output-Offset": {
                "description": "The offset of the first byte in the body.",
                "schema": {"type": "integer"},
            },
            "X-Output-Length": {
                "description": "Bytes of the whole output so far, stored or not.",
                "schema": {"type": "integer"},
            },
            "X-Output-Done": {
                "description": "Whether no more will come.",
                "schema": {"type": "string", "enum": ["true", "false"]},
            },
        },
    }
}


@router.get(
    "/tasks/{task_id}/output",
    responses={**_OUTPUT, **problems(401, 403, 404, 422, 429)},
    response_class=PlainTextResponse,
)
async def read_output(  # noqa: PLR0913 - the parameters of one request
    *,
    services: ServicesParam,
    caller: Annotated[Caller, Depends(allowed_to(Permission.READ_OUTPUT))],
    request: Request,
    task_id: TaskId,
    offset: Annotated[int, Query(ge=0, le=MAX_OFFSET, description="The first byte to return.")] = 0,
    last_event_id: Annotated[
        int | None,
        Header(ge=0, le=MAX_OFFSET, description="In a stream of events, replaces `offset`."),
    ] = None,
) -> StreamingResponse:
    """Return the output from an offset on, or as it comes, with `Accept: text/event-stream`.

    Of a long output the first and the last 5 MiB are stored; a line between them says how much is
    not. The headers are those of the text. In a stream, an event `output` has `{offset, text}` as
    its data, and as its id the offset after it. Once the task has ended and its output is complete,
    an event `end` has `{status, message}`, and the stream ends; it also ends after a minute. Go on
    with `Last-Event-ID`.
    """
    view = await run_in_threadpool(_open, services, caller, task_id)
    if _EVENTS in request.headers.get("accept", ""):
        services.output_streams.check(caller.key_id)
        view.offset = offset if last_event_id is None else last_event_id
        return StreamingResponse(
            _events(services, caller, view),
            media_type=_EVENTS,
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )
    view.offset = offset
    look = await run_in_threadpool(view.look)
    first = next((piece.start for piece in look.pieces if not piece.is_omitted), look.length)
    headers = {
        "X-Output-Offset": str(first),
        "X-Output-Length": str(look.length),
        "X-Output-Done": "true" if look.is_done else "false",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }
    body = _text(view, look)
    return StreamingResponse(body, media_type="text/plain; charset=utf-8", headers=headers)


_STATE = select(
    Task.status,
    Task.started_at,
    Task.completed_at,
    Task.node_ended_at,
    Task.result,
    Task.error_message,
).where(Task.number == bindparam("number"))


@dataclass(frozen=True)
class _Look:
    """What is stored from an offset on, and whether that is all that will ever be."""

    pieces: list[Piece]
    length: int
    is_done: bool
    end: dict[str, str] | None
    """The data of the last event; None as long as there may be more."""


@dataclass
class _View:
    """One reader's place in an output. Its methods are called in a thread."""

    services: Services
    task_number: int
    offset: int = 0

    def look(self, until: int | None = None) -> _Look:
        """Read on from the offset, to `until` at most, and move the offset behind it."""
        now = utc_now()
        with self.services.database.reading() as session:
            output = session.get(TaskOutput, self.task_number)
            length = 0 if output is None else output.length
            is_done = output is not None and output.is_done
            self.offset = min(self.offset, length)
            pieces = read(session, self.task_number, self.offset, until or length)
            if pieces:
                self.offset = pieces[-1].end
            end = None
            if self.offset == length:
                task = (
                    session.execute(_STATE, {"number": self.task_number}).mappings().one_or_none()
                )
                end = {} if task is None else _end_of(task, now, is_done=is_done)
        return _Look(pieces, length, is_done, end)

    def note(self) -> None:
        """Have the task's node send more often."""
        with self.services.database.writing_relaxed() as session:
            note_watcher(session, self.task_number, utc_now() + _WATCHED_FOR)


def _open(services: Services, caller: Caller, task_id: str) -> _View:
    with services.database.reading() as session:
        return _View(services, require_task_within(session, caller, task_id).number)


def _end_of(task: RowMapping, now: datetime, *, is_done: bool) -> dict[str, str] | None:
    if task["completed_at"] is None:
        return None
    # A node without the extension sends no output, and one that is lost no rest of it.
    awaited_until = (
        task["completed_at"] + _NODE_ENDS_WITHIN
        if task["node_ended_at"] is None
        else task["node_ended_at"] + _REST_WITHIN
    )
    if not is_done and task["started_at"] is not None and now < awaited_until:
        return None
    end = {"status": task["status"].value, "message": task["result"] or task["error_message"]}
    return {name: value for name, value in end.items() if value is not None}


async def _text(view: _View, look: _Look) -> AsyncIterator[bytes]:
    # What came in since the headers were made is not part of this response.
    length = look.length
    while look.pieces:
        yield text_of(look.pieces)
        if view.offset >= length:
            return
        look = await run_in_threadpool(view.look, length)


async def _events(services: Services, caller: Caller, view: _View) -> AsyncIterator[str]:
    ends_at = time.monotonic() + _STREAM_S
    note_at = 0.0
    # After an outage of the database, which the sweeper logs, clients go on where they were.
    with services.output_streams.hold(caller.key_id), suppress(SQLAlchemyError):
        while time.monotonic() < ends_at and not services.waiters.closed:
            look = await run_in_threadpool(view.look)
            for piece in look.pieces:
                data = json.dumps({"offset": piece.start, "text": piece.text})
                yield f"event: output\nid: {piece.end}\ndata: {data}\n\n"
            if look.end is not None:
                if look.end:
                    yield f"event: end\ndata: {json.dumps(look.end)}\n\n"
                return
            if look.pieces and view.offset < look.length:
                continue
            if time.monotonic() >= note_at:
                await run_in_threadpool(view.note)
                note_at = time.monotonic() + _NOTE_WATCHER_EVERY_S
            if not look.pieces:
                # Writing something is how the server notices that the reader is gone.
                yield ": still here\n\n"
            await anyio.sleep(_LOOK_EVERY_S)
