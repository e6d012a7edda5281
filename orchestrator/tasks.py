"""Tasks: create, list, show, cancel; and the steps that other modules take with them."""

import uuid
from datetime import datetime
from typing import Literal

from fastapi import APIRouter
from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload
from starlette.concurrency import run_in_threadpool

from orchestrator.auth import ADMIN_REQUIRED
from orchestrator.clock import utc_now
from orchestrator.errors import Conflict, Invalid, NotAllowed, NotFound
from orchestrator.problems import problems
from orchestrator.schema import File, StatusEntry, Task, TaskFile
from orchestrator.services import Services, ServicesParam
from orchestrator.states import HELD, TaskStatus
from orchestrator.targeting import NodeIdentity
from orchestrator.waiters import Call
from orchestrator.wire import NewTask, TaskDetail, TaskView

router = APIRouter(prefix="/tasks", tags=["tasks"], dependencies=[ADMIN_REQUIRED])


@router.post("", responses=problems(401, 403, 422))
async def create_task(services: ServicesParam, new: NewTask) -> TaskView:
    """Queue a task and wake a node that waits for one like it."""
    task = await run_in_threadpool(_create, services, new)
    services.waiters.wake(Call(task.id, task.target))
    return TaskView.model_validate(task)


@router.get("", responses=problems(401, 403, 422))
def list_tasks(
    services: ServicesParam, status_filter: TaskStatus | Literal[""] | None = None
) -> list[TaskView]:
    """List tasks, the newest first."""
    wanted = select(Task).order_by(Task.number.desc())
    if status_filter:
        wanted = wanted.where(Task.status == status_filter)
    with services.database.reading() as session:
        return [TaskView.model_validate(task) for task in session.scalars(wanted)]


@router.get("/{task_id}", responses=problems(401, 403, 404))
def get_task(services: ServicesParam, task_id: str) -> TaskDetail:
    """Show one task and the steps that it took."""
    with services.database.reading() as session:
        return TaskDetail.model_validate(require_task(session, task_id))


@router.delete("/{task_id}", responses=problems(401, 403, 404, 409))
def cancel_task(services: ServicesParam, task_id: str) -> TaskView:
    """Cancel a task that has not ended; its node learns it from its next call."""
    now = utc_now()
    with services.database.writing() as session:
        task = require_task(session, task_id)
        if not task.status.may_become(TaskStatus.CANCELLED):
            raise Conflict(f"cannot cancel task: it has already ended with {task.status.value}")
        record_step(task, TaskStatus.CANCELLED, now)
        task.completed_at = now
        return TaskView.model_validate(task)


def require_task(session: Session, task_id: str) -> Task:
    """Find a task, or raise NotFound."""
    task = session.scalars(
        select(Task).where(Task.id == task_id).options(selectinload(Task.history))
    ).one_or_none()
    if task is None:
        raise NotFound("there is no such task")
    return task


def require_task_of(session: Session, task_id: str, node: NodeIdentity) -> Task:
    """Find a task that was given to this node, or raise NotFound or NotAllowed."""
    task = require_task(session, task_id)
    if task.assigned_node_id != node.id:
        raise NotAllowed("the task is not in this node's hands")
    return task


def record_step(
    task: Task,
    status: TaskStatus,
    timestamp: datetime,
    *,
    message: str | None = None,
    progress: float | None = None,
) -> None:
    """Move a task on and write the step into its history; the caller has asked `may_become`."""
    task.status = status
    task.history.append(
        StatusEntry(status=status, message=message, progress=progress, timestamp=timestamp)
    )


def put_back(task: Task, now: datetime, reason: str) -> None:
    """Return an assigned task that its node has not started to the queue."""
    task.assigned_node_id = None
    task.offered_at = None
    record_step(task, TaskStatus.PENDING, now, message=reason)


def give_up_tasks_of(session: Session, node_id: str, now: datetime) -> None:
    """Take its tasks from a node that is being removed: it can report no more."""
    held = select(Task).where(Task.assigned_node_id == node_id, Task.status.in_(HELD))
    for task in session.scalars(held):
        if task.status.may_become(TaskStatus.PENDING):
            put_back(task, now, "its node was removed before the task was started")
            continue
        reason = "lost: its node was removed while the task ran"
        record_step(task, TaskStatus.ERROR, now, message=reason)
        task.error_message = reason
        task.completed_at = now


def _create(services: Services, new: NewTask) -> Task:
    now = utc_now()
    task = Task(
        id=str(uuid.uuid4()),
        prompt=new.prompt,
        target_node_id=new.target_node_id,
        target_node_name=new.target_node_name,
        target_tags=new.target_tags,
        priority=new.priority,
        timeout_seconds=new.timeout_seconds,
        scheduled_for=new.scheduled_for,
        recurrence=new.recurrence,
        created_at=now,
        created_by="admin",
    )
    record_step(task, TaskStatus.PENDING, now)
    with services.database.writing() as session:
        task.file_links = [
            TaskFile(position=position, filename=_require_file(session, filename).filename)
            for position, filename in enumerate(new.files or [])
        ]
        session.add(task)
    return task


def _require_file(session: Session, filename: str) -> File:
    file = session.scalars(select(File).where(File.filename == filename)).one_or_none()
    if file is None:
        raise Invalid("files: a name is not that of an uploaded file")
    return file
