"""The reference orchestrator, with a record of every call."""

import json
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.orchestrator.serving import RunningOrchestrator, wait_for

Json = dict[str, Any]

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
        body: Json = json.loads(self.body)
        return body


class RecordingOrchestrator(RunningOrchestrator):
    """A running orchestrator with secrets of its own, so that they can be looked for."""

    def __init__(self, folder: Path, **settings: Any) -> None:  # noqa: ANN401 - as the base class
        settings.setdefault("registration_token", f"token-{secrets.token_hex(12)}")
        settings.setdefault("redelivery_after_s", 5)
        super().__init__(folder, admin_key=f"admin-{secrets.token_hex(12)}", **settings)
        self.calls: list[Call] = []
        self.task_ids: list[str] = []

    def application(self) -> FastAPI:
        app = super().application()
        app.add_middleware(self._recording)
        return app

    def _recording(self, app: ASGIApp) -> ASGIApp:
        async def record(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["path"] == "/upload":
                await app(scope, receive, send)
                return
            at = time.monotonic()
            message = await receive()
            body: bytes = message.get("body", b"")
            while message.get("more_body"):
                message = await receive()
                body += message.get("body", b"")
            headers = {name.decode(): text.decode() for name, text in scope["headers"]}
            self.calls.append(Call(scope["method"], scope["path"], headers, body, at))
            unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

            async def again() -> Message:
                return unread.pop() if unread else await receive()

            await app(scope, again, send)

        return record

    def create_task(self, prompt: str = "do it", **fields: object) -> Json:
        task = super().create_task(prompt, **fields)
        self.task_ids.append(task["id"])
        return task

    def calls_of(self, method: str, path: str) -> list[Call]:
        return [call for call in list(self.calls) if (call.method, call.path) == (method, path)]

    def reports_of(self, task_id: str, *statuses: str) -> list[Json]:
        """Return the bodies of a task's reports, of these statuses if any is named."""
        bodies = [call.json() for call in self.calls_of("POST", "/status")]
        its = [body for body in bodies if body["job_id"] == task_id]
        return [body for body in its if not statuses or body["status"] in statuses]

    def wait_for_call(self, method: str, path: str, *, since: int = 0) -> None:
        """Wait for a call that comes after the first `since` of all calls."""
        wanted = (method, path)
        wait_for(lambda: wanted in [(call.method, call.path) for call in self.calls[since:]])

    def end_of(self, task_id: str) -> Json:
        """Wait until a task has ended; return it as the admin sees it."""

        def ended() -> Json | None:
            task = self.task(task_id)
            return task if task["status"] in {"success", "error", "cancelled"} else None

        return wait_for(ended, LONGEST_TASK_S)
