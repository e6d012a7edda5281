"""A task's final report is retried until the orchestrator has it."""

from __future__ import annotations

import os
import signal
from datetime import datetime
from typing import TYPE_CHECKING

import pytest

from tests.harness.orchestrator import SILENCE, STATUS
from tests.harness.server import http, json_response
from tests.harness.until import until

if TYPE_CHECKING:
    from tests.harness.host import Host

pytestmark = pytest.mark.anyio

RUNNING = json_response({"status": "running"})
PAGE = http(404, b"<html>404 page not found</html>", {"Content-Type": "text/html"})
"""What a reverse proxy shows while the orchestrator behind it is replaced."""


async def test_reports_carry_both_names_of_the_id_and_a_moment(host: Host) -> None:
    await host.finish_task()

    running, end = host.orchestrator.reports("t-1")
    assert running["status"] == "running"
    assert end["status"] == "success"
    assert end["progress"] == 100
    for report in (running, end):
        assert report["job_id"] == report["task_id"] == "t-1"
        assert datetime.fromisoformat(report["timestamp"]).timestamp() == pytest.approx(
            host.clock.wall_s(), abs=60
        )


async def test_report_that_a_proxy_refuses_is_retried(host: Host) -> None:
    host.orchestrator.then(STATUS, RUNNING, PAGE, PAGE)
    host.orchestrator.offer()
    async with host.runner():
        await host.wait_for_calls(STATUS, 2)
        await host.pass_time_until_closed("t-1", step_s=60.0)

    assert host.orchestrator.taken[-1]["status"] == "success"


async def test_report_outlives_an_outage_and_restarts_within_it(host: Host) -> None:
    host.orchestrator.then(STATUS, RUNNING)
    host.orchestrator.always(STATUS, SILENCE)
    host.orchestrator.offer("t-1", "[print-line the last words][fail 7]")
    async with host.runner():
        await host.wait_for_state("t-1", "ended")
        await host.clock.advance(600)
    host.orchestrator.is_down = True
    async with host.runner():
        await host.clock.advance(600)
    assert host.state_of("t-1") == "ended"
    host.orchestrator.is_down = False
    host.orchestrator.always(STATUS, None)
    accepted_before = len(host.orchestrator.ends("t-1"))
    async with host.runner():
        await host.clock.advance(61)
        await until(lambda: host.state_of("t-1") == "closed")

    (end,) = host.orchestrator.ends("t-1")[accepted_before:]
    assert end["message"].startswith("failed: exit code 7")
    assert "the last words" in end["message"]
    assert host.starts_of("t-1") == 1


@pytest.mark.parametrize("status", [400, 403, 404, 422])
async def test_report_that_is_refused_for_good_is_parked_and_the_task_closed(
    host: Host, log: pytest.LogCaptureFixture, status: int
) -> None:
    host.orchestrator.then(STATUS, RUNNING, json_response({"detail": "not this one"}, status))
    host.orchestrator.offer()
    async with host.runner():
        await host.wait_for_state("t-1", "closed")
        await host.clock.advance(600)

    assert len(host.orchestrator.ends("t-1")) == 1
    (entry,) = host.rows("SELECT * FROM outbox")
    assert entry["parked"] == f"HTTP {status}: not this one"
    assert "the orchestrator refuses a report; it is parked" in log.text


@pytest.mark.parametrize("status", [409, 410])
async def test_report_on_a_task_that_has_its_end_already_is_dropped(
    host: Host, log: pytest.LogCaptureFixture, status: int
) -> None:
    host.orchestrator.then(STATUS, RUNNING, json_response({"detail": "it was cancelled"}, status))
    host.orchestrator.offer()
    async with host.runner():
        await host.wait_for_state("t-1", "closed")

    assert host.rows("SELECT * FROM outbox") == []
    (event,) = [record for record in log.records if "has a final status" in record.getMessage()]
    assert event.levelname == "INFO"
    assert "ERROR" not in {record.levelname for record in log.records}


async def test_report_goes_out_at_once_under_a_new_key_and_later_if_that_is_refused_too(
    host: Host,
) -> None:
    unknown = json_response({"detail": "unknown key"}, 401)
    host.orchestrator.then(STATUS, RUNNING, unknown, unknown)
    host.orchestrator.offer()
    async with host.runner():
        await until(lambda: len(host.orchestrator.ends("t-1")) == 2)
        await host.clock.advance(200)
        await host.wait_for_state("t-1", "closed")

    first, second, third = host.orchestrator.called(STATUS)[1:]
    assert first.at_s == second.at_s
    assert [first.key, second.key, third.key] == ["node-key-1", "node-key-2", "node-key-3"]
    assert third.at_s - second.at_s >= 30.5


