"""The orchestrator knows at every moment whether this node lives, and what it is at."""

import pytest

from tests.harness.host import Host
from tests.harness.loop import JUMPING
from tests.harness.orchestrator import BEAT, POLL
from tests.harness.server import http, json_response, stalled
from tests.harness.until import until
from tests.loops.steps import Log

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("slots", "task_ids"), [(1, {}), (3, {"task_ids": ["t-1", "t-2"]})], ids=["1 slot", "3 slots"]
)
async def test_heartbeat_of_several_slots_has_all_tasks_and_of_one_no_list(
    host: Host, slots: int, task_ids: dict[str, list[str]]
) -> None:
    host.orchestrator.offer("t-1", "[hang]")
    host.orchestrator.offer("t-2", "[hang]")
    async with host.runner(max_tasks=slots):
        await host.wait_for_state(f"t-{min(slots, 2)}", "running")
        await host.clock.advance(17)
    body = host.orchestrator.called(BEAT)[-1].body
    assert body == {"node_id": "node-1", "status": "busy", "current_task_id": "t-1", **task_ids}

    seen = host.orchestrator.count(BEAT)
    async with host.runner(max_tasks=1):
        await host.wait_for_calls(BEAT, seen + 1)
    assert host.orchestrator.called(BEAT)[seen].body == body, "though there are fewer slots now"


async def test_heart_beats_while_an_image_is_fetched(host: Host) -> None:
    host.orchestrator.holds = True
    async with host.runner():
        await host.wait_for_calls(POLL)
        host.engine.shut("fetch_image")
        host.orchestrator.offer()
        await until(lambda: host.engine.waiting["fetch_image"] == 1)
        seen = host.orchestrator.count(BEAT)
        await host.clock.advance(300)
    beats = host.orchestrator.beats()[seen:]
    assert len(beats) >= 15
    assert set(beats) == {"busy", "error"}, "an error once nothing was received for long"


async def test_failed_heartbeat_is_followed_by_the_next_one(host: Host, log: Log) -> None:
    host.orchestrator.always(BEAT, http(500))
    async with host.runner():
        await host.clock.advance(600)
        assert host.orchestrator.count(BEAT) <= 45
        host.orchestrator.always(BEAT, None)
        await host.clock.advance(20)

    failures = [record for record in log.records if "cannot send a heartbeat" in record.message]
    assert [record.levelname for record in failures].count("WARNING") == 1
    assert "the orchestrator responds again" in log.text


async def test_change_is_reported_at_once_and_from_task_to_task_after_a_second(host: Host) -> None:
    host.orchestrator.holds = True
    async with host.runner(heartbeat_interval_s=10_000.0):
        await host.clock.settle()
        host.orchestrator.offer("t-1", "[wait-for go]")
        host.orchestrator.offer("t-2", "[wait-for further]")
        await until(lambda: host.orchestrator.beats() == ["idle", "busy"])
        # Busy from when it was accepted: its start may need the engine yet.
        await host.wait_for_state("t-1", "running")
        host.engine.shut("inspect")
        host.let_go()
        await until(lambda: host.state_of("t-2") is not None)
        host.engine.open("inspect")
        await host.wait_for_state("t-2", "running")
        await host.clock.settle()
        assert host.orchestrator.count(BEAT) == 2
        await host.clock.advance(1)
        await host.wait_for_calls(BEAT, 3)
        host.let_go("further")
        await until(lambda: host.orchestrator.beats()[3:] == ["idle"])
    tasks = [call.body.get("current_task_id") for call in host.orchestrator.called(BEAT)]
    assert tasks == [None, "t-1", "t-2", None]


async def test_burst_of_changes_is_spared_an_orchestrator_that_fails(host: Host) -> None:
    host.orchestrator.always(BEAT, http(500))
    for number in range(10):
        host.orchestrator.offer(f"t-{number}")
    async with host.runner():
        await host.wait_for_end("t-9")
        assert host.orchestrator.count(BEAT) == 1, "no time has gone by"
        await host.clock.advance(1)
        await host.wait_for_calls(BEAT, 2)


async def test_heartbeat_without_a_response_holds_up_no_task(host: Host) -> None:
    host.orchestrator.always(BEAT, stalled(b""))
    assert (await host.finish_task())["status"] == "success"


@pytest.mark.parametrize("anyio_backend", [JUMPING], ids=["jumping"])  # it has a second
async def test_last_heartbeat_is_offline(host: Host) -> None:
    host.orchestrator.offer()
    async with host.runner(once=True) as life:
        assert await life.end() == 0
    assert host.orchestrator.beats()[-1] == "offline"
    assert host.orchestrator.ends("t-1"), "the report goes out before"


async def test_end_does_not_wait_for_an_orchestrator_that_is_gone(host: Host, log: Log) -> None:
    host.orchestrator.then(BEAT, json_response({}))
    host.orchestrator.always(BEAT, stalled(b""))
    async with host.runner(once=True) as life:
        assert await life.end() == 0
    assert "cannot send that this node goes offline" not in log.text, "it was not heard out"
