"""Our orchestrator with a fault in front of it, and the faults that the check has to find."""

import json
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.orchestrator.serving import Json, RunningOrchestrator

Change = Callable[[int, Any], tuple[int, Any]]
"""Changes the status code and the body of a response."""


@dataclass(frozen=True)
class Fault:
    """What is changed in calls that begin with a pattern, such as "POST /tasks"."""

    calls: str
    rules: str = ""
    """The names of the rules that must find it, and no others may."""
    response: Change = lambda code, body: (code, body)
    request: Callable[[Json], Json] = lambda body: body
    """Changes the body of a request."""
    lost_header: str = ""
    """Is left out of the response."""
    ignored_header: str = ""
    """Is left out of the request."""


class FaultyOrchestrator(RunningOrchestrator):
    """Ours, with one fault planted at a time."""

    fault: Fault | None = None

    @contextmanager
    def planted(self, fault: Fault) -> Iterator[None]:
        self.fault = fault
        try:
            yield
        finally:
            self.fault = None

    def application(self) -> FastAPI:
        app = super().application()
        app.add_middleware(_Planted, orchestrator=self)
        return app


class _Planted:
    def __init__(self, app: ASGIApp, orchestrator: FaultyOrchestrator) -> None:
        self._app = app
        self._orchestrator = orchestrator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fault = self._orchestrator.fault
        call = f"{scope.get('method')} {scope.get('path')}"  # neither of them at a start and a stop
        if fault is None or not re.match(fault.calls, call):
            await self._app(scope, receive, send)
            return
        response = await self._forward(Request(scope, receive), fault)
        code, content = response.status_code, response.content
        if content[:1] in {b"{", b"[", b"n"}:
            code, body = fault.response(code, json.loads(content))
            content = json.dumps(body).encode()
        headers = _without(response.headers, "content-length", fault.lost_header)
        await Response(content, code, headers)(scope, receive, send)

    async def _forward(self, request: Request, fault: Fault) -> httpx.Response:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await self._app({**request.scope, "headers": scope["headers"]}, receive, send)

        content = await request.body()
        if content[:1] == b"{":
            content = json.dumps(fault.request(json.loads(content))).encode()
        headers = _without(request.headers, "content-length", fault.ignored_header)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
            return await client.request(
                request.method, str(request.url), content=content, headers=headers
            )


def _without(fields: Any, *names: str) -> dict[str, Any]:  # noqa: ANN401 - any mapping
    return {name: value for name, value in fields.items() if name not in names}


# These build changes of a response; `ignores` builds one of a request.


def lacks(*names: str) -> Change:
    return lambda code, body: (code, _without(body, *names) if isinstance(body, dict) else body)


def ignores(*names: str) -> Callable[[Json], Json]:
    return lambda body: _without(body, *names)


def has(**fields: object) -> Change:
    return lambda code, body: (code, {**body, **fields})


def always(code: int, body: object) -> Change:
    return lambda *_: (code, body)


def recoded(code: int, other: int) -> Change:
    return lambda actual, body: (other if actual == code else actual, body)


def accepts(code: int) -> Change:
    return lambda actual, body: (200, {"id": "none"}) if actual == code else (actual, body)


def lists_nothing(code: int, body: Any) -> tuple[int, Any]:  # noqa: ANN401 - any JSON
    return code, [] if isinstance(body, list) else body


class _Again:
    """Changes the responses that show a task with this status, all but the task's first."""

    def __init__(self, status: str | None, code: int, body: object) -> None:
        self._status = status
        self._changed = code, body
        self._seen: set[str] = set()

    def __call__(self, code: int, body: Any) -> tuple[int, Any]:  # noqa: ANN401 - any JSON
        if code != httpx.codes.OK or not body or body.get("status") != self._status:
            return code, body
        if body["task_id"] in self._seen:
            return self._changed
        self._seen.add(body["task_id"])
        return code, body


def _never_cancelled(code: int, body: Any) -> tuple[int, Any]:  # noqa: ANN401 - any JSON
    status = "running" if body.get("status") == "cancelled" else body.get("status")
    return code, {**body, "cancelled_task_ids": [], "status": status}


def _last_end_counts(code: int, body: Any) -> tuple[int, Any]:  # noqa: ANN401 - any JSON
    is_first = body is not None and body.get("result") == "first"
    return code, {**body, "status": "error", "result": "second"} if is_first else body


def _another_key(code: int, body: Any) -> tuple[int, Any]:  # noqa: ANN401 - any JSON
    return code, {**body, "task_api_key": secrets.token_hex()} if body else body


