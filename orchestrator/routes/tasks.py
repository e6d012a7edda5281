"""Tasks as their owners see them: create, list, show, cancel, clean up."""

import logging
import uuid
from datetime import datetime, timedelta
from typing import Annotated

from anyio import from_thread
from fastapi import APIRouter, Depends, Query, Request, Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from orchestrator.auth import Caller, allowed_to
from orchestrator.db.retention import (
    delete_old_tasks,
    delete_tasks,
    delete_unused_files,
    unknown_ids,
)
from orchestrator.db.tables import Artifact, File, Node, Task, TaskFile
from orchestrator.errors import Conflict, NotAllowed, TooMany
from orchestrator.log import fields, log_on_commit
from orchestrator.model import (
    ADMIN_ID,
    HELD,
    Permission,
    Target,
    TaskStatus,
    next_time,
    utc_now,
)
from orchestrator.routes import Route, TaskId
from orchestrator.routes.files import require_file
from orchestrator.routes.lists import LINK, TaskQueryParam, page, task_list
from orchestrator.scheduling.heartbeats import UNCONFIRMED_CANCEL_FOR
from orchestrator.scheduling.lifecycle import cancel, copy_of, move
from orchestrator.scheduling.waiting import WorkAvailable
from orchestrator.scheduling.waiting_reason import waiting_reason
from orchestrator.schemas.bodies import (
    DEFAULT_TIMEOUT_S,
    CleanedUp,
    NewTask,
    TaskDetail,
    TaskPurged,
    TaskView,
)
from orchestrator.schemas.problems import problems
from orchestrator.scope import nodes_of, require_task_within, tasks_of
from orchestrator.services import Services, ServicesParam
from orchestrator.uploads import ARTIFACTS, FILES, remove_stored, stored_before

router = APIRouter(prefix="/tasks", tags=["tasks"], route_class=Route)

log = logging.getLogger(__name__)

_A_DAY = timedelta(days=1)
"""No upload takes longer; bytes that are older and that the database lacks are a crash's."""

_A_MOMENT = timedelta(seconds=30)
"""Until a caller with too many pending tasks may retry."""

_Creator = Annotated[Caller, Depends(allowed_to(Permission.CREATE_TASKS))]
_Reader = Annotated[Caller, Depends(allowed_to(Permission.READ_TASKS))]
_Canceller = Annotated[Caller, Depends(allowed_to(Permission.CANCEL_TASKS))]


@router.post("", responses=problems(401, 403, 422, 429, 507))
def create_task(services: ServicesParam, caller: _Creator, new: NewTask) -> TaskView:
    """Create a task, and assign it at once if a matching node is waiting.

    A scoped key may target only nodes that its patterns allow, and name only files that were
    uploaded with it. 429 may also mean that it has too many pending tasks.
    """
    services.reserve.check()
    now = utc_now()
    due = new.scheduled_for
    if new.recurrence and due is None:
        due = next_time(new.recurrence, now)
    task = Task(
        id=str(uuid.uuid4()),
        prompt=new.prompt,
        target_node_id=new.target_node_id,
        target_node_name=new.target_node_name,
        target_tags=new.target_tags,
        priority=new.priority or 0,
        timeout_seconds=(DEFAULT_TIMEOUT_S if new.timeout_seconds is None else new.timeout_seconds),
        scheduled_for=due,
        recurrence=new.recurrence,
        created_at=now,
        created_by=caller.key_id,
    )
    with services.database.writing() as session:
        _check_may_create(services, session, caller, task.target)
        task.file_links = [
            TaskFile(position=position, filename=require_file(session, filename, caller).filename)
            for position, filename in enumerate(new.files or [])
        ]
        _queue(services, session, caller, task, now)
    return _queued(services, caller, task, now)


