"""The runner asks for work as soon as there can be some; what fails is retried ever less often."""

import logging
from itertools import pairwise

import pytest

from runner.errors import JournalError
from runner.journal.journal import Journal
from runner.loops.poll import PollResult, poll
from runner.model import Task
from tests.harness.host import Host
from tests.harness.orchestrator import BEAT, POLL, REGISTER, SILENCE, STATUS
from tests.harness.server import Answer, http, json_response
from tests.harness.until import until
from tests.loops.steps import Log

pytestmark = pytest.mark.anyio


def gaps(host: Host) -> list[float]:
    return [after.at_s - before.at_s for before, after in pairwise(host.orchestrator.called(POLL))]


async def test_request_for_work_is_not_a_long_poll_if_it_is_the_only_one(host: Host) -> None:
    async with host.runner(once=True):
        await host.wait_for_calls(POLL)
    (call,) = host.orchestrator.called(POLL)
    assert call.request.headers["prefer"] == "wait=0"


async def test_orchestrator_that_holds_in_name_only_is_not_flooded(host: Host) -> None:
    preference = {"Preference-Applied": "wait=25"}
    host.orchestrator.always(POLL, json_response(None, headers=preference))
    async with host.runner():
        await host.clock.advance(300)
    assert 10 <= host.orchestrator.count(POLL) <= 12


async def test_orchestrator_that_does_not_hold_is_asked_every_interval(host: Host) -> None:
    async with host.runner(poll_interval_s=40.0):
        await host.clock.advance(2000)

    waits = gaps(host)
    assert len(waits) >= 45
    assert 36 <= min(waits) <= max(waits) <= 44
    assert len({round(wait, 3) for wait in waits}) > 40, "without jitter a fleet asks as one"


async def test_request_that_is_refused_is_retried(host: Host) -> None:
    host.orchestrator.then(POLL, json_response({}, 403))
    host.orchestrator.offer()
    async with host.runner(poll_interval_s=5.0):
        await host.clock.advance(10)
        await host.wait_for_end()


async def test_next_request_after_a_task_comes_at_once(host: Host) -> None:
    for number in range(3):
        host.orchestrator.offer(f"t-{number}")
    async with host.runner():
        await host.wait_for_end("t-2")
        await host.wait_for_calls(POLL, 4)
    assert gaps(host)[:3] == [0, 0, 0]


async def test_nothing_is_requested_while_all_slots_are_taken(host: Host) -> None:
    for task_id in ("t-1", "t-2", "t-3"):
        host.orchestrator.offer(task_id, "[wait-for go]")
    async with host.runner(max_tasks=2):
        await host.wait_for_state("t-2", "running")
        await host.clock.advance(600)
        assert host.orchestrator.count(POLL) == 2
        host.let_go()
        await host.wait_for_end("t-3")


async def test_next_task_is_taken_while_the_end_of_the_last_is_inspected(host: Host) -> None:
    host.orchestrator.offer("t-0")  # with its end it is known that containers run here
    async with host.running_task():
        host.orchestrator.offer("t-2")
        host.orchestrator.offer("t-3")
        host.engine.shut("inspect")
        host.let_go()
        await until(lambda: host.engine.waiting["inspect"] == 2)
        await host.clock.settle()
        assert host.starts_of("t-2") == 1, "the container of the first has certainly exited"
        assert host.orchestrator.queue, "one is enough while nobody knows how they ended"
        host.engine.open("inspect")
        for task_id in ("t-1", "t-2", "t-3"):
            assert (await host.wait_for_end(task_id))["status"] == "success"


async def test_nothing_is_requested_at_an_end_that_may_be_false(host: Host) -> None:
    host.engine.false_ends = 1
    async with host.running_task():
        host.orchestrator.offer("t-2")
        await host.clock.advance(600)
        assert host.orchestrator.count(POLL) == 1
        host.let_go()
        await host.wait_for_end("t-2")


