"""What goes wrong on the way to the orchestrator is told, and a final word is kept."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
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
    ScriptedServer,
    json_response,
    nobody_listening,
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
WAITED_OUT_S = 12.0
"""How long it tries where nothing shows that it has."""

WORSE = {
    "silent": (raw(), "Server disconnected", 2),
    "slow": (stalled(b""), "no answer", 1),
    "trickling": (trickle(), "no answer", 1),
    "401": (json_response({"detail": "unknown key"}, 401), "HTTP 401: unknown key", None),
    "413": (json_response({"detail": "too long"}, 413), "HTTP 413: too long", None),
    "500": (json_response({"detail": "oh no"}, 500), "HTTP 500: oh no", 2),
    "nonsense": (
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n<p>"),
        "its response is not JSON",
        2,
    ),
}
"""How it is answered, what is said of that, and how often it asks before its time is up."""
TAKEN = json_response({"task_id": TASK_ID, "status": "running"})


@pytest.fixture
def anyio_backend() -> tuple[str, Mapping[str, Any]]:
    """Name the event loop that these tests use."""
    return HARNESS


@pytest.fixture
async def server(anyio_backend: str) -> AsyncIterator[ScriptedServer]:  # noqa: ARG001 - asked for, so that it runs there
    """Run an orchestrator that answers as the test says."""
    async with serving() as running:
        yield running


def job(url: str, home: Path, key: str = "node-key-1234", prompt: str | None = None) -> Job:
    return Job(TASK_ID, url, Identity("", Secret(key)), home, time.time() - 60, prompt)


@asynccontextmanager
async def reporting(found: Job) -> AsyncIterator[Reporter]:
    async with OrchestratorClient(found.orchestrator_url) as orchestrator:
        yield Reporter(found, orchestrator, ReporterTimings(call_timeout_s=TIMEOUT_S))


@asynccontextmanager
async def time_passing(
    server: ScriptedServer, after: int | None, seconds: float = TIMEOUT_S
) -> AsyncIterator[None]:
    """Put the time forward when the server has been asked so often; None for never."""

    async def pass_time() -> None:
        await until(lambda: after is not None and len(server.requests) >= after)
        running_loop().put_forward(seconds)

    async with anyio.create_task_group() as group:
        group.start_soon(pass_time)
        yield
        group.cancel_scope.cancel()


def failure(answer: ToolAnswer) -> str:
    assert set(answer) - {"logs"} == {"sent", "error"}
    assert answer["sent"] is False
    return str(answer["error"])


@pytest.mark.parametrize("how", WORSE)
async def test_final_word_that_is_not_taken_is_told_and_kept(
    server: ScriptedServer, home: Path, how: str
) -> None:
    said, reason, asked_count = WORSE[how]
    server.answer(said)
    async with reporting(job(server.url, home)) as reporter, time_passing(server, asked_count):
        answer = await reporter.report("success", "12 sales", None)

    assert failure(answer).startswith(f"cannot report 'success': {reason}")
    assert failure(answer).endswith("; it is kept, and delivered when this container has ended")
    kept = FinalStatus(TaskStatus.SUCCESS, "12 sales", None, is_sent=False)
    assert read_reporter_state(home, TASK_ID) == ReporterState(final=kept)


@pytest.mark.usefixtures("crush")
@pytest.mark.parametrize("how", WORSE)
async def test_log_that_is_not_taken_is_told(server: ScriptedServer, home: Path, how: str) -> None:
    said, reason, asked_count = WORSE[how]
    server.answer(said)
    async with reporting(job(server.url, home)) as reporter, time_passing(server, asked_count):
        answer = await reporter.hand_in(None)

    assert failure(answer).startswith(f"cannot submit the log: {reason}")
    assert read_reporter_state(home, TASK_ID).log_digest is None


async def test_end_that_stands_at_the_orchestrator_is_what_is_left_for_the_runner(
    server: ScriptedServer, home: Path
) -> None:
    server.answer(json_response({"task_id": TASK_ID, "status": "error"}))
    async with reporting(job(server.url, home)) as reporter:
        answer = await reporter.report("success", "yes", None)

    assert answer["task_status"] == "error"
    assert read_reporter_state(home, TASK_ID).final == FinalStatus(
        TaskStatus.ERROR, None, None, is_sent=True
    )


async def test_orchestrator_that_is_away_is_told(home: Path) -> None:
    with nobody_listening() as port:
        found = job(f"http://127.0.0.1:{port}", home)
        async with OrchestratorClient(found.orchestrator_url) as orchestrator:
            reporter = Reporter(found, orchestrator, ReporterTimings(call_timeout_s=WAITED_OUT_S))
            answer = await reporter.report("running", None, 5)

    assert failure(answer) == "cannot report 'running': Connection refused"


@pytest.mark.usefixtures("crush")
async def test_end_is_told_though_its_log_is_refused(server: ScriptedServer, home: Path) -> None:
    server.answer(json_response({"detail": "too long"}, 413), TAKEN)
    async with reporting(job(server.url, home)) as reporter:
        answer = await reporter.finish("error", "no", submit_logs=True)

    assert answer["sent"] is True
    assert answer["logs"] == {"sent": False, "error": "cannot submit the log: HTTP 413: too long"}
    assert [request.target for request in server.requests] == ["/logs", "/status"]
    left = read_reporter_state(home, TASK_ID)
    assert (left.log_digest, left.final) == (
        None,
        FinalStatus(TaskStatus.ERROR, "no", "s1", is_sent=True),
    )


async def test_log_that_is_refused_as_too_long_is_cut_and_handed_in(
    server: ScriptedServer, home: Path, crush: Crush
) -> None:
    for _ in range(30):
        crush.say("s1", text("x" * 100_000))
    server.answer(json_response({"detail": "too long"}, 413), TAKEN)
    async with reporting(job(server.url, home)) as reporter:
        answer = await reporter.hand_in(None)

    first, second = server.requests
    assert len(first.body) > 3_000_000
    assert len(second.body) <= 1_000_000
    assert answer["sent"] is True
    whole = await read_session(crush.path, "s1")
    assert whole is not None
    assert read_reporter_state(home, TASK_ID).log_digest == digest_of(whole)


@pytest.mark.usefixtures("crush")
async def test_end_is_told_though_its_log_takes_too_long(
    server: ScriptedServer, home: Path
) -> None:
    server.answer(stalled(b""), TAKEN)
    more_than_half_s = TIMEOUT_S / 2 + 1
    async with (
        reporting(job(server.url, home)) as reporter,
        time_passing(server, 1, more_than_half_s),
    ):
        answer = await reporter.finish("error", "no", submit_logs=True)

    assert answer["sent"] is True
    assert [request.target for request in server.requests] == ["/logs", "/status"]


async def test_orchestrator_that_comes_back_in_time_is_told(
    server: ScriptedServer, home: Path
) -> None:
    server.answer(raw(), json_response({}, 503), TAKEN)
    async with reporting(job(server.url, home)) as reporter:
        answer = await reporter.report("success", None, 100)

    assert answer["sent"] is True
    assert len(server.requests) == 3
    assert len({request.body for request in server.requests}) == 1


async def test_refusal_is_not_repeated(server: ScriptedServer, home: Path) -> None:
    server.answer(json_response({"detail": "no such task"}, 404))
    async with reporting(job(server.url, home)) as reporter:
        await reporter.report("running", None, None)

    assert len(server.requests) == 1


async def test_both_names_of_the_id_are_sent(
    server: ScriptedServer, home: Path, crush: Crush
) -> None:
    crush.say("s1", "more")
    server.answer(TAKEN)
    async with reporting(job(server.url, home)) as reporter:
        await reporter.finish("success", "done", submit_logs=True)

    log, status = (request.json() for request in server.requests)
    for body in (log, status):
        assert isinstance(body, dict)
        assert (body["job_id"], body["task_id"]) == (TASK_ID, TASK_ID)
    assert {request.headers["x-api-key"] for request in server.requests} == {"node-key-1234"}


async def test_without_a_key_nothing_is_sent_and_a_final_word_is_kept(
    server: ScriptedServer, home: Path
) -> None:
    async with reporting(job(server.url, home, key="")) as reporter:
        answer = await reporter.report("error", "no", None)

    assert "NODE_API_KEY is not set" in failure(answer)
    assert not server.requests
    assert read_reporter_state(home, TASK_ID).final is not None


async def test_message_that_is_too_long_is_cut_and_half_characters_are_replaced(
    server: ScriptedServer, home: Path
) -> None:
    server.answer(TAKEN)
    async with reporting(job(server.url, home)) as reporter:
        await reporter.report("success", "\ud800" + "x" * 200_000, None)

    body = server.requests[0].json()
    assert isinstance(body, dict)
    assert len(body["message"]) == 100_000
    assert body["message"].startswith("?xxx")
    assert body["message"].endswith(" [… cut]")


async def test_home_that_cannot_be_written_keeps_no_report_from_being_sent(
    server: ScriptedServer, tmp_path: Path
) -> None:
    server.answer(TAKEN)
    async with reporting(job(server.url, tmp_path / "nowhere")) as reporter:
        answer = await reporter.report("success", None, None)

    assert answer["sent"] is True


# The database


@pytest.fixture
def content() -> bytes:
    """Say what stands in the database's place."""
    return b""


