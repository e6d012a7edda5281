"""Files: in from the admin, out to the node that holds a task which names them.

The bytes lie in `DATA_DIR/files` under a random id. The name that a file gets in tasks is made of
that id and what is harmless of the original name: it is unique, and nothing can climb by it.
"""

import errno
import hashlib
import os
import re
import unicodedata
import uuid
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from fastapi import APIRouter, Request
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse

from orchestrator.auth import ADMIN_REQUIRED, NodeParam
from orchestrator.clock import utc_now
from orchestrator.errors import NotFound, OutOfSpace, TooLarge
from orchestrator.multipart import FilePart
from orchestrator.problems import problems
from orchestrator.schema import File, Task, TaskFile
from orchestrator.services import ServicesParam
from orchestrator.states import HELD
from orchestrator.wire import UploadedFile

MULTIPART_OVERHEAD_BYTES = 64 * 1024
"""What a body may be larger than the file in it."""

_FOLDER = "files"
_PARTIAL = ".partial"
_WRITE_BYTES = 1024**2
_MAX_NAME_BYTES = 180
_MAX_SUFFIX_BYTES = 20

router = APIRouter(tags=["files"])

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
    dependencies=[ADMIN_REQUIRED],
    responses=problems(401, 403, 413, 422, 507),
    openapi_extra=_UPLOAD_SCHEMA,
)
async def upload_file(services: ServicesParam, request: Request) -> UploadedFile:
    """Store a file under a name of its own, never over another one."""
    part = FilePart(request.headers.get("content-type", ""))
    file_id = uuid.uuid4().hex
    stored = _Incoming(services.settings.data_dir, file_id, services.settings.max_upload_bytes)
    with stored:
        async for chunk in request.stream():
            stored.add(part.feed(chunk))
            if stored.is_due:
                await run_in_threadpool(stored.write)
        original_name = part.finish()
        await run_in_threadpool(stored.keep)

    file = File(
        id=file_id,
        filename=f"{file_id[:12]}-{harmless_name(original_name)}",
        original_name=original_name,
        checksum=stored.checksum,
        size=stored.size,
        created_at=utc_now(),
        created_by="admin",
    )

    def insert() -> UploadedFile:
        with services.database.writing() as session:
            session.add(file)
        return UploadedFile.model_validate(file)

    return await run_in_threadpool(insert)


@router.get("/files/{filename}", responses=problems(401, 403, 404), response_class=FileResponse)
def download_file(services: ServicesParam, node: NodeParam, filename: str) -> FileResponse:
    """Stream a file to the node that holds a task which names it; to others it does not exist."""
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
    path = services.settings.data_dir / _FOLDER / file_id
    if not path.is_file():
        raise NotFound("the file's bytes are gone from the server")
    return FileResponse(
        path,
        media_type="application/octet-stream",
        filename=filename,
        headers={"X-Content-Type-Options": "nosniff"},
    )


def prepare_folder(data_dir: Path) -> None:
    """Make the folder for files, and clear it of uploads that a crash has cut short."""
    folder = data_dir / _FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    for partial in folder.glob(f"*{_PARTIAL}"):
        partial.unlink(missing_ok=True)


def harmless_name(original: str) -> str:
    """Keep of a client's name what is safe as a file's name anywhere: no folder, no control."""
    last = re.split(r"[/\\]", unicodedata.normalize("NFC", original))[-1]
    kept = "".join(char for char in last if unicodedata.category(char)[0] != "C")
    name = re.sub(r'[<>:"|?*]', "_", kept).strip(" .")
    stem, dot, suffix = name.rpartition(".")
    if not dot or len(suffix.encode()) > _MAX_SUFFIX_BYTES:
        stem, dot, suffix = name, "", ""
    short = stem.encode()[: _MAX_NAME_BYTES - _MAX_SUFFIX_BYTES].decode("utf-8", "ignore")
    return f"{short}{dot}{suffix}" or "file"


class _Incoming:
    """A file on its way in; unless it is kept, nothing of it stays."""

    def __init__(self, data_dir: Path, file_id: str, limit_bytes: int) -> None:
        self._final = data_dir / _FOLDER / file_id
        self._partial = self._final.with_name(file_id + _PARTIAL)
        self._limit_bytes = limit_bytes
        self._sink: BinaryIO | None = None
        self._buffer = bytearray()
        self._digest = hashlib.sha256()
        self.size = 0

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        if self._sink is not None:
            self._sink.close()
        with suppress(FileNotFoundError):
            self._partial.unlink()

    @property
    def checksum(self) -> str:
        return self._digest.hexdigest()

    @property
    def is_due(self) -> bool:
        return len(self._buffer) >= _WRITE_BYTES

    def add(self, content: bytes) -> None:
        self.size += len(content)
        if self.size > self._limit_bytes:
            raise TooLarge(f"file is over the limit of {self._limit_bytes} bytes")
        self._buffer += content

    def write(self) -> None:
        if self._sink is None:
            self._sink = self._partial.open("xb")
        try:
            self._sink.write(self._buffer)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            raise OutOfSpace("the server's disk has no room for the file") from error
        self._digest.update(self._buffer)
        self._buffer.clear()

    def keep(self) -> None:
        self.write()
        if self._sink is None:
            raise AssertionError("write() opens the sink")
        self._sink.flush()
        os.fsync(self._sink.fileno())
        self._partial.rename(self._final)
