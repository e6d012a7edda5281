"""What nodes report of their tasks. The first final status wins; later ones change nothing."""

from datetime import datetime

from fastapi import APIRouter
from sqlalchemy.orm import Session

from orchestrator.auth import NodeParam
from orchestrator.clock import utc_now
from orchestrator.problems import problems
from orchestrator.schema import Task
from orchestrator.services import ServicesParam
from orchestrator.states import TaskStatus
from orchestrator.steps import begin, end, move, require_task_of
from orchestrator.wire import Report, ReportAnswer

router = APIRouter(tags=["status"])


@router.post("/status", responses=problems(401, 403, 404, 422))
def report_status(services: ServicesParam, node: NodeParam, report: Report) -> ReportAnswer:
    """Record a report and say where the task stands, `cancelled` included."""
    now = utc_now()
    with services.database.writing() as session:
        task = require_task_of(session, report.about, node)
        if report.status.is_final and task.node_ended_at is None:
            task.node_ended_at = now
        if task.status.may_become(report.status):
            _apply(session, task, report, now)
        return ReportAnswer(task_id=task.id, job_id=task.id, status=task.status)


def _apply(session: Session, task: Task, report: Report, now: datetime) -> None:
    move(
        task,
        report.status,
        report.timestamp or now,
        message=report.message,
        progress=report.progress,
    )
    task.crush_session_id = report.crush_session_id or task.crush_session_id
    if not report.status.is_final:
        begin(task, now)
        return
    if report.status is TaskStatus.SUCCESS:
        task.result = report.message
    else:
        task.error_message = report.message
    end(session, task, now)
