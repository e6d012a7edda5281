"""What nodes report of their tasks, and the sessions of the agents that did the work."""

import json
import logging
from datetime import datetime
from typing import Annotated

from anyio import from_thread
from fastapi import APIRouter, Depends
from sqlalchemy.orm import Session
from starlette.responses import Response

from orchestrator.auth import Caller, ReporterParam, allowed_to
from orchestrator.db.tables import Log, Task
from orchestrator.errors import Conflict, NotFound
from orchestrator.log import log_on_commit
from orchestrator.model import Permission, TaskStatus, utc_now
from orchestrator.routes import TaskId
from orchestrator.routes.bodies import JsonRoute
from orchestrator.scheduling.lifecycle import begin, end, move, require_task_of
from orchestrator.schemas.bodies import LogSession, LogSubmission, Report, ReportResponse
from orchestrator.schemas.problems import problems
from orchestrator.schemas.types import short_id
from orchestrator.scope import require_task_within
from orchestrator.services import Services, ServicesParam

MAX_LOG_BYTES = 10 * 1024**2

router = APIRouter(route_class=JsonRoute)

log = logging.getLogger(__name__)


@router.post("/status", tags=["status"], responses=problems(401, 403, 404, 422, 429, 507))
def report_status(
    services: ServicesParam, reporter: ReporterParam, report: Report
) -> ReportResponse:
    """Record a report and return the task's status, which may be `cancelled` meanwhile.

    Of a task that has reported very often, further reports take effect and are not stored as
    steps; its final report always is.
    """
    now = utc_now()
    with services.database.writing() as session:
        task = require_task_of(session, report.about, reporter, now)
        # What the task itself says of its end does not show that its node knows of it.
        if report.status.is_final and reporter.is_node and task.node_ended_at is None:
            task.node_ended_at = now
        if task.status.may_become(report.status):
            _apply(services, session, task, report, now)
        response = ReportResponse(task_id=task.id, job_id=task.id, status=task.status)
    if report.status.is_final and reporter.is_node and response.status is TaskStatus.CANCELLED:
        from_thread.run_sync(services.cancelled.remove, reporter.node.id, response.task_id)
    return response


def _apply(services: Services, session: Session, task: Task, report: Report, now: datetime) -> None:
    # The first report of a task is its node's claim, without which it does not start.
    if report.message and task.started_at is not None and not report.status.is_final:
        services.reserve.check()
    is_stored = report.status.is_final or services.history.take(task.id, report.message)
    if is_stored:
        move(
            task,
            report.status,
            report.timestamp or now,
            message=report.message,
            progress=report.progress,
        )
    else:
        task.status = report.status
    task.crush_session_id = report.crush_session_id or task.crush_session_id
    ids = {"task_id": task.id, "node_id": task.assigned_node_id}
    if not report.status.is_final:
        if task.started_at is None:
            log_on_commit(session, log, "task started", ids)
        begin(task, now)
        return
    if report.status is TaskStatus.SUCCESS:
        task.result = report.message
    else:
        task.error_message = report.message
    duration_s = round((now - (task.started_at or now)).total_seconds(), 1)
    services.history.forget(task.id)
    outcome = {"status": task.status.value, "duration_s": duration_s}
    log_on_commit(session, log, "task ended", {**ids, **outcome})
    end(session, task, now)


@router.post(
    "/logs",
    tags=["logs"],
    response_model=LogSession,
    responses=problems(401, 403, 404, 409, 413, 422, 429, 507),
)
def store_log(
    services: ServicesParam, reporter: ReporterParam, submission: LogSubmission
) -> Response:
    """Store the session of a task that this node has been given, and return it.

    A later one replaces it until the task has ended. After that the node may replace it once, and
    the task's own key may add it within a minute if there is none. Otherwise a log that differs
    from the stored one is refused with 409.
    """
    services.reserve.check()
    session_id = submission.session.id
    text, now = json.dumps(submission.session.fields()), utc_now()
    with services.database.writing() as session:
        task = require_task_of(session, submission.about, reporter, now)
        stored = session.get(Log, task.number)
        if stored is not None and task.completed_at is not None:
            if stored.session == text:
                return _as_it_is(text)
            if not reporter.is_node or stored.received_at >= task.completed_at:
                raise Conflict("cannot replace the log: its task has ended")
        services.log_bytes.charge(task.id, len(text))
        session.merge(
            Log(
                task_number=task.number,
                session=text,
                received_at=now,
            )
        )
        if task.crush_session_id is None and session_id:
            task.crush_session_id = short_id(session_id)
    return _as_it_is(text)


@router.get(
    "/logs/{task_id}",
    tags=["logs"],
    response_model=LogSession,
    responses=problems(401, 403, 404, 429),
)
def get_log(
    services: ServicesParam,
    caller: Annotated[Caller, Depends(allowed_to(Permission.READ_LOGS))],
    task_id: TaskId,
) -> Response:
    """Return the session that was stored last for a task."""
    with services.database.reading() as session:
        log = session.get(Log, require_task_within(session, caller, task_id).number)
    if log is None:
        raise NotFound("no log has been sent for this task")
    return _as_it_is(log.session)


def _as_it_is(text: str) -> Response:
    # Not taken apart again: pydantic reads deeper nesting than it writes, and it may be long.
    return Response(text, media_type="application/json")