@pytest.fixture
def database(home: Path, content: bytes) -> Path:
    """Put something into the database's place."""
    path = home / ".crush" / "crush.db"
    path.parent.mkdir()
    path.write_bytes(content)
    return path


async def asked(server: ScriptedServer, home: Path) -> str:
    """Ask for the log to be handed in; give the failure, which must not reach the server."""
    async with reporting(job(server.url, home)) as reporter:
        answer = await reporter.hand_in(None)
    assert not server.requests
    return failure(answer)


async def test_database_that_is_missing_is_told(server: ScriptedServer, home: Path) -> None:
    assert (await asked(server, home)).endswith("crush.db has no session of this task")


@pytest.mark.usefixtures("database")
async def test_database_that_is_empty_is_told(server: ScriptedServer, home: Path) -> None:
    assert (await asked(server, home)).endswith("crush.db has no session of this task")


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("content", [b"not what SQLite writes" * 500])
async def test_database_that_is_damaged_is_told(server: ScriptedServer, home: Path) -> None:
    assert "cannot read the Crush database: file is not a database" in await asked(server, home)


async def test_database_that_is_being_written_is_told(
    server: ScriptedServer, home: Path, crush: Crush
) -> None:
    crush.connection.execute("PRAGMA journal_mode = DELETE")
    crush.connection.execute("PRAGMA cache_size = 1")
    crush.connection.execute("BEGIN EXCLUSIVE")
    crush.say("s1", "x" * 200_000)

    assert "another process keeps writing it" in await asked(server, home)


