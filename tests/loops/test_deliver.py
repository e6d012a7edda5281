"""A task's final report is retried until the orchestrator has it; its log goes out before it."""

import os
import signal

import pytest

from runner.outbox import retry_reports
from tests.harness.host import Host
from tests.harness.orchestrator import BEAT, LOGS, SILENCE, STATUS
from tests.harness.server import Answer, http, json_response, stalled
from tests.harness.until import until
from tests.loops.steps import Log, finish_another, leave_task, report_paths

pytestmark = pytest.mark.anyio

SESSION: dict[str, object] = {"id": "s-1", "messages": []}


def offer_with_end_answered(host: Host, *answers: Answer, always: Answer | None = None) -> None:
    """Offer a task whose claim is accepted, and whose final report is answered like this."""
    host.orchestrator.then(STATUS, json_response({"status": "running"}), *answers)
    host.orchestrator.always(STATUS, always)
    host.orchestrator.offer()


def outbox(host: Host) -> list[tuple[str, str | None]]:
    """Return what is in the outbox, with the reasons of what is parked."""
    return [(row["path"], row["parked"]) for row in host.rows("SELECT * FROM outbox")]


async def test_report_outlives_an_outage_and_restarts_within_it(host: Host) -> None:
    async with host.running_task("[wait-for go][fail 7]"):
        host.orchestrator.is_down = True
        host.let_go()
        await host.wait_for_state("t-1", "ended")
        await host.clock.advance(600)
    async with host.runner():
        await host.clock.advance(600)
    host.orchestrator.is_down = False
    async with host.runner():
        await host.pass_time_until_closed("t-1")
        assert (await host.wait_for_end())["message"].startswith("failed: exit code 7")
    assert host.starts_of("t-1") == 1


@pytest.mark.parametrize("status", [400, 403, 404, 422])
async def test_refused_report_is_parked(host: Host, log: Log, status: int) -> None:
    offer_with_end_answered(host, json_response({"detail": "not this one"}, status))
    async with host.runner():
        await host.wait_for_state("t-1", "closed")
        await host.clock.advance(600)
    assert len(host.orchestrator.ends("t-1")) == 1
    assert outbox(host) == [("status", f"HTTP {status}: not this one")]
    assert "the orchestrator refuses a report; it is parked" in log.text


async def test_parked_report_is_shown_and_sent_again_when_an_operator_asks(host: Host) -> None:
    offer_with_end_answered(host, json_response({"detail": "not yet"}, 404))
    output: list[str] = []
    async with host.runner() as life:
        await host.wait_for_state("t-1", "closed")
        await host.clock.advance(16)
        assert "parked_reports" not in host.orchestrator.called(BEAT)[-1].body
        host.orchestrator.extensions = ["parked-reports"]
        await host.clock.advance(31)
        assert host.orchestrator.called(BEAT)[-1].body["parked_reports"] == 1
        shown = "STATUS=parked reports: 1, see `victoria-runner outbox list`; 0 of 1 tasks"
        assert any(text.startswith(shown) for text in life.notifier.messages)

        settings = host.settings()
        assert await retry_reports(settings, ["t-1"], output.append) == 0
        await host.clock.advance(61)
        await until(lambda: len(host.orchestrator.ends("t-1")) == 2)
        await until(lambda: outbox(host) == [])
        await host.clock.advance(16)
        assert "parked_reports" not in host.orchestrator.called(BEAT)[-1].body
    (line,) = output
    assert line.startswith("retried 1 status of task t-1: sent within a minute")


@pytest.mark.parametrize("status", [409, 410])
async def test_report_on_an_ended_task_is_dropped(host: Host, log: Log, status: int) -> None:
    offer_with_end_answered(host, json_response({"detail": "it was cancelled"}, status))
    async with host.runner():
        await host.wait_for_state("t-1", "closed")
    assert outbox(host) == []
    (event,) = [record for record in log.records if "has a final status" in record.message]
    assert event.levelname == "INFO"
    assert "ERROR" not in {record.levelname for record in log.records}


async def test_report_is_sent_at_once_under_a_new_key_and_later_under_the_next(host: Host) -> None:
    unknown = json_response({"detail": "unknown key"}, 401)
    offer_with_end_answered(host, unknown, unknown)
    async with host.runner():
        await until(lambda: len(host.orchestrator.ends("t-1")) == 2)
        await host.clock.advance(200)
        await host.wait_for_state("t-1", "closed")

    first, second, third = host.orchestrator.called(STATUS)[1:]
    assert first.at_s == second.at_s
    assert [first.key, second.key, third.key] == ["node-key-1", "node-key-2", "node-key-3"]
    assert third.at_s - second.at_s >= 30.5


async def test_report_does_not_wait_behind_a_parked_one(host: Host) -> None:
    offer_with_end_answered(host, json_response({"detail": "not yet"}, 422))
    async with host.runner():
        await host.wait_for_state("t-1", "closed")
        host.orchestrator.offer("t-1")
        await host.clock.advance(34)
        await until(lambda: len(host.orchestrator.ends("t-1")) == 2)
        await until(lambda: outbox(host) == [])


async def test_report_that_waits_holds_up_no_other_task(host: Host) -> None:
    offer_with_end_answered(host, http(503, headers={"Retry-After": "3000"}))
    async with host.runner():
        await until(lambda: len(host.orchestrator.ends("t-1")) == 1)
        await finish_another(host)
    assert host.state_of("t-1") == "ended"


