"""A failure on the way to the orchestrator is reported to the agent; a final status is kept."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client

from runner.api.client import OrchestratorClient
from runner.crush.log import digest_of
from runner.crush.sessions import read_session
from runner.model import Identity, TaskStatus
from runner.redaction import Secret
from runner.reporter.job import Job
from runner.reporter.reporter import Reporter, ToolAnswer
from runner.reporter.server import server_for
from runner.timing import ReporterTimings
from runner.workspace.handover import FinalStatus, ReporterState, read_reporter_state
from tests.fakes.crush import Crush, text
from tests.harness.loop import HARNESS, running_loop
from tests.harness.server import (
    Answer,
    ScriptedServer,
    http,
    json_response,
    raw,
    serving,
    stalled,
    trickle,
)
from tests.harness.until import until
from tests.reporter.held import Agent

pytestmark = pytest.mark.anyio

TASK_ID = "t-1"
TIMEOUT_S = 60.0
"""How long the reporter tries, unless the test puts the time forward."""
FAILURES = {
    "silent": (raw(), "Server disconnected", 2),
    "slow": (stalled(b""), "no answer", 1),
    "trickling": (trickle(), "no answer", 1),
    "401": (json_response({"detail": "unknown key"}, 401), "HTTP 401: unknown key", None),
    "413": (json_response({"detail": "too long"}, 413), "HTTP 413: too long", None),
    "500": (json_response({"detail": "oh no"}, 500), "HTTP 500: oh no", 2),
    "nonsense": (http(200, b"<p>"), "its response is not JSON", 2),
}
"""A response, the reason in the agent's answer, and how many requests there are before the time
is put forward."""
TAKEN = json_response({"task_id": TASK_ID, "status": "running"})


@pytest.fixture
def anyio_backend() -> tuple[str, Mapping[str, Any]]:
    """Name the event loop that these tests use."""
    return HARNESS


@pytest.fixture
async def server(anyio_backend: str) -> AsyncIterator[ScriptedServer]:  # noqa: ARG001 - asked for, so that it runs there
    """Run a scripted orchestrator."""
    async with serving() as running:
        yield running


def job(url: str, home: Path) -> Job:
    return Job(TASK_ID, url, Identity("", Secret("node-key-1234")), home, time.time() - 60, None)


class Scripted:
    """A reporter to a scripted orchestrator."""

    def __init__(self, server: ScriptedServer, home: Path) -> None:
        self.server = server
        self.home = home

    @property
    def state(self) -> ReporterState:
        """What the reporter has left for the runner."""
        return read_reporter_state(self.home, TASK_ID)

    @asynccontextmanager
    async def reporting(self, *responses: Answer, **changed: Any) -> AsyncIterator[Reporter]:  # noqa: ANN401 - any field of a job
        """Return a reporter that gets these responses."""
        self.server.answer(*responses)
        mine = replace(job(self.server.url, self.home), **changed)
        async with OrchestratorClient(mine.orchestrator_url) as orchestrator:
            yield Reporter(mine, orchestrator, ReporterTimings(call_timeout_s=TIMEOUT_S))

    @asynccontextmanager
    async def time_passing(
        self, after: int | None, seconds: float = TIMEOUT_S
    ) -> AsyncIterator[None]:
        """Put the time forward after so many requests; None for never."""

        async def pass_time() -> None:
            await until(lambda: after is not None and len(self.server.requests) >= after)
            running_loop().put_forward(seconds)

        async with anyio.create_task_group() as group:
            group.start_soon(pass_time)
            yield
            group.cancel_scope.cancel()

    def bodies(self) -> list[Mapping[str, Any]]:
        """Return the bodies of all requests."""
        return [json.loads(request.body) for request in self.server.requests]


@pytest.fixture
def scripted(server: ScriptedServer, home: Path) -> Scripted:
    """Return a reporter to the scripted orchestrator."""
    return Scripted(server, home)


def failure(answer: ToolAnswer) -> str:
    assert set(answer) - {"logs"} == {"sent", "error"}
    assert answer["sent"] is False
    return str(answer["error"])


@pytest.mark.usefixtures("crush")
@pytest.mark.parametrize("how", FAILURES)
async def test_final_status_that_is_not_taken_is_kept_and_a_log_is_not_recorded_as_submitted(
    scripted: Scripted, how: str
) -> None:
    response, reason, requests = FAILURES[how]
    async with scripted.reporting(response) as reporter, scripted.time_passing(requests):
        answer = await reporter.hand_in(None)
    assert failure(answer).startswith(f"cannot submit the log: {reason}")
    assert scripted.state == ReporterState()

    scripted.server.requests.clear()
    async with scripted.reporting(response) as reporter, scripted.time_passing(requests):
        answer = await reporter.report("success", "12 sales", None)
    assert failure(answer).startswith(f"cannot report 'success': {reason}")
    assert failure(answer).endswith("; it is kept, and delivered when this container has ended")
    kept = FinalStatus(TaskStatus.SUCCESS, "12 sales", "s1", is_sent=False)
    assert scripted.state == ReporterState(final=kept)


async def test_final_status_of_the_orchestrator_is_left_for_the_runner(scripted: Scripted) -> None:
    response = json_response({"task_id": TASK_ID, "status": "error"})
    async with scripted.reporting(response) as reporter:
        answer = await reporter.report("success", "yes", None)

    assert answer["task_status"] == "error"
    assert scripted.state.final == FinalStatus(TaskStatus.ERROR, None, None, is_sent=True)


@pytest.mark.usefixtures("crush")
async def test_end_is_reported_though_its_log_is_refused(scripted: Scripted) -> None:
    refusal = json_response({"detail": "too long"}, 413)
    async with scripted.reporting(refusal, TAKEN) as reporter:
        answer = await reporter.finish("error", "no", submit_logs=True)

    assert answer["sent"] is True
    assert answer["logs"] == {"sent": False, "error": "cannot submit the log: HTTP 413: too long"}
    assert [request.target for request in scripted.server.requests] == ["/logs", "/status"]
    final = FinalStatus(TaskStatus.ERROR, "no", "s1", is_sent=True)
    assert (scripted.state.log_digest, scripted.state.final) == (None, final)


async def test_log_that_is_refused_as_too_long_is_truncated_and_submitted(
    scripted: Scripted, crush: Crush
) -> None:
    for _ in range(30):
        crush.say("s1", text("x" * 100_000))
    refusal = json_response({"detail": "too long"}, 413)
    async with scripted.reporting(refusal, TAKEN) as reporter:
        answer = await reporter.hand_in(None)

    first, second = scripted.server.requests
    assert len(first.body) > 3_000_000
    assert len(second.body) <= 1_000_000
    assert answer["sent"] is True
    whole = await read_session(crush.path, "s1")
    assert whole is not None
    assert scripted.state.log_digest == digest_of(whole)


@pytest.mark.usefixtures("crush")
async def test_end_is_reported_though_its_log_takes_too_long(scripted: Scripted) -> None:
    more_than_half_s = TIMEOUT_S / 2 + 1
    async with (
        scripted.reporting(stalled(b""), TAKEN) as reporter,
        scripted.time_passing(1, more_than_half_s),
    ):
        answer = await reporter.finish("error", "no", submit_logs=True)

    assert answer["sent"] is True
    assert [request.target for request in scripted.server.requests] == ["/logs", "/status"]


async def test_report_is_repeated_until_the_orchestrator_is_back(scripted: Scripted) -> None:
    async with scripted.reporting(raw(), json_response({}, 503), TAKEN) as reporter:
        answer = await reporter.report("success", None, 100)

    assert answer["sent"] is True
    first, *others = scripted.bodies()
    assert others == [first, first]


async def test_refusal_is_not_repeated(scripted: Scripted) -> None:
    async with scripted.reporting(json_response({"detail": "no such task"}, 404)) as reporter:
        await reporter.report("running", None, None)

    assert len(scripted.server.requests) == 1


@pytest.mark.usefixtures("crush")
async def test_both_names_of_the_id_are_sent(scripted: Scripted) -> None:
    async with scripted.reporting(TAKEN) as reporter:
        await reporter.finish("success", "done", submit_logs=True)

    ids = [(body["job_id"], body["task_id"]) for body in scripted.bodies()]
    assert ids == [(TASK_ID, TASK_ID)] * 2
    keys = {request.headers["x-api-key"] for request in scripted.server.requests}
    assert keys == {"node-key-1234"}


async def test_without_a_key_nothing_is_sent_and_a_final_status_is_kept(
    scripted: Scripted,
) -> None:
    async with scripted.reporting(TAKEN, identity=Identity("", Secret(""))) as reporter:
        answer = await reporter.report("error", "no", None)

    assert "NODE_API_KEY is not set" in failure(answer)
    assert not scripted.server.requests
    assert scripted.state.final is not None


async def test_message_is_truncated_and_half_characters_are_replaced(scripted: Scripted) -> None:
    async with scripted.reporting(TAKEN) as reporter:
        await reporter.report("success", "\ud800" + "x" * 200_000, None)

    (body,) = scripted.bodies()
    assert len(body["message"]) == 100_000
    assert body["message"].startswith("?xxx")
    assert body["message"].endswith(" [… cut]")


async def test_report_is_sent_though_the_home_cannot_be_written(scripted: Scripted) -> None:
    async with scripted.reporting(TAKEN, home=scripted.home / "nowhere") as reporter:
        answer = await reporter.report("success", None, None)

    assert answer["sent"] is True


# The database


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "crush.db has no session of this task"),
        (b"", "crush.db has no session of this task"),
        (b"not what SQLite writes" * 500, "the Crush database: file is not a database"),
    ],
    ids=["missing", "empty", "damaged"],
)
async def test_database_without_a_session_is_reported(
    scripted: Scripted, content: bytes | None, reason: str
) -> None:
    if content is not None:
        write(scripted.home / ".crush" / "crush.db", content)
    async with scripted.reporting() as reporter:
        answer = await reporter.hand_in(None)

    assert failure(answer).endswith(reason)
    assert not scripted.server.requests


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)


async def test_session_of_another_task_is_not_submitted_though_it_is_named(
    scripted: Scripted, crush: Crush
) -> None:
    async with scripted.reporting(prompt="Draw the map") as reporter:
        answer = await reporter.hand_in("s1")
    assert failure(answer) == "cannot submit the log: this task has no session 's1'"

    crush.connection.execute("UPDATE sessions SET created_at = created_at - 3600")
    async with scripted.reporting() as reporter:
        answer = await reporter.hand_in("s1")
    assert failure(answer) == "cannot submit the log: this task has no session 's1'"
    assert not scripted.server.requests


# A defect, and an agent that goes away


class Defective(Reporter):
    """A reporter that has a defect."""

    async def report(self, status: str, message: str | None, progress: float | None) -> ToolAnswer:
        """Raise an error that nothing expects."""
        raise ZeroDivisionError(f"{status} {message} {progress}")


class InFlight(Reporter):
    """A reporter whose report is in flight until it is released."""

    def __init__(self, mine: Job, orchestrator: OrchestratorClient) -> None:
        super().__init__(mine, orchestrator)
        self.in_flight = anyio.Event()
        self.released = anyio.Event()
        self.statuses: list[str] = []

    async def report(self, status: str, message: str | None, progress: float | None) -> ToolAnswer:
        """Wait to be released, then record the status."""
        self.in_flight.set()
        await self.released.wait()
        self.statuses.append(status)
        return {"sent": True, "message": message, "progress": progress}


async def test_defect_of_the_reporter_is_answered_in_one_sentence(scripted: Scripted) -> None:
    async with OrchestratorClient(scripted.server.url) as orchestrator:
        reporter = Defective(job(scripted.server.url, scripted.home), orchestrator)
        async with Client(server_for(reporter)) as client:
            answer = await Agent(client).call("report_status", is_error=True, status="running")

    assert failure(answer) == "a defect of the status reporter: ZeroDivisionError"


async def test_report_is_sent_though_the_agent_cancels_its_call(scripted: Scripted) -> None:
    async with OrchestratorClient(scripted.server.url) as orchestrator:
        reporter = InFlight(job(scripted.server.url, scripted.home), orchestrator)
        async with Client(server_for(reporter)) as client, anyio.create_task_group() as group:
            group.start_soon(Agent(client).call, "report_started")
            await reporter.in_flight.wait()
            group.cancel_scope.cancel()
            reporter.released.set()

    assert reporter.statuses == ["running"]
