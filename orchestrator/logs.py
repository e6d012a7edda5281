"""The agent's sessions: in from nodes, out to the admin. A task keeps the one sent last."""

import json
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import JsonValue
from starlette.responses import Response

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

_Session = dict[str, JsonValue]

router = APIRouter(prefix="/logs", tags=["logs"])


@router.post("", response_model=_Session, responses=problems(401, 403, 404, 413, 422))
def store_log(services: ServicesParam, node: NodeParam, submission: LogSubmission) -> Response:
    """Keep a session for a task that was given to this node, and give it back."""
    session_id = submission.session.get("id")
    text = json.dumps(submission.session)
    with services.database.writing() as session:
        task = require_task_of(session, submission.about, node)
        session.merge(
            Log(
                task_number=task.number,
                session=text,
                received_at=utc_now(),
            )
        )
        if task.crush_session_id is None and isinstance(session_id, str) and session_id:
            task.crush_session_id = session_id.replace("\0", "")
    return _as_it_is(text)


@router.get("/{task_id}", response_model=_Session, responses=problems(401, 403, 404, 429))
def get_log(
    services: ServicesParam,
    caller: Annotated[Caller, Depends(allowed_to(Permission.READ_LOGS))],
    task_id: str,
) -> Response:
    """Show the session that was last sent for a task."""
    with services.database.reading() as session:
        log = session.get(Log, require_own_task(session, task_id, caller.owner).number)
    if log is None:
        raise NotFound("no log has been sent for this task")
    return _as_it_is(log.session)


def _as_it_is(text: str) -> Response:
    # Not taken apart again: pydantic reads deeper nesting than it writes, and it may be long.
    return Response(text, media_type="application/json")
