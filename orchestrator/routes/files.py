"""Files: uploaded for tasks, downloaded by the node that holds a task which names them.

A file is its uploader's: nobody else can put it into a task. It goes with the last task that named
it, or, if no task ever did, when it is old.
"""

import logging
import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse
from starlette.types import Receive, Scope, Send

from orchestrator.auth import Caller, NodeParam, allowed_to
from orchestrator.db.tables import File, Task, TaskFile
from orchestrator.errors import Invalid, NotFound, TooLarge
from orchestrator.log import log_on_commit
from orchestrator.model import ADMIN_ID, HELD, Permission, Role, utc_now
from orchestrator.schemas.bodies import UploadedFile
from orchestrator.schemas.problems import problems
from orchestrator.services import Services, ServicesParam
from orchestrator.uploads import FilePart, Upload, stored_file, stored_name

MULTIPART_OVERHEAD_BYTES = 64 * 1024
"""By how much a body may exceed the file in it."""

router = APIRouter(tags=["files"])

_Filename = Annotated[str, Path(description="A name from the assignment's `files`, URL-encoded.")]
log = logging.getLogger(__name__)

_UPLOAD_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}


@router.post(
    "/upload",
    responses=problems(401, 403, 413, 422, 429, 507),
    openapi_extra=_UPLOAD_SCHEMA,
)
async def upload_file(
    services: ServicesParam,
    caller: Annotated[Caller, Depends(allowed_to(Permission.UPLOAD_FILES))],
    request: Request,
) -> UploadedFile:
    """Store a file under a new name, which a task may have in `files`."""
    part = FilePart(request.headers.get("content-type", ""))
    await run_in_threadpool(_check_quota, services, caller, _declared_bytes(request))
    file_id = uuid.uuid4().hex
    stored = Upload(
        services.settings.data_dir,
        file_id,
        limit_bytes=services.settings.max_upload_bytes,
        min_free_bytes=services.settings.min_free_bytes,
    )
    with stored:
        async for chunk in request.stream():
            stored.add(part.feed(chunk))
            if stored.is_due:
                await run_in_threadpool(stored.write)
        original_name = part.finish()
        await run_in_threadpool(stored.keep)

    file = File(
        id=file_id,
        filename=stored_name(file_id, original_name),
        original_name=original_name.replace("\0", ""),
        checksum=stored.checksum,
        size=stored.size,
        created_at=utc_now(),
        created_by=caller.key_id,
    )

    def insert() -> UploadedFile:
        with services.database.writing() as session:
            _check_stored(session, services, caller, file.size)
            session.add(file)
            ids = {"filename": file.filename, "size": file.size, "by": caller.key_id}
            log_on_commit(session, log, "file uploaded", ids)
        return UploadedFile.model_validate(file)

    try:
        return await run_in_threadpool(insert)
    except TooLarge:
        stored_file(services.settings.data_dir, file_id).unlink()
        raise


def _declared_bytes(request: Request) -> int:
    declared = request.headers.get("content-length", "")
    return max(0, int(declared) - MULTIPART_OVERHEAD_BYTES) if declared.isdecimal() else 0


def _check_quota(services: Services, caller: Caller, size: int) -> None:
    with services.database.reading() as session:
        _check_stored(session, services, caller, size)


def _check_stored(session: Session, services: Services, caller: Caller, size: int) -> None:
    if caller.key_id == ADMIN_ID:
        return
    limit = services.settings.key_upload_bytes
    stored = select(func.coalesce(func.sum(File.size), 0)).where(File.created_by == caller.key_id)
    if int(session.scalar(stored) or 0) + size > limit:
        raise TooLarge(
            f"the key's files would take more than {limit} bytes: those of old tasks go with the"
            " next cleanup"
        )


class WholeFile(FileResponse):
    """Answers with all of the file, whatever part is asked for.

    The contract knows no parts, RFC 9110 lets a server pass over Range, and Starlette answers one
    that it does not like in plain text.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as if no part was asked for."""
        headers = [pair for pair in scope["headers"] if pair[0] != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)


BYTES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file's bytes.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.get(
    "/files/{filename}",
    responses={**BYTES, **problems(401, 403, 404, 429)},
    response_class=FileResponse,
)
def download_file(services: ServicesParam, node: NodeParam, filename: _Filename) -> WholeFile:
    """Return a file to the node that holds a task with it; all others get 404."""
    services.node_calls.others.charge(node.id)
    with services.database.reading() as session:
        file_id = session.scalars(
            select(File.id)
            .join(TaskFile, TaskFile.filename == File.filename)
            .join(Task, Task.number == TaskFile.task_number)
            .where(
                File.filename == filename,
                Task.assigned_node_id == node.id,
                Task.status.in_(HELD),
            )
        ).first()
    if file_id is None:
        raise NotFound("there is no such file for this node")
    path = stored_file(services.settings.data_dir, file_id)
    if not path.is_file():
        raise NotFound("the file's bytes are gone from the server")
    return WholeFile(
        path,
        media_type="application/octet-stream",
        filename=filename,
        headers={"X-Content-Type-Options": "nosniff", "Accept-Ranges": "none"},
    )


def require_file(session: Session, filename: str, caller: Caller) -> File:
    """Find a file that this caller may put into a task, or raise Invalid; it stays until then."""
    wanted = select(File).where(File.filename == filename)
    if caller.role is not Role.ADMIN or caller.is_limited:
        wanted = wanted.where(File.created_by == caller.key_id)
    file = session.scalars(wanted.with_for_update(read=True, key_share=True)).one_or_none()
    if file is None:
        raise Invalid("files: a name is not that of a file that was uploaded with this key")
    return file
