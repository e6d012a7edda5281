"""A task begins only after the orchestrator has confirmed that it is still this node's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.harness.orchestrator import POLL, STATUS
from tests.harness.server import http, json_response
from tests.harness.until import until

if TYPE_CHECKING:
    from tests.harness.host import Host

pytestmark = pytest.mark.anyio


async def test_start_is_reported_before_the_container_is_asked_for(host: Host) -> None:
    host.engine.shut("run")
    host.orchestrator.offer()
    async with host.runner():
        await until(lambda: host.engine.waiting["run"] == 1)

    (report,) = host.orchestrator.reports("t-1")
    assert report["status"] == "running"
    assert host.starts_of("t-1") == 0


@pytest.mark.parametrize("status", [403, 404, 409, 410])
async def test_task_that_is_no_longer_ours_never_starts_and_a_later_offer_of_it_runs(
    host: Host, log: pytest.LogCaptureFixture, status: int
) -> None:
    host.orchestrator.then(STATUS, json_response({"detail": "given to another node"}, status))
    host.orchestrator.offer()
    async with host.runner():
        await until(lambda: "task is dropped: " in log.text)
        await until(lambda: not host.rows("SELECT * FROM tasks"))
        assert host.starts_of("t-1") == 0
        assert not host.orchestrator.ends("t-1")
        await host.clock.settle()
        host.orchestrator.offer()
        await host.clock.advance(34)

        assert (await host.wait_for_end())["status"] == "success"
    assert host.starts_of("t-1") == 1


@pytest.mark.parametrize("standing", ["success", "error"])
async def test_task_that_is_over_already_never_starts(host: Host, standing: str) -> None:
    host.orchestrator.standing["t-1"] = standing
    host.orchestrator.offer()
    async with host.runner():
        await host.wait_for_calls(STATUS)
        await host.clock.settle()
        await until(lambda: not host.rows("SELECT * FROM tasks"))

    assert host.starts_of("t-1") == 0
    assert not host.orchestrator.ends("t-1")


async def test_task_that_was_cancelled_meanwhile_never_starts_and_is_reported(host: Host) -> None:
    host.orchestrator.standing["t-1"] = "cancelled"

    assert (await host.finish_task())["message"] == "cancelled: before it started"
    assert host.starts_of("t-1") == 0


@pytest.mark.parametrize("status", [400, 405, 422])
async def test_orchestrator_that_does_not_understand_the_claim_does_not_hold_it_up(
    host: Host, status: int
) -> None:
    host.orchestrator.then(STATUS, http(status))

    assert (await host.finish_task())["status"] == "success"


@pytest.mark.parametrize("refusal", [403, 404, 409, "it has its end"])
async def test_task_whose_claim_is_refused_and_that_is_offered_on_and_on_makes_no_flood(
    host: Host, refusal: int | str
) -> None:
    if isinstance(refusal, int):
        host.orchestrator.always(STATUS, json_response({"detail": "not this node's"}, refusal))
    else:
        host.orchestrator.standing["t-1"] = "error"
    host.orchestrator.always(POLL, json_response({"task_id": "t-1", "prompt": "do it"}))
    async with host.runner():
        await host.wait_for_calls(POLL)
        await host.clock.settle()  # its next request waits for the interval
        await host.clock.advance(600)
        assert 15 <= host.orchestrator.count(POLL) <= 50
