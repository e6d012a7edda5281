"""The agent's own final report stands at its container's end, and its log is submitted then."""

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
from tests.harness.host import container_of
from tests.harness.orchestrator import LOGS, STATUS
from tests.harness.server import json_response
from tests.harness.until import DEADLINE_S, until

if TYPE_CHECKING:
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
    """Run a task whose container leaves something behind; return its final report."""
    async with host.running_task(f"{PROMPT}{directives}"):
        leave()
        host.let_go()
        return await host.wait_for_end()


def final(
    status: str, *, is_sent: bool = False, message: str | None = "by the agent"
) -> FinalStatus:
    """Return a final report of the agent."""
    return FinalStatus(TaskStatus(status), message, None, is_sent=is_sent)


def leave(host: Host, status: FinalStatus | None) -> None:
    """Leave a trace as the reporter does."""
    write_reporter_state(host.home, "t-1", ReporterState(final=status))


def logs(host: Host) -> list[dict[str, Any]]:
    """Return the logs that were submitted."""
    return [call.body for call in host.orchestrator.called(LOGS)]


def report_paths(host: Host) -> list[str]:
    """Return the paths of the reports, in their order."""
    paths = [call.request.target for call in host.orchestrator.calls]
    return [path for path in paths if path in {LOGS, STATUS}]


# The final word


AFTER = "\n\nIts container, after that: "


@pytest.mark.parametrize("is_sent", [True, False])
@pytest.mark.parametrize(
    ("status", "message", "directives", "reported"),
    [
        ("success", "by the agent", "[fail 3]", f"by the agent{AFTER}failed: exit code 3"),
        ("error", "by the agent", "", f"by the agent{AFTER}completed: "),
        ("success", "by the agent", "", "by the agent"),
        ("success", None, "", "completed: exit code 0"),
    ],
    ids=["container failed", "container did not fail", "both agree", "no message"],
)
async def test_final_report_of_the_agent_stands_with_what_its_container_did(  # noqa: PLR0913, PLR0917 - a table
    host: Host,
    status: str,
    message: str | None,
    directives: str,
    reported: str,
    is_sent: bool,  # noqa: FBT001 - pytest passes it
) -> None:
    word = final(status, is_sent=is_sent, message=message)
    end = await ended(host, directives, lambda: leave(host, word))

    assert (end["status"], end.get("progress")) == (status, 100.0 if status == "success" else None)
    assert end["message"].startswith(reported)
    assert (AFTER in end["message"]) == (AFTER in reported)
    reason = "failed" if directives else "completed"
    assert host.rows("SELECT end_reason FROM tasks") == [{"end_reason": reason}]


async def test_final_report_of_a_lost_container_stands(host: Host) -> None:
    async with host.running_task("[hang]"):
        leave(host, final("success"))
        host.engine.vanish(container_of("t-1"))

        assert (await host.wait_for_end())["status"] == "success"


async def test_final_report_is_kept_while_the_orchestrator_is_away(host: Host) -> None:
    async with host.running_task():
        leave(host, final("error"))
        host.orchestrator.is_down = True
        host.let_go()
        await host.wait_for_state("t-1", "ended")
    host.orchestrator.is_down = False
    async with host.runner():
        await host.clock.advance(61)

        assert (await host.wait_for_end())["message"].startswith("by the agent")


async def test_final_report_that_was_planted_for_a_task_that_never_started_is_ignored(
    host: Host,
) -> None:
    leave(host, final("success"))
    end = await host.finish_task(run_args=("--no-such-flag",))

    assert end["status"] == "error"
    assert end["message"].startswith("unstartable: ")


@pytest.mark.parametrize("status", [401, 413, 500])
async def test_final_report_and_log_that_the_reporter_could_not_send_are_delivered_at_the_end(
    host: Host, crush: Crush, status: int
) -> None:
    crush.say("s1", text("There are 12."))
    async with host.running_task(PROMPT):
        for path in (STATUS, LOGS):
            host.orchestrator.always(path, json_response({"detail": "not now"}, status))
        given = host.engine.variables[container_of("t-1")]
        job = replace(job_in({**given, "VICTORIA_HOME": str(host.home)}), prompt=PROMPT)
        async with OrchestratorClient(job.orchestrator_url) as orchestrator:
            reporter = Reporter(job, orchestrator, ReporterTimings(call_timeout_s=16))
            result = await reporter.finish("error", "12 sales are too few", submit_logs=True)
        for path in (STATUS, LOGS):
            host.orchestrator.always(path, None)
        host.let_go()
        end = await host.wait_for_end()
        await host.wait_for_state("t-1", "closed")

    assert str(result["error"]).startswith(f"cannot report 'error': HTTP {status}: not now")
    assert (end["status"], end["crush_session_id"]) == ("error", "s1")
    assert end["message"].startswith("12 sales are too few\n\nIts container, after that: completed")
    assert logs(host)[-1]["session"]["messages"][-1]["content"] == "There are 12."
    assert host.rows("SELECT * FROM outbox") == []


# What is not a trace