async def test_report_does_not_wait_behind_a_parked_one(host: Host) -> None:
    host.orchestrator.then(STATUS, RUNNING, json_response({"detail": "not yet"}, 422))
    host.orchestrator.offer("t-1")
    async with host.runner():
        await host.wait_for_state("t-1", "closed")
        host.orchestrator.offer("t-1")
        await host.clock.advance(34)
        await until(lambda: len(host.orchestrator.ends("t-1")) == 2)
        await until(lambda: host.rows("SELECT * FROM outbox") == [])


async def test_report_that_waits_holds_up_no_other_task(host: Host) -> None:
    host.orchestrator.then(STATUS, RUNNING, http(503, headers={"Retry-After": "3000"}))
    host.orchestrator.offer("t-1")
    async with host.runner():
        await host.wait_for_state("t-1", "ended")
        await until(lambda: len(host.orchestrator.ends("t-1")) == 1)
        host.orchestrator.offer("t-2")
        await host.clock.advance(34)

        assert (await host.wait_for_end("t-2"))["status"] == "success"
    assert host.state_of("t-1") == "ended"


async def test_order_within_a_task_is_kept_when_the_first_report_fails(host: Host) -> None:
    host.orchestrator.then(STATUS, http(503), http(503))
    host.orchestrator.offer()
    async with host.runner():
        await host.wait_for_calls(STATUS)
        await host.clock.advance(30)
        await host.wait_for_end("t-1")

    statuses = [report["status"] for report in host.orchestrator.reports("t-1")]
    assert statuses == ["running", "running", "running", "success"]


@pytest.mark.parametrize("how", ["starts", "drains"])
async def test_runner_that_starts_or_drains_retries_at_once_what_waits(
    host: Host, how: str
) -> None:
    host.orchestrator.then(STATUS, RUNNING, http(503, headers={"Retry-After": "700"}))
    host.orchestrator.offer()
    async with host.runner() as run:
        await until(lambda: host.rows("SELECT * FROM outbox WHERE attempts = 1") != [])
        await host.clock.settle()
        if how == "drains":
            os.kill(os.getpid(), signal.SIGUSR1)
            assert await run.end() == 0
    if how == "starts":
        async with host.runner():
            await host.wait_for_state("t-1", "closed")

    assert host.state_of("t-1") == "closed"


async def test_runner_that_starts_counts_failures_from_zero(host: Host) -> None:
    host.orchestrator.then(STATUS, RUNNING)
    host.orchestrator.always(STATUS, http(503))
    host.orchestrator.offer()
    async with host.runner():
        await host.wait_for_state("t-1", "ended")
        await host.clock.advance(600)
    (entry,) = host.rows("SELECT attempts FROM outbox")
    assert entry["attempts"] > 5
    async with host.runner():
        await until(lambda: host.rows("SELECT * FROM outbox WHERE attempts = 1") != [])
        host.orchestrator.always(STATUS, None)
        await host.clock.advance(2.1)
        await until(lambda: host.state_of("t-1") == "closed")


async def test_report_is_not_held_back_by_a_clock_that_was_set_back(host: Host) -> None:
    host.orchestrator.then(STATUS, RUNNING, http(503))
    host.orchestrator.offer()
    async with host.runner():
        await until(lambda: len(host.orchestrator.ends("t-1")) == 1)
        await host.clock.settle()
        host.clock.set_wall(-24 * 3600)
        await host.clock.advance(61)
        await until(lambda: host.state_of("t-1") == "closed")


async def test_reports_that_stay_behind_with_once_are_logged_and_kept(
    host: Host, log: pytest.LogCaptureFixture
) -> None:
    host.orchestrator.then(STATUS, RUNNING)
    host.orchestrator.always(STATUS, http(503))
    host.orchestrator.offer()
    async with host.runner(once=True) as run:
        await host.wait_for_state("t-1", "ended")
        await host.clock.advance(29)
        await host.clock.advance(3)
        assert await run.end() == 75

    assert "reports wait in the journal for the next start" in log.text
    assert host.state_of("t-1") == "ended"


async def test_final_status_that_a_proxy_refuses_for_hours_is_parked(host: Host) -> None:
    host.orchestrator.then(STATUS, RUNNING)
    host.orchestrator.always(STATUS, PAGE)
    host.orchestrator.offer()
    async with host.runner(heartbeat_interval_s=300.0):
        await host.wait_for_state("t-1", "ended")
        await host.clock.advance(4 * 3600)
        assert host.state_of("t-1") == "closed"
