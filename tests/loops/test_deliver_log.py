"""A task's log goes out before its status, and never instead of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.harness.orchestrator import LOGS, SILENCE, STATUS
from tests.harness.server import JSON, endless, http, json_response, stalled
from tests.harness.until import until
from tests.loops.steps import leave_task

if TYPE_CHECKING:
    from tests.harness.host import Host

pytestmark = pytest.mark.anyio

SESSION: dict[str, object] = {"id": "s-1", "messages": []}


def reported(host: Host) -> list[str]:
    """Return the paths of the reports that came, in their order."""
    paths = [call.request.target for call in host.orchestrator.calls]
    return [path for path in paths if path in {LOGS, STATUS}]


async def test_log_goes_out_first(host: Host) -> None:
    await leave_task(host, log=SESSION)
    async with host.runner():
        await host.wait_for_end("t-1")

    assert reported(host) == [LOGS, STATUS]


async def test_status_overtakes_a_log_that_fails_twice(host: Host) -> None:
    host.orchestrator.then(LOGS, http(500), SILENCE, http(500), http(500))
    await leave_task(host, log=SESSION)
    async with host.runner():
        await host.pass_time_until_closed("t-1")

    paths = reported(host)
    assert paths[:2] == [LOGS, LOGS]
    assert paths.index(STATUS) < 4, "the third attempt may be beside it"
    assert (paths.count(LOGS), paths.count(STATUS)) == (5, 1)
    assert host.rows("SELECT * FROM outbox") == []


async def test_log_without_a_response_holds_up_its_status_for_minutes_and_no_other_task(
    host: Host,
) -> None:
    host.orchestrator.always(LOGS, stalled(b""))
    await leave_task(host, log=SESSION)
    async with host.runner():
        await host.wait_for_calls(LOGS)
        host.orchestrator.offer("t-2")
        await host.clock.advance(34)
        assert (await host.wait_for_end("t-2"))["status"] == "success"
        await host.clock.advance(670)
        await until(lambda: len(host.orchestrator.ends("t-1")) == 1)


@pytest.mark.parametrize("path", [LOGS, STATUS])
async def test_report_is_delivered_although_its_response_has_no_end(host: Host, path: str) -> None:
    host.orchestrator.always(path, endless(JSON, first=b'{"echo": "'))
    await leave_task(host, log=SESSION)
    async with host.runner():
        await host.wait_for_state("t-1", "closed")

    assert reported(host) == [LOGS, STATUS]


async def test_log_that_keeps_failing_is_given_up_with_one_line_for_the_operator(
    host: Host, log: pytest.LogCaptureFixture
) -> None:
    host.orchestrator.always(LOGS, http(500))
    await leave_task(host, log=SESSION)
    async with host.runner(poll_interval_s=600.0, heartbeat_interval_s=600.0):
        await host.pass_time_until_closed("t-1", step_s=600.0)

    (entry,) = host.rows("SELECT * FROM outbox")
    assert entry["path"] == "logs"
    assert "HTTP 500" in entry["parked"]
    errors = [record.getMessage() for record in log.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert "cannot deliver a log, given up after 16 attempts: HTTP 500" in errors[0]
    assert host.orchestrator.count(LOGS) <= 20


async def test_log_outlasts_an_outage_of_any_length(host: Host) -> None:
    host.orchestrator.is_down = True
    await leave_task(host, log=SESSION)
    async with host.runner(poll_interval_s=600.0, heartbeat_interval_s=600.0):
        await host.clock.advance(12 * 3600)
        host.orchestrator.is_down = False
        await host.pass_time_until_closed("t-1", step_s=60.0)

    assert host.rows("SELECT * FROM outbox") == []
    assert set(reported(host)[-2:]) == {LOGS, STATUS}


@pytest.mark.parametrize("status", [400, 403, 404, 413, 422])
async def test_log_that_is_refused_is_parked_and_the_status_goes_out(
    host: Host, status: int
) -> None:
    host.orchestrator.always(LOGS, json_response({"detail": "not this one"}, status))
    await leave_task(host, log=SESSION)
    async with host.runner():
        await host.wait_for_end("t-1")

    assert reported(host) == [LOGS, STATUS]
    (entry,) = host.rows("SELECT * FROM outbox")
    assert entry["parked"] == f"HTTP {status}: not this one"


async def test_log_that_is_damaged_in_the_journal_is_parked_and_the_status_goes_out(
    host: Host, log: pytest.LogCaptureFixture
) -> None:
    await leave_task(host, log=SESSION)
    host.change("UPDATE outbox SET body = '{' WHERE path = 'logs'")
    async with host.runner():
        await host.wait_for_end("t-1")

    assert reported(host) == [STATUS]
    assert "cannot read a report: its text in the journal is damaged" in log.text
