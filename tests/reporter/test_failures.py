"""A failure on the way to the orchestrator is reported to the agent; a final status is kept."""

import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream
from mcp import Client

from runner.api.client import OrchestratorClient
from runner.crush.log import digest_of
from runner.crush.sessions import read_session
from runner.model import Identity, TaskStatus
from runner.redaction import Secret
from runner.reporter.job import Job
from runner.reporter.reporter import Reporter, ToolAnswer
from runner.reporter.server import server_for
from runner.workspace.handover import (
    FinalStatus,
    ReporterState,
    read_reporter_state,
    update_reporter_state,
)
from tests.fakes.crush import Crush, text
from tests.harness.loop import JUMPING, Backend
from tests.harness.server import Answer, ScriptedServer, http, json_response, raw, serving, stalled
from tests.harness.until import until
from tests.reporter.conftest import Agent

pytestmark = pytest.mark.anyio

TASK_ID = "t-1"
FAILURES = {
    "silent": (raw(), "Server disconnected"),
    "slow": (stalled(b""), "no answer"),
    "401": (json_response({"detail": "unknown key"}, 401), "HTTP 401: unknown key"),
    "proxy": (http(401), "HTTP 401 without a reason, maybe from a proxy"),
    "busy": (json_response({"detail": "wait"}, 503, {"Retry-After": "3600"}), "HTTP 503: wait"),
    "nonsense": (http(200, b"<p>"), "its response is not JSON"),
}
TAKEN = json_response({"task_id": TASK_ID, "status": "running"})
SUCCEEDED = json_response({"task_id": TASK_ID, "status": "success"})
ENDED = json_response({"task_id": TASK_ID, "status": "error"})
TOO_LONG = json_response({"detail": "too long"}, 413)
SERVER_FAILS = json_response({}, 503)


@pytest.fixture
def anyio_backend() -> Backend:
    return JUMPING


class Scripted:
    """A reporter to a scripted orchestrator."""

    def __init__(self, server: ScriptedServer, home: Path) -> None:
        self.server = server
        self.home = home

    @property
    def state(self) -> ReporterState:
        return read_reporter_state(self.home, TASK_ID)

    def save(self, state: ReporterState) -> None:
        """Leave this state as another reporter of the task does."""
        update_reporter_state(self.home, TASK_ID, lambda _: state)

    @asynccontextmanager
    async def reporting(
        self,
        *responses: Answer,
        kind: type[Reporter] = Reporter,
        **changed: Any,  # noqa: ANN401 - any field of a job
    ) -> AsyncIterator[Reporter]:
        self.server.answer(*responses)
        identity = Identity("", Secret("node-key-1234"))
        job = Job(TASK_ID, self.server.url, identity, self.home, time.time() - 60, None)
        async with OrchestratorClient(job.orchestrator_url) as orchestrator:
            yield kind(replace(job, **changed), orchestrator)

    def bodies(self) -> list[Mapping[str, Any]]:
        return [json.loads(request.body) for request in self.server.requests]


@pytest.fixture
async def scripted(anyio_backend: Backend, tmp_path: Path) -> AsyncIterator[Scripted]:  # noqa: ARG001 - asked for, so that it runs there
    async with serving() as server:
        yield Scripted(server, tmp_path)


def failure(answer: object) -> str:
    assert isinstance(answer, dict)
    assert set(answer) - {"logs"} == {"sent", "error"}
    assert answer["sent"] is False
    return str(answer["error"])


@pytest.mark.usefixtures("crush")
@pytest.mark.parametrize(("response", "reason"), FAILURES.values(), ids=FAILURES.keys())
async def test_final_status_that_is_not_taken_is_kept_and_answered_within_half_a_minute(
    scripted: Scripted, response: Answer, reason: str
) -> None:
    async with scripted.reporting(response) as reporter:
        began_s = anyio.current_time()
        answer = await reporter.finish("success", "12 sales", submit_logs=True)
        assert anyio.current_time() - began_s <= 31
    assert failure(answer["logs"]).startswith(f"cannot submit the log: {reason}")
    assert failure(answer).startswith(f"cannot report 'success': {reason}")
    assert failure(answer).endswith("; it is kept, and delivered when this container has ended")
    final = FinalStatus(TaskStatus.SUCCESS, "12 sales", "s1", is_sent=False)
    assert scripted.state == ReporterState(final=final), "and no log is recorded as submitted"