async def test_task_in_hand_that_is_offered_again_is_not_started_twice(host: Host) -> None:
    async with host.running_task(max_tasks=2):
        host.orchestrator.offer("t-1")
        host.orchestrator.offer("t-1")
        await host.clock.advance(90)
        assert not host.orchestrator.queue
        host.let_go()
        await host.wait_for_end("t-1")
    assert host.starts_of("t-1") == 1


async def test_closed_task_that_is_offered_again_is_reported_again_and_not_run(host: Host) -> None:
    host.orchestrator.offer("t-1", "[fail 3]")
    async with host.runner():
        await host.wait_for_end("t-1")
        await host.clock.settle()
        host.orchestrator.offer("t-1", "[fail 3]")
        await host.clock.advance(34)
        await until(lambda: len(host.orchestrator.ends("t-1")) == 2)
    messages = {end["message"] for end in host.orchestrator.ends("t-1")}
    assert messages == {"failed: exit code 3 after 0 s"}
    assert host.starts_of("t-1") == 1


async def test_no_work_is_requested_on_a_full_disk(host: Host, log: Log) -> None:
    async with host.runner(min_free_disk=1 << 62):
        await host.wait_for_beat("error")
        await host.clock.advance(120)
    assert host.orchestrator.count(POLL) == 0
    assert "free some space there or lower --min-free-disk" in log.text


class NeverReadJournal(Journal):
    """Can be written and not read, as on a disk that has just begun to fail."""

    async def task(self, task_id: str) -> Task | None:
        raise JournalError(f"cannot read {task_id}")


@pytest.mark.parametrize(
    ("assignment", "state"),
    [({"task_id": "t-1", "prompt": "do it"}, "accepted"), ({"task_id": "t-1"}, "ended")],
    ids=["good", "bad"],
)
async def test_task_that_was_written_down_is_begun_though_it_cannot_be_read(
    host: Host, assignment: object, state: str
) -> None:
    host.orchestrator.hand_out(assignment)
    journal = NeverReadJournal(host.state_dir / "journal.sqlite3")
    begun: list[Task] = []
    async with host.parts(journal, once=True) as parts:
        assert await poll(parts, begun.append) is PollResult.TASK
    assert begun == await journal.open_tasks()
    assert [task.state.value for task in begun] == [state]
    journal.close_file()


# Calls that fail, over an hour

HOUR_S = 3600.0
FAILURES: dict[str, Answer] = {
    "silence": SILENCE,
    "page with 401": http(401, b"<html>Log in", {"Content-Type": "text/html"}),
    "html with 200": http(200, b"<html>Welcome</html>"),
}
CALLS = pytest.mark.parametrize(
    ("path", "accepted", "sentence"),
    [
        (REGISTER, [], "cannot register"),
        (POLL, [], "Error polling for tasks"),
        (STATUS, [], "cannot report a start"),
        (STATUS, [json_response({"status": "running"})], "cannot deliver a report"),
    ],
    ids=["registration", "request for work", "claim", "final report"],
)
"""A kind of call, what is answered to those before, and the beginning of the log line."""


@CALLS
@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES.keys())
async def test_call_that_fails_is_retried_with_growing_pauses_and_the_task_runs_once(  # noqa: PLR0913, PLR0917 - a table
    host: Host, log: Log, path: str, accepted: list[Answer], sentence: str, failure: Answer
) -> None:
    before = len(accepted)
    host.orchestrator.then(path, *accepted)
    host.orchestrator.always(path, failure)
    host.orchestrator.offer()
    async with host.runner(poll_interval_s=5.0, heartbeat_interval_s=300.0):
        await host.wait_for_calls(path, before + 1)
        await host.clock.advance(HOUR_S)
        attempts = host.orchestrator.called(path)[before:]
        assert host.starts_of("t-1") == before, "only what was confirmed is started"
        host.orchestrator.always(path, None)
        await host.pass_time_until_closed("t-1", step_s=30.0)

    waits = [after.at_s - earlier.at_s for earlier, after in pairwise(attempts)]
    assert 0.5 <= min(waits) <= max(waits) <= 60
    assert waits[0] <= 2
    assert waits[1] <= 4
    assert 60 <= len(waits) <= 240, "half a minute on average, once it has lasted"
    assert f"{sentence}: " in log.text or f"{sentence}, retrying in" in log.text
    assert host.orchestrator.taken[-1]["status"] == "success"
    assert host.starts_of("t-1") == 1


