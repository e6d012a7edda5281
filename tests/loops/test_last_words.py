"""At a container's end, what the agent has said stands, and what it has not handed in is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from runner.api.client import OrchestratorClient
from runner.crush.log import digest_of
from runner.crush.sessions import read_session, session_mark
from runner.errors import EngineSilent
from runner.model import TaskStatus, log_body
from runner.reporter.job import job_in
from runner.reporter.reporter import Reporter
from runner.timing import DEFAULT_TIMINGS, ReporterTimings
from runner.workspace.handover import FinalStatus, ReporterState, write_reporter_state
from tests.fakes.crush import Crush, text
from tests.fakes.hostile_crush import SCHEMAS, hostile_crush
from tests.harness.host import container_of
from tests.harness.orchestrator import LOGS, STATUS
from tests.harness.server import json_response
from tests.harness.until import DEADLINE_S, until

if TYPE_CHECKING:
    from pathlib import Path

    from anyio.abc import ByteStream

    from tests.harness.host import Host

pytestmark = pytest.mark.anyio

PROMPT = "Count the sales [wait-for go]"


@pytest.fixture
def crush(host: Host) -> Iterator[Crush]:
    """Run a Crush with the session of the task that the host is offered."""
    running = Crush(host.home / ".crush" / "crush.db", now=int(host.clock.wall_s()))
    running.begin("s1", prompt=PROMPT)
    yield running
    running.close()


async def ended(
    host: Host, directives: str = "", leave: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """Run a task whose container leaves something behind; give the report of its end."""
    host.orchestrator.offer("t-1", f"{PROMPT}{directives}")
    async with host.runner():
        await host.wait_for_state("t-1", "running")
        leave()
        host.let_go()
        return await host.wait_for_end("t-1")


def said(status: str, *, is_sent: bool, message: str | None = "by the agent") -> FinalStatus:
    """Give a final word of the agent."""
    return FinalStatus(TaskStatus(status), message, None, is_sent=is_sent)


def leaving(host: Host, trace: ReporterState) -> Callable[[], object]:
    """Give what leaves a trace as the reporter does."""
    return lambda: write_reporter_state(host.home, "t-1", trace)


def logs(host: Host) -> list[dict[str, Any]]:
    """Give the logs that were handed in."""
    return [call.body for call in host.orchestrator.called(LOGS)]


# The final word


@pytest.mark.parametrize("is_sent", [True, False])
async def test_success_that_the_agent_told_stands_though_its_container_failed(
    host: Host,
    is_sent: bool,  # noqa: FBT001 - pytest passes it
) -> None:
    trace = ReporterState(final=said("success", is_sent=is_sent))
    end = await ended(host, "[fail 3]", leaving(host, trace))

    assert (end["status"], end["progress"]) == ("success", 100.0)
    told, _, found = end["message"].partition("\n\n")
    assert told == "by the agent"
    assert found.startswith("Its container, after that: failed: exit code 3")
    assert host.rows("SELECT end_reason FROM tasks") == [{"end_reason": "failed"}]


@pytest.mark.parametrize("is_sent", [True, False])
async def test_failure_that_the_agent_told_stands_though_its_container_did_not_fail(
    host: Host,
    is_sent: bool,  # noqa: FBT001 - pytest passes it
) -> None:
    end = await ended(host, "", leaving(host, ReporterState(final=said("error", is_sent=is_sent))))

    assert end["status"] == "error"
    assert end["message"].startswith("by the agent\n\nIts container, after that: completed: ")
    assert "progress" not in end


async def test_word_that_agrees_with_the_container_is_told_as_it_is(host: Host) -> None:
    end = await ended(host, "", leaving(host, ReporterState(final=said("success", is_sent=False))))

    assert end["message"] == "by the agent"


async def test_word_without_a_message_has_the_runners(host: Host) -> None:
    word = said("success", is_sent=False, message=None)
    end = await ended(host, "", leaving(host, ReporterState(final=word)))

    assert end["message"].startswith("completed: exit code 0")


async def test_word_of_a_lost_container_stands(host: Host) -> None:
    host.orchestrator.offer("t-1", "[hang]")
    async with host.runner():
        await host.wait_for_state("t-1", "running")
        write_reporter_state(host.home, "t-1", ReporterState(final=said("success", is_sent=False)))
        host.engine.vanish(container_of("t-1"))
        end = await host.wait_for_end("t-1")

    assert end["status"] == "success"


async def test_word_is_kept_while_the_orchestrator_is_away(host: Host) -> None:
    host.orchestrator.offer("t-1", "[wait-for go]")
    async with host.runner():
        await host.wait_for_state("t-1", "running")
        write_reporter_state(host.home, "t-1", ReporterState(final=said("error", is_sent=False)))
        host.orchestrator.is_down = True
        host.let_go()
        await host.wait_for_state("t-1", "ended")
    host.orchestrator.is_down = False
    async with host.runner():
        await host.clock.advance(61)
        end = await host.wait_for_end("t-1")

    assert end["message"].startswith("by the agent")


async def test_word_that_was_planted_for_a_task_that_never_started_is_not_believed(
    host: Host,
) -> None:
    write_reporter_state(host.home, "t-1", ReporterState(final=said("success", is_sent=False)))
    host.orchestrator.offer("t-1")
    async with host.runner(run_args=("--no-such-flag",)):
        end = await host.wait_for_end("t-1")

    assert end["status"] == "error"
    assert end["message"].startswith("unstartable: ")


@pytest.mark.parametrize("status", [401, 413, 500])
async def test_word_and_log_that_the_reporter_could_not_send_are_delivered_at_the_end(
    host: Host, crush: Crush, status: int
) -> None:
    crush.say("s1", text("There are 12."))
    host.orchestrator.offer("t-1", PROMPT)
    async with host.runner():
        await host.wait_for_state("t-1", "running")
        for path in (STATUS, LOGS):
            host.orchestrator.always(path, json_response({"detail": "not now"}, status))
        given = host.engine.variables[container_of("t-1")]
        job = replace(job_in({**given, "VICTORIA_HOME": str(host.home)}), prompt=PROMPT)
        async with OrchestratorClient(job.orchestrator_url) as orchestrator:
            reporter = Reporter(job, orchestrator, ReporterTimings(call_timeout_s=16))
            answer = await reporter.finish("error", "12 sales are too few", submit_logs=True)
        for path in (STATUS, LOGS):
            host.orchestrator.always(path, None)
        host.let_go()
        end = await host.wait_for_end("t-1")
        await host.wait_for_state("t-1", "closed")

    assert str(answer["error"]).startswith(f"cannot report 'error': HTTP {status}: not now")
    assert (end["status"], end["crush_session_id"]) == ("error", "s1")
    assert end["message"].startswith("12 sales are too few\n\nIts container, after that: completed")
    assert logs(host)[-1]["session"]["messages"][-1]["content"] == "There are 12."
    assert host.rows("SELECT * FROM outbox") == []


# What is no trace


@pytest.mark.parametrize("what", ["no JSON", "a pipe", "a link"])
async def test_what_is_no_trace_changes_nothing(
    host: Host, log: pytest.LogCaptureFixture, what: str
) -> None:
    def leave() -> None:
        place = host.home / "tasks" / "t-1" / "reporter.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        if what == "a pipe":
            os.mkfifo(place)
        elif what == "a link":
            place.symlink_to("/etc/passwd")
        else:
            place.write_text("success!")

    end = await ended(host, "[fail 3]", leave)

    assert end["status"] == "error"
    assert end["message"].startswith("failed: exit code 3")
    assert "cannot read the reporter's state: " in log.text


# The log


async def test_log_that_was_not_handed_in_is_before_the_end(host: Host, crush: Crush) -> None:
    crush.say("s1", text("There are 12."))
    end = await ended(host)

    session = await read_session(crush.path, "s1")
    assert session is not None
    assert logs(host) == [log_body("t-1", session)]
    assert end["crush_session_id"] == "s1"
    paths = [call.request.target for call in host.orchestrator.calls]
    assert [path for path in paths if path in {LOGS, STATUS}] == [STATUS, LOGS, STATUS]


async def test_log_that_was_handed_in_before_the_final_word_is_not_again(
    host: Host, crush: Crush
) -> None:
    crush.say("s1", text("Crush writes on after that."))
    trace = ReporterState("the-digest-of-then", "s1", said("success", is_sent=True))
    end = await ended(host, "", leaving(host, trace))

    assert logs(host) == []
    assert end["crush_session_id"] == "s1"


@pytest.mark.parametrize("goes_on", [True, False])
async def test_log_without_a_final_word_is_handed_in_again_if_it_has_grown(
    host: Host,
    crush: Crush,
    goes_on: bool,  # noqa: FBT001 - pytest passes it
) -> None:
    session = await read_session(crush.path, "s1")
    assert session is not None
    trace = ReporterState(digest_of(session), "s1")
    if goes_on:
        crush.say("s1", text("more"))
    await ended(host, "", leaving(host, trace))

    assert len(logs(host)) == (1 if goes_on else 0)


@pytest.mark.usefixtures("crush")
async def test_log_is_handed_in_though_the_agent_told_its_end_without(host: Host) -> None:
    await ended(host, "", leaving(host, ReporterState(final=said("success", is_sent=True))))

    assert [body["session"]["id"] for body in logs(host)] == ["s1"]


@pytest.mark.usefixtures("crush")
async def test_end_is_told_though_the_log_is_refused(host: Host) -> None:
    host.orchestrator.always(LOGS, json_response({"detail": "too long"}, 413))
    end = await ended(host)

    assert end["status"] == "success"
    (parked,) = host.rows("SELECT path, parked FROM outbox")
    assert parked == {"path": "logs", "parked": "HTTP 413: too long"}


async def test_of_two_tasks_with_one_prompt_each_has_the_session_that_it_marked(
    host: Host, crush: Crush
) -> None:
    crush.begin("s2", prompt=PROMPT)
    crush.say("s1", text(f"It says {session_mark('t-1')}."))
    crush.say("s2", text(f"It says {session_mark('t-2')}."))
    await ended(host)

    assert [body["session"]["id"] for body in logs(host)] == ["s1"]


async def test_task_whose_agent_began_no_session_is_not_given_the_one_of_its_twin(
    host: Host, crush: Crush
) -> None:
    # s1 is the session of t-2, which runs in the same home with the same prompt.
    crush.say("s1", text(f"It says {session_mark('t-2')}."))
    await ended(host)

    assert logs(host) == []


@pytest.mark.parametrize(
    ("other", "said", "count"),
    [
        (PROMPT, PROMPT, 0),
        (f"{PROMPT} [hang]", f"{PROMPT} [hang]", 0),
        ("Draw the map [hang]", PROMPT, 1),
    ],
    ids=["the same prompt", "a prompt that contains ours", "another prompt"],
)
async def test_session_without_a_mark_is_handed_in_if_no_task_beside_can_have_begun_it(
    host: Host, crush: Crush, other: str, said: str, count: int
) -> None:
    crush.begin("s2", prompt=said)
    crush.connection.execute("DELETE FROM sessions WHERE id = 's1'")
    host.orchestrator.offer("t-1", PROMPT)
    host.orchestrator.offer("t-2", other)
    async with host.runner(max_tasks=2):
        await host.wait_for_state("t-1", "running")
        await host.wait_for_state("t-2", "running")
        host.let_go()
        await host.wait_for_end("t-1")

    assert len(logs(host)) == count


async def test_session_that_was_begun_after_the_container_had_ended_is_not_the_tasks(
    host: Host, crush: Crush
) -> None:
    crush.connection.execute("DELETE FROM sessions")
    host.orchestrator.offer("t-1", PROMPT)
    async with host.runner():
        await host.wait_for_state("t-1", "running")
    host.let_go()
    with anyio.fail_after(DEADLINE_S):
        await host.engine.wait(container_of("t-1"))
    host.clock.suspend(60)
    crush.begin("s2", int(host.clock.wall_s()), prompt=PROMPT)
    async with host.runner():
        await host.wait_for_end("t-1")

    assert logs(host) == []


async def test_what_is_secret_leaves_neither_in_the_log_nor_in_the_agents_word(
    host: Host, crush: Crush
) -> None:
    env_file = host.folder / "env"
    env_file.write_text("API_PASSWORD=hunter2-hunter2\n")
    host.orchestrator.offer("t-1", PROMPT)
    async with host.runner(env_file=env_file):
        await host.wait_for_state("t-1", "running")
        variables = host.engine.variables[container_of("t-1")]
        key = variables["NODE_API_KEY"]
        crush.say("s1", text(f"NODE_API_KEY={key} API_PASSWORD=hunter2-hunter2"))
        word = FinalStatus(TaskStatus.SUCCESS, f"I found {key}!", None, is_sent=False)
        write_reporter_state(host.home, "t-1", ReporterState(final=word))
        host.let_go()
        end = await host.wait_for_end("t-1")

    (log,) = logs(host)
    assert log["session"]["messages"][-1]["content"] == "NODE_API_KEY=*** API_PASSWORD=***"
    assert end["message"] == "I found ***!"
    assert variables["VICTORIA_SECRETS"] == "API_PASSWORD"


# Two transactions: the outcome, then its log and status


class Unfinished:
    """A transaction of Crush that is under way: its database is not read meanwhile."""

    def __init__(self, database: Path) -> None:
        self._journal = database.with_name("crush.db-journal")
        self._journal.write_text("not empty")

    def end(self) -> None:
        """Be over."""
        self._journal.unlink()


@pytest.fixture
def unfinished(crush: Crush) -> Unfinished:
    """Begin such a transaction."""
    return Unfinished(crush.path)


PENDING = {"state": "ended", "end_reason": "completed", "log_pending": 1}


async def wait_until_log_is_pending(host: Host) -> None:
    """Run the task to its outcome; nothing of it may be reported while its log is looked for."""
    await host.wait_for_state("t-1", "running")
    host.let_go()
    await host.wait_for_state("t-1", "ended")
    await anyio.sleep(0.5)
    assert host.rows("SELECT state, end_reason, log_pending FROM tasks") == [PENDING]
    assert host.rows("SELECT * FROM outbox") == []


@pytest.mark.parametrize("once", [False, True], ids=["serving", "draining"])
async def test_outcome_is_written_down_first_and_its_status_waits_for_the_log(
    host: Host,
    unfinished: Unfinished,
    once: bool,  # noqa: FBT001 - pytest passes it
) -> None:
    host.orchestrator.offer("t-1", PROMPT)
    async with host.runner(once=once) as life:
        await wait_until_log_is_pending(host)
        unfinished.end()
        end = await host.wait_for_end("t-1")
        if once:
            assert await life.end() == 0

    assert end["crush_session_id"] == "s1"
    paths = [call.request.target for call in host.orchestrator.calls]
    assert [path for path in paths if path in {LOGS, STATUS}] == [STATUS, LOGS, STATUS]


async def test_log_that_a_runner_had_not_looked_for_is_looked_for_by_the_next(
    host: Host, unfinished: Unfinished
) -> None:
    host.orchestrator.offer("t-1", PROMPT)
    async with host.runner():
        await host.wait_for_state("t-1", "running")
        write_reporter_state(host.home, "t-1", ReporterState(final=said("error", is_sent=False)))
        await wait_until_log_is_pending(host)
    unfinished.end()
    async with host.runner():
        end = await host.wait_for_end("t-1")

    assert (end["status"], end["crush_session_id"]) == ("error", "s1")
    assert end["message"].startswith("by the agent\n\nIts container, after that: completed: ")
    assert len(logs(host)) == 1


@pytest.mark.usefixtures("unfinished")
async def test_status_does_not_wait_for_a_log_beyond_its_time(
    host: Host, log: pytest.LogCaptureFixture
) -> None:
    host.orchestrator.offer("t-1", PROMPT)
    timings = replace(DEFAULT_TIMINGS, final_log_timeout_s=0.3)
    async with host.runner(timings=timings):
        await host.wait_for_state("t-1", "running")
        host.let_go()
        end = await host.wait_for_end("t-1")

    assert end["message"].startswith("completed: exit code 0")
    assert logs(host) == []
    assert "cannot read what the agent left: it takes too long" in log.text


async def test_final_word_of_the_agent_stands_though_its_engine_is_silent_after_a_restart(
    host: Host, unfinished: Unfinished
) -> None:
    host.orchestrator.offer("t-1", PROMPT)
    async with host.runner():
        await host.wait_for_state("t-1", "running")
        write_reporter_state(host.home, "t-1", ReporterState(final=said("error", is_sent=False)))
        await wait_until_log_is_pending(host)
    unfinished.end()
    host.engine.break_("inspect", EngineSilent("no answer"))
    async with host.runner(timings=replace(DEFAULT_TIMINGS, final_log_timeout_s=0.3)):
        await until(lambda: host.orchestrator.taken[-1]["status"] == "error")

    assert host.orchestrator.taken[-1]["message"].startswith("by the agent")


@pytest.mark.parametrize("kind", SCHEMAS)
async def test_hostile_database_keeps_no_task_from_its_end(host: Host, kind: str) -> None:
    host.orchestrator.offer("t-1", PROMPT)
    host.orchestrator.offer("t-2", "[print-line and on]")
    with hostile_crush(host.home / ".crush" / "crush.db", kind):
        async with host.runner():
            await host.wait_for_state("t-1", "running")
            host.let_go()
            first = await host.wait_for_end("t-1")
            second = await host.wait_for_end("t-2")

    assert (first["status"], second["status"]) == ("success", "success")


def refusing_over(most_bytes: int, host: Host) -> Callable[[], object]:
    """Give what has the orchestrator take only short logs from then on."""

    async def answer(stream: ByteStream) -> None:
        size = int(host.orchestrator.calls[-1].request.headers["content-length"])
        is_taken = size <= most_bytes
        await (json_response({}) if is_taken else json_response({"detail": "too long"}, 413))(
            stream
        )

    return lambda: host.orchestrator.always(LOGS, answer)


async def test_log_that_is_refused_as_too_long_is_cut_and_handed_in(
    host: Host, crush: Crush
) -> None:
    most_bytes = 1 << 20
    for number in range(80):
        crush.say("s1", text(f"{number} " + "x" * 100_000))
    await ended(host, "", refusing_over(most_bytes, host))

    taken = logs(host)[-1]["session"]["messages"]
    assert taken[0]["content"].endswith("older messages cut …]")
    assert taken[-1]["content"].startswith("79 x")
    assert len(str(taken)) > most_bytes * 0.8
    assert host.rows("SELECT * FROM outbox") == []
