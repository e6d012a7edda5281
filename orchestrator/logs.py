"""The agent's sessions: in from nodes, out to the admin. A task keeps the one sent last."""

import json

from fastapi import APIRouter
from pydantic import JsonValue

from orchestrator.auth import ADMIN_REQUIRED, NodeParam
from orchestrator.clock import utc_now
from orchestrator.errors import NotFound
from orchestrator.problems import problems
from orchestrator.schema import Log
from orchestrator.services import ServicesParam
from orchestrator.tasks import require_task, require_task_of
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
        if task.crush_session_id is None and isinstance(session_id, str):
            task.crush_session_id = session_id
    return submission.session


@router.get("/{task_id}", dependencies=[ADMIN_REQUIRED], responses=problems(401, 403, 404))
def get_log(services: ServicesParam, task_id: str) -> dict[str, JsonValue]:
    """Show the session that was last sent for a task."""
    with services.database.reading() as session:
        log = session.get(Log, require_task(session, task_id).number)
    if log is None:
        raise NotFound("no log has been sent for this task")
    found: dict[str, JsonValue] = json.loads(log.session)
    return found
