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
    from tests.loops.steps import Log

pytestmark = pytest.mark.anyio

HOUR_S = 3600.0


FAILURES: dict[str, Answer] = {
    "silence": SILENCE,
    "500": http(500),
    "503": http(503),
    "429": http(429),
    "html with 200": http(200, b"<html>Welcome</html>"),
    "redirect": http(302),
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
    assert min(waits) >= 0.5
    assert waits[0] <= 2
    assert waits[1] <= 4
    assert max(waits) <= 60
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


async def test_node_that_was_deleted_registers_once_and_reports_its_task_once(host: Host) -> None:
    async with host.running_task(assigned={"timeout_seconds": 9000}) as life:
        host.orchestrator.keys.clear()  # and the new one will not hold the task
        await host.clock.advance(20)
        await host.wait_for_calls(REGISTER, 2)
        await host.clock.settle()
        host.orchestrator.always(STATUS, json_response({"detail": "not this node's task"}, 403))
        reported_before = host.orchestrator.count(STATUS)
        host.let_go()
        await host.wait_for_state("t-1", "closed")
        await host.clock.advance(HOUR_S)
        assert not life.over.is_set()
    assert host.orchestrator.count(STATUS) - reported_before == 1, "it is parked, not retried"
    assert host.orchestrator.count(REGISTER) == 2
    assert host.orchestrator.count(POLL) <= 2 + HOUR_S / (30 * 0.9)
    assert host.orchestrator.count(BEAT) <= 6 + HOUR_S / (15 * 0.9)


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
