"""A task can be cancelled at every step, and ends in what is true of it then."""

import pytest

from tests.harness.host import Host, container_of
from tests.harness.orchestrator import POLL, SILENCE, STATUS
from tests.harness.until import until
from tests.loops.steps import begin_and_leave

pytestmark = pytest.mark.anyio


async def cancel(host: Host) -> None:
    host.orchestrator.cancelled.append("t-1")
    await host.clock.advance(17)


async def check_that_it_never_started(host: Host) -> None:
    """Wait for the end of a task that was cancelled before its container started."""
    assert (await host.wait_for_end())["message"] == "cancelled: before it started"
    assert host.starts_of("t-1") == 0
    assert await host.engine.inspect(container_of("t-1")) is None
    assert not list((host.state_dir / "run").iterdir())


@pytest.mark.parametrize("call", ["fetch_image", "run"])
async def test_cancelled_before_its_container_started(host: Host, call: str) -> None:
    host.orchestrator.holds = True
    async with host.runner():
        await host.wait_for_calls(POLL)
        host.engine.shut(call)
        host.orchestrator.offer()
        await until(lambda: host.engine.waiting[call] == 1)
        await cancel(host)
        await check_that_it_never_started(host)


async def test_cancelled_while_its_claim_is_retried(host: Host) -> None:
    host.orchestrator.then(STATUS, *[SILENCE] * 8)
    host.orchestrator.offer()
    async with host.runner():
        await host.wait_for_calls(STATUS)
        await cancel(host)
        await host.clock.advance(200)
        await check_that_it_never_started(host)


async def test_cancelled_before_the_engine_says_that_its_container_runs(host: Host) -> None:
    host.engine.shut("after run")
    host.orchestrator.offer("t-1", "[hang]")
    async with host.runner():
        await until(lambda: host.engine.waiting["after run"] == 1)
        await cancel(host)
        end = await host.wait_for_end()
    assert end["message"].startswith("cancelled: stopped after ")
    assert await host.engine.inspect(container_of("t-1")) is None


@pytest.mark.parametrize(
    ("prompt", "output"),
    [("[print-line its last words][hang]", "\nits last words"), ("[ignore-term][hang]", "")],
    ids=["heeds term", "ignores term"],
)
async def test_cancelled_while_it_runs(host: Host, prompt: str, output: str) -> None:
    async with host.running_task(prompt):
        await cancel(host)
        end = await host.wait_for_end()
    assert end["status"] == "error"
    assert end["message"].startswith("cancelled: stopped after ")
    assert end["message"].endswith(output)
    assert await host.engine.inspect(container_of("t-1")) is None
    assert not list((host.state_dir / "run").iterdir())


async def test_no_other_task_is_cancelled(host: Host) -> None:
    host.orchestrator.offer("t-2", "[wait-for go]")
    async with host.running_task(max_tasks=2):
        await host.wait_for_state("t-2", "running")
        host.orchestrator.cancelled.append("unheard-of")
        await cancel(host)
        assert (await host.wait_for_end())["message"].startswith("cancelled: ")
        host.let_go()
        assert (await host.wait_for_end("t-2"))["status"] == "success"


async def test_cancelled_in_the_moment_of_its_end_has_its_own_end(host: Host) -> None:
    async with host.running_task():
        await host.clock.settle()
        host.engine.shut("stop")
        await cancel(host)
        await until(lambda: host.engine.waiting["stop"] == 1)
        host.clock.set_wall(-17)  # the container ends before it is stopped
        host.let_go()
        await host.engine.wait(container_of("t-1"))
        host.clock.set_wall(17)
        host.engine.open("stop")
        assert (await host.wait_for_end())["status"] == "success"


async def test_cancelled_after_its_end_changes_nothing(host: Host) -> None:
    host.engine.shut("last_output")
    host.orchestrator.offer()
    async with host.runner():
        await until(lambda: host.engine.waiting["last_output"] == 1)
        await cancel(host)
        host.engine.open("last_output")
        assert (await host.wait_for_end())["status"] == "success"


async def test_cancelled_task_is_open_while_the_engine_is_silent(host: Host) -> None:
    async with host.running_task("[hang]"):
        host.engine.silent = True
        await cancel(host)
        await until(lambda: host.orchestrator.beats()[-1] == "error")
        await host.clock.advance(120)
        assert not host.orchestrator.ends("t-1")
        host.engine.silent = False
        await host.clock.advance(61)
        assert (await host.wait_for_end())["message"].startswith("cancelled: ")
        await until(lambda: host.orchestrator.beats()[-1] == "idle")


async def test_cancellation_outlives_a_restart(host: Host) -> None:
    async with host.running_task("[hang]"):
        await host.clock.settle()
        host.engine.shut("stop")
        await cancel(host)
        await until(lambda: host.engine.waiting["stop"] == 1)
    host.orchestrator.cancelled.clear()
    host.engine.open("stop")
    async with host.runner():
        assert (await host.wait_for_end())["message"].startswith("cancelled: ")


async def test_task_cancelled_while_no_runner_lives_is_stopped_by_the_next(host: Host) -> None:
    await begin_and_leave(host, "[hang]")
    host.orchestrator.cancelled.append("t-1")
    async with host.runner():
        assert (await host.wait_for_end())["message"].startswith("cancelled: stopped after ")
    assert host.starts_of("t-1") == 1
