"""With an orchestrator that names no extension, a runner does what the seed's contract has."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.harness.runner_process import RunnerProcess
from tests.system.recording import RecordingOrchestrator

EXTENSIONS = {"extensions", "heartbeat_interval_seconds", "new_api_key", "task_api_key"}
"""What only an orchestrator with extensions has in its responses to a node."""
OF_A_NODE = {"/register", "/nodes/heartbeat", "/tasks/pending"}


class PlainOrchestrator(RecordingOrchestrator):
    """The reference orchestrator, without its extensions in what nodes get."""

    def application(self) -> FastAPI:
        app = super().application()
        app.add_middleware(_plain)
        return app


def _plain(app: ASGIApp) -> ASGIApp:
    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in OF_A_NODE:
            await app(scope, receive, send)
            return
        messages: list[Message] = []

        async def keep(message: Message) -> None:
            messages.append(message)

        await app(scope, receive, keep)
        start, body = messages[0], b"".join(message.get("body", b"") for message in messages[1:])
        value = json.loads(body) if body else None
        if isinstance(value, dict):
            value = {name: field for name, field in value.items() if name not in EXTENSIONS}
            body = json.dumps(value).encode()
        headers = [pair for pair in start["headers"] if pair[0].lower() != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await send({**start, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return respond


@pytest.fixture
def orchestrator(tmp_path: Path) -> Iterator[RecordingOrchestrator]:
    with PlainOrchestrator(tmp_path / "orchestrator") as running:
        yield running


def test_task_without_extensions_is_reported_cancelled_and_its_artifacts_stay(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    prompt = "[print-line one][artifact result.csv 1,2][fail 3]"
    task_id = orchestrator.create_task(prompt)["id"]
    runner.start()
    message = orchestrator.end_of(task_id)["error_message"]
    assert message.startswith("failed: exit code 3")
    assert "one" in message, "its last lines"
    folder = runner.task_folder(task_id) / "artifacts"
    assert (folder / "result.csv").read_text() == "1,2"
    assert f"they are in {folder} on the host" in message

    hanging = orchestrator.create_task("[hang]")["id"]
    runner.wait_for_start_of(hanging)
    orchestrator.cancel(hanging)
    runner.wait_until_closed(hanging)
    assert orchestrator.task(hanging)["status"] == "cancelled"

    assert runner.rows("SELECT DISTINCT extensions FROM identities") == [{"extensions": ""}]
    calls = [
        call for call in orchestrator.calls if "victoria-runner/" in call.headers["user-agent"]
    ]
    paths = {call.path for call in calls}
    assert paths <= {"/register", "/nodes/heartbeat", "/tasks/pending", "/status", "/logs"}
    beats = [call.json() for call in calls if call.path == "/nodes/heartbeat"]
    assert all(
        beat.keys() <= {"node_id", "status", "current_task_id", "task_ids"} for beat in beats
    )