async def test_runner_that_drains_retries_at_once_what_waits(host: Host) -> None:
    offer_with_end_answered(host, http(503, headers={"Retry-After": "700"}))
    async with host.runner() as life:
        await host.wait_for_state("t-1", "ended")
        await host.clock.settle()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert await life.end() == 0
    assert host.state_of("t-1") == "closed"


async def test_runner_that_starts_retries_at_once_and_counts_from_zero(host: Host) -> None:
    offer_with_end_answered(host, always=http(503))
    async with host.runner():
        await host.wait_for_state("t-1", "ended")
        await host.clock.advance(600)
    assert host.rows("SELECT * FROM outbox WHERE attempts > 5") != []
    async with host.runner():
        await until(lambda: host.rows("SELECT * FROM outbox WHERE attempts = 1") != [])
        host.orchestrator.always(STATUS, None)
        await host.clock.advance(2.1)
        await host.wait_for_state("t-1", "closed")


async def test_report_is_not_held_back_by_a_clock_that_was_set_back(host: Host) -> None:
    offer_with_end_answered(host, http(503))
    async with host.runner():
        await until(lambda: len(host.orchestrator.ends("t-1")) == 1)
        await host.clock.settle()
        host.clock.set_wall(-24 * 3600)
        await host.clock.advance(61)
        await host.wait_for_state("t-1", "closed")


async def test_report_that_is_refused_without_a_reason_is_parked_after_an_hour(host: Host) -> None:
    offer_with_end_answered(host, always=http(404))
    async with host.runner(heartbeat_interval_s=300.0):
        await host.wait_for_state("t-1", "ended")
        await host.clock.advance(1800)
        assert outbox(host) == [("status", None)]
        await host.pass_time_until_closed("t-1", step_s=600.0)


# Logs


async def test_status_overtakes_a_log_that_fails_twice(host: Host) -> None:
    host.orchestrator.then(LOGS, http(500), SILENCE, http(500), http(500))
    await leave_task(host, log=SESSION)
    async with host.runner():
        await host.pass_time_until_closed("t-1")

    paths = report_paths(host)
    assert paths[:2] == [LOGS, LOGS]
    assert paths.index(STATUS) < 4, "the third attempt may be beside it"
    assert (paths.count(LOGS), paths.count(STATUS)) == (5, 1)
    assert outbox(host) == []


async def test_log_without_a_response_delays_its_status_and_no_other_task(host: Host) -> None:
    host.orchestrator.always(LOGS, stalled(b""))
    await leave_task(host, log=SESSION)
    async with host.runner():
        await host.wait_for_calls(LOGS)
        await finish_another(host)
        await host.clock.advance(670)
        await until(lambda: len(host.orchestrator.ends("t-1")) == 1)


async def test_log_that_keeps_failing_is_given_up_with_one_error(host: Host, log: Log) -> None:
    host.orchestrator.always(LOGS, http(500))
    await leave_task(host, log=SESSION)
    async with host.runner(poll_interval_s=600.0, heartbeat_interval_s=600.0):
        await host.pass_time_until_closed("t-1", step_s=600.0)
    assert outbox(host) == [("logs", "given up after 16 attempts: HTTP 500")]
    (error,) = [record.message for record in log.records if record.levelname == "ERROR"]
    assert error == "cannot deliver a log, given up after 16 attempts: HTTP 500"
    assert host.orchestrator.count(LOGS) <= 20


async def test_log_outlasts_an_outage_of_any_length(host: Host) -> None:
    host.orchestrator.is_down = True
    await leave_task(host, log=SESSION)
    async with host.runner(poll_interval_s=600.0, heartbeat_interval_s=600.0):
        await host.clock.advance(12 * 3600)
        host.orchestrator.is_down = False
        await host.pass_time_until_closed("t-1", step_s=60.0)
    assert outbox(host) == []
    assert set(report_paths(host)[-2:]) == {LOGS, STATUS}


@pytest.mark.parametrize("status", [400, 403, 404, 413, 422])
async def test_refused_log_is_parked_and_the_status_goes_out(host: Host, status: int) -> None:
    host.orchestrator.always(LOGS, json_response({"detail": "not this one"}, status))
    await leave_task(host, log=SESSION)
    async with host.runner():
        await host.wait_for_end("t-1")
    assert report_paths(host) == [LOGS, STATUS]
    assert outbox(host) == [("logs", f"HTTP {status}: not this one")]


@pytest.mark.parametrize(
    "too_long",
    [json_response({"detail": "too long"}, 413), http(413, b"<p>", {"Content-Type": "text/html"})],
    ids=["orchestrator", "proxy"],
)
async def test_log_that_is_too_long_is_truncated(host: Host, too_long: Answer) -> None:
    message = {"content": "x" * 2_000_000, "created_at": 0}
    host.orchestrator.then(LOGS, too_long)
    await leave_task(host, log={**SESSION, "messages": [message]})
    async with host.runner():
        await host.wait_for_end("t-1")

    first, second = (len(call.request.body) for call in host.orchestrator.called(LOGS))
    assert first > 2_000_000 > 1 << 20 >= second > 800_000
    assert outbox(host) == []


async def test_damaged_log_is_parked_and_the_status_goes_out(host: Host, log: Log) -> None:
    await leave_task(host, log=SESSION)
    host.change("UPDATE outbox SET body = '{' WHERE path = 'logs'")
    async with host.runner():
        await host.wait_for_end("t-1")
    assert report_paths(host) == [STATUS]
    assert "cannot read a report: its text in the journal is damaged" in log.text