@CALLS
async def test_retry_after_is_obeyed(
    host: Host, path: str, accepted: list[Answer], sentence: str
) -> None:
    host.orchestrator.then(path, *accepted, http(503, headers={"Retry-After": "200"}))
    host.orchestrator.offer()
    async with host.runner():
        await host.wait_for_calls(path, len(accepted) + 1)
        await host.clock.advance(300)

    first, second = host.orchestrator.called(path)[len(accepted) :][:2]
    assert 200 <= second.at_s - first.at_s <= 220, sentence


def logged(log: Log, since: int) -> list[tuple[str, str]]:
    """Return the lines since a number of records, without what is only logged at DEBUG."""
    return [
        (record.levelname, record.getMessage())
        for record in log.records[since:]
        if record.levelno > logging.DEBUG
    ]


AWAY = "Server disconnected without sending a response."
BACK = ("INFO", "the orchestrator responds again")


async def test_outage_is_a_line_then_one_every_ten_minutes_then_one(host: Host, log: Log) -> None:
    async with host.runner():
        await host.wait_for_calls(POLL)
        await host.clock.settle()
        seen = len(log.records)
        host.orchestrator.is_down = True
        await host.clock.advance(25 * 60)
        host.orchestrator.is_down = False
        await host.clock.advance(90)
    first, *reminders, last = logged(log, seen)
    assert first == ("WARNING", f"Error polling for tasks: {AWAY}")
    assert [(level, message.endswith(AWAY)) for level, message in reminders] == [
        ("WARNING", True)
    ] * 2
    assert last == BACK
    (event,) = [vars(record)["fields"] for record in log.records if record.message == BACK[1]]
    assert 24 * 60 <= event["lasted_s"] <= 27 * 60


async def test_outage_in_which_a_task_ends_is_one_line_too(host: Host, log: Log) -> None:
    async with host.running_task():
        await host.clock.settle()
        seen = len(log.records)
        host.orchestrator.is_down = True
        await host.clock.advance(40)
        host.let_go()
        await host.wait_for_state("t-1", "ended")
        await host.clock.advance(7 * 60)
        host.orchestrator.is_down = False
        await host.pass_time_until_closed("t-1")
        await host.clock.advance(90)
    lines = logged(log, seen)
    assert [message.partition(":")[0] for level, message in lines if level == "WARNING"] == [
        "cannot send a heartbeat"
    ]
    assert lines.count(BACK) == 1
    assert lines[-1] in {BACK, ("INFO", "report delivered")}


async def test_keys_that_are_revoked_at_once_make_no_flood_beside_a_task(host: Host) -> None:
    async with host.running_task(assigned={"timeout_seconds": 9000}, max_tasks=2) as life:
        await host.clock.settle()
        for path in (POLL, BEAT, STATUS):
            host.orchestrator.always(path, json_response({"detail": "unknown key"}, 401))
        seen = len(host.orchestrator.calls)
        await host.clock.advance(HOUR_S)
        paths = [call.request.target for call in host.orchestrator.calls[seen:]]
        assert not life.over.is_set()
        assert host.state_of("t-1") == "running"
    assert 2 <= paths.count(REGISTER) <= 2 + HOUR_S / 30
    assert len(paths) <= 5 * paths.count(REGISTER), "a few requests for each new key"
