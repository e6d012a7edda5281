"""Artifacts: the files that tasks have made, sent by their nodes, downloaded by who may read them.

The bytes lie under ids. A path is text in the database, and is never a path on this server.
"""

import logging
import unicodedata
import uuid
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any
from urllib.parse import unquote_to_bytes

from fastapi import APIRouter, Depends, Header, Path, Request
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.responses import FileResponse, StreamingResponse

from orchestrator.archive import Entry, safe_names, zip_pieces
from orchestrator.auth import Caller, NodeParam, allowed_to
from orchestrator.db.tables import Artifact, Task
from orchestrator.errors import Conflict, Invalid, NotFound, Refused, TooLarge
from orchestrator.log import log_on_commit
from orchestrator.model import NodeIdentity, Permission, Reporter, utc_now
from orchestrator.routes import TaskId
from orchestrator.routes.files import BYTES, WholeFile
from orchestrator.scheduling.lifecycle import require_task_of
from orchestrator.schemas.bodies import ArtifactView, StoredArtifact
from orchestrator.schemas.problems import problems
from orchestrator.scope import require_task_within
from orchestrator.services import Services, ServicesParam
from orchestrator.uploads import ARTIFACTS, Upload, remove_stored, require_room, stored_file

MAX_PATH_BYTES = 1024
"""PostgreSQL indexes no text that is much longer."""
MAX_SEGMENT_BYTES = 255
"""Linux takes no longer name."""
_BUFFERED_BYTES = 1024**2
"""Of one upload, held in memory."""

router = APIRouter(tags=["artifacts"])

log = logging.getLogger(__name__)


class _Segments(PathConvertor):
    """Takes line breaks as well, which Starlette's own leaves to a 404 without a reason."""

    regex = "(?s:.*)"


register_url_convertor("segments", _Segments())

_Reader = Annotated[Caller, Depends(allowed_to(Permission.READ_ARTIFACTS))]
_ArtifactPath = Annotated[
    str,
    Path(
        description="The path below the task's folder of artifacts; each segment is URL-encoded"
        f" UTF-8. At most {MAX_PATH_BYTES} bytes, and {MAX_SEGMENT_BYTES} in a segment, without"
        " control characters; no segment is empty, `.` or `..`.",
        json_schema_extra={"pattern": r"^[^\x00-\x1f\x7f-\x9f]+$"},
    ),
]
_Checksum = Annotated[
    str,
    Header(
        alias="X-Checksum-SHA256",
        pattern="^[0-9a-f]{64}$",
        description="The lower-case hexadecimal SHA-256 of the body.",
    ),
]

_PUT_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@dataclass(frozen=True)
class _Sent:
    """What a node sends."""

    node: NodeIdentity
    task_id: str
    path: str
    checksum: str


@router.put(
    "/tasks/{task_id}/artifacts/{path:segments}",
    responses=problems(401, 403, 404, 409, 413, 422, 429, 507),
    openapi_extra=_PUT_SCHEMA,
)
async def put_artifact(  # noqa: PLR0913 - the parts of one request
    *,
    services: ServicesParam,
    node: NodeParam,
    request: Request,
    task_id: TaskId,
    path: _ArtifactPath,
    checksum: _Checksum,
) -> StoredArtifact:
    """Store a file that a task of this node has made, also after the task's end.

    The same bytes again change nothing. Other bytes replace the artifact until the task has ended;
    after that they are refused with 409, as is an artifact of a task that was not started.
    """
    services.node_calls.others.charge(node.id)
    _check_path(request, path)
    sent = _Sent(node, task_id, path, checksum)
    with services.in_flight.hold(node.id, _BUFFERED_BYTES):
        declared = request.headers.get("content-length", "")
        size = int(declared) if declared.isdecimal() else 0
        held = await run_in_threadpool(_check, services, sent, size)
        return held or await _receive(services, request, sent, size)


def _check(services: Services, sent: _Sent, size: int) -> StoredArtifact | None:
    """Check whether so many bytes may be sent. Return the artifact if they are stored already."""
    with services.database.writing() as session:
        task, held = _find(session, sent)
        if held is not None and _is_stored(services, held, sent):
            return StoredArtifact.model_validate(held)
        _check_room(session, services, task, sent, size)
    services.reserve.check()
    data_dir, min_free_bytes = services.settings.data_dir, services.settings.min_free_bytes
    require_room(data_dir / ARTIFACTS, size, min_free_bytes)
    return None


