"""The agent's sessions: in from nodes, out to the admin. A task keeps the one sent last."""

import json
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import JsonValue

from orchestrator.auth import Caller, NodeParam, allowed_to
from orchestrator.clock import utc_now
from orchestrator.errors import NotFound
from orchestrator.problems import problems
from orchestrator.roles import Permission
from orchestrator.schema import Log
from orchestrator.services import ServicesParam
from orchestrator.steps import require_own_task, require_task_of
from orchestrator.wire import LogSubmission

MAX_LOG_BYTES = 10 * 1024**2

router = APIRouter(prefix="/logs", tags=["logs"])


@router.post("", responses=problems(401, 403, 404, 413, 422))
def store_log(
    services: ServicesParam, node: NodeParam, submission: LogSubmission
) -> dict[str, JsonValue]:
    """Keep a session for a task that was given to this node, and give it back."""
    session_id = submission.session.get("id")
    with services.database.writing() as session:
        task = require_task_of(session, submission.about, node)
        session.merge(
            Log(
                task_number=task.number,
                session=json.dumps(submission.session),
                received_at=utc_now(),
            )
        )
        if task.crush_session_id is None and isinstance(session_id, str) and session_id:
            task.crush_session_id = session_id.replace("\0", "")
    return submission.session


@router.get("/{task_id}", responses=problems(401, 403, 404, 429))
def get_log(
    services: ServicesParam,
    caller: Annotated[Caller, Depends(allowed_to(Permission.READ_LOGS))],
    task_id: str,
) -> dict[str, JsonValue]:
    """Show the session that was last sent for a task."""
    with services.database.reading() as session:
        log = session.get(Log, require_own_task(session, task_id, caller.owner).number)
    if log is None:
        raise NotFound("no log has been sent for this task")
    found: dict[str, JsonValue] = json.loads(log.session)
    return found