@router.get("", responses={**LINK, **problems(401, 403, 422, 429)})
def list_tasks(
    services: ServicesParam,
    request: Request,
    response: Response,
    caller: _Reader,
    query: TaskQueryParam,
) -> list[TaskView]:
    """List tasks, the newest first. A scoped key below the role `admin` sees only its own.

    An admin key that is limited to patterns also sees those that target nodes within them.
    """
    with services.database.reading() as session:
        tasks = list(session.scalars(task_list(session, caller, query)))
        return [TaskView.model_validate(task) for task in page(request, response, query, tasks)]


@router.post("/cleanup", responses=problems(401, 403, 422, 429))
def clean_up(
    services: ServicesParam,
    caller: Annotated[Caller, Depends(allowed_to(Permission.CLEAN_UP_TASKS))],
    days: Annotated[int, Query(ge=0, le=36_500, description="How many days ago.")] = 7,
) -> CleanedUp:
    """Delete tasks that ended at least this long ago, and files that no task needs.

    With a task go its log and its artifacts. A cancelled task stays until its node has reported
    the end of its container, or is removed.

    A key that is limited to patterns deletes the tasks that it sees, and files uploaded with it.
    """
    now = utc_now()
    before = now - timedelta(days=days)
    with services.database.writing() as session:
        deleted_count, artifact_ids = delete_old_tasks(session, before, tasks_of(session, caller))
        uploader = caller.key_id if caller.is_limited else None
        file_ids = delete_unused_files(session, before, uploader)
    data_dir = services.settings.data_dir
    remove_stored(data_dir, file_ids)
    remove_stored(data_dir, artifact_ids, ARTIFACTS)
    for folder, table in ((FILES, File), (ARTIFACTS, Artifact)):
        stored = stored_before(data_dir, min(before, now - _A_DAY), folder)
        with services.database.reading() as session:
            orphans = unknown_ids(session, table, stored)
        remove_stored(data_dir, orphans, folder)
    counts = {"tasks": deleted_count, "files": len(file_ids), "artifacts": len(artifact_ids)}
    log.info("old tasks deleted", extra=fields(**counts))
    return CleanedUp(deleted_count=deleted_count)


@router.get("/{task_id}", responses=problems(401, 403, 404, 429))
def get_task(services: ServicesParam, caller: _Reader, task_id: TaskId) -> TaskDetail:
    """Return one task with its history, and if it is pending, why it waits."""
    with services.database.reading() as session:
        task = require_task_within(session, caller, task_id)
        detail = TaskDetail.model_validate(task)
        if task.status is not TaskStatus.PENDING:
            return detail
        reason = waiting_reason(session, task, nodes_of(session, caller), utc_now())
        return detail.model_copy(update={"waiting": reason})


@router.delete("/{task_id}", responses=problems(401, 403, 404, 409, 429))
def cancel_task(services: ServicesParam, caller: _Canceller, task_id: TaskId) -> TaskView:
    """Cancel a task that has not ended; its node stops it after the next heartbeat.

    A recurring task does not recur any more.
    """
    now = utc_now()
    with services.database.writing() as session:
        task = require_task_within(session, caller, task_id, to_change=True)
        cancel(session, task, now, caller.key_id)
        cancelled = TaskView.model_validate(task)
        node_id = task.assigned_node_id
    if node_id is not None:
        from_thread.run_sync(services.cancelled.add, node_id, task_id)
    return cancelled


@router.post("/{task_id}/rerun", responses=problems(401, 403, 404, 409, 429, 507))
def rerun_task(services: ServicesParam, caller: _Creator, task_id: TaskId) -> TaskView:
    """Create a task of the same content as one that has ended, to run once and at once.

    It has the same prompt, target, priority, time limit and files, and belongs to the key that
    makes this call.
    """
    services.reserve.check()
    now = utc_now()
    with services.database.writing() as session:
        # Locked: a cleanup must not delete its files meanwhile.
        task = require_task_within(session, caller, task_id, to_change=True)
        if not task.status.is_final:
            raise Conflict(f"cannot rerun the task: it is {task.status.value}; wait for its end")
        _check_may_create(services, session, caller, task.target)
        copy = copy_of(task, now, caller.key_id)
        copy.rerun_of = task.id
        _queue(services, session, caller, copy, now)
    return _queued(services, caller, copy, now)