async def _receive(
    services: Services, request: Request, sent: _Sent, declared_size: int
) -> StoredArtifact:
    charge = partial(services.node_artifact_bytes.charge, sent.node.id)
    charge(declared_size)
    artifact_id, data_dir = uuid.uuid4().hex, services.settings.data_dir
    upload = Upload(
        data_dir,
        artifact_id,
        limit_bytes=services.settings.max_artifact_bytes,
        min_free_bytes=services.settings.min_free_bytes,
        folder=ARTIFACTS,
    )
    with upload:
        async for chunk in request.stream():
            upload.add(chunk)
            if not declared_size:
                charge(len(chunk))
            if upload.is_due:
                await run_in_threadpool(upload.write)
        await run_in_threadpool(upload.write)
        if upload.checksum != sent.checksum:
            raise Invalid(
                "X-Checksum-SHA256: is not the checksum of the body, which has"
                f" {upload.size} bytes: send both again"
            )
        await run_in_threadpool(upload.keep)
    try:
        return await run_in_threadpool(_insert, services, sent, artifact_id, upload.size)
    except Refused:
        await run_in_threadpool(remove_stored, data_dir, [artifact_id], ARTIFACTS)
        raise


def _insert(services: Services, sent: _Sent, artifact_id: str, size: int) -> StoredArtifact:
    """Add what was uploaded to the task's artifacts, and remove the bytes that are not needed."""
    with services.database.writing() as session:
        task, held = _find(session, sent)
        replaced: str | None
        if held is not None and _is_stored(services, held, sent):
            # Another call has stored it meanwhile.
            replaced, artifact = artifact_id, held
        else:
            _check_room(session, services, task, sent, size)
            replaced = None if held is None else held.id
            artifact = held or Artifact(task_number=task.number, path=sent.path)
            artifact.id, artifact.size, artifact.checksum = artifact_id, size, sent.checksum
            artifact.created_at = utc_now()
            session.add(artifact)
            ids = {"task_id": task.id, "node_id": sent.node.id, "size": size}
            log_on_commit(session, log, "artifact stored", ids, logging.DEBUG)
    if replaced is not None:
        remove_stored(services.settings.data_dir, [replaced], ARTIFACTS)
    return StoredArtifact.model_validate(artifact)


def _find(session: Session, sent: _Sent) -> tuple[Task, Artifact | None]:
    """Return the task, its row locked, and the artifact that it has under this path.

    Raises Refused if the node may not send this, or not any more.
    """
    task = require_task_of(session, sent.task_id, Reporter(sent.node), utc_now())
    if task.started_at is None:
        raise Conflict("cannot store the artifact: its task was not started; report it as running")
    wanted = (Artifact.task_number == task.number, Artifact.path == sent.path)
    held = session.scalars(select(Artifact).where(*wanted)).one_or_none()
    is_other = held is not None and held.checksum != sent.checksum
    if is_other and task.completed_at is not None:
        raise Conflict("cannot replace the artifact: its task has ended")
    return task, held


def _is_stored(services: Services, held: Artifact, sent: _Sent) -> bool:
    """Return whether these bytes are stored; after a restored backup they may be gone."""
    file = stored_file(services.settings.data_dir, held.id, ARTIFACTS)
    return held.checksum == sent.checksum and file.is_file()


def _check_room(session: Session, services: Services, task: Task, sent: _Sent, size: int) -> None:
    """Raise TooLarge if the task would have more artifacts, or more bytes in them, than it may."""
    others = (Artifact.task_number == task.number, Artifact.path != sent.path)
    amounts = select(func.count(), func.coalesce(func.sum(Artifact.size), 0)).where(*others)
    count, stored_bytes = session.execute(amounts).one()
    settings = services.settings
    if count >= settings.max_task_artifacts:
        raise TooLarge(
            f"cannot store the artifact: its task has {count}, as many as it may"
            " (--max-task-artifacts)"
        )
    if int(stored_bytes) + size > settings.max_task_artifact_bytes:
        raise TooLarge(
            "cannot store the artifact: those of its task would take more than"
            f" {settings.max_task_artifact_bytes} bytes (--max-task-artifact-bytes)"
        )