async def test_session_from_before_the_task_is_not_handed_in(
    server: ScriptedServer, home: Path, crush: Crush
) -> None:
    crush.connection.execute("UPDATE sessions SET created_at = created_at - 3600")

    assert (await asked(server, home)).endswith("has no session of this task")


@pytest.mark.usefixtures("crush")
async def test_session_of_another_prompt_is_not_handed_in_though_it_is_named(
    server: ScriptedServer, home: Path
) -> None:
    mine = job(server.url, home, prompt="Draw the map")
    async with reporting(mine) as reporter:
        answer = await reporter.hand_in("s1")

    assert failure(answer) == "cannot submit the log: this task has no session 's1'"
    assert not server.requests


# What nobody has thought of


class Defective(Reporter):
    """A reporter that has a defect."""

    async def report(self, status: str, message: str | None, progress: float | None) -> ToolAnswer:
        """Fail in a way that is no failure."""
        raise ZeroDivisionError(f"{status} {message} {progress}")


async def test_defect_of_the_reporter_is_answered_in_one_sentence(home: Path) -> None:
    found = job("http://127.0.0.1:1", home)
    async with (
        OrchestratorClient(found.orchestrator_url) as orchestrator,
        Client(server_for(Defective(found, orchestrator))) as client,
    ):
        answer = await Agent(client).call_in_vain("report_status", status="running")

    assert failure(answer) == "a defect of the status reporter: ZeroDivisionError"


class InFlight(Reporter):
    """A reporter whose report is in flight until it is released."""

    def __init__(self, found: Job, orchestrator: OrchestratorClient) -> None:
        super().__init__(found, orchestrator)
        self.in_flight = anyio.Event()
        self.released = anyio.Event()
        self.statuses: list[str] = []

    async def report(self, status: str, message: str | None, progress: float | None) -> ToolAnswer:
        """Wait to be released, then record the status."""
        self.in_flight.set()
        await self.released.wait()
        self.statuses.append(status)
        return {"sent": True, "message": message, "progress": progress}


async def test_report_is_sent_though_the_agent_cancels_its_call(home: Path) -> None:
    found = job("http://127.0.0.1:1", home)
    async with OrchestratorClient(found.orchestrator_url) as orchestrator:
        reporter = InFlight(found, orchestrator)
        async with Client(server_for(reporter)) as client, anyio.create_task_group() as group:
            group.start_soon(Agent(client).call, "report_started")
            await reporter.in_flight.wait()
            group.cancel_scope.cancel()
            reporter.released.set()

    assert reporter.statuses == ["running"]