# Several reporters


async def test_two_reporters_leave_what_the_other_has_saved(scripted: Scripted) -> None:
    submitted = ReporterState("a-digest", "s1")
    async with scripted.reporting(TAKEN) as one, scripted.reporting(TAKEN) as other:
        scripted.save(submitted)
        await one.report("success", "12 sales", None)
        assert failure(await other.hand_in("of nobody"))
        final = FinalStatus(TaskStatus.SUCCESS, "12 sales", None, is_sent=True)
        assert scripted.state == replace(submitted, final=final)
        info = await other.job_info()
        assert (info["logs_submitted"], info["final_status"]) == (True, "success")


@pytest.mark.usefixtures("crush")
async def test_log_counts_as_submitted_until_another_may_have_replaced_it(
    scripted: Scripted,
) -> None:
    async with scripted.reporting(TOO_LONG) as reporter:
        scripted.save(ReporterState("a-digest", "s1"))
        assert failure(await reporter.hand_in(None))
        assert scripted.state.log_digest == "a-digest"
        scripted.server.answer(SERVER_FAILS)
        assert failure(await reporter.hand_in(None))
        assert scripted.state.log_digest is None


async def test_end_that_another_reporter_has_kept_goes_first(scripted: Scripted) -> None:
    kept = FinalStatus(TaskStatus.SUCCESS, "12", None, is_sent=False)
    scripted.save(ReporterState(final=kept))
    async with scripted.reporting(SERVER_FAILS) as other:
        later = failure(await other.report("error", "no", None))
        assert later.endswith("; another reporter has reported 'success', which is kept")
        assert scripted.state.final == kept
        scripted.server.requests.clear()
        scripted.server.answer(SUCCEEDED)
        answer = await other.report("error", "no", None)
    assert [body["status"] for body in scripted.bodies()] == ["success", "error"]
    assert answer["task_status"] == "success"
    assert scripted.state.final == replace(kept, is_sent=True)


async def test_final_status_of_the_orchestrator_is_left_for_the_runner(scripted: Scripted) -> None:
    async with scripted.reporting(ENDED) as reporter:
        answer = await reporter.report("success", "yes", None)
    assert answer["task_status"] == "error"
    assert scripted.state.final == FinalStatus(TaskStatus.ERROR, None, None, is_sent=True)


@pytest.mark.usefixtures("crush")
async def test_end_is_reported_though_its_log_is_refused(scripted: Scripted) -> None:
    async with scripted.reporting(TOO_LONG, TAKEN) as reporter:
        answer = await reporter.finish("error", "no", submit_logs=True)
    assert answer["sent"] is True
    assert answer["logs"] == {"sent": False, "error": "cannot submit the log: HTTP 413: too long"}
    assert [request.target for request in scripted.server.requests] == ["/logs", "/status"]
    final = FinalStatus(TaskStatus.ERROR, "no", "s1", is_sent=True)
    assert (scripted.state.log_digest, scripted.state.final) == (None, final)


async def test_log_that_is_too_long_is_truncated(scripted: Scripted, crush: Crush) -> None:
    for _ in range(30):
        crush.say("s1", text("x" * 100_000))
    async with scripted.reporting(TOO_LONG, TAKEN) as reporter:
        assert (await reporter.hand_in(None))["sent"] is True

    first, second = scripted.server.requests
    assert len(first.body) > 3_000_000
    assert len(second.body) <= 1_000_000
    whole = await read_session(crush.path, "s1")
    assert whole is not None
    assert scripted.state.log_digest == digest_of(whole)