def _names_are_prefixes(body: Json) -> Json:
    name = str(body.get("target_node_name") or "")
    return {**body, "target_node_name": name.partition("-")[0] + "*"} if "*" in name else body


def _refuses_longer(field: str, length: int) -> Callable[[Json], Json]:
    def refused(body: Json) -> Json:
        return {**body, "status": "invalid"} if len(body.get(field) or "") > length else body

    return refused


NO_DELETION = Fault("DELETE /keys/", "key_deletion", always(405, {"detail": "no"}))
_REREGISTRATION = "reregistration reregistration_of_nobody"
_TASK_KEYS = "task_key task_key_does_no_more task_key_ends"
_ARTIFACTS = "artifacts artifacts_refused artifacts_archive"
_EXTENSIONS = (
    f"{_REREGISTRATION} pace {_TASK_KEYS} {_ARTIFACTS} output output_of_others output_events"
)
_OUTPUT = "/tasks/.+/output"
FAULTS = {
    "any key is known": Fault("GET /keys/", "unknown_is_404 key_deletion", accepts(404)),
    "any node may report": Fault("POST /status", "tasks_of_others", accepts(403)),
    "any progress is taken": Fault("POST /status", "bad_progress", request=ignores("progress")),
    "any status is accepted": Fault("POST /status", "unknown_status bad_progress", accepts(422)),
    "any task is accepted": Fault("POST /tasks", "bad_task recurrence", accepts(422)),
    "any artifact is taken": Fault("PUT /tasks/", "artifacts_refused", accepts(422)),
    "any node stores artifacts": Fault("PUT /tasks/", "artifacts_refused", accepts(403)),
    "artifacts are not listed": Fault("GET /tasks/.+/artifacts$", "artifacts", lists_nothing),
    "artifacts are shown in the browser": Fault(
        "GET /tasks/.+/artifacts/", "artifacts", lost_header="content-disposition"
    ),
    "artifacts are refused": Fault("PUT /tasks/", "artifacts artifacts_archive", recoded(200, 409)),
    "an archive is another kind of file": Fault(
        "GET /tasks/.+/artifacts.zip", "artifacts_archive", lost_header="content-type"
    ),
    "assigned only once": Fault("GET /tasks/pending", "redelivery", _Again(None, 200, None)),
    "audit is empty": Fault("GET /keys/audit", "audit", has(entries=[], total=0)),
    "cleanup returns nothing": Fault("POST /tasks/cleanup", "cleanup", always(200, {})),
    "ended tasks can be cancelled": Fault("DELETE /tasks/", "cancel_pending", accepts(409)),
    "a cancelled task has ended before its node": Fault(
        "GET /tasks/(?!pending)", "cancelled_end", has(node_ended_at="2026-01-01T00:00:00Z")
    ),
    "a purge deletes what runs": Fault("POST /tasks/.+/purge", "purge", accepts(409)),
    "a rerun does not wait for the end": Fault("POST /tasks/.+/rerun", "rerun", accepts(409)),
    "a resumed node is paused": Fault("POST /nodes/.+/resume", "pause", has(paused=True)),
    "a task does not say why it waits": Fault("GET /tasks/", "waiting", lacks("waiting")),
    "files are there for all": Fault("GET /files/", "files_of_others", accepts(404)),
    "health has no version": Fault("GET /health", "health", always(200, {})),
    "heartbeats are not answered with 200": Fault(
        "POST /nodes/heartbeat",
        f"heartbeat many_ids heartbeat_status cancelled {_EXTENSIONS} rotated_node_key",
        recoded(200, 202),
    ),
    "a node with a task is told to wait": Fault(
        "POST /nodes/heartbeat", "pace", has(heartbeat_interval_seconds=60)
    ),
    "heartbeats name other extensions": Fault(
        "POST /nodes/heartbeat", _EXTENSIONS, has(extensions=["another"])
    ),
    "job_id is not known": Fault("POST /status", "job_or_task", request=ignores("job_id")),
    "keys are not deleted": NO_DELETION,
    "keys are not rotated": Fault("POST /keys/.+/rotate", "rotation", always(500, {"detail": ""})),
    "keys never end": Fault(
        "POST /tasks", "scoped_key rotation key_deletion key_needed", accepts(401)
    ),
    "last end counts": Fault("GET /tasks/", "first_end_wins", _last_end_counts),
    "lists are empty": Fault("GET /tasks$", "task_fields list_filter pages filters", lists_nothing),
    "lists fail by unknown parameters": Fault(
        "GET /(tasks|nodes)$", "unknown_parameter", recoded(422, 500)
    ),
    "names with control characters fail": Fault("POST /register", "names", recoded(422, 500)),
    "logs lose their title": Fault("GET /logs/", "stored_log", lacks("title")),
    "logs are replaced after the end": Fault("GET /logs/", "task_key", has(title="second")),
    "logs may have any size": Fault("POST /logs", "large_log", accepts(413)),
    "long messages are refused": Fault(
        "POST /status", "long_message", request=_refuses_longer("message", 65_536)
    ),
    "many ids are refused": Fault(
        "POST /nodes/heartbeat", "many_ids", request=_refuses_longer("task_ids", 100)
    ),
    "names are prefixes": Fault("POST /tasks", "name_targets", request=_names_are_prefixes),
    "no key for a task": Fault("GET /tasks/pending", _TASK_KEYS, lacks("task_api_key")),
    "no list of nodes": Fault("GET /nodes", "nodes_listed", lists_nothing),
    "no prompt": Fault("GET /tasks/pending", "assignment", lacks("prompt")),
    "no Retry-After": Fault("POST /tasks", "rate_limit", lost_header="retry-after"),
    "no time limit": Fault("GET /tasks/pending", "timeout", lacks("timeout_seconds")),
    "no work is an empty object": Fault(
        "GET /tasks/pending", "no_work not_before_its_time", lambda code, body: (code, body or {})
    ),
    "node is not informed of a cancelled task": Fault(
        "POST /(status|nodes/heartbeat)", "cancelled", _never_cancelled
    ),
    "node keeps its tags": Fault(
        "POST /register", "reregistration tag_targets", request=ignores("tags")
    ),
    "node key is an admin's": Fault("GET /nodes", "node_is_not_admin", accepts(403)),
    "node key is ignored": Fault("POST /register", _REREGISTRATION, ignored_header="x-api-key"),
    "node lacks its hostname": Fault("POST /register", "registered_fields", lacks("hostname")),
    "output has no length": Fault(f"GET {_OUTPUT}", "output", lost_header="x-output-length"),
    "output is shown from the beginning": Fault(
        f"GET {_OUTPUT}", "output_events", ignored_header="last-event-id"
    ),
    "output is taken at any offset": Fault(f"POST {_OUTPUT}", "output", accepts(409)),
    "output is taken from any node": Fault(f"POST {_OUTPUT}", "output_of_others", accepts(403)),
    "output loses its escapes": Fault(
        f"POST {_OUTPUT}",
        "output output_events",
        request=lambda body: {**body, "text": body["text"].replace("\x1b", "")},
    ),
    "priority is ignored": Fault("POST /tasks", "order task_fields", request=ignores("priority")),
    "rate is ignored": Fault("POST /keys", "key_fields rate_limit", request=ignores("rate_limit")),
    "recurrence is ignored": Fault("POST /tasks", "recurrence", request=ignores("recurrence")),
    "removed node may come back": Fault("POST /register", "reregistration_of_nobody", accepts(410)),
    "redelivery has another key": Fault(
        "GET /tasks/pending", "redelivery task_key task_key_ends", _another_key
    ),
    "rotated key is not shown": Fault(
        "POST /nodes/heartbeat", "rotated_node_key", lacks("new_api_key")
    ),
    "rotated key never ends": Fault("POST /nodes/heartbeat", "rotated_node_key", accepts(401)),
    "second end is an error": Fault(
        "POST /status", "end first_end_wins", _Again("success", 500, {})
    ),
    "statistics are a list": Fault("GET /dashboard/stats", "statistics", always(200, [])),
    "tags are ignored": Fault(
        "POST /tasks", "tag_targets task_fields", request=ignores("target_tags")
    ),
    "task keys never end": Fault("POST /status", "task_key_ends rotated_node_key", accepts(401)),
    "task keys send heartbeats": Fault(
        "POST /nodes/heartbeat", "task_key_does_no_more", accepts(403)
    ),
    "task keys take work": Fault(
        "GET /tasks/pending", "admin_is_not_node task_key_does_no_more", accepts(403)
    ),
    "unknown keys are 403": Fault(
        ".*",
        "wrong_token node_key_needed key_needed removed_node key_deletion",
        recoded(401, 403),
    ),
    "tokens are for every name": Fault("POST /register", "registration_tokens", accepts(403)),
    "uploads have another checksum": Fault("POST /upload", "upload", has(checksum="0" * 64)),
    "wrong token is answered with 200": Fault("POST /register", "wrong_token", recoded(401, 200)),
}
"""By what is wrong."""
