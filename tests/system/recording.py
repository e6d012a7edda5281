"""The reference orchestrator, with a record of every call, and able to play an older one."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from orchestrator.db.database import DATABASE_NAME
from tests.orchestrator.serving import DEADLINE_S, RunningOrchestrator, wait_for

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

Json = dict[str, Any]

MIB = 1 << 20
LOOK_AGAIN_S = 0.02
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
        told: Json = json.loads(self.body)
        return told


class RecordingOrchestrator(RunningOrchestrator):
    """A running orchestrator with secrets of its own, so that they can be looked for."""

    def __init__(self, folder: Path, **settings: Any) -> None:  # noqa: ANN401 - as the base class
        """Prepare it; `settings` are fields of the orchestrator's Settings."""
        settings.setdefault("registration_token", f"token-{secrets.token_hex(12)}")
        settings.setdefault("redelivery_after_s", 5)
        super().__init__(folder, admin_key=f"admin-{secrets.token_hex(12)}", **settings)
        self.calls: list[Call] = []
        self.task_ids: list[str] = []
        self.holds_requests = True
        """Whether it knows `Prefer: wait`; an older orchestrator does not."""
        self.edit_assignment: Callable[[Json], None] | None = None
        """What another orchestrator would have said instead."""
        self.holds_files = False
        """Whether files stop after their first bytes, until this is taken back."""
        self.files_held = 0
        """How many have come to that."""

    def application(self) -> FastAPI:
        """Build the application, listened in on."""
        app = super().application()
        app.add_middleware(_ListeningIn, book=self)
        return app

    def stop(self) -> None:
        """Stop, with nothing held."""
        self.holds_files = False
        super().stop()

    def create_task(self, prompt: str = "do it", **fields: object) -> Json:
        """Queue a task and remember it for the tidying up."""
        task = super().create_task(prompt, **fields)
        self.task_ids.append(task["id"])
        return task

    def upload_zeros(self, name: str, size: int) -> str:
        """Store a file of zeros that takes no disk; give the name that tasks call it by."""
        told = self.upload(name, b"grows")
        database = sqlite3.connect(self.settings.data_dir / DATABASE_NAME)
        try:
            (file_id,) = database.execute(
                "SELECT id FROM files WHERE filename = ?", (told["filename"],)
            ).fetchone()
            database.execute(
                "UPDATE files SET size = ?, checksum = ? WHERE id = ?",
                (size, sha256_of_zeros(size), file_id),
            )
            database.commit()
        finally:
            database.close()
        stored = self.settings.data_dir / "files" / file_id
        os.truncate(stored, 0)
        os.truncate(stored, size)
        return str(told["filename"])

    def calls_of(self, method: str, path: str) -> list[Call]:
        """Give the calls of one kind so far, the oldest first."""
        return [call for call in list(self.calls) if (call.method, call.path) == (method, path)]

    def reports_of(self, task_id: str, *statuses: str) -> list[Json]:
        """Give the bodies that came for a task at `/status`, of these statuses if any is named."""
        bodies = [call.json() for call in self.calls_of("POST", "/status")]
        return [
            body
            for body in bodies
            if body["job_id"] == task_id and (not statuses or body["status"] in statuses)
        ]

    def wait_for_call(
        self, method: str, path: str, *, since: int = 0, deadline_s: float = DEADLINE_S
    ) -> Call:
        """Wait for a call that comes after the first `since` of all calls; give it."""

        def found() -> Call | None:
            later = [call for call in self.calls[since:] if (call.method, call.path) == wanted]
            return later[0] if later else None

        wanted = (method, path)
        return wait_for(found, deadline_s)

    def end_of(self, task_id: str) -> Json:
        """Wait until a task has ended in whatever way; give it as the admin sees it."""

        def ended() -> Json | None:
            task = self.task(task_id)
            return task if task["status"] in {"success", "error", "cancelled"} else None

        return wait_for(ended, LONGEST_TASK_S)


class _ListeningIn:
    """ASGI middleware that writes each request into the book before it is answered."""

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

        if scope["path"] == "/tasks/pending":
            if not self._book.holds_requests:
                kept = [pair for pair in scope["headers"] if pair[0] != b"prefer"]
                scope = {**scope, "headers": kept}
            if self._book.edit_assignment is not None:
                send = _Editor(send, self._book.edit_assignment).send
        if scope["path"].startswith("/files/") and self._book.holds_files:
            send = _Holder(send, self._book).send
        await self._app(scope, again, send)


class _Holder:
    """Holds a file's answer after the first bytes of its body."""

    def __init__(self, send: Send, book: RecordingOrchestrator) -> None:
        self._send = send
        self._book = book

    async def send(self, message: Message) -> None:
        await self._send(message)
        if message.get("body") and self._book.holds_files:
            self._book.files_held += 1
            while self._book.holds_files:  # noqa: ASYNC110 - it is the test's thread that ends it
                await anyio.sleep(LOOK_AGAIN_S)


class _Editor:
    """Holds an answer back until it is whole, and changes the assignment in it."""

    def __init__(self, send: Send, edit: Callable[[Json], None]) -> None:
        self._send = send
        self._edit = edit
        self._start: Message = {}
        self._body = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._body += message.get("body", b"")
        if message.get("more_body"):
            return
        assignment = json.loads(self._body)
        if assignment is not None:
            self._edit(assignment)
        body = json.dumps(assignment).encode()
        headers = [pair for pair in self._start["headers"] if pair[0] != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await self._send({**self._start, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def sha256_of_zeros(size: int) -> str:
    """Give the checksum of a file of zeros, whole mebibytes."""
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
