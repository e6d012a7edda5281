"""However it is refused, the runner backs off: its requests are counted over an hour."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from tests.harness.orchestrator import BEAT, POLL, REGISTER, SILENCE, STATUS
from tests.harness.server import http, json_response

if TYPE_CHECKING:
    from tests.harness.host import Host
    from tests.harness.server import Answer

pytestmark = pytest.mark.anyio

HOUR_S = 3600.0
UNKNOWN = json_response({"detail": "unknown key"}, 401)


async def begin(host: Host) -> None:
    """Have a task run, and nothing else under way."""
    host.orchestrator.offer("t-1", "[wait-for go][fail 4]", timeout_seconds=9000)
    await host.wait_for_state("t-1", "running")
    await host.clock.settle()


FAILURES: dict[str, Answer] = {
    "silence": SILENCE,
    "500": http(500),
    "503": http(503),
    "429": http(429),
    "html with 200": http(200, b"<html>Welcome</html>"),
    "redirect": http(302),
}
CALLS = {
    "registration": (REGISTER, "cannot register"),
    "request for work": (POLL, "Error polling for tasks"),
    "claim": (STATUS, "cannot report a start"),
    "final report": (STATUS, "cannot deliver a report"),
}


def have_claim_accepted(host: Host, call: str) -> int:
    """Have the final report fail and not the claim before; return how many calls come before."""
    if call != "final report":
        return 0
    host.orchestrator.then(STATUS, json_response({"status": "running"}))
    return 1


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES.keys())
@pytest.mark.parametrize("call", CALLS)
async def test_call_that_fails_is_retried_with_growing_pauses_and_the_task_runs_once(
    host: Host, log: pytest.LogCaptureFixture, call: str, failure: Answer
) -> None:
    path, sentence = CALLS[call]
    before = have_claim_accepted(host, call)
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
    assert min(waits) >= 0.5
    assert waits[0] <= 2
    assert waits[1] <= 4
    assert max(waits) <= 60
    assert 60 <= len(waits) <= 240, "half a minute on average, once it has lasted"
    assert f"{sentence}: " in log.text or f"{sentence}, retrying in" in log.text
    assert host.orchestrator.taken[-1]["status"] == "success"
    assert host.starts_of("t-1") == 1


@pytest.mark.parametrize("call", CALLS)
async def test_retry_after_is_obeyed(host: Host, call: str) -> None:
    path, _ = CALLS[call]
    before = have_claim_accepted(host, call)
    host.orchestrator.then(path, http(503, headers={"Retry-After": "200"}))
    host.orchestrator.offer()
    async with host.runner():
        await host.wait_for_calls(path, before + 1)
        await host.clock.advance(300)

    first, second = host.orchestrator.called(path)[before : before + 2]
    assert 200 <= second.at_s - first.at_s <= 220


async def test_retry_after_is_obeyed_for_an_hour_at_most(host: Host) -> None:
    host.orchestrator.then(POLL, http(429, headers={"Retry-After": "99999999"}))
    async with host.runner(heartbeat_interval_s=300.0):
        await host.clock.advance(4000)

    first, second = host.orchestrator.called(POLL)[:2]
    assert HOUR_S <= second.at_s - first.at_s <= 1.1 * HOUR_S


async def test_nothing_is_asked_once_the_registration_is_refused_and_77_waits_for_the_work(
    host: Host,
) -> None:
    async with host.runner() as run:
        await begin(host)
        host.orchestrator.keys.clear()
        host.orchestrator.always(REGISTER, json_response({"detail": "wrong token"}, 401))
        seen = len(host.orchestrator.calls)
        await host.clock.advance(HOUR_S)  # the heart beats no more
        assert not run.over.is_set()
        assert await host.engine.inspect("victoria-t-1") is not None
        asked = [call.request.target for call in host.orchestrator.calls[seen:]]
        assert asked.count(REGISTER) == 1
        assert len(asked) <= 3, asked

        host.let_go()
        assert await run.end() == 77
    assert host.state_of("t-1") == "ended", "its report waits for a node that is known"


async def test_node_that_was_deleted_registers_once_and_reports_its_task_once(
    host: Host,
) -> None:
    async with host.runner() as run:
        await begin(host)
        host.orchestrator.keys.clear()  # and the new one will not hold the task
        await host.clock.advance(20)
        await host.wait_for_calls(REGISTER, 2)
        await host.clock.settle()
        host.orchestrator.always(STATUS, json_response({"detail": "not this node's task"}, 403))
        reported_before = host.orchestrator.count(STATUS)
        host.let_go()
        await host.wait_for_state("t-1", "closed")
        await host.clock.advance(HOUR_S)
        assert not run.over.is_set()

    assert host.orchestrator.count(STATUS) - reported_before == 1, "it is parked, not tried again"
    assert host.orchestrator.count(REGISTER) == 2
    assert host.orchestrator.count(POLL) <= 2 + HOUR_S / (30 * 0.9)
    assert host.orchestrator.count(BEAT) <= 6 + HOUR_S / (15 * 0.9)


async def test_keys_that_are_revoked_as_soon_as_they_are_given_make_no_flood_beside_a_task(
    host: Host,
) -> None:
    async with host.runner(max_tasks=2) as run:
        await begin(host)
        for path in (POLL, BEAT, STATUS):
            host.orchestrator.always(path, UNKNOWN)
        seen = len(host.orchestrator.calls)
        await host.clock.advance(HOUR_S)
        asked = [call.request.target for call in host.orchestrator.calls[seen:]]
        assert not run.over.is_set()
        assert host.state_of("t-1") == "running"

    assert 2 <= asked.count(REGISTER) <= 2 + HOUR_S / 30
    assert len(asked) <= 5 * asked.count(REGISTER), "a few questions for each new key"