def _check_path(request: Request, path: str) -> None:
    """Raise Invalid for a path that no file of a task has, or that cannot be stored."""
    try:
        # The server has replaced what is not UTF-8.
        unquote_to_bytes(request.scope["raw_path"]).decode()
    except UnicodeDecodeError as error:
        raise Invalid("path: must be URL-encoded UTF-8") from error
    segments = path.split("/")
    if any(segment in {"", ".", ".."} for segment in segments):
        raise Invalid("path: no segment may be empty, `.` or `..`")
    if any(unicodedata.category(char) == "Cc" for char in path):
        raise Invalid("path: may not have control characters")
    if len(path.encode()) > MAX_PATH_BYTES:
        raise Invalid(f"path: must have at most {MAX_PATH_BYTES} bytes in UTF-8")
    if any(len(segment.encode()) > MAX_SEGMENT_BYTES for segment in segments):
        raise Invalid(f"path: no segment may have more than {MAX_SEGMENT_BYTES} bytes in UTF-8")


@router.get("/tasks/{task_id}/artifacts", responses=problems(401, 403, 404, 429))
def list_artifacts(services: ServicesParam, caller: _Reader, task_id: TaskId) -> list[ArtifactView]:
    """List the files that a task has made."""
    return [ArtifactView.model_validate(one) for one in _artifacts_of(services, caller, task_id)]


_ZIP: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}}
}


@router.get(
    "/tasks/{task_id}/artifacts.zip",
    responses={**_ZIP, **problems(401, 403, 404, 429)},
    response_class=StreamingResponse,
)
def get_artifacts(services: ServicesParam, caller: _Reader, task_id: TaskId) -> StreamingResponse:
    """Return all artifacts of a task as one ZIP archive.

    In its names, what could leave the folder in which it is unpacked is replaced by `_`.
    """
    artifacts = _artifacts_of(services, caller, task_id)
    if not artifacts:
        raise NotFound("the task has no artifacts")
    names = safe_names([artifact.path for artifact in artifacts])
    data_dir = services.settings.data_dir
    entries = [
        Entry(name, one.size, one.created_at, stored_file(data_dir, one.id, ARTIFACTS))
        for name, one in zip(names, artifacts, strict=True)
    ]
    if not all(entry.file.is_file() for entry in entries):
        raise NotFound("the bytes of an artifact are gone from the server")
    return StreamingResponse(
        zip_pieces(entries),
        media_type="application/zip",
        headers={
            "Content-Disposition": f'attachment; filename="artifacts-{task_id}.zip"',
            "X-Content-Type-Options": "nosniff",
        },
    )


_ARTIFACT: dict[int | str, dict[str, Any]] = {
    200: {
        **BYTES[200],
        "headers": {
            "X-Checksum-SHA256": {
                "description": "The lower-case hexadecimal SHA-256 of the bytes.",
                "schema": {"type": "string"},
            }
        },
    }
}


@router.get(
    "/tasks/{task_id}/artifacts/{path:segments}",
    responses={**_ARTIFACT, **problems(401, 403, 404, 429)},
    response_class=FileResponse,
)
def get_artifact(
    services: ServicesParam, caller: _Reader, task_id: TaskId, path: _ArtifactPath
) -> WholeFile:
    """Return the bytes of a file that a task has made."""
    with services.database.reading() as session:
        number = require_task_within(session, caller, task_id).number
        wanted = (Artifact.task_number == number, Artifact.path == path)
        artifact = session.scalars(select(Artifact).where(*wanted)).one_or_none()
    if artifact is None:
        raise NotFound("the task has no such artifact")
    file = stored_file(services.settings.data_dir, artifact.id, ARTIFACTS)
    if not file.is_file():
        raise NotFound("the artifact's bytes are gone from the server")
    return WholeFile(
        file,
        media_type="application/octet-stream",
        filename=path.rpartition("/")[2],
        headers={
            "X-Checksum-SHA256": artifact.checksum,
            "X-Content-Type-Options": "nosniff",
            "Accept-Ranges": "none",
        },
    )


def _artifacts_of(services: Services, caller: Caller, task_id: str) -> list[Artifact]:
    with services.database.reading() as session:
        number = require_task_within(session, caller, task_id).number
        artifacts = session.scalars(select(Artifact).where(Artifact.task_number == number))
        # Not by the database: each has an order of its own.
        return sorted(artifacts, key=lambda artifact: artifact.path)