@pytest.mark.parametrize(
    ("responses", "count"),
    [([raw(), SERVER_FAILS, TAKEN], 3), ([json_response({"detail": "no"}, 404), TAKEN], 1)],
    ids=["failures", "refusal"],
)
async def test_report_is_retried_until_it_is_taken_or_refused(
    scripted: Scripted, responses: list[Answer], count: int
) -> None:
    async with scripted.reporting(*responses) as reporter:
        answer = await reporter.report("success", None, 100)
    assert answer["sent"] is (count > 1)
    assert scripted.bodies() == [scripted.bodies()[0]] * count


@pytest.mark.usefixtures("crush")
@pytest.mark.parametrize(
    ("response", "is_taken"),
    [(TAKEN, True), (FAILURES["401"][0], False)],
    ids=["a task's key", "a key that holds no more"],
)
async def test_reporter_posts_statuses_and_logs_alone_and_a_refused_key_is_quiet_and_final(
    scripted: Scripted, caplog: pytest.LogCaptureFixture, response: Answer, *, is_taken: bool
) -> None:
    async with scripted.reporting(response) as reporter:
        await reporter.job_info()
        answers = [await reporter.report("running", None, 10)]
        answers.append(await reporter.finish("success", "done", submit_logs=True))
        answers.append(await reporter.hand_in("s1"))
    requests = scripted.server.requests
    targets = [request.target for request in requests]
    assert targets == ["/status", "/logs", "/status", "/logs"], "each is sent once"
    assert {request.method for request in requests} == {"POST"}
    assert [answer["sent"] for answer in answers] == [is_taken] * 3
    assert not [record for record in caplog.records if record.name.startswith("runner")]


async def test_without_a_key_nothing_is_sent_and_a_final_status_kept(scripted: Scripted) -> None:
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
        assert (await reporter.report("success", None, None))["sent"] is True


# The session


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "crush.db has no session of this task"), (b"damage" * 999, "file is not a database")],
    ids=["empty", "damaged"],
)
async def test_unusable_database_is_an_error(
    scripted: Scripted, content: bytes, reason: str
) -> None:
    (scripted.home / ".crush").mkdir()
    (scripted.home / ".crush" / "crush.db").write_bytes(content)
    async with scripted.reporting() as reporter:
        assert failure(await reporter.hand_in(None)).endswith(reason)


@pytest.mark.parametrize(
    ("prompt", "began_earlier_s"), [("Draw the map", 0), (None, 3600)], ids=["prompt", "time"]
)
async def test_session_of_another_task_is_not_submitted_though_its_id_is_given(
    scripted: Scripted, crush: Crush, prompt: str | None, began_earlier_s: int
) -> None:
    crush.connection.execute("UPDATE sessions SET created_at = created_at - ?", [began_earlier_s])
    async with scripted.reporting(prompt=prompt) as reporter:
        answer = await reporter.hand_in("s1")
    assert failure(answer) == "cannot submit the log: this task has no session 's1'"
    assert not scripted.server.requests


# A defect, and an agent that goes away


class Defective(Reporter):
    """A reporter that has a defect."""

    async def report(self, status: str, message: str | None, progress: float | None) -> ToolAnswer:
        raise ZeroDivisionError(f"{status} {message} {progress}")


async def test_defect_of_the_reporter_is_answered_in_one_sentence(scripted: Scripted) -> None:
    async with (
        scripted.reporting(TAKEN, kind=Defective) as reporter,
        Client(server_for(reporter)) as client,
    ):
        answer = await Agent(client).call("report_status", is_error=True, status="running")
    assert failure(answer) == "a defect of the status reporter: ZeroDivisionError"


async def test_report_is_retried_though_the_agent_cancels_its_call(scripted: Scripted) -> None:
    was_cancelled = anyio.Event()

    async def fail_late(stream: ByteStream) -> None:
        await was_cancelled.wait()
        await SERVER_FAILS(stream)

    async with (
        scripted.reporting(fail_late, TAKEN) as reporter,
        Client(server_for(reporter)) as client,
        anyio.create_task_group() as group,
    ):
        group.start_soon(Agent(client).call, "report_started")
        await until(lambda: len(scripted.server.requests) == 1)
        group.cancel_scope.cancel()
        was_cancelled.set()
    assert [body["status"] for body in scripted.bodies()] == ["running", "running"]
