"""However it is refused, the runner does not hammer: its requests are counted over an hour."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from tests.harness.orchestrator import BEAT, POLL, REGISTER, STATUS
from tests.harness.server import http, json_response

if TYPE_CHECKING:
    from tests.harness.host import Host
    from tests.harness.orchestrator import Call

pytestmark = pytest.mark.anyio

HOUR_S = 3600.0
UNKNOWN = json_response({"detail": "unknown key"}, 401)


async def begin(host: Host) -> None:
    """Have a task run, and nothing else under way."""
    host.orchestrator.offer("t-1", "[wait-for go][fail 4]", timeout_seconds=9000)
    await host.wait_for_state("t-1", "running")
    await host.clock.settle()


def check_pauses(calls: list[Call]) -> None:
    """Check that an hour of attempts began soon and slowed down."""
    waits = [after.at_s - before.at_s for before, after in pairwise(calls)]
    assert min(waits) >= 0.5
    assert waits[0] <= 2
    assert max(waits) <= 60
    assert 60 <= len(waits) <= 240, "half a minute on average, once it has lasted"


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


async def test_report_that_nobody_takes_is_sent_with_growing_pauses(host: Host) -> None:
    async with host.runner():
        await begin(host)
        host.orchestrator.always(STATUS, http(500))
        seen = host.orchestrator.count(STATUS)
        host.let_go()
        await host.wait_for_state("t-1", "ended")
        await host.clock.advance(HOUR_S)
        calls = host.orchestrator.called(STATUS)[seen:]

    check_pauses(calls)


async def test_registration_that_finds_nobody_is_tried_with_growing_pauses(host: Host) -> None:
    host.orchestrator.always(REGISTER, http(503))
    async with host.runner():
        await host.clock.advance(HOUR_S)  # whoever needs the identity waits for it

    assert {call.request.target for call in host.orchestrator.calls} == {REGISTER}
    check_pauses(host.orchestrator.called(REGISTER))