@router.post("/{task_id}/purge", responses=problems(401, 403, 404, 409, 429))
def purge_task(
    services: ServicesParam,
    caller: Annotated[Caller, Depends(allowed_to(Permission.PURGE_TASKS))],
    task_id: TaskId,
) -> TaskPurged:
    """Delete a task with its history, log, output and artifacts. Files stay until a cleanup.

    409 while it runs, and until the node of an ended one has reported the end of its container,
    or has been removed, or a day has passed. Purging a pending task ends its recurrence.
    """
    now = utc_now()
    with services.database.writing() as session:
        task = require_task_within(session, caller, task_id, to_change=True)
        if task.status in HELD:
            raise Conflict(f"cannot purge the task: it is {task.status.value}; cancel it first")
        if _may_run_on(session, task, now):
            raise Conflict(
                "cannot purge the task: its node has not reported the end of its container;"
                " retry later, or remove the node"
            )
        artifacts = delete_tasks(session, [task.number])
        ids = {"task_id": task.id, "status": task.status.value, "by": caller.key_id}
        log_on_commit(session, log, "task purged", ids)
    remove_stored(services.settings.data_dir, artifacts, ARTIFACTS)
    return TaskPurged(task_id=task_id)


def _may_run_on(session: Session, task: Task, now: datetime) -> bool:
    """Return whether an ended task's node may still need it, to learn that it was cancelled."""
    if task.assigned_node_id is None or task.node_ended_at is not None:
        return False
    if task.completed_at is None or now - task.completed_at > UNCONFIRMED_CANCEL_FOR:
        return False
    return session.get(Node, task.assigned_node_id) is not None


def _queue(services: Services, session: Session, caller: Caller, task: Task, now: datetime) -> None:
    move(task, TaskStatus.PENDING, now)
    session.add(task)
    ids = {"task_id": task.id, "created_by": caller.key_id}
    if task.rerun_of is not None:
        ids["rerun_of"] = task.rerun_of
    log_on_commit(session, log, "task created", ids)
    services.announcer.announce(session, WorkAvailable(task.id, task.target))


def _queued(services: Services, caller: Caller, task: Task, now: datetime) -> TaskView:
    """Return a new task and why it waits, for which nobody else has to wait."""
    with services.database.reading() as session:
        reason = waiting_reason(session, task, nodes_of(session, caller), now)
    return TaskView.model_validate(task).model_copy(update={"waiting": reason})


def _check_may_create(services: Services, session: Session, caller: Caller, target: Target) -> None:
    _check_may_target(session, caller, target)
    _check_pending(session, caller, services.settings.key_pending_tasks)


def _check_pending(session: Session, caller: Caller, limit: int) -> None:
    if caller.key_id == ADMIN_ID:
        return
    of_key = select(Task.number).where(
        Task.created_by == caller.key_id, Task.status == TaskStatus.PENDING
    )
    # No more than these are counted.
    if session.scalar(select(func.count()).select_from(of_key.limit(limit).subquery())) == limit:
        raise TooMany(
            f"the key has {limit} pending tasks, as many as it may: wait until some have started",
            _A_MOMENT,
        )


def _check_may_target(session: Session, caller: Caller, target: Target) -> None:
    if not caller.is_limited:
        return
    names = [] if target.node_name is None else [target.node_name]
    node = session.get(Node, target.node_id) if target.node_id else None
    if node is not None:
        names.append(node.name)
    if not any(caller.covers([name]) for name in names):
        patterns = ", ".join(caller.allowed_node_patterns)
        raise NotAllowed(f"the key may target {patterns} only: give a target_node_name within that")
