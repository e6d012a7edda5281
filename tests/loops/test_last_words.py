"""The agent's own final report stands at its container's end, and its log is submitted then."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import anyio
import pytest

from runner.crush.log import digest_of
from runner.crush.sessions import read_session
from runner.errors import EngineSilent
from runner.model import MOST_MESSAGE_CHARS, TaskStatus, log_body
from runner.timing import DEFAULT_TIMINGS
from runner.workspace.handover import FinalStatus, ReporterState, update_reporter_state
from tests.fakes.crush import Crush, text
from tests.harness.host import Host, container_of
from tests.harness.orchestrator import LOGS, STATUS
from tests.harness.until import DEADLINE_S, until
from tests.loops.steps import Log, begin_and_leave, report_paths

pytestmark = pytest.mark.anyio

PROMPT = "Count the sales [wait-for go]"
OTHER_PROMPT = "Draw the map [hang]"
SUCCESS = FinalStatus(TaskStatus.SUCCESS, "by the agent", None, is_sent=True)
ERROR = FinalStatus(TaskStatus.ERROR, "by the agent", None, is_sent=False)


@pytest.fixture
def crush(host: Host) -> Iterator[Crush]:
    """Run a Crush with the session of the task that the host is offered."""
    running = Crush(host.home / ".crush" / "crush.db", now=int(host.clock.wall_s()))
    running.begin("s1", prompt=PROMPT)
    yield running
    running.close()


async def finish(
    host: Host, directives: str = "", leave: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """Run a task whose container leaves something behind; return its final report."""
    async with host.running_task(f"{PROMPT}{directives}"):
        leave()
        host.let_go()
        return await host.wait_for_end()


def save(host: Host, state: ReporterState) -> None:
    update_reporter_state(host.home, "t-1", lambda _: state)


def leave(host: Host, status: FinalStatus) -> None:
    save(host, ReporterState(final=status))


def logs(host: Host) -> list[dict[str, Any]]:
    return [call.body for call in host.orchestrator.called(LOGS)]


# The final report

AFTER = "\n\nIts container, after that: "


@pytest.mark.parametrize(
    ("final", "directives", "reported"),
    [
        (SUCCESS, "[fail 3]", f"by the agent{AFTER}failed: exit code 3"),
        (ERROR, "", f"by the agent{AFTER}completed: "),
        (SUCCESS, "", "by the agent"),
        (replace(SUCCESS, message=None), "", "completed: exit code 0"),
    ],
    ids=["container failed", "container did not fail", "both agree", "no message"],
)
async def test_final_report_of_the_agent_stands_with_what_its_container_did(
    host: Host, final: FinalStatus, directives: str, reported: str
) -> None:
    end = await finish(host, directives, lambda: leave(host, final))
    assert end["status"] == final.status.value
    assert end.get("progress") == (100.0 if end["status"] == "success" else None)
    assert end["message"].startswith(reported)
    assert (AFTER in end["message"]) == (AFTER in reported)
    reason = "failed" if directives else "completed"
    assert host.rows("SELECT end_reason FROM tasks") == [{"end_reason": reason}]


async def test_longest_message_of_the_agent_leaves_room_for_what_its_container_did(
    host: Host,
) -> None:
    # Longer ones are refused, and a status that is refused is lost.
    final = replace(SUCCESS, message="ü" * MOST_MESSAGE_CHARS)
    message = (await finish(host, "[fail 3]", lambda: leave(host, final)))["message"]
    assert len(message) == MOST_MESSAGE_CHARS
    assert message.startswith("üü")
    assert f"üü{AFTER}failed: exit code 3" in message


async def test_final_report_of_a_lost_container_stands(host: Host) -> None:
    async with host.running_task("[hang]"):
        leave(host, SUCCESS)
        host.engine.vanish(container_of("t-1"))
        assert (await host.wait_for_end())["status"] == "success"


async def test_final_report_of_a_task_that_never_started_is_ignored(host: Host) -> None:
    leave(host, SUCCESS)
    end = await host.finish_task(run_args=("--no-such-flag",))
    assert end["message"].startswith("unstartable: ")


async def test_unreadable_state_of_the_reporter_changes_nothing(host: Host, log: Log) -> None:
    state = host.home / "tasks" / "t-1" / "reporter.json"
    end = await finish(host, "[fail 3]", lambda: state.write_text("success!"))
    assert end["message"].startswith("failed: exit code 3")
    assert "cannot read the reporter's state: " in log.text


# The log


@pytest.mark.parametrize("final", [SUCCESS, None], ids=["agent ended", "agent did not end"])
async def test_log_that_was_not_submitted_is_submitted_before_the_end(
    host: Host, crush: Crush, final: FinalStatus | None
) -> None:
    crush.say("s1", text("There are 12."))
    state = ReporterState(final=final)
    end = await finish(host, "", lambda: save(host, state))

    session = await read_session(crush.path, "s1")
    assert session is not None
    assert logs(host) == [log_body("t-1", session)]
    assert end["crush_session_id"] == "s1"
    assert report_paths(host) == [STATUS, LOGS, STATUS]


@pytest.mark.parametrize(
    ("final", "later", "count"),
    [(SUCCESS, ["more"], 0), (None, [], 0), (None, ["more"], 1)],
    ids=["final report", "same log", "shorter log"],
)
async def test_log_that_was_submitted_is_submitted_again_if_it_has_grown_before_a_final_report(
    host: Host, crush: Crush, final: FinalStatus | None, later: list[str], count: int
) -> None:
    session = await read_session(crush.path, "s1")
    assert session is not None
    state = ReporterState(digest_of(session), "s1", final)
    for message in later:
        crush.say("s1", text(message))
    end = await finish(host, "", lambda: save(host, state))
    assert len(logs(host)) == count
    assert end["crush_session_id"] == "s1"


@pytest.mark.usefixtures("crush")
@pytest.mark.parametrize(
    ("other", "digest", "count"),
    [(PROMPT, "prompt_digest", 0), (OTHER_PROMPT, "prompt_digest", 1), (OTHER_PROMPT, "NULL", 0)],
    ids=["the same prompt", "another prompt", "closed by an earlier version"],
)
async def test_session_without_a_mark_is_submitted_if_no_task_closed_since_can_have_begun_it(
    host: Host, other: str, digest: str, count: int
) -> None:
    host.orchestrator.offer("t-1", other)
    host.orchestrator.offer("t-2", PROMPT)
    async with host.runner(max_tasks=2):
        await host.wait_for_state("t-1", "running")
        await host.wait_for_state("t-2", "running")
        await host.engine.stop(container_of("t-1"))
        await host.pass_time_until_closed("t-1")
        host.change(f"UPDATE tasks SET prompt_digest = {digest}")  # noqa: S608 - our own text
        host.let_go()
        await host.wait_for_end("t-2")
    assert len(logs(host)) == count
    assert other not in str(host.rows("SELECT * FROM tasks"))


async def test_session_that_may_be_of_two_tasks_is_not_submitted(host: Host, crush: Crush) -> None:
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


async def test_session_begun_after_the_end_is_not_the_tasks(host: Host, crush: Crush) -> None:
    crush.connection.execute("DELETE FROM sessions")
    await begin_and_leave(host, PROMPT)
    host.let_go()
    with anyio.fail_after(DEADLINE_S):
        await host.engine.wait(container_of("t-1"))
    host.clock.suspend(60)
    crush.begin("s2", int(host.clock.wall_s()), prompt=PROMPT)
    async with host.runner():
        await host.wait_for_end()
    assert logs(host) == []


async def test_secrets_are_redacted_in_log_and_final_report(host: Host, crush: Crush) -> None:
    env_file = host.folder / "env"
    env_file.write_text("API_PASSWORD=hunter2-hunter2\n")
    async with host.running_task(PROMPT, env_file=env_file):
        env_file.unlink()  # its container has the secret all the same
        variables = host.engine.variables[container_of("t-1")]
        key = variables["NODE_API_KEY"]
        crush.say("s1", text(f"NODE_API_KEY={key} API_PASSWORD=hunter2-hunter2"))
        leave(host, replace(SUCCESS, message=f"\x1b[1mIt is\x1b[0m {key}!"))
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


@pytest.mark.parametrize("settings", [{}, {"once": True}], ids=["serving", "draining"])
async def test_outcome_is_written_down_first_and_its_status_waits_for_the_log(
    host: Host, end_transaction: Callable[[], None], settings: dict[str, Any]
) -> None:
    host.orchestrator.offer("t-1", PROMPT)
    async with host.runner(**settings):
        await wait_until_log_is_pending(host)
        end_transaction()
        end = await host.wait_for_end()
    assert end["crush_session_id"] == "s1"
    assert report_paths(host) == [STATUS, LOGS, STATUS]


async def test_log_that_a_runner_had_not_looked_for_is_looked_for_by_the_next(
    host: Host, end_transaction: Callable[[], None]
) -> None:
    async with host.running_task(PROMPT):
        leave(host, ERROR)
        await wait_until_log_is_pending(host)
    end_transaction()
    async with host.runner():
        end = await host.wait_for_end()
    assert (end["status"], end["crush_session_id"]) == ("error", "s1")
    assert end["message"].startswith("by the agent\n\nIts container, after that: completed: ")
    assert len(logs(host)) == 1


@pytest.mark.usefixtures("end_transaction")
async def test_status_does_not_wait_for_a_log_beyond_its_time(host: Host, log: Log) -> None:
    timings = replace(DEFAULT_TIMINGS, final_log_timeout_s=0.3)
    async with host.running_task(PROMPT, timings=timings):
        host.let_go()
        end = await host.wait_for_end()
    assert end["message"].startswith("completed: exit code 0")
    assert logs(host) == []
    assert "cannot read what the agent left: it takes too long" in log.text


async def test_final_report_of_the_agent_stands_though_its_engine_is_silent_after_a_restart(
    host: Host, end_transaction: Callable[[], None]
) -> None:
    async with host.running_task(PROMPT):
        leave(host, ERROR)
        await wait_until_log_is_pending(host)
    end_transaction()
    host.engine.break_("inspect", EngineSilent("no answer"))
    timings = replace(DEFAULT_TIMINGS, final_log_timeout_s=0.3, final_output_timeout_s=0.3)
    async with host.runner(timings=timings):
        await until(lambda: host.orchestrator.taken[-1]["status"] == "error")
    assert host.orchestrator.taken[-1]["message"].startswith("by the agent")