@pytest.mark.parametrize("what", ["no JSON", "a pipe", "a link"])
async def test_what_is_not_a_trace_changes_nothing(
    host: Host, log: pytest.LogCaptureFixture, what: str
) -> None:
    def leave_something_else() -> None:
        place = host.home / "tasks" / "t-1" / "reporter.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        if what == "a pipe":
            os.mkfifo(place)
        elif what == "a link":
            place.symlink_to("/etc/passwd")
        else:
            place.write_text("success!")

    end = await ended(host, "[fail 3]", leave_something_else)

    assert end["status"] == "error"
    assert end["message"].startswith("failed: exit code 3")
    assert "cannot read the reporter's state: " in log.text


# The log


@pytest.mark.parametrize("agent_ended", [True, False])
async def test_log_that_was_not_submitted_is_submitted_before_the_end(
    host: Host,
    crush: Crush,
    agent_ended: bool,  # noqa: FBT001 - pytest passes it
) -> None:
    crush.say("s1", text("There are 12."))
    word = final("success", is_sent=True) if agent_ended else None
    end = await ended(host, "", lambda: leave(host, word))

    session = await read_session(crush.path, "s1")
    assert session is not None
    assert logs(host) == [log_body("t-1", session)]
    assert end["crush_session_id"] == "s1"
    assert report_paths(host) == [STATUS, LOGS, STATUS]


@pytest.mark.parametrize("trace", ["final report", "same log", "shorter log"])
async def test_log_that_was_submitted_is_submitted_again_if_it_has_grown_before_a_final_report(
    host: Host, crush: Crush, trace: str
) -> None:
    session = await read_session(crush.path, "s1")
    assert session is not None
    word = final("success", is_sent=True) if trace == "final report" else None
    state = ReporterState(digest_of(session), "s1", word)
    if trace != "same log":
        crush.say("s1", text("more"))
    end = await ended(host, "", lambda: write_reporter_state(host.home, "t-1", state))

    assert len(logs(host)) == (1 if trace == "shorter log" else 0)
    assert end["crush_session_id"] == "s1"


@pytest.mark.usefixtures("crush")
async def test_end_is_reported_though_the_log_is_refused(host: Host) -> None:
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
    ("other", "prompt", "count"),
    [
        (PROMPT, PROMPT, 0),
        (f"{PROMPT} [hang]", f"{PROMPT} [hang]", 0),
        ("Draw the map [hang]", PROMPT, 1),
    ],
    ids=["the same prompt", "a prompt that contains ours", "another prompt"],
)
async def test_session_without_a_mark_is_submitted_if_no_task_beside_can_have_begun_it(
    host: Host, crush: Crush, other: str, prompt: str, count: int
) -> None:
    crush.begin("s2", prompt=prompt)
    crush.connection.execute("DELETE FROM sessions WHERE id = 's1'")
    host.orchestrator.offer("t-1", PROMPT)
    host.orchestrator.offer("t-2", other)
    async with host.runner(max_tasks=2):
        await host.wait_for_state("t-1", "running")
        await host.wait_for_state("t-2", "running")
        host.let_go()
        for task_id in ("t-1", "t-2") if other == PROMPT else ("t-1",):
            await host.wait_for_end(task_id)

    assert len(logs(host)) == count


@pytest.mark.usefixtures("crush")
@pytest.mark.parametrize(
    ("other", "is_old", "count"),
    [(PROMPT, False, 0), ("Draw the map [hang]", False, 1), ("Draw the map [hang]", True, 0)],
    ids=["the same prompt", "another prompt", "closed by an earlier version"],
)
async def test_session_without_a_mark_is_submitted_if_no_task_closed_since_can_have_begun_it(
    host: Host,
    other: str,
    is_old: bool,  # noqa: FBT001 - a column of the table
    count: int,
) -> None:
    host.orchestrator.offer("t-1", other)
    host.orchestrator.offer("t-2", PROMPT)
    async with host.runner(max_tasks=2):
        await host.wait_for_state("t-1", "running")
        await host.wait_for_state("t-2", "running")
        await host.engine.stop(container_of("t-1"))
        await host.pass_time_until_closed("t-1")
        if is_old:
            host.change("UPDATE tasks SET prompt_digest = NULL")
        host.let_go()
        await host.wait_for_end("t-2")

    assert len(logs(host)) == count
    assert other not in str(host.rows("SELECT * FROM tasks"))


async def test_session_of_the_second_in_which_two_tasks_met_is_submitted_for_neither(
    host: Host, crush: Crush
) -> None:
    # Crush keeps whole seconds: it may be of either task with this prompt.
    crush.connection.execute("DELETE FROM sessions")
    host.clock.set_wall(-host.clock.wall_s() % 1 + 0.2)
    host.let_go()
    await host.finish_task(PROMPT)
    crush.begin("s2", int(host.clock.wall_s()), prompt=PROMPT)
    host.clock.set_wall(0.5)
    host.orchestrator.offer("t-2", PROMPT)
    async with host.runner():
        await host.wait_for_end("t-2")

    assert logs(host) == []


