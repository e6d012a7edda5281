"""The reference orchestrator, with a record of every call."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.db.database import DATABASE_NAME
from tests.orchestrator.serving import DEADLINE_S, RunningOrchestrator, wait_for

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

Json = dict[str, Any]

MIB = 1 << 20
LONGEST_TASK_S = 180
"""How long a test's task may take from its creation to its end, on the slowest machine."""


@dataclass(frozen=True)
class Call:
    """A request as it came in; `at` is the monotonic moment, header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float

    def json(self) -> Json:
        """Read the body."""
        body: Json = json.loads(self.body)
        return body


class RecordingOrchestrator(RunningOrchestrator):
    """A running orchestrator with secrets of its own, so that they can be looked for."""

    def __init__(self, folder: Path, **settings: Any) -> None:  # noqa: ANN401 - as the base class
        """Prepare it; `settings` are fields of the orchestrator's Settings."""
        settings.setdefault("registration_token", f"token-{secrets.token_hex(12)}")
        settings.setdefault("redelivery_after_s", 5)
        super().__init__(folder, admin_key=f"admin-{secrets.token_hex(12)}", **settings)
        self.calls: list[Call] = []
        self.task_ids: list[str] = []

    def application(self) -> FastAPI:
        """Build the application, with a record of its requests."""
        app = super().application()
        app.add_middleware(_ListeningIn, book=self)
        return app

    def create_task(self, prompt: str = "do it", **fields: object) -> Json:
        """Queue a task, whose container is removed after the test."""
        task = super().create_task(prompt, **fields)
        self.task_ids.append(task["id"])
        return task

    def upload_zeros(self, name: str, size: int) -> str:
        """Store a file of zeros that takes no disk; return the name that tasks call it by."""
        stored = self.upload(name, b"grows")
        database = sqlite3.connect(self.settings.data_dir / DATABASE_NAME)
        try:
            (file_id,) = database.execute(
                "SELECT id FROM files WHERE filename = ?", (stored["filename"],)
            ).fetchone()
            database.execute(
                "UPDATE files SET size = ?, checksum = ? WHERE id = ?",
                (size, sha256_of_zeros(size), file_id),
            )
            database.commit()
        finally:
            database.close()
        path = self.settings.data_dir / "files" / file_id
        os.truncate(path, 0)
        os.truncate(path, size)
        return str(stored["filename"])

    def calls_of(self, method: str, path: str) -> list[Call]:
        """Return the calls of one kind so far, the oldest first."""
        return [call for call in list(self.calls) if (call.method, call.path) == (method, path)]

    def reports_of(self, task_id: str, *statuses: str) -> list[Json]:
        """Return the bodies of a task's reports, of these statuses if any is named."""
        bodies = [call.json() for call in self.calls_of("POST", "/status")]
        return [
            body
            for body in bodies
            if body["job_id"] == task_id and (not statuses or body["status"] in statuses)
        ]

    def wait_for_call(
        self, method: str, path: str, *, since: int = 0, deadline_s: float = DEADLINE_S
    ) -> Call:
        """Wait for a call that comes after the first `since` of all calls; return it."""

        def matching() -> Call | None:
            later = [call for call in self.calls[since:] if (call.method, call.path) == wanted]
            return later[0] if later else None

        wanted = (method, path)
        return wait_for(matching, deadline_s)

    def end_of(self, task_id: str) -> Json:
        """Wait until a task has ended; return it as the admin sees it."""

        def ended() -> Json | None:
            task = self.task(task_id)
            return task if task["status"] in {"success", "error", "cancelled"} else None

        return wait_for(ended, LONGEST_TASK_S)


class _ListeningIn:
    """ASGI middleware that records each request before it is answered."""

    def __init__(self, app: ASGIApp, book: RecordingOrchestrator) -> None:
        self._app = app
        self._book = book

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == "/upload":
            await self._app(scope, receive, send)
            return
        at = time.monotonic()
        body = await _read(receive)
        headers = {name.decode(): text.decode() for name, text in scope["headers"]}
        self._book.calls.append(Call(scope["method"], scope["path"], headers, body, at))
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return unread.pop() if unread else await receive()

        await self._app(scope, again, send)


def sha256_of_zeros(size: int) -> str:
    """Return the checksum of a file of zeros, whole mebibytes."""
    digest = hashlib.sha256()
    block = bytes(MIB)
    for _ in range(size // MIB):
        digest.update(block)
    return digest.hexdigest()


async def _read(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        part: bytes = message.get("body", b"")
        body += part
        if not message.get("more_body"):
            return body