async def test_session_that_was_begun_after_the_container_had_ended_is_not_the_tasks(
    host: Host, crush: Crush
) -> None:
    crush.connection.execute("DELETE FROM sessions")
    async with host.running_task(PROMPT):
        pass
    host.let_go()
    with anyio.fail_after(DEADLINE_S):
        await host.engine.wait(container_of("t-1"))
    host.clock.suspend(60)
    crush.begin("s2", int(host.clock.wall_s()), prompt=PROMPT)
    async with host.runner():
        await host.wait_for_end()

    assert logs(host) == []


async def test_what_is_secret_leaves_neither_in_the_log_nor_in_the_agents_word(
    host: Host, crush: Crush
) -> None:
    env_file = host.folder / "env"
    env_file.write_text("API_PASSWORD=hunter2-hunter2\n")
    async with host.running_task(PROMPT, env_file=env_file):
        variables = host.engine.variables[container_of("t-1")]
        key = variables["NODE_API_KEY"]
        crush.say("s1", text(f"NODE_API_KEY={key} API_PASSWORD=hunter2-hunter2"))
        leave(host, final("success", message=f"It is {key}!"))
        host.let_go()
        end = await host.wait_for_end()

    (log,) = logs(host)
    assert log["session"]["messages"][-1]["content"] == "NODE_API_KEY=*** API_PASSWORD=***"
    assert end["message"] == "It is ***!"
    assert variables["VICTORIA_SECRETS"] == "API_PASSWORD"


# Two transactions: the outcome, then its log and status


@pytest.fixture
def end_transaction(crush: Crush) -> Callable[[], None]:
    """Begin a transaction of Crush, and return what ends it; until then nothing is read."""
    journal = crush.path.with_name("crush.db-journal")
    journal.write_text("not empty")
    return journal.unlink


PENDING = {"state": "ended", "end_reason": "completed", "log_pending": 1}


async def wait_until_log_is_pending(host: Host) -> None:
    """Run the task to its outcome, which is not reported while its log is searched for."""
    await host.wait_for_state("t-1", "running")
    host.let_go()
    await host.wait_for_state("t-1", "ended")
    await anyio.sleep(0.5)
    assert host.rows("SELECT state, end_reason, log_pending FROM tasks") == [PENDING]
    assert host.rows("SELECT * FROM outbox") == []


@pytest.mark.parametrize("once", [False, True], ids=["serving", "draining"])
async def test_outcome_is_written_down_first_and_its_status_waits_for_the_log(
    host: Host,
    end_transaction: Callable[[], None],
    once: bool,  # noqa: FBT001 - pytest passes it
) -> None:
    host.orchestrator.offer("t-1", PROMPT)
    async with host.runner(once=once) as life:
        await wait_until_log_is_pending(host)
        end_transaction()
        end = await host.wait_for_end()
        if once:
            assert await life.end() == 0

    assert end["crush_session_id"] == "s1"
    assert report_paths(host) == [STATUS, LOGS, STATUS]


async def test_log_that_a_runner_had_not_looked_for_is_looked_for_by_the_next(
    host: Host, end_transaction: Callable[[], None]
) -> None:
    async with host.running_task(PROMPT):
        leave(host, final("error"))
        await wait_until_log_is_pending(host)
    end_transaction()
    async with host.runner():
        end = await host.wait_for_end()

    assert (end["status"], end["crush_session_id"]) == ("error", "s1")
    assert end["message"].startswith("by the agent\n\nIts container, after that: completed: ")
    assert len(logs(host)) == 1


@pytest.mark.usefixtures("end_transaction")
async def test_status_does_not_wait_for_a_log_beyond_its_time(
    host: Host, log: pytest.LogCaptureFixture
) -> None:
    timings = replace(DEFAULT_TIMINGS, final_log_timeout_s=0.3)
    async with host.running_task(PROMPT, timings=timings):
        host.let_go()
        end = await host.wait_for_end()

    assert end["message"].startswith("completed: exit code 0")
    assert logs(host) == []
    assert "cannot read what the agent left: it takes too long" in log.text


async def test_final_word_of_the_agent_stands_though_its_engine_is_silent_after_a_restart(
    host: Host, end_transaction: Callable[[], None]
) -> None:
    async with host.running_task(PROMPT):
        leave(host, final("error"))
        await wait_until_log_is_pending(host)
    end_transaction()
    host.engine.break_("inspect", EngineSilent("no answer"))
    async with host.runner(timings=replace(DEFAULT_TIMINGS, final_log_timeout_s=0.3)):
        await until(lambda: host.orchestrator.taken[-1]["status"] == "error")

    assert host.orchestrator.taken[-1]["message"].startswith("by the agent")


def refusing_over(most_bytes: int, host: Host) -> Callable[[], object]:
    """Return what has the orchestrator refuse long logs from then on."""

    async def answer(stream: ByteStream) -> None:
        size = int(host.orchestrator.calls[-1].request.headers["content-length"])
        is_taken = size <= most_bytes
        await (json_response({}) if is_taken else json_response({"detail": "too long"}, 413))(
            stream
        )

    return lambda: host.orchestrator.always(LOGS, answer)


async def test_log_that_is_refused_as_too_long_is_truncated_and_submitted(
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
